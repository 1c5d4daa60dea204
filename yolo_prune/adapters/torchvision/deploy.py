"""Files of this host as ONNX."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.torchvision.deployed import Boxes, deployed
from yolo_prune.adapters.torchvision.described import CLASSIFY, described
from yolo_prune.adapters.torchvision.detector import is_stretched
from yolo_prune.adapters.torchvision.files import load
from yolo_prune.adapters.torchvision.names import FORMAT
from yolo_prune.errors import BenchmarkError, ConfigError, MissingRuntimeError, one_line
from yolo_prune.files import replacing
from yolo_prune.imgsz import ImageSize, height_width, plain_size

_OPSET = 17
_EXPORT_ERRORS = (
    *(RuntimeError, OSError, TypeError, ValueError, LookupError, AttributeError, AssertionError),
    *(ImportError, ArithmeticError, NotImplementedError),
)


def export_onnx(checkpoint: Path | str, out: Path | str, *, imgsz: ImageSize, batch: int = 1) -> Path:
    """Export a file of this host to ONNX, float32, with normalisation and suppression inside.

    Args:
        checkpoint: The file.
        out: The .onnx file to create or replace, whole or not at all.
        imgsz: Size of the input in pixels; it is fixed.
        batch: Images in a batch; fixed.

    Returns:
        ``out``.

    Raises:
        MissingRuntimeError: onnx is not installed.
        CheckpointError: The checkpoint cannot be loaded.
        ConfigError: ``out`` is not an .onnx path.
        BenchmarkError: torch cannot export this network.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ConfigError(f"an export needs a path that ends in .onnx, got '{out}'.")
    if importlib.util.find_spec("onnx") is None:
        raise MissingRuntimeError(
            "export to ONNX needs 'onnx', which is not installed: pip install \"yolo-prune[onnx]\"."
        )
    loaded = load(checkpoint)
    what = described(loaded.module)
    pixels = torch.rand(batch, 3, *height_width(imgsz), generator=torch.Generator().manual_seed(0))
    with replacing(out) as temporary:
        try:
            _export(deployed(loaded.module), pixels, temporary)
        except _EXPORT_ERRORS as error:
            raise BenchmarkError(
                f"{what.architecture} cannot be exported to ONNX: {one_line(error)}."
            ) from error
        _write_facts(
            temporary,
            {
                "task": what.task,
                "classes": json.dumps(list(what.numbered.values())),
                "labels": json.dumps(list(what.every_label)),
                "imgsz": json.dumps(plain_size(imgsz)),
                "architecture": what.architecture,
                "stretched": json.dumps(what.task != CLASSIFY and is_stretched(loaded.module)),
                "format": FORMAT,
            },
        )
    return out


def _export(module: nn.Module, pixels: Tensor, file: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        # 2026-11: torch deprecates the TorchScript exporter, the one that exports the library's detectors, and it
        # warns of every shape that it traces as a constant.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (pixels,),
            str(file),
            input_names=["images"],
            output_names=["output"],
            opset_version=_OPSET,
            dynamo=False,
            dynamic_axes={"output": {1: "found"}} if isinstance(module, Boxes) else None,
        )


def _write_facts(file: Path, facts: dict[str, str]) -> None:
    """Write into an exported file what its outputs mean."""
    import onnx

    model: Any = onnx.load(file)
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, file)
