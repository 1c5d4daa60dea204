"""The options of the commands that prune. Command-line keys, YAML keys and field names are the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options.common import (
    BUDGET,
    CHOICE,
    COMPUTING,
    CUT,
    FOLDER,
    MEASURING,
    RECOVERY,
    TRAINING,
    shared,
)
from yolo_prune.options.fields import coerce_, option
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.options.places import AUTO, check_place
from yolo_prune.runtimes import RUNTIMES

_STEPS = "cuts on the way to the budget; 12 when not given, fewer for a large model on a CPU"
_CALIBRATION = (
    "training images to measure on; not given: 96 (classifiers 512), of a large model on a CPU fewer"
)


@dataclass(frozen=True)
class PruneConfig:
    """Options of ``prune``: what to cut, how far, how to recover, and what to measure."""

    model: str = shared("model")
    data: str = shared("data")
    weights: str | None = shared("weights")
    keep_macs: float | None = shared("keep_macs")
    gmacs: float | None = shared("gmacs")
    keep_params: float | None = shared("keep_params")
    target_speedup: float | None = shared("target_speedup")
    target_latency_ms: float | None = shared("target_latency_ms")
    target_fps: float | None = shared("target_fps")
    runtime: str | None = shared("runtime")
    target_device: str = shared("target_device")
    latency: str | None = shared("latency")
    imgsz: ImageSize | None = shared("imgsz")
    device: str | None = shared("device")
    seed: int = shared("seed")
    round_to: int | str = shared("round_to")
    min_width: int = shared("min_width")
    min_keep: float | None = shared("min_keep")
    criterion: str = shared("criterion")
    depth: bool = option(
        "drop residual blocks as a whole where that loses less than narrower layers", False, group=CUT
    )
    steps: int | None = shared("steps", help=_STEPS, default=None, was="rounds")
    keep_layers: tuple[str, ...] = shared("keep_layers", was="freeze")
    epochs: int = shared("epochs")
    batch: int = shared("batch")
    workers: int = shared("workers")
    recalibrate_bn: bool | str = option(
        "estimate BatchNorm statistics again after the cut; auto keeps what validates better",
        "auto",
        group=RECOVERY,
        choices=("auto", True, False),
    )
    fold: bool = shared("fold")
    calibration_images: int | None = shared("calibration_images", help=_CALIBRATION, default=None)
    recover_seconds: float = shared("recover_seconds")
    distill: bool = shared("distill")
    lr0: float | None = shared("lr0")
    optimizer: str = shared("optimizer")
    split: str = shared("split")
    quantize: int | None = option(
        "8 quantises the final model for onnxruntime and openvino of runtimes=, a row in the report for each",
        None,
        group=MEASURING,
        choices=(8,),
    )
    bench: bool = option("measure latency and FPS of parent and pruned model", True, group=MEASURING)
    file_images: int = option(
        "images of split= that timed files of parent and final model are evaluated on; 0: on none",
        500,
        group=MEASURING,
        low=0,
    )
    pictures: bool = option(
        "show in the report the images of the data where parent and final model differ most",
        True,
        group=MEASURING,
    )
    runtimes: tuple[str, ...] = shared("runtimes")
    threads: int | None = shared("threads")
    project: str = shared("project", default="runs/prune")
    name: str | None = shared("name")
    exist_ok: bool = shared("exist_ok")
    resume: bool = option("go on with an interrupted retraining in the run folder", False, group=FOLDER)
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")
    train_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coerce_(self)
        kinds = (*BUDGETS, *TARGETS)
        given = [key for key in kinds if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise ConfigError(f"give exactly one budget of {', '.join(kinds)}; {found}.")
        check_place(self, given[0], "runtimes= are those that are measured.")
        _refuse_training_options(self)


def _refuse_training_options(config: PruneConfig | SweepConfig) -> None:
    """Refuse options of a retraining that there will not be.

    Raises:
        ConfigError: Some are given, and ``epochs`` is 0.
    """
    given = list(config.train_args)
    given += ["lr0"] * (config.lr0 is not None) + ["optimizer"] * (config.optimizer != "auto")
    if given and not config.epochs:
        raise ConfigError(
            f"{', '.join(given)}: for retraining, and epochs=0 asks for none. Give epochs=, or leave it out."
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(InRunSettings):
    """Options of ``train``: everything that the host's own training takes, and pruning inside of it.

    The host's arguments are in ``train_args``; what is not given keeps the host's default.
    """

    model: str = shared(
        "model",
        help="checkpoint (*.pt), official model name or architecture (*.yaml); with resume, a last.pt",
    )
    data: str | None = shared("data", default=None)
    weights: str | None = shared("weights")
    teacher: str | None = option(
        "parent of a model that is already pruned, to learn from", None, group=TRAINING
    )
    recipe: str = option(
        "defaults for a model that is already pruned and has no budget",
        "gentle",
        group=TRAINING,
        choices=("gentle", "host"),
    )
    resume: bool = option(
        "go on with the interrupted training whose last.pt is the model", False, group=FOLDER
    )
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")
    train_args: Mapping[str, Any] = field(default_factory=dict)


_SHARES = (0.8, 0.65, 0.5, 0.35)
_TIMES_AS_FAST = "how many times as fast on runtime=, one or more, beside keep_macs= or instead"
_MILLISECONDS = "milliseconds that an image may take on runtime=, one or more"
_PER_SECOND = "images per second on runtime=, one or more"


@dataclass(frozen=True)
class SweepConfig:
    """Options of ``sweep``: many budgets and criteria, the front of accuracy and speed, and the choice."""

    model: str = shared("model")
    data: str = shared("data")
    weights: str | None = shared("weights")
    keep_macs: tuple[float, ...] = option(
        "fractions of the MACs that stay; 0.8,0.65,0.5,0.35 when nothing is given",
        (),
        group=BUDGET,
        low=0.01,
        high=1,
    )
    target_speedup: tuple[float, ...] = shared("target_speedup", help=_TIMES_AS_FAST, default=())
    target_latency_ms: tuple[float, ...] = shared("target_latency_ms", help=_MILLISECONDS, default=())
    target_fps: tuple[float, ...] = shared("target_fps", help=_PER_SECOND, default=())
    target_device: str = shared("target_device")
    criterion: tuple[str, ...] = shared(
        "criterion",
        help="what a channel is worth, one or more; auto: bn_scale after sparse training, else reconstruction",
        default=("auto",),
    )
    epochs: int = shared("epochs", help="epochs of retraining in every trial; 0 for none")
    imgsz: ImageSize | None = shared("imgsz")
    batch: int = shared("batch")
    steps: int | None = shared("steps", help=_STEPS, default=None, was="rounds")
    round_to: int | str = shared("round_to")
    min_width: int = shared("min_width")
    min_keep: float | None = shared("min_keep")
    keep_layers: tuple[str, ...] = shared("keep_layers")
    calibration_images: int | None = shared("calibration_images", help=_CALIBRATION, default=None)
    recover_seconds: float = shared("recover_seconds")
    distill: bool = shared("distill")
    lr0: float | None = shared("lr0")
    optimizer: str = shared("optimizer")
    split: str = shared("split")
    min_fps: float | None = option(
        "pick the most accurate model that is at least this fast", None, group=CHOICE, low=0
    )
    max_ap_drop: float | None = option(
        "pick the fastest model that loses no more AP of its task (of a classifier: top-1) than this",
        None,
        group=CHOICE,
        low=0,
        high=1,
    )
    runtime: str = option(
        "runtime whose FPS count, and that targets are met on",
        "onnxruntime",
        group=MEASURING,
        choices=tuple(RUNTIMES),
    )
    threads: int | None = shared("threads")
    engine: str = option(
        "where trials run: in this process, or side by side on a Ray cluster",
        "process",
        group=COMPUTING,
        choices=("process", "ray"),
    )
    trial_cpus: int = option("with engine=ray: CPUs that a trial gets", 1, group=COMPUTING, low=1, high=1024)
    trial_gpus: float | None = option(
        "with engine=ray: GPUs that a trial gets; chosen when not given", None, group=COMPUTING, low=0
    )
    device: str | None = shared("device")
    seed: int = shared("seed")
    workers: int = shared("workers")
    project: str = shared("project", default="runs/sweep")
    name: str | None = shared("name")
    exist_ok: bool = shared("exist_ok")
    resume: bool = option("go on with the interrupted sweep in the folder name=", False, group=FOLDER)
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")
    train_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coerce_(self)
        if not any(getattr(self, key) for key in ("keep_macs", *TARGETS)):
            object.__setattr__(self, "keep_macs", _SHARES)
        if not self.criterion:
            raise ConfigError("a sweep needs at least one criterion.")
        if self.target_device != "cpu" and not self.asks_runtime:
            raise ConfigError(
                f"target_device={self.target_device} is where targets are met, and there is none: give one of "
                f"{', '.join(TARGETS)}, or leave it out."
            )
        _refuse_training_options(self)

    @property
    def budgets(self) -> list[tuple[str, float]]:
        """Names and values of what is tried."""
        return [(key, value) for key in ("keep_macs", *TARGETS) for value in getattr(self, key)]

    @property
    def asks_runtime(self) -> bool:
        """Whether some trial is about what its runtime says."""
        return self.round_to == AUTO or any(getattr(self, key) for key in TARGETS)


@dataclass(frozen=True)
class DemoConfig:
    """Options of ``demo``: draw a data set, train a small detector on it, prune it, retrain it, report."""

    project: str = shared("project", default="runs/demo")
    name: str | None = shared("name")
    exist_ok: bool = shared("exist_ok")
    model: str | None = shared(
        "model", help="your own detector instead of the one that the demo trains", default=None
    )
    data: str | None = shared(
        "data", help="your own data set instead of the one that the demo draws", default=None
    )
    keep_macs: float = shared("keep_macs", help="fraction of the MACs that stays", default=0.5)
    train_epochs: int | None = option(
        "epochs of the first training; chosen when not given", None, group=TRAINING, low=1
    )
    epochs: int | None = shared("epochs", help="epochs of retraining; chosen when not given", default=None)
    device: str | None = shared("device")
    seed: int = shared("seed")
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
