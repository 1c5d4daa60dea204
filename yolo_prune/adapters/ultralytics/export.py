"""ONNX through the host's own exporter, and the proof that the file computes what the checkpoint computes."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.ultralytics.annotations import one_line
from yolo_prune.adapters.ultralytics.undisturbed import undisturbed
from yolo_prune.bench.images import holds_queries
from yolo_prune.bench.runtimes.pytorch import first_tensor, fuse
from yolo_prune.errors import BenchmarkError, ConfigError, MissingRuntimeError
from yolo_prune.files import replacing
from yolo_prune.imgsz import ImageSize, height_width, plain_size, size_text

_NEEDED = ("onnx", "onnxslim")
_HOST_ERRORS = (
    *(RuntimeError, OSError, SyntaxError, TypeError, ValueError, LookupError, AttributeError),
    *(AssertionError, ImportError, ArithmeticError),
)


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from its checkpoint on one fixed random input.

    Attributes:
        max_abs_diff: Largest absolute difference between the two outputs.
        scale: Largest absolute value in the checkpoint's output: boxes are in pixels, so about the image's side.
        score_diff: Largest absolute difference among the scores alone: they lie in [0, 1], so that boxes in
            pixels would hide it.
    """

    max_abs_diff: float
    scale: float
    score_diff: float

    @property
    def relative(self) -> float:
        """The larger of ``max_abs_diff`` over ``scale`` and ``score_diff``."""
        return max(self.max_abs_diff / max(self.scale, 1e-12), self.score_diff)


def export_onnx(
    checkpoint: Path | str,
    out: Path | str,
    *,
    imgsz: ImageSize,
    batch: int = 1,
    trust: bool = False,
    dynamic: bool = False,
) -> Path:
    """Export a checkpoint to ONNX, float32, decoded outputs, suppression left to the caller.

    Nothing is installed, and neither the checkpoint nor its folder is touched. A detector with two heads, one
    of which needs no suppression, is exported with the head that it has selected.

    Args:
        checkpoint: What ``load_detector`` accepts.
        out: The .onnx file to create or replace, whole or not at all.
        imgsz: Size of the input, in pixels; its sides are multiples of the model's stride.
        batch: Fixed batch size.
        trust: Load a checkpoint that may run code of its own.
        dynamic: Leave the size of the input open, which costs speed; else it is fixed.

    Returns:
        ``out``.

    Raises:
        MissingRuntimeError: onnx or onnxslim is not installed.
        CheckpointError: The checkpoint cannot be loaded.
        ConfigError: ``out`` is not an .onnx path or ``imgsz`` does not fit the stride.
        BenchmarkError: The host's exporter failed, or exported nothing.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ConfigError(f"an export needs a path that ends in .onnx, got '{out}'.")
    for package in _NEEDED:
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
            exported = Path(_run_exporter(host, imgsz, batch, dynamic))
        except _HOST_ERRORS as error:
            raise BenchmarkError(
                f"the host cannot export '{checkpoint}' to ONNX: {one_line(error)}."
            ) from error
        if not exported.is_file():
            raise BenchmarkError(f"the host's exporter left no file for '{checkpoint}'.")
        with replacing(out) as temporary:
            shutil.copyfile(exported, temporary)
    return out


def _run_exporter(host: Any, imgsz: ImageSize, batch: int, dynamic: bool) -> str:
    """Run the host's exporter on a module and return the path that it wrote."""
    from ultralytics.engine.exporter import Exporter

    options: dict[str, Any] = {
        "mode": "export",
        "format": "onnx",
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


def onnx_parity(
    checkpoint: Path | str,
    onnx_path: Path | str,
    imgsz: ImageSize,
    *,
    batch: int = 1,
    trust: bool = False,
    seed: int = 0,
) -> Parity:
    """Compare the outputs of a checkpoint (fused, PyTorch, CPU) and of its exported file on random pixels.

    Args:
        checkpoint: The checkpoint that was exported.
        onnx_path: The exported file.
        imgsz: Size of the input, in pixels.
        batch: Batch size that it was exported with.
        trust: Load a checkpoint that may run code of its own.
        seed: Seed of the input, uniform in [0, 1].

    Returns:
        Largest differences and scale. For heads that return a ranked list of boxes, every box is compared
        with the nearest one of the other list, because equal scores may be ranked either way.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        CheckpointError: One of the files cannot be loaded.
        ConfigError: The file was exported for another input.
    """
    from yolo_prune.bench.runtimes.onnxruntime import open_runtime
    from yolo_prune.bench.runtimes.runtime import Settings

    generator = np.random.default_rng(seed)
    loaded = load_detector(checkpoint, trust=trust)
    pixels = generator.random((batch, loaded.channels, *height_width(imgsz)), dtype=np.float32)
    opened = open_runtime(Path(onnx_path), imgsz, Settings("cpu", torch.get_num_threads(), batch))
    theirs = opened.infer(pixels)[0]
    module = fuse(loaded.module)
    with torch.inference_mode():
        ours = first_tensor(module(torch.from_numpy(pixels))).numpy()
    return compare_outputs(ours, theirs, len(loaded.names))


def compare_outputs(ours: NDArray[np.float32], theirs: NDArray[np.float32], classes: int) -> Parity:
    """Return the largest difference between two outputs of the same model.

    Args:
        ours: Output of the checkpoint: [B, 4 + C, anchors], ranked boxes [B, N, 6], queries [B, N, 4 + C] or
            class scores [B, C].
        theirs: Output of the exported file.
        classes: C.

    Returns:
        The parity; infinite differences when the shapes differ or a value is not finite.
    """
    scale = float(np.abs(ours).max(initial=0.0))
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return Parity(float("inf"), scale, float("inf"))
    if ours.ndim == 3 and ours.shape[2] == 6:
        differences = [_ranked_difference(*pair) for pair in zip(ours, theirs, strict=True)]
        scores = float(np.abs(ours[..., 4] - theirs[..., 4]).max(initial=0.0))
        return Parity(max(differences, default=0.0), scale, scores)
    difference = np.abs(ours - theirs)
    in_scores = difference
    if ours.ndim == 3:
        last = holds_queries(ours.shape, classes)
        in_scores = np.moveaxis(difference, 2 if last else 1, 0)[4 : 4 + classes]
    return Parity(float(difference.max(initial=0.0)), scale, float(in_scores.max(initial=0.0)))


def _ranked_difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Compare two ranked lists [N, 6]: scores by rank, boxes with the nearest, without the last ranks' boxes.

    Which of several boxes of nearly the last score makes the list is decided by rounding. Where all scores
    are that close, every box counts, so that a difference is rather reported once too often than never.
    """
    scores = float(np.abs(ours[:, 4] - theirs[:, 4]).max(initial=0.0))
    last = ours[:, 4].min(initial=np.inf)
    inside = ours[ours[:, 4] > last * (1 + 1e-3) + 1e-7]
    inside = inside if len(inside) else ours
    nearest = np.abs(inside[:, None] - theirs[None]).max(axis=2).min(axis=1)
    return max(scores, float(nearest.max()))
