"""The options of ``check``: what a model must reach, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options.common import LIMITS, MEASURING, OUTPUT, shared
from yolo_prune.options.fields import coerce_, option
from yolo_prune.runtimes import RUNTIMES

PERCENTILES = ("p50", "p90", "p95", "p99")
REQUIREMENTS = (
    *("min_fps", "max_latency_ms", "min_speedup", "min_ap", "min_top1"),
    *("max_size_mb", "max_memory_mb"),
)
"""Keys of which at least one must be given."""


@dataclass(frozen=True)
class CheckConfig:
    """Options of ``check``: does a model reach what it must, on this machine, beyond the noise."""

    model: str = shared("model", help="what is deployed, such as best.onnx; or a checkpoint")
    data: str | None = shared("data", help="data set for min_ap= or min_top1=", default=None)
    imgsz: ImageSize | None = shared(
        "imgsz",
        help="height,width of the input, or one side of a square; the file's own when not given",
        low=1,
        multiple=1,
    )
    min_fps: float | None = option(
        "least images per second, at the median latency", None, group=LIMITS, low=0.001
    )
    max_latency_ms: float | None = option(
        "largest latency of a batch, in ms, at percentile=", None, group=LIMITS, low=0.001
    )
    percentile: str = option(
        "which latency max_latency_ms= is of; p50 is the median", "p95", group=LIMITS, choices=PERCENTILES
    )
    min_speedup: float | None = option(
        "least factor by which it is faster than against=", None, group=LIMITS, low=0.001
    )
    against: str | None = option(
        "model that min_speedup= compares with, measured alternately", None, group=LIMITS
    )
    min_ap: float | None = option(
        "least COCO AP of the boxes that it finds in data=, in [0, 1]", None, group=LIMITS, low=0, high=1
    )
    min_top1: float | None = option(
        "least top-1 of a classifier, in [0, 1]", None, group=LIMITS, low=0, high=1
    )
    max_size_mb: float | None = option("largest size of its files, in 1e6 bytes", None, group=LIMITS, low=0.0)
    max_memory_mb: float | None = option(
        "largest memory of the process that runs it, in 1e6 bytes", None, group=LIMITS, low=0.0
    )
    runtime: str | None = option(
        "what runs it; chosen by the ending of its name when not given",
        None,
        group=MEASURING,
        choices=tuple(RUNTIMES),
    )
    device: str = shared("device", help="cpu, cuda:0 or the number of a GPU", default="cpu")
    threads: int | None = shared("threads", help="CPU threads; all when not given")
    batch: int | None = shared(
        "batch", help="images per step; the file's own, or 1, when not given", default=None
    )
    seconds: float = option("longest time to measure, without warm-up", 10.0, group=MEASURING, low=0.1)
    early: bool = option(
        "end once all is decided; false: measure for all of seconds=, for example until a board is hot",
        True,
        group=MEASURING,
    )
    source: str | None = option(
        "video, folder of images or number of a camera: reading it is timed too", None, group=MEASURING
    )
    split: str = shared("split")
    json: str | None = shared("json")
    junit: str | None = option(
        "file for the verdicts as JUnit XML, which CI systems read", None, group=OUTPUT
    )
    md: str | None = option(
        "file for the verdicts as Markdown, such as the summary of a job", None, group=OUTPUT
    )
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
        if all(getattr(self, key) is None for key in REQUIREMENTS):
            raise ConfigError(f"nothing to check: give at least one of {'=, '.join(REQUIREMENTS)}=.")
        if (self.min_speedup is None) != (self.against is None):
            raise ConfigError("min_speedup= and against= belong together: give both or none.")
        if (self.min_ap is not None or self.min_top1 is not None) != (self.data is not None):
            raise ConfigError(
                "data= and min_ap= (of a classifier min_top1=) belong together: give both or none."
            )
        if self.min_ap is not None and self.min_top1 is not None:
            raise ConfigError("min_ap= is of a detector and min_top1= of a classifier: give one of them.")
        if self.source is not None and self.source.isdecimal() and self.against is not None:
            raise ConfigError("a camera feeds one model at a time: give a video or a folder with against=.")
        if self.max_memory_mb is not None and self.device.strip().lower() != "cpu":
            raise ConfigError("max_memory_mb= is of the memory of the CPU: it needs device=cpu.")

    @property
    def percent(self) -> float:
        """The percentile as a number."""
        return float(self.percentile.removeprefix("p"))
