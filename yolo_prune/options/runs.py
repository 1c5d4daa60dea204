"""The options of every command. Command-line keys, YAML keys and field names are the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_prune.cut.budget import BUDGETS
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize, read_size
from yolo_prune.options.fields import SEED_MAX, coerce_, option
from yolo_prune.options.inrun import InRunSettings

RUNTIMES = ("torch", "onnxruntime")

_MODEL = "checkpoint (*.pt), official model name or architecture (*.yaml)"
_DATA = "data set in the host's format: a data.yaml, a folder of classes, or a name it knows"
_IMGSZ = "side of the square input in pixels, or height,width; the checkpoint's own when not given"
_SEED = "seed of everything random"
_DEVICE = "cpu, cuda:0 or the number of a GPU; chosen when not given"
_TRUST = "load classes that are not stock: they can run any code, so only for files of your own"
_IMPORTS = "with trust=true: Python files or modules with layers of your own, such as layers.py"
_DEBUG = "show the traceback of an error"
_VERBOSE = "print progress"
_PROJECT = "folder of the run folders"
_NAME = "name of the run folder; numbered when not given"
_EXIST_OK = "write into a run folder that exists"
_WORKERS = "processes that load images"
_OPTIMIZER = "the host's optimizer for retraining; auto is the package's gentle recipe"
_LR0 = "first learning rate of retraining; chosen when not given"
_SPLIT = "split of the data set to evaluate on"


@dataclass(frozen=True)
class PruneConfig:
    """Options of ``prune``: what to cut, how far, how to recover, and what to measure."""

    model: str = option(_MODEL)
    data: str = option(_DATA)
    keep_macs: float | None = option(
        "budget, one of three: fraction of the model's MACs that stays; of a pruned model, of what is left",
        None,
        low=0,
        high=1,
        inside=True,
    )
    gmacs: float | None = option("budget, one of three: MACs that stay, in 1e9 at imgsz", None, low=1e-6)
    keep_params: float | None = option(
        "budget, one of three: fraction of the model's parameters that stays",
        None,
        low=0,
        high=1,
        inside=True,
    )
    imgsz: ImageSize | None = option(_IMGSZ, None, low=32, multiple=32, read=read_size)
    device: str | None = option(_DEVICE, None)
    seed: int = option(_SEED, 0, low=0, high=SEED_MAX)
    round_to: int = option("widths become multiples of this many channels", 8, low=1, high=64)
    min_width: int = option("no layer gets narrower than this many channels", 8, low=1)
    min_keep: float | None = option(
        "share of its width that every layer keeps, 0 for none; chosen when not given", None, low=0, high=1
    )
    criterion: str = option("what a channel is worth: auto, or the name of a criterion", "auto")
    depth: bool = option("drop residual blocks as a whole where that loses less than narrower layers", False)
    steps: int = option(
        "steps of measuring, choosing and folding on the way to the budget", 12, low=1, high=100, was="rounds"
    )
    keep_layers: tuple[str, ...] = option(
        "modules that keep their channels, such as model.0,model.22", (), was="freeze"
    )
    epochs: int = option("epochs of retraining after the cut; 0 for none", 0, low=0)
    batch: int = option("images per batch of evaluation and training", 16, low=1)
    workers: int = option(_WORKERS, 2, low=0)
    recalibrate_bn: bool | str = option(
        "estimate BatchNorm statistics again after the cut; auto keeps what validates better",
        "auto",
        choices=("auto", True, False),
    )
    fold: bool = option("fold what removed channels contributed into the kept ones", True)
    calibration_images: int = option("training images that folding and scoring look at", 96, low=1)
    distill: bool = option("learn from the parent while retraining", True)
    lr0: float | None = option(_LR0, None, low=0)
    optimizer: str = option(_OPTIMIZER, "auto")
    split: str = option(_SPLIT, "val", choices=("val", "test", "train"))
    quantize: int | None = option(
        "8 quantises the final model for ONNX Runtime and gives it a row in the report", None, choices=(8,)
    )
    bench: bool = option("measure latency and FPS of parent and pruned model", True)
    runtimes: tuple[str, ...] = option("runtimes to measure on", RUNTIMES, choices=RUNTIMES)
    threads: int | None = option("CPU threads while measuring; all when not given", None, low=1, high=1024)
    project: str = option(_PROJECT, "runs/prune")
    name: str | None = option(_NAME, None)
    exist_ok: bool = option(_EXIST_OK, False)
    resume: bool = option("go on with an interrupted retraining in the run folder", False)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)
    train_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coerce_(self)
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise ConfigError(f"give exactly one budget of {', '.join(BUDGETS)}; {found}.")
        _refuse_training_options(self)


def _refuse_training_options(config: PruneConfig | SweepConfig) -> None:
    """Refuse options of a retraining that there will not be.

    Raises:
        ConfigError: Some are given, and ``epochs`` is 0.
    """
    given = list(config.train_args)
    if isinstance(config, PruneConfig):
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

    model: str = option(f"{_MODEL}; with resume, a last.pt")
    data: str | None = option(_DATA, None)
    teacher: str | None = option("parent of a model that is already pruned, to learn from", None)
    recipe: str = option(
        "defaults for a model that is already pruned and has no budget", "gentle", choices=("gentle", "host")
    )
    resume: bool = option("go on with the interrupted training whose last.pt is the model", False)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)
    train_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepConfig:
    """Options of ``sweep``: many budgets and criteria, the front of accuracy and speed, and the choice."""

    model: str = option(_MODEL)
    data: str = option(_DATA)
    keep_macs: tuple[float, ...] = option(
        "fractions of the MACs that stay", (0.8, 0.65, 0.5, 0.35), low=0.01, high=1
    )
    criterion: tuple[str, ...] = option("what a channel is worth, one or more names", ("auto",))
    epochs: int = option("epochs of retraining in every trial; 0 for none", 0, low=0)
    imgsz: ImageSize | None = option(_IMGSZ, None, low=32, multiple=32, read=read_size)
    batch: int = option("images per batch of evaluation and training", 16, low=1)
    steps: int = option(
        "steps of measuring, choosing and folding on the way to the budget", 12, low=1, high=100, was="rounds"
    )
    round_to: int = option("widths become multiples of this many channels", 8, low=1, high=64)
    min_width: int = option("no layer gets narrower than this many channels", 8, low=1)
    min_keep: float | None = option(
        "share of its width that every layer keeps, 0 for none; chosen when not given", None, low=0, high=1
    )
    min_fps: float | None = option("pick the most accurate model that is at least this fast", None, low=0)
    max_ap_drop: float | None = option(
        "pick the fastest model that loses no more AP (of a classifier: top-1) than this", None, low=0, high=1
    )
    runtime: str = option("runtime whose FPS count", "onnxruntime", choices=RUNTIMES)
    threads: int | None = option("CPU threads while measuring; all when not given", None, low=1, high=1024)
    engine: str = option(
        "where trials run: in this process, or on a Ray cluster", "process", choices=("process", "ray")
    )
    device: str | None = option(_DEVICE, None)
    seed: int = option(_SEED, 0, low=0, high=SEED_MAX)
    workers: int = option(_WORKERS, 2, low=0)
    project: str = option(_PROJECT, "runs/sweep")
    name: str | None = option(_NAME, None)
    exist_ok: bool = option(_EXIST_OK, False)
    resume: bool = option("go on with the interrupted sweep in the folder name=", False)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)
    train_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coerce_(self)
        if not self.keep_macs or not self.criterion:
            raise ConfigError("a sweep needs at least one keep_macs and one criterion.")
        _refuse_training_options(self)


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``eval``: COCO AP beside the host's own number, or top-1 and top-5 of a classifier."""

    model: str = option("checkpoint, architecture, or a deployed *.onnx, *.torchscript, *_openvino_model")
    data: str = option(_DATA)
    imgsz: ImageSize | None = option(_IMGSZ, None, low=32, multiple=32, read=read_size)
    batch: int = option("images per batch; a file of fixed input has its own", 16, low=1)
    device: str | None = option(_DEVICE, None)
    split: str = option(_SPLIT, "val", choices=("val", "test", "train"))
    rect: bool = option(
        "pad images to rectangles; false: to squares, as a file of fixed input gets them", True
    )
    workers: int = option(_WORKERS, 2, low=0)
    json: str | None = option("file for the result as JSON", None)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)

    def __post_init__(self) -> None:
        coerce_(self)


@dataclass(frozen=True)
class BenchConfig:
    """Options of ``bench``: latency and FPS of models against each other, in alternating rounds."""

    model: tuple[str, ...] = option("models to compare, such as parent.pt,pruned.pt (*.pt or *.onnx)")
    imgsz: ImageSize | None = option(_IMGSZ, None, low=32, multiple=32, read=read_size)
    runtimes: tuple[str, ...] = option("runtimes to measure on", RUNTIMES, choices=RUNTIMES)
    device: str = option("cpu, cuda:0 or the number of a GPU", "cpu")
    threads: int | None = option("CPU threads; all when not given", None, low=1, high=1024)
    batch: int = option("images per step", 1, low=1)
    rounds: int | None = option("rounds to measure; chosen from seconds when not given", None, low=2)
    seconds: float = option("time to measure each model, without warm-up", 10.0, low=0.1)
    half: bool = option("16-bit floating point, PyTorch on a GPU only", False)
    compile: bool = option(
        "torch.compile the networks, PyTorch only; takes minutes before it measures", False
    )
    json: str | None = option("file for the timings as JSON", None)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)

    def __post_init__(self) -> None:
        coerce_(self)
        if not self.model:
            raise ConfigError("'model' names no checkpoint: give model=parent.pt,pruned.pt.")


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``export``: an ONNX file, in 32 or 8 bits, and how far it is from its checkpoint."""

    model: str = option(_MODEL)
    data: str | None = option(f"{_DATA}; needed for quantize=8, which looks at its training images", None)
    quantize: int | None = option("8 for INT8; 32-bit floating point when not given", None, choices=(8,))
    out: str | None = option("file to write; beside the checkpoint when not given", None)
    imgsz: ImageSize | None = option(_IMGSZ, None, low=32, multiple=32, read=read_size)
    calibration_images: int = option("training images that quantize=8 looks at", 96, low=1)
    batch: int = option("images per batch of evaluation", 16, low=1)
    split: str = option(_SPLIT, "val", choices=("val", "test", "train"))
    seed: int = option("seed of the choice of images", 0, low=0, high=SEED_MAX)
    workers: int = option(_WORKERS, 2, low=0)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)

    def __post_init__(self) -> None:
        coerce_(self)
        if self.quantize and not self.data:
            raise ConfigError("quantize=8 needs data=: it looks at training images.")


@dataclass(frozen=True)
class InspectConfig:
    """Options of ``inspect``: the groups of channels that live and die together, and what each costs."""

    model: str = option(_MODEL)
    imgsz: ImageSize | None = option(_IMGSZ, None, low=32, multiple=32, read=read_size)
    json: str | None = option("file for the groups as JSON", None)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)

    def __post_init__(self) -> None:
        coerce_(self)


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``report``: write the report of a run folder again from its report.json."""

    run: str = option("run folder, such as runs/prune/prune")
    bench: bool = option("measure the speed of the run's models again, and keep the rest", False)
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)

    def __post_init__(self) -> None:
        coerce_(self)


@dataclass(frozen=True)
class DemoConfig:
    """Options of ``demo``: draw a data set, train a small detector on it, prune it, retrain it, report."""

    project: str = option(_PROJECT, "runs/demo")
    name: str | None = option(_NAME, None)
    exist_ok: bool = option(_EXIST_OK, False)
    model: str | None = option("your own detector instead of the one that the demo trains", None)
    data: str | None = option("your own data set instead of the one that the demo draws", None)
    keep_macs: float = option("budget: fraction of the MACs that stays", 0.5, low=0, high=1, inside=True)
    train_epochs: int | None = option("epochs of the first training; chosen when not given", None, low=1)
    epochs: int | None = option("epochs of retraining; chosen when not given", None, low=0)
    device: str | None = option(_DEVICE, None)
    seed: int = option(_SEED, 0, low=0, high=SEED_MAX)
    trust: bool = option(_TRUST, False)
    imports: tuple[str, ...] = option(_IMPORTS, ())
    verbose: bool = option(_VERBOSE, True)
    debug: bool = option(_DEBUG, False)

    def __post_init__(self) -> None:
        coerce_(self)
