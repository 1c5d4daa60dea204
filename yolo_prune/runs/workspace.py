"""The folder of a run: where it is, what lies in it, and how long each stage took."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_prune.errors import ConfigError
from yolo_prune.files import write_text
from yolo_prune.progress import LOGGER
from yolo_prune.report.examples import clear_examples
from yolo_prune.runtimes import RUNTIMES

OUTPUTS = (
    *("args.yaml", "plan.json", "recovery.json", "results.csv", "run.log"),
    *("report.json", "report.md", "report.csv", "report.html"),
    *("weights/parent.pt", "weights/pruned.pt", "weights/best.pt", "weights/last.pt"),
    *(
        f"weights/{stem}{entry.int8}"
        for stem in ("pruned", "best")
        for entry in RUNTIMES.values()
        if entry.int8
    ),
)
"""What a run writes, each whole or not at all."""


@dataclass
class Workspace:
    """A run folder ``project/name`` and the seconds that each stage took.

    Attributes:
        root: The folder.
        timing_s: Stage -> wall seconds, filled by :meth:`stage`.
    """

    root: Path
    timing_s: dict[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "weights"

    @property
    def plan(self) -> Path:
        """The plan as JSON."""
        return self.root / "plan.json"

    @contextmanager
    def stage(self, name: str, message: str) -> Iterator[None]:
        """Time a stage and say that it began.

        Args:
            name: Key in :attr:`timing_s`.
            message: What a person sees.
        """
        LOGGER.info("%s ...", message)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.timing_s[name] = round(self.timing_s.get(name, 0.0) + time.perf_counter() - begin, 3)

    def clear(self) -> None:
        """Delete what an earlier run wrote here, so that nothing of it can pass for this run's."""
        for name in OUTPUTS:
            place = self.root / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        clear_examples(self.root)

    def remember(self, name: str, value: Any) -> None:
        """Write a stage's result as ``name.json``, whole or not at all, so that a later run can go on from it."""
        write_text(self.root / f"{name}.json", json.dumps(value, indent=1) + "\n")

    def recall(self, name: str) -> Any:
        """Return what :meth:`remember` wrote, or None."""
        file = self.root / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def open_workspace(
    project: str, name: str | None, default: str, *, exist_ok: bool, resume: bool | None
) -> Workspace:
    """Make or reopen a run folder.

    Args:
        project: Folder of run folders.
        name: Name of this one; None: ``default``, numbered when it is taken.
        default: Name when none is given.
        exist_ok: Write into a folder that exists.
        resume: The folder must exist; None of a command that cannot go on in a folder.

    Returns:
        The workspace.

    Raises:
        ConfigError: The folder exists (or, with ``resume``, does not), or cannot be written.
    """
    base = Path(project)
    if resume and name is None:
        raise ConfigError("resume=true needs name= of the run folder to go on with.")
    if name is None:
        name, number = default, 1
        while not exist_ok and (base / name).exists():
            number += 1
            name = f"{default}{number}"
    root = base / name
    if resume and not root.is_dir():
        raise ConfigError(f"no run folder '{root}' to resume.")
    if root.exists() and any(root.iterdir() if root.is_dir() else [root]) and not (exist_ok or resume):
        going_on = "" if resume is None else "resume=true to go on with what was stopped in it, "
        raise ConfigError(
            f"the run folder '{root}' exists. Choose another name=, {going_on}or exist_ok=true to write into it."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / "weights").mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the run folder '{root}': {error.strerror}.") from error
    if not os.access(root, os.W_OK):
        raise ConfigError(f"cannot write into the run folder '{root}'.")
    return Workspace(root)
