"""What all runtimes of exported files share: arrays go in and come out, and the file says what they are."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError, one_line
from yolo_prune.imgsz import ImageSize, height_width, read_size, size_text
from yolo_prune.runtimes.detections import Detections, detect
from yolo_prune.runtimes.images import CLASSIFIER, DETECTOR, Image, to_input
from yolo_prune.runtimes.runtime import DeviceUnavailableError, FileFacts, Settings


class FileRuntime:
    """An exported file, ready to run."""

    def __init__(
        self,
        run: Callable[[NDArray[Any]], NDArray[Any]],
        *,
        imgsz: ImageSize,
        channels: int,
        file: FileFacts,
        classifies: bool,
        facts: dict[str, Any],
        dtype: Any = np.float32,
    ) -> None:
        """Keep what runs the file.

        Args:
            run: Turns [B, C, H, W] of ``dtype`` into the file's first output, an array of its own.
            imgsz: Size of the network input, in pixels.
            channels: C.
            file: What the file says of itself, and in it how many classes the model tells apart.
            classifies: Whether the output is scores of classes alone.
            facts: See :class:`Runtime`.
            dtype: Of its input.
        """
        self.facts = facts
        self.file = file
        self.channels = channels
        around = CLASSIFIER if classifies else DETECTOR
        self.phases = around.phases
        self._resize = around.resize
        self._run = run
        self._imgsz = imgsz
        self._classes = class_count(file.metadata)
        self._dtype = dtype

    def preprocess(self, images: Sequence[Image]) -> NDArray[Any]:
        """Turn images into [B, channels, height, width] in the type that the file wants."""
        return to_input(images, self._imgsz, self._resize).astype(self._dtype, copy=False)

    def infer(self, batch: NDArray[Any]) -> tuple[NDArray[Any], float | None]:
        """Run the file; the host's clock measures it, because it returns when the output is there."""
        return self._run(batch.astype(self._dtype, copy=False)), None

    def postprocess(self, output: NDArray[Any]) -> list[Detections]:
        """Suppress overlapping boxes."""
        return detect(self.as_array(output), self._classes)

    def as_array(self, output: NDArray[Any]) -> NDArray[np.float32]:
        """Return the output in 32 bits."""
        return output.astype(np.float32, copy=False)


def refuse_options_of_torch(name: str, settings: Settings, *, half: bool = False) -> None:
    """Raise ConfigError where a runtime of files is asked for what PyTorch alone does with a checkpoint.

    Args:
        name: The runtime.
        settings: What is asked for.
        half: Whether it computes in 16 bits what is kept in 32.
    """
    if settings.half and not half:
        raise ConfigError(
            f"half=true applies to torch, openvino and ncnn; {name} runs a file in the precision that it has."
        )
    if settings.compile:
        raise ConfigError(f"compile=true applies to the torch runtime; {name} optimises every model itself.")


def refuse_other_devices(name: str, settings: Settings) -> None:
    """Raise DeviceUnavailableError where a runtime that is measured on the CPU alone is asked for another device."""
    if settings.device != "cpu":
        raise DeviceUnavailableError(f"the {name} runtime is measured on the CPU alone")


def check_input(shape: Sequence[int | str | None], path: Path, imgsz: ImageSize, batch: int) -> None:
    """Raise ConfigError when the file's fixed input [B, C, H, W] does not fit; names stand for any size.

    How many channels its images have is the file's own affair.
    """
    fixed = [size if isinstance(size, int) else None for size in shape]
    wanted = [batch, *fixed[1:2], *height_width(imgsz)]
    if len(fixed) != 4 or any(size not in (None, want) for size, want in zip(fixed, wanted, strict=True)):
        raise ConfigError(
            f"'{path}' takes inputs of shape {list(shape)}, expected {['C' if n is None else n for n in wanted]}. "
            f"Export it again with imgsz={size_text(imgsz)} and batch={batch}."
        )


def the_file_in(path: Path, ending: str) -> Path:
    """Return the one file with an ending in a folder; a file itself.

    Raises:
        CheckpointError: There is none, or there are several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{ending}"))
    if len(found) != 1:
        raise CheckpointError(f"'{path}' holds {len(found)} networks (*{ending}), expected one.")
    return found[0]


def metadata_beside(file: Path) -> dict[str, str]:
    """Return what an exporter wrote into the ``metadata.yaml`` beside a network, values as text; empty without one.

    Raises:
        CheckpointError: It cannot be read.
    """
    beside = file.with_name("metadata.yaml")
    if not beside.is_file():
        return {}
    try:
        return {key: str(value) for key, value in yaml.safe_load(beside.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(f"'{beside}' cannot be read: {one_line(error)}.") from error


def channel_count(shape: Sequence[int | str | None], metadata: Mapping[str, str]) -> int:
    """Return how many channels the images of a file have: its input [B, C, H, W] says so, else its exporter, else 3."""
    if len(shape) > 1 and isinstance(shape[1], int):
        return shape[1]
    stated = stated_channels(metadata)
    return 3 if stated is None else stated


def stated_channels(metadata: Mapping[str, str]) -> int | None:
    """Return the number of channels that the exporter wrote into the file's metadata, None when it did not."""
    stated = metadata.get("channels", "")
    return int(stated) if stated.isdigit() else None


def stated_size(metadata: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return height and width that the exporter wrote into the file's metadata, None where it did not."""
    sides = [int(side) for side in metadata.get("imgsz", "").strip("[]()").split(",") if side.strip()]
    return height_width(read_size(sides)) if sides else (None, None)


def class_count(metadata: Mapping[str, str]) -> int | None:
    """Return the number of classes that the exporter wrote into the file's metadata, None when it did not."""
    try:
        return len(ast.literal_eval(metadata["names"]))
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None
