"""The options of ``latency``: what the layers of a model take, measured here or on a board."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options.common import FILE, MEASURING, shared
from yolo_prune.options.fields import coerce_, option
from yolo_prune.runtimes import RUNTIMES


@dataclass(frozen=True)
class LatencyConfig:
    """Options of ``latency``: a table for ``prune latency=``, or the files that a board measures it from."""

    model: str = shared("model", help="checkpoint, or the folder that layers= wrote")
    out: str | None = option("file for the table, such as table.json", None, group=FILE)
    layers: str | None = option(
        "folder for the layers as files of the runtime: copy it to the board and give it as model= there",
        None,
        group=FILE,
    )
    runtime: str = option("what runs the layers", "onnxruntime", group=MEASURING, choices=tuple(RUNTIMES))
    imgsz: ImageSize | None = shared("imgsz")
    device: str = shared("device", help="cpu, or cuda:0 where the runtime has it", default="cpu")
    threads: int | None = shared("threads")
    weights: str | None = shared("weights")
    trust: bool = shared("trust")
    imports: tuple[str, ...] = shared("imports")
    verbose: bool = shared("verbose")
    debug: bool = shared("debug")

    def __post_init__(self) -> None:
        coerce_(self)
        if (self.out is None) == (self.layers is None):
            raise ConfigError(
                "give out=table.json to measure here, or layers=FOLDER to write what another machine measures, one of "
                "them."
            )
