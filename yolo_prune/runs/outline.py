"""What a run is going to do, said before it begins, and how long each stage took the last time on this machine."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune import __version__
from yolo_prune.files import cache_folder, write_text
from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.options import PruneConfig
from yolo_prune.progress import LOGGER
from yolo_prune.recover.effort import Effort
from yolo_prune.runs.job import PruneJob
from yolo_prune.runs.preflight import budget_of, choose_criterion
from yolo_prune.runtimes.runtime import available_cpus, cpu_name
from yolo_prune.words import counted, duration


@dataclass(frozen=True)
class Stage:
    """A part of a run: its name in ``timing_s`` of the report, and what is done, in words."""

    name: str
    what: str


@dataclass(frozen=True)
class Before:
    """How long a stage took, and what was done then."""

    seconds: float
    what: str


def stages_of(config: PruneConfig, budget: str, criterion: str, effort: Effort) -> list[Stage]:
    """Return the stages of a run of ``prune``, in order.

    Args:
        config: Its options.
        budget: In words, such as ``keep_macs=0.5``.
        criterion: What a channel is worth; ``auto`` was decided.
        effort: Images and steps of the cut.
    """
    judged = f"on the {config.split} split"
    teacher = ", the parent as teacher" if config.distill else ""
    images = counted(effort.images, "training image")
    cut = f"to {budget} in {counted(effort.steps, 'step')} by {criterion}, {images}"
    if effort.reduced:
        cut = f"{cut} (few: a large model on a CPU; steps= and calibration_images= ask for more)"
    pictures = "the images where parent and final model differ most"
    files = (
        f"; AP of the files on at most {counted(config.file_images, 'image')}" if config.file_images else ""
    )
    asked: list[tuple[str, str, object]] = [
        ("evaluate parent", judged, True),
        ("cut", cut, True),
        ("recover", "without training, what validates best", True),
        ("imitate", f"the parent, for at most {duration(config.recover_seconds)}", config.recover_seconds),
        ("evaluate pruned", judged, True),
        ("retrain", f"{counted(config.epochs, 'epoch')}{teacher}", config.epochs),
        ("evaluate retrained", judged, config.epochs),
        (
            "quantise",
            f"the final model to INT8, {images}",
            config.quantize,
        ),
        ("controls", "the parent at lower resolutions", True),
        ("intervals", "of accuracies and their differences, by bootstrap", True),
        ("bench", f"speed, alternately, on {', '.join(config.runtimes)}{files}", config.bench),
        ("examples", pictures, config.pictures),
    ]
    return [Stage(name, what) for name, what, wanted in asked if wanted]


def outline(title: str, stages: Sequence[Stage], before: Mapping[str, Before], when: str = "") -> str:
    """Return what will be done as a table; of what was never done here, no time is said.

    Args:
        title: Its first line.
        stages: In order.
        before: Stage -> how long it took the last time.
        when: That was.
    """
    names, whats = (max(map(len, column)) for column in zip(*((s.name, s.what) for s in stages), strict=True))
    lines = [title]
    if before:
        lines.append(f"  {'':{names + whats + 2}}  last time here{f' ({when})' if when else ''}")
    for stage in stages:
        past = before.get(stage.name)
        took = "" if past is None else duration(past.seconds)
        if past is not None and past.what != stage.what:
            took += f" ({past.what})"
        lines.append(f"  {stage.name:{names}}  {stage.what:{whats}}  {took}".rstrip())
    if before and all(stage.name in before for stage in stages):
        whole = duration(sum(before[stage.name].seconds for stage in stages))
        lines.append(f"  {'all':{names}}  {'':{whats}}  {whole}")
    return "\n".join(lines)


def announced(job: PruneJob) -> tuple[Memory, list[Stage]]:
    """Say what a run of ``prune`` is going to do; return its stages, and what keeps how long they took."""
    config, budget = job.config, budget_of(job.config)
    wanted = f"{budget.kind}={budget.value:g}"
    stages = stages_of(config, wanted, choose_criterion(config, job.loaded), job.effort)
    memory = Memory("prune", job.loaded.path, config.data, job.imgsz, job.device, config.threads)
    title = (
        f"{'going on with' if config.resume else 'pruning'} {config.model} to {wanted} with {config.data}, "
        f"{size_text(job.imgsz)} px, on {job.device}, in {job.space.root}:"
    )
    LOGGER.info("%s", outline(title, stages, *memory.recall()))
    return memory, stages


class Memory:
    """How long stages took for one model, data set and machine: a file in the user's cache."""

    def __init__(
        self,
        command: str,
        model: str | Path,
        data: str | Path,
        imgsz: ImageSize | None,
        device: str,
        threads: int | None,
    ) -> None:
        where = [
            *(__version__, command, _resolved(model), _resolved(data), size_text(imgsz or 0)),
            *(cpu_name(), str(available_cpus()), _gpu(device), str(threads)),
        ]
        key = hashlib.sha256("\n".join(where).encode()).hexdigest()[:16]
        self.file = cache_folder() / "stages" / f"{command}-{key}.json"

    def recall(self) -> tuple[dict[str, Before], str]:
        """Return the stages of the last run that came to its end, and the day; nothing where there was none."""
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            stages = {
                name: Before(float(one["seconds"]), str(one["what"]))
                for name, one in content["stages"].items()
            }
            return stages, str(content["date"])
        except FileNotFoundError:
            return {}, ""
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            LOGGER.warning("'%s' cannot be read (%s): how long stages took is not known.", self.file, error)
            return {}, ""

    def keep(self, stages: Sequence[Stage], seconds: Mapping[str, float]) -> None:
        """Keep the times of a run that came to its end; where that is not possible, go without."""
        took: dict[str, Any] = {
            stage.name: {"seconds": seconds[stage.name], "what": stage.what}
            for stage in stages
            if stage.name in seconds
        }
        day = datetime.date.today().isoformat()
        try:
            write_text(self.file, json.dumps({"date": day, "stages": took}, indent=1) + "\n")
        except OSError as error:
            LOGGER.warning("times of stages cannot be kept in '%s': %s.", self.file, error.strerror)


def _resolved(path: str | Path) -> str:
    """Return a file's whole path, and a name as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def _gpu(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)
