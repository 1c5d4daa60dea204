"""Whether an exported file computes what its checkpoint computes in PyTorch: one comparison for all who export.

Without torch where outputs are compared, so that the process that times a file compares it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import BenchmarkError
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes.detections import ANCHORS, CLASSES, QUERIES, RANKED, layout_of
from yolo_prune.runtimes.images import CLASSIFIER, DETECTOR, load_images, to_input
from yolo_prune.runtimes.runtime import Runtime, Settings, no_checkpoint, open_runtime, read_file

if TYPE_CHECKING:
    from yolo_prune.adapters.stored import LoadedModel

TF32 = "float32 on a GPU"
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, TF32: 2e-2}
"""How far a file may be from PyTorch: share of the largest output (boxes: of the image's side), and score itself.

GPUs multiply what is in 32 bits with the 10 bits of a TF32 by default, which are those of a float16.

INT8 is in none of it: rounding to 256 steps is a difference by intent, and its accuracy says what it costs.
"""
_REAL = 4  # images of the data, beside one that is noise and drawn ones


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from its checkpoint.

    Attributes:
        max_abs_diff: Largest absolute difference between the two outputs.
        scale: Largest absolute value in the checkpoint's output: boxes are in pixels, so about the image's side.
        score_diff: Largest absolute difference among the scores alone: they lie in [0, 1], so that boxes in
            pixels would hide it.
        images: On how many images; 0 where the checkpoint found nothing in any.
        precision: What the file computed in.
    """

    max_abs_diff: float
    scale: float
    score_diff: float
    images: int = 1
    precision: str = "float32"

    @property
    def relative(self) -> float:
        """The larger of ``max_abs_diff`` over ``scale`` and ``score_diff``."""
        return max(self.max_abs_diff / max(self.scale, 1e-12), self.score_diff)

    @property
    def tolerance(self) -> float:
        """What ``relative`` may be in this precision."""
        return TOLERANCE[self.precision]

    @property
    def agrees(self) -> bool:
        """Whether the file computes what the checkpoint computes, as far as its precision lets it."""
        return self.relative <= self.tolerance

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        if not self.images:
            return "its checkpoint finds nothing in the images that it was to be compared on"
        if not np.isfinite(self.relative):
            return "its outputs have another shape than the checkpoint's, or hold values that are not finite"
        return (
            f"outputs differ by up to {self.max_abs_diff:.2g} of {self.scale:.4g}, scores by up to "
            f"{self.score_diff:.2g} ({self.images} images; {self.precision}: {self.tolerance:g} of each is allowed)"
        )

    def refusal(self, name: str) -> str:
        """Say of a file that computes something else what it does; nothing of one that agrees.

        Args:
            name: Of the file, for the sentence.
        """
        return "" if self.agrees else f"{name} does not compute what its checkpoint computes: {self.sentence}"

    def check(self, name: str) -> None:
        """Refuse a file that computes something else.

        Args:
            name: Of the file, for the sentence.

        Raises:
            BenchmarkError: It does.
        """
        if why := self.refusal(name):
            raise BenchmarkError(f"{why}.")


@dataclass(frozen=True)
class Reference:
    """What a checkpoint puts out in PyTorch: float32, on the CPU, as it is deployed.

    Attributes:
        pixels: Inputs, float32 (images, C, H, W), in [0, 1].
        outputs: First output of each, with its batch of one; a network that decides by itself finds as many boxes as
            it likes.
        classes: How many the model tells apart; 0: the outputs are numbers of any kind, without scores.
    """

    pixels: NDArray[np.float32]
    outputs: tuple[NDArray[np.float32], ...]
    classes: int

    def save(self, file: Path) -> Path:
        """Write it for another process."""
        numbered = {f"output{index}": output for index, output in enumerate(self.outputs)}
        np.savez(file, pixels=self.pixels, classes=np.array(self.classes), **numbered)  # type: ignore[arg-type]
        return file

    @classmethod
    def read(cls, file: Path) -> Reference:
        """Read what :meth:`save` wrote."""
        with np.load(file) as held:
            outputs = tuple(held[f"output{index}"] for index in range(len(held["pixels"])))
            return cls(held["pixels"], outputs, int(held["classes"]))


def reference_of(loaded: LoadedModel, imgsz: ImageSize, images: Sequence[Path] | None = None) -> Reference:
    """Run a checkpoint in PyTorch on the images that its files are compared on.

    Args:
        loaded: The checkpoint.
        imgsz: Size of the input in pixels.
        images: Of its data, of which the first few count; more are drawn, and one is noise.
    """
    around = CLASSIFIER if loaded.task == "classify" else DETECTOR
    seen = load_images(None, loaded.channels)[: 1 if images else 2]
    seen += load_images(list(images)[:_REAL], loaded.channels) if images else []
    shape = (1, loaded.channels, *height_width(imgsz))
    noise = np.random.default_rng(0).random(shape, dtype=np.float32)
    return run_reference(loaded, np.concatenate([noise, to_input(seen, imgsz, around.resize)]))


def run_reference(loaded: LoadedModel, pixels: NDArray[np.float32]) -> Reference:
    """Run a checkpoint in PyTorch on inputs (images, C, H, W), one at a time."""
    import torch

    from yolo_prune.runtimes.pytorch import deployed, first_tensor

    module = deployed(loaded).cpu()
    with torch.inference_mode():
        outputs = tuple(
            first_tensor(module(torch.from_numpy(pixels[index : index + 1]))).float().numpy()
            for index in range(len(pixels))
        )
    return Reference(pixels, outputs, len(loaded.names))


def file_parity(
    loaded: LoadedModel,
    file: Path | str,
    imgsz: ImageSize,
    runtime: str = "onnxruntime",
    images: Sequence[Path] | None = None,
) -> Parity:
    """Compare the outputs of a checkpoint (fused, PyTorch, CPU) and of its exported file on several images.

    Args:
        loaded: The checkpoint that was exported.
        file: The exported file.
        imgsz: Size of the input, in pixels.
        runtime: What runs it.
        images: As for :func:`reference_of`.

    Returns:
        Largest differences and scale; see :func:`parity_of`.

    Raises:
        MissingRuntimeError: The runtime is not installed.
        CheckpointError: The file cannot be loaded.
        ConfigError: The file was exported for another input.
    """
    import torch

    file = Path(file)
    settings = Settings("cpu", torch.get_num_threads(), 1)
    opened = open_runtime(runtime, file, imgsz, settings, no_checkpoint)
    return parity_of(opened, reference_of(loaded, imgsz, images), read_file(runtime, file).precision)


def stored_parity(runtime: Runtime, reference: Path | None, precision: str, batch: int = 1) -> Parity | None:
    """Compare what a file puts out with what was stored of its checkpoint, as closely as its device computes.

    Args:
        runtime: The file, opened.
        reference: What :meth:`Reference.save` wrote; None where nobody knows its checkpoint.
        precision: What the file computes in.
        batch: Images that the file takes at once.

    Returns:
        None without a reference, and in 8 bits, which differ by intent.
    """
    if reference is None or precision not in TOLERANCE:
        return None
    on_gpu = precision == "float32" and runtime.facts["device"] != "cpu"
    return parity_of(runtime, Reference.read(reference), TF32 if on_gpu else precision, batch)


def parity_of(runtime: Runtime, reference: Reference, precision: str, batch: int = 1) -> Parity:
    """Compare what a file puts out with what its checkpoint does.

    Args:
        runtime: The file, opened.
        reference: What the checkpoint puts out.
        precision: What the file computes in: ``float32`` or ``float16``.
        batch: Images that the file takes at once; it is filled with the same one.

    Returns:
        Of outputs without a decision in the network the worst image. A network that ranks, selects or suppresses may
        decide otherwise where two values are nearly equal, and goes on from there; of it, most images count: the
        median.
    """
    found = []
    decides = False
    for pixels, ours in zip(reference.pixels, reference.outputs, strict=True):
        inputs: Any = np.ascontiguousarray(np.repeat(pixels[None], batch, axis=0))
        theirs = runtime.as_array(runtime.infer(inputs)[0])[: len(ours)]
        found.append(compare_outputs(ours, theirs, reference.classes))
        if not np.isfinite(theirs).all():
            return replace(found[-1], precision=precision)
        decides |= bool(reference.classes) and layout_of(ours.shape, reference.classes) in (RANKED, QUERIES)
    seen = sorted((one for one in found if one.scale or one.relative), key=lambda one: one.relative)
    if not seen:
        return Parity(0.0, 0.0, 0.0, images=0, precision=precision)
    return replace(seen[len(seen) // 2 if decides else -1], images=len(seen), precision=precision)


def compare_outputs(ours: NDArray[np.float32], theirs: NDArray[np.float32], classes: int) -> Parity:
    """Return the largest difference between two outputs of the same model.

    Args:
        ours: Output of the checkpoint: [B, 4 + C, anchors], ranked boxes [B, N, 6], queries [B, N, 4 + C] or
            class scores [B, C].
        theirs: Output of the exported file.
        classes: C; 0 where the outputs hold no scores.

    Returns:
        The parity; infinite differences when the shapes differ or a value is not finite. For heads that return a list
        of boxes, every box is compared with the nearest one of the other list, because equal scores may be ranked
        either way.
    """
    scale = float(np.abs(ours).max(initial=0.0))
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return Parity(float("inf"), scale, float("inf"))
    difference = np.abs(ours - theirs)
    largest = float(difference.max(initial=0.0))
    if not classes:
        return Parity(largest, scale, 0.0)
    layout = layout_of(ours.shape, classes)
    if layout == CLASSES:
        return Parity(largest, scale, largest)
    if layout == ANCHORS:
        return Parity(largest, scale, float(difference[:, 4 : 4 + classes].max(initial=0.0)))
    last = 5 if ours.shape[2] == 6 else 4 + classes
    pairs = [_ranked_difference(*pair, last) for pair in zip(ours, theirs, strict=True)]
    return Parity(
        max((rows for rows, _ in pairs), default=0.0),
        scale,
        max((scores for _, scores in pairs), default=0.0),
    )


def _ranked_difference(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], last: int
) -> tuple[float, float]:
    """Compare two lists [N, 4 + ...]: scores by rank, rows with the nearest one, without those of the last rank.

    Which of several boxes of nearly the last score makes the list is decided by rounding. Where all scores
    are that close, every box counts, so that a difference is rather reported once too often than never.

    Args:
        ours: Rows of the checkpoint.
        theirs: Rows of the file.
        last: Columns 4 to this one are scores.

    Returns:
        The largest difference of a row, and of a score.
    """
    best, other = (rows[:, 4:last].max(axis=1, initial=-np.inf) for rows in (ours, theirs))
    scores = float(np.abs(np.sort(best) - np.sort(other)).max(initial=0.0))
    inside = ours[best > best.min(initial=np.inf) * (1 + 1e-3) + 1e-7]
    inside = inside if len(inside) else ours
    nearest = np.abs(inside[:, None] - theirs[None]).max(axis=2).min(axis=1, initial=np.inf)
    return max(scores, float(nearest.max(initial=0.0))), scores
