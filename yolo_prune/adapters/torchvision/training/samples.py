"""Training images with their targets: mirrored, scaled, moved; the same in every process and after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from yolo_prune.accuracy.box_data import BoxData
from yolo_prune.accuracy.classes import ClassificationData
from yolo_prune.accuracy.masks import filled
from yolo_prune.adapters.torchvision.framing import as_tensor
from yolo_prune.adapters.torchvision.training.recipe import TrainRecipe
from yolo_prune.errors import DataError
from yolo_prune.imgsz import height_width
from yolo_prune.runtimes.images import PADDING, Image, import_cv2, read_image

_SMALLEST = 2.0  # pixels; a box whose rest inside the canvas is narrower is dropped
_SEEN = 0.25  # share of a box's area that has to be inside
Batch = tuple[Tensor, Any]


class Samples(Protocol):
    """Training images of one task."""

    @property
    def count(self) -> int:
        """How many."""

    def read(self, index: int, random: np.random.Generator) -> tuple[Image, Any]:
        """Return an augmented image and its target."""

    def collate(self, targets: Sequence[Any]) -> Any:
        """Return the targets of a batch as the loss takes them."""


@dataclass(frozen=True)
class BoxSamples:
    """Images with boxes, and with masks (``segment``) or key points (``pose``) where ``shape`` says so.

    Key points are mirrored only where the data says which one becomes which.
    """

    data: BoxData
    labels: tuple[int, ...]
    recipe: TrainRecipe
    stretched: bool
    shape: str = "detect"

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.data.image_files)

    def read(self, index: int, random: np.random.Generator) -> tuple[Image, Any]:
        """Return a canvas and, in its pixels, boxes (n, 4) with their labels, masks (n, H, W), points (n, K, 3)."""
        image = read_image(self.data.image_files[index], 3)
        boxes, classes = self.data.targets[index]
        size = height_width(self.recipe.imgsz)
        scale, corner = _placed(image.shape[:2], size, self.recipe.scale, random, stretched=self.stretched)
        canvas = _drawn(image, size, scale, corner)
        moved = boxes * np.array([*scale, *scale]) + np.array([*corner, *corner])
        inside = np.clip(moved, 0, np.array([size[1], size[0]] * 2))
        mirrored = random.random() < self.recipe.fliplr and (self.shape != "pose" or bool(self.data.mirrored))
        if mirrored:
            canvas = canvas[:, ::-1]
            inside[:, [0, 2]] = size[1] - inside[:, [2, 0]]
        kept = _still_seen(moved, inside)
        labels = np.array(self.labels, dtype=np.int64)[classes[kept]]
        target = {"boxes": inside[kept].astype(np.float32), "labels": labels}
        objects = [one for one, keep in zip(self.data.objects[index], kept, strict=True) if keep]
        if self.shape == "segment":
            masks = [self._mask(one, image.shape[:2], scale, corner) for one in objects]
            stacked = np.array(masks, dtype=np.uint8).reshape(-1, *size)
            target["masks"] = np.ascontiguousarray(stacked[..., ::-1] if mirrored else stacked)
        elif self.shape == "pose":
            target["keypoints"] = self._points(objects, scale, corner, mirrored)
        return canvas, target

    def collate(self, targets: Sequence[Any]) -> list[dict[str, Tensor]]:
        """Return the targets as detectors take them."""
        return [{name: torch.from_numpy(values) for name, values in each.items()} for each in targets]

    def _mask(
        self,
        one: Mapping[str, Any],
        shape: Sequence[int],
        scale: tuple[float, ...],
        corner: tuple[float, ...],
    ) -> NDArray[np.bool_]:
        """Return an object's mask on the canvas."""
        whole = filled(one["segmentation"], (shape[0], shape[1])).astype(np.uint8) * 255
        pixels: NDArray[np.bool_] = _drawn(whole, height_width(self.recipe.imgsz), scale, corner, 0) > 127
        return pixels

    def _points(
        self, objects: Sequence[Mapping[str, Any]], scale: Any, corner: Any, mirrored: bool
    ) -> NDArray[np.float32]:
        """Return x, y and visibility of every key point on the canvas; outside of it none is visible."""
        tall, wide = height_width(self.recipe.imgsz)
        points = np.array([one["keypoints"] for one in objects], dtype=np.float32)
        points = points.reshape(len(objects), -1, 3)
        points[..., :2] = points[..., :2] * np.array(scale) + np.array(corner)
        if mirrored:
            points[..., 0] = wide - points[..., 0]
            points = points[:, list(self.data.mirrored)]
        outside = (points[..., :2] < 0).any(-1) | (points[..., 0] >= wide) | (points[..., 1] >= tall)
        points[outside] = 0
        return np.ascontiguousarray(points)


@dataclass(frozen=True)
class ClassSamples:
    """Images with one class each."""

    data: ClassificationData
    labels: list[int]
    recipe: TrainRecipe

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.data.image_files)

    def read(self, index: int, random: np.random.Generator) -> tuple[Image, Any]:
        """Return an image that fills the canvas, and the index of its class."""
        image, size = read_image(self.data.image_files[index], 3), height_width(self.recipe.imgsz)
        scale, corner = _placed(image.shape[:2], size, self.recipe.scale, random, filled=True)
        canvas = _drawn(image, size, scale, corner)
        return (canvas[:, ::-1] if random.random() < self.recipe.fliplr else canvas), self.labels[index]

    def collate(self, targets: Sequence[Any]) -> Tensor:
        """Return the classes as one tensor."""
        return torch.tensor(list(targets))


def _placed(
    shape: Sequence[int],
    size: tuple[int, int],
    spread: float,
    random: np.random.Generator,
    *,
    stretched: bool = False,
    filled: bool = False,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Draw scale and corner of an image in a canvas: it lies inside, or where it is larger, covers all of it."""
    (height, width), (tall, wide) = shape[:2], size
    down, across = tall / height, wide / width
    if not stretched:
        down = across = max(down, across) if filled else min(down, across)
    zoom = random.uniform(1 if filled else 1 - spread, 1 + spread)
    scale = (across * zoom, down * zoom)
    free = (wide - width * scale[0], tall - height * scale[1])
    return scale, (float(random.random() * free[0]), float(random.random() * free[1]))


def _drawn(
    image: Image,
    size: tuple[int, int],
    scale: Sequence[float],
    corner: Sequence[float],
    around: int = PADDING,
) -> Image:
    cv2 = import_cv2()
    # Centres of pixels, not their corners, are where they are: half a pixel apart.
    shift = [at + 0.5 * by - 0.5 for at, by in zip(corner, scale, strict=True)]
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    canvas: Image = cv2.warpAffine(
        image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=(around,) * 3
    )
    return canvas


def _still_seen(whole: NDArray[Any], inside: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which boxes have enough of themselves on the canvas."""
    sides, rest = whole[:, 2:] - whole[:, :2], inside[:, 2:] - inside[:, :2]
    share = rest.prod(1) / np.maximum(sides.prod(1), 1e-9)
    seen: NDArray[np.bool_] = (rest.min(1, initial=np.inf) >= _SMALLEST) & (share >= _SEEN)
    return seen


class _Epoch(Dataset[tuple[Image, Any]]):
    """One pass: each image's augmentation depends on seed, epoch and image alone."""

    def __init__(self, samples: Samples, seed: int, epoch: int) -> None:
        self.samples, self.seed, self.epoch = samples, seed, epoch

    def __len__(self) -> int:
        return self.samples.count

    def __getitem__(self, index: int) -> tuple[Image, Any]:
        return self.samples.read(index, np.random.default_rng([self.seed, self.epoch, index]))


@dataclass(frozen=True)
class Loader:
    """Batches of an epoch: float32 images (B, 3, H, W) in [0, 1] and their targets."""

    samples: Samples
    recipe: TrainRecipe

    @property
    def steps(self) -> int:
        """Batches in an epoch; a last one that is not full is left out where there is a full one."""
        return max(self.samples.count // self.recipe.batch, 1)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Load the batches of an epoch, in an order of its own."""
        recipe = self.recipe
        order = np.random.default_rng([recipe.seed, number]).permutation(self.samples.count).tolist()
        batches = [order[at * recipe.batch : (at + 1) * recipe.batch] for at in range(self.steps)]
        yield from DataLoader(
            _Epoch(self.samples, recipe.seed, number),
            batch_sampler=batches,
            num_workers=recipe.workers,
            collate_fn=self._collate,
        )

    def _collate(self, pairs: Sequence[tuple[Image, Any]]) -> Batch:
        return as_tensor([image for image, _ in pairs]), self.samples.collate([each for _, each in pairs])


def check_targets(samples: BoxSamples) -> None:
    """Refuse training data without a single box.

    Raises:
        DataError: There is none.
    """
    if not any(len(boxes) for boxes, _ in samples.data.targets):
        raise DataError(f"no boxes in the {samples.count} training images of {samples.data.file}.")
