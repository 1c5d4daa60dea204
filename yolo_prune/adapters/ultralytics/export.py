"""ONNX through the host's own exporter; `bench.parity` says whether the file computes what the checkpoint computes."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from yolo_prune.adapters.ultralytics.load import load_detector
from yolo_prune.adapters.ultralytics.undisturbed import undisturbed
from yolo_prune.errors import BenchmarkError, ConfigError, MissingRuntimeError, one_line
from yolo_prune.files import replacing
from yolo_prune.imgsz import ImageSize, height_width, plain_size, size_text

_FORMATS = {".onnx": ("onnx", ("onnx", "onnxslim")), ".torchscript": ("torchscript", ())}
"""Ending -> the host's name of the format, and the packages that it needs."""
_HOST_ERRORS = (
    *(RuntimeError, OSError, SyntaxError, TypeError, ValueError, LookupError, AttributeError),
    *(AssertionError, ImportError, ArithmeticError),
)


def export_onnx(
    checkpoint: Path | str,
    out: Path | str,
    *,
    imgsz: ImageSize,
    batch: int = 1,
    trust: bool = False,
    dynamic: bool = False,
) -> Path:
    """Export a checkpoint to ONNX; see :func:`export_file`."""
    if Path(out).suffix != ".onnx":
        raise ConfigError(f"an export needs a path that ends in .onnx, got '{out}'.")
    return export_file(checkpoint, out, imgsz=imgsz, batch=batch, trust=trust, dynamic=dynamic)


def export_file(
    checkpoint: Path | str,
    out: Path | str,
    *,
    imgsz: ImageSize,
    batch: int = 1,
    trust: bool = False,
    dynamic: bool = False,
) -> Path:
    """Export a checkpoint, float32, decoded outputs, suppression left to the caller.

    Nothing is installed, and neither the checkpoint nor its folder is touched. A detector with two heads, one
    of which needs no suppression, is exported with the head that it has selected.

    Args:
        checkpoint: What ``load_detector`` accepts.
        out: The file to create or replace, whole or not at all: ``.onnx`` or ``.torchscript``.
        imgsz: Size of the input, in pixels; its sides are multiples of the model's stride.
        batch: Fixed batch size.
        trust: Load a checkpoint that may run code of its own.
        dynamic: Leave the size of the input of an .onnx file open, which costs speed; else it is fixed.

    Returns:
        ``out``.

    Raises:
        MissingRuntimeError: onnx or onnxslim is not installed.
        CheckpointError: The checkpoint cannot be loaded.
        ConfigError: ``out`` has another ending, or ``imgsz`` does not fit the stride.
        BenchmarkError: The host's exporter failed, or exported nothing.
    """
    out = Path(out)
    if out.suffix not in _FORMATS:
        raise ConfigError(f"an export needs a path that ends in {' or '.join(_FORMATS)}, got '{out}'.")
    kind, needed = _FORMATS[out.suffix]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingRuntimeError(
                f"export to ONNX needs '{package}', which is not installed: pip install \"yolo-prune[onnx]\"."
            )
    host: Any = load_detector(checkpoint, trust=trust).module
    stride = int(host.stride.max())
    if any(side < stride or side % stride for side in height_width(imgsz)):
        raise ConfigError(f"imgsz must be a multiple of the model's stride {stride}, got {size_text(imgsz)}.")
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        host.pt_path = str(
            Path(folder, "model.pt")
        )  # the exporter writes beside it; no file needs to be there
        try:
            exported = Path(_run_exporter(host, kind, imgsz, batch, dynamic))
        except _HOST_ERRORS as error:
            raise BenchmarkError(
                f"the host cannot export '{checkpoint}' to {kind}: {one_line(error)}."
            ) from error
        if not exported.is_file():
            raise BenchmarkError(f"the host's exporter left no file for '{checkpoint}'.")
        with replacing(out) as temporary:
            shutil.copyfile(exported, temporary)
    return out


def _run_exporter(host: Any, kind: str, imgsz: ImageSize, batch: int, dynamic: bool) -> str:
    """Run the host's exporter on a module and return the path that it wrote."""
    from ultralytics.engine.exporter import Exporter

    options: dict[str, Any] = {
        "mode": "export",
        "format": kind,
        "imgsz": plain_size(imgsz),
        "batch": batch,
        "dynamic": dynamic,
        "device": "cpu",
        "simplify": True,
        "verbose": False,
    }
    if getattr(host, "end2end", False):
        options["nms"] = False  # unset, the newer exporters take the head that needs suppression
    with undisturbed(logging.WARNING), warnings.catch_warnings():
        # 2026-11: torch deprecates the TorchScript exporter, which the host still uses, and it warns of every shape
        # that it traces as a constant.
        warnings.simplefilter("ignore")
        return str(Exporter(overrides=options)(model=host))
