"""Whether an exported file computes what its checkpoint computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.detections import holds_queries
from yolo_prune.runtimes.pytorch import deployed, first_tensor
from yolo_prune.runtimes.runtime import Settings, no_checkpoint, open_runtime

if TYPE_CHECKING:
    from yolo_prune.adapters.stored import LoadedModel


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


def onnx_parity(
    loaded: LoadedModel, onnx_path: Path | str, imgsz: ImageSize, runtime: str = "onnxruntime"
) -> Parity:
    """Compare the outputs of a checkpoint (fused, PyTorch, CPU) and of its exported file on one image of random pixels.

    Args:
        loaded: The checkpoint that was exported.
        onnx_path: The exported file.
        imgsz: Size of the input, in pixels.
        runtime: What runs it.

    Returns:
        Largest differences and scale. For heads that return a ranked list of boxes, every box is compared
        with the nearest one of the other list, because equal scores may be ranked either way.

    Raises:
        MissingRuntimeError: The runtime is not installed.
        CheckpointError: The file cannot be loaded.
        ConfigError: The file was exported for another input.
    """
    pixels = np.random.default_rng(0).random((1, loaded.channels, *height_width(imgsz)), dtype=np.float32)
    opened = open_runtime(
        runtime, Path(onnx_path), imgsz, Settings("cpu", torch.get_num_threads(), 1), no_checkpoint
    )
    theirs = opened.as_array(opened.infer(pixels)[0])
    module = deployed(loaded)
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
