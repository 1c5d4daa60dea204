"""The options of the commands that measure, show or write, and cut nothing."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options.common import COMPUTING, FILE, FOLDER, MEASURING, MODEL, OUTPUT, shared
from yolo_prune.options.fields import coerce_, option
from yolo_prune.runtimes import EXPORTS

_WITH_INT8, _WITH_HALF = ("onnx", "openvino"), ("openvino", "ncnn")


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``eval``: AP of boxes, masks, key points or oriented boxes, or top-1 and top-5 of a classifier."""

    model: str = shared(
        "model", help="checkpoint, architecture, or a deployed *.onnx, *.torchscript, *_openvino_model"
    )
    data: str = shared("data")
    weights: str | None = shared("weights")
    imgsz: ImageSize | None = shared("imgsz")
    runtime: str | None = shared(
        "runtime", help="evaluate as deployed on this runtime; a checkpoint is exported and compared first"
    )
    batch: int = shared("batch", help="images per batch; a file of fixed input has its own")
    device: str | None = shared("device")
    split: str = shared("split")
    rect: bool = option(
        "pad images to rectangles; false: to squares, as a file of fixed input gets them",
        True,
        group=MEASURING,
    )
    workers: int = shared("workers")
    json: str | None = shared("json")
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)


@dataclass(frozen=True)
class BenchConfig:
    """Options of ``bench``: latency and FPS of models against each other, in alternating rounds."""

    model: tuple[str, ...] = shared(
        "model", help="models to compare, such as parent.pt,pruned.pt (*.pt or *.onnx)"
    )
    imgsz: ImageSize | None = shared("imgsz")
    runtimes: tuple[str, ...] = shared("runtimes")
    device: str = shared("device", help="cpu, cuda:0 or the number of a GPU", default="cpu")
    threads: int | None = shared("threads", help="CPU threads; all when not given")
    batch: int = shared("batch", help="images per step", default=1)
    rounds: int | None = option(
        "alternating rounds to measure; chosen from seconds when not given", None, group=MEASURING, low=2
    )
    seconds: float = option("time to measure each model, without warm-up", 10.0, group=MEASURING, low=0.1)
    half: bool = option(
        "16-bit floating point: PyTorch on a GPU, openvino and ncnn on CPUs that compute in it",
        False,
        group=COMPUTING,
    )
    compile: bool = option(
        "torch.compile the networks, PyTorch only; takes minutes before it measures", False, group=COMPUTING
    )
    json: str | None = shared("json", help="file for the timings as JSON")
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
        if not self.model:
            raise ConfigError("'model' names no checkpoint: give model=parent.pt,pruned.pt.")


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``export``: the file or folder that a runtime runs, and how far it is from its checkpoint."""

    model: str = shared("model")
    data: str | None = option(
        "data set in the host's format; needed for quantize=8, which looks at its training images",
        None,
        group=MODEL,
    )
    format: str = option(
        "what to write: a file, of openvino and ncnn a folder", "onnx", group=FILE, choices=tuple(EXPORTS)
    )
    quantize: int | None = option(
        "8 for INT8, of onnx and openvino; 32-bit floating point when not given",
        None,
        group=FILE,
        choices=(8,),
    )
    half: bool = option("keep the weights of openvino and ncnn in 16 bits", False, group=FILE)
    out: str | None = option(
        "file or folder to write; beside the checkpoint when not given", None, group=FILE
    )
    imgsz: ImageSize | None = shared("imgsz")
    calibration_images: int = shared(
        "calibration_images", help="training images that quantize=8 looks at", group=FILE
    )
    batch: int = shared("batch", help="images per batch of evaluation")
    split: str = shared("split")
    seed: int = shared("seed", help="seed of the choice of images")
    workers: int = shared("workers")
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
        if self.quantize and not self.data:
            raise ConfigError("quantize=8 needs data=: it looks at training images.")
        if self.quantize and self.format not in _WITH_INT8:
            raise ConfigError(
                f"quantize=8 is for format={' and '.join(_WITH_INT8)}, got format={self.format}."
            )
        if self.half and (self.quantize or self.format not in _WITH_HALF):
            raise ConfigError(
                f"half=true is for format={' and '.join(_WITH_HALF)} without quantize=, got format={self.format}."
            )


@dataclass(frozen=True)
class InspectConfig:
    """Options of ``inspect``: the groups of channels that live and die together, and what each costs."""

    model: str = shared("model")
    weights: str | None = shared("weights")
    plan: str | None = option("plan.json of a cut of this model, to show what it keeps", None, group=MODEL)
    imgsz: ImageSize | None = shared("imgsz")
    plot: str | None = option(
        "file for a picture of the layers, what is kept and frozen: *.html, *.svg or *.png",
        None,
        group=OUTPUT,
    )
    json: str | None = shared("json", help="file for the groups as JSON")
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``report``: write the report of a run folder again, or compare several."""

    run: tuple[str, ...] = option(
        "run folder, such as runs/prune/prune; several are compared, and the key may be left out: report a/ b/",
        group=FOLDER,
    )
    html: str | None = option("page of a comparison, with its chart", None, group=FILE)
    bench: bool = option(
        "measure the speed of the run's models again, and keep the rest", False, group=MEASURING
    )
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
        if not self.run:
            raise ConfigError("'run' names no folder: give run=runs/prune/prune.")
        if self.bench and len(self.run) > 1:
            raise ConfigError(f"bench=true measures one run again, and {len(self.run)} are named.")


@dataclass(frozen=True)
class CompletionConfig:
    """Options of ``completion``: the script that a shell completes this program's words with."""

    shell: str = option("which shell; the key may be left out", group=OUTPUT, choices=("bash", "zsh", "fish"))
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)


@dataclass(frozen=True)
class DoctorConfig:
    """Options of ``doctor``: what is installed here and whether it works."""

    json: str | None = shared("json")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
