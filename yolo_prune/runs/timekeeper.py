"""Times the models of a training that is cut to a time, and remembers in the run folder what it measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.bench.layer_table import write_table
from yolo_prune.cost.granularity import Granularity
from yolo_prune.cost.latency import Latency
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.files import write_text
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.options.places import AUTO, has_target
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import Timed
from yolo_prune.runs.latency import Deployment, Place, ask_runtime, stopwatch
from yolo_prune.train.timing import Measure

TABLE, MEASURED = "latency.json", "latency_measured.json"


@dataclass(frozen=True)
class RunTimekeeper:
    """See :class:`yolo_prune.train.timing.Timekeeper`.

    Attributes:
        settings: How the training is pruned.
        place: Where its models must be fast.
        deployment: How they are written.
        folder: Run folder; ``latency.json`` there is a table as ``yolo-prune latency`` writes it.
        parent: File of the model before the first cut.
        writes_parent: Nobody else writes that file.
    """

    settings: InRunSettings
    place: Place
    deployment: Deployment
    folder: Path
    parent: Path
    writes_parent: bool = True

    @staticmethod
    def of(
        settings: InRunSettings,
        deployment: Deployment,
        folder: Path,
        *,
        writes_parent: bool,
        trust: bool = False,
        imports: Sequence[str] = (),
    ) -> RunTimekeeper:
        """Return the one of a run folder, at the place that the settings name."""
        place = Place.of(settings, settings.target_threads, trust=trust, imports=imports)
        return RunTimekeeper(
            settings, place, deployment, folder, folder / "weights" / "parent.pt", writes_parent
        )

    @property
    def where(self) -> dict[str, Any]:
        """Runtime, device and threads."""
        return self.place.where

    def ask(self, parent: Traced) -> tuple[Latency | None, Granularity | None]:
        """Measure what the settings need, and write ``latency.json``."""
        target, auto = has_target(self.settings), self.settings.round_to == AUTO
        (self.folder / MEASURED).unlink(missing_ok=True)  # of an earlier run in this folder
        asked, _ = ask_runtime(self.place, self.deployment, parent, target=target, auto=auto)
        if self.place.table is None:
            write_table(self.folder / TABLE, asked.times, self.deployment.imgsz)
        return asked.latency, asked.granularity

    def keep(self, parent: nn.Module) -> None:
        """Write the model before the first cut."""
        if self.writes_parent:
            self.deployment.write(parent, self.parent, None)

    @contextmanager
    def watch(self, whole_ms: float, cuts: str) -> Iterator[Measure | None]:
        """Yield what times models beside the one before the first cut; what was measured once is not again."""
        if self.place.table is not None:
            yield None
            return
        before = PrunePlan.from_json(cuts) if cuts else None
        with stopwatch(self.place, self.deployment, self.parent, whole_ms) as measure:

            def remembered(module: nn.Module, plan: PrunePlan) -> Timed:
                whole = before.then(plan) if before else plan
                file, key = self.folder / MEASURED, _key(whole)
                known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
                if key in known:
                    LOGGER.info("the time of this model is known from before the interruption")
                    return Timed(**known[key])
                timed = measure(module, whole)
                write_text(file, json.dumps({**known, key: asdict(timed)}, indent=1) + "\n")
                return timed

            yield remembered


def _key(plan: PrunePlan) -> str:
    """Return what tells models of one training apart: which channels they keep."""
    return hashlib.sha256(json.dumps([plan.dropped, plan.keep], sort_keys=True).encode()).hexdigest()[:16]
