"""What a check measures: an exported file as it is, or a checkpoint, exported where the runtime wants a file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_prune.adapters.hosts import find_host, guarded, hosts
from yolo_prune.bench.exports import Exports
from yolo_prune.errors import BenchmarkError, CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.options import CheckConfig
from yolo_prune.runtimes import RUNTIMES, is_exported
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    Settings,
    check_runs,
    no_checkpoint,
    open_runtime,
    read_file,
)

if TYPE_CHECKING:
    from yolo_prune.accuracy.deployed import DeployedModel
    from yolo_prune.accuracy.number import Accuracy
    from yolo_prune.accuracy.task import Task
    from yolo_prune.adapters.stored import LoadedModel

_BATCH = 16  # images that a host evaluates a checkpoint with at once
_COMPARED = 4  # images that an exported file is compared with its checkpoint on


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be measured.

    Attributes:
        name: As it was given.
        file: What runs.
        imgsz: Size of its input in pixels.
        batch: Images per step.
        precision: Of its weights.
        task: The host's name of what it does; None where the file does not say.
        deployed: What an exported file says that its output means.
        loaded: The checkpoint that was given.
        reference: What a file that was exported from it must agree with.
    """

    name: str
    file: Path
    imgsz: ImageSize
    batch: int
    precision: str
    task: str | None
    deployed: DeployedModel | None = None
    loaded: LoadedModel | None = field(default=None, repr=False)
    reference: Path | None = None


def open_subject(name: str, runtime: str, config: CheckConfig, exports: Exports, stack: ExitStack) -> Subject:
    """Find out what a model takes; torch and a host are imported for a checkpoint alone.

    Args:
        name: A file, or what a host takes for one.
        runtime: What it runs on.
        config: The options.
        exports: Keeps the files that checkpoints are exported to.
        stack: Keeps the host of a checkpoint guarded.

    Raises:
        ConfigError: The runtime does not run it, or its size is open and not given.
        CheckpointError: It is missing or damaged.
    """
    entry = RUNTIMES[runtime]
    if is_exported(name):
        check_runs(runtime, name)
        return _exported(name, Path(name), runtime, config)
    stack.enter_context(guarded([name], config))
    loaded = find_host(name).load(name, trust=config.trust)
    imgsz, batch = config.imgsz or loaded.imgsz, config.batch or 1
    if entry.checkpoints:
        return Subject(name, loaded.path, imgsz, batch, "float32", loaded.task, loaded=loaded)
    if not entry.exported:
        raise ConfigError(f"the '{runtime}' runtime does not run '{name}': export it first.")
    files, sizes = {name: loaded.path}, {name: imgsz}
    made = exports.of(files, sizes, ending=entry.exported, batch=batch, trust=config.trust)
    images = None if config.data is None else _task(name, loaded, config, "cpu").image_files(_COMPARED)
    references = exports.references(files, sizes, images=images, loaded={name: loaded})
    return replace(_exported(name, made[name], runtime, config), loaded=loaded, reference=references[name])


def _exported(name: str, file: Path, runtime: str, config: CheckConfig) -> Subject:
    """Read what an exported file says of itself."""
    if not file.exists():
        raise CheckpointError(f"there is no file '{file}'.")
    facts = read_file(runtime, file)
    stated = (host.read_export(facts.metadata) for host in hosts())
    deployed = next((each for each in stated if each is not None), None)
    if config.imgsz is not None and facts.imgsz not in (None, config.imgsz):
        raise ConfigError(
            f"'{name}' takes images of {size_text(facts.imgsz or 0)} px and imgsz={size_text(config.imgsz)} was asked "
            "for. Leave imgsz= out, or export it again."
        )
    imgsz = config.imgsz or facts.imgsz or (deployed.imgsz if deployed else None)
    if imgsz is None:
        raise ConfigError(f"'{name}' takes images of any size: give imgsz=.")
    if config.batch is not None and facts.batch not in (None, config.batch):
        raise ConfigError(
            f"'{name}' takes {facts.batch} images at once and batch={config.batch} was asked for. Leave batch= out, or "
            "export it again."
        )
    batch = config.batch or facts.batch or 1
    return Subject(name, file, imgsz, batch, facts.precision, deployed.task if deployed else None, deployed)


def accuracy_of(own: Subject, runtime: str, settings: Settings, config: CheckConfig) -> Accuracy:
    """Return the accuracy of an exported file on its runtime, or of a checkpoint as its host evaluates it."""
    from yolo_prune.accuracy.deployed import file_accuracy

    data = config.data or ""
    if own.deployed is not None:
        try:
            opened = open_runtime(runtime, own.file, own.imgsz, settings, no_checkpoint)
        except DeviceUnavailableError as error:
            raise BenchmarkError(f"not measured: {error}.") from error
        return file_accuracy(opened, own.deployed, data, imgsz=own.imgsz, batch=own.batch, split=config.split)
    if own.loaded is None:
        raise CheckpointError(f"'{own.name}' does not say its task, classes and image size.")
    task = _task(own.name, own.loaded, config, settings.device)
    return task.evaluate(own.loaded.module, own.imgsz).of_files


def _task(name: str, loaded: LoadedModel, config: CheckConfig, device: str) -> Task:
    """Find the data that a checkpoint is measured on."""
    return find_host(name).open_task(
        loaded,
        config.data or "",
        split=config.split,
        batch=_BATCH,
        device=device,
        workers=0,
        rect=False,  # padded to the input that is timed
    )


def size_mb(file: Path) -> float:
    """Return the size of a model in 1e6 bytes: of a file with the files of weights beside it, or of a whole folder."""
    beside = [file, *(file.with_name(f"{file.name}{ending}") for ending in (".data", "_data"))]
    if file.suffix in (".xml", ".param"):
        beside.append(file.with_suffix(".bin"))
    files = file.rglob("*") if file.is_dir() else beside
    return sum(each.stat().st_size for each in files if each.is_file()) / 1e6
