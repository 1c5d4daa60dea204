"""What two objects are compared by: boxes, masks or key points, in the form that pycocotools takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.masks import as_run_lengths
from yolo_prune.errors import DataError

DETECTIONS, POSES = 100, 20
"""COCO looks at the best so many detections of a class and image: of boxes and of masks, and of key points."""
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Smallest and largest area of objects, in pixels."""


class Compared(Protocol):
    """One way of comparing objects.

    Attributes:
        key: Where annotations and detections keep what is compared.
        name: In the plural, in a sentence.
        limit: The best so many detections of a class and image count.
        sizes: Names of the ``SIZES`` that objects are told apart by.
    """

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def limit(self) -> int: ...  # noqa: D102

    @property
    def sizes(self) -> tuple[str, ...]: ...  # noqa: D102

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is needed of an annotation beside its box and its area.

        Raises:
            DataError: It has none, or a malformed one; the text begins with ``what``.
        """

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Raise DataError where a detection does not have what is compared."""

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Tell whether an annotation is an object to find, beside crowd regions, which are not."""

    def column(self, detections: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
        """Return what is compared of checked detections, one a row."""

    def areas(self, found: NDArray[Any]) -> NDArray[np.float64]:
        """Return the area of detections in pixels, as pycocotools takes it.

        Args:
            found: Rows of :meth:`column`.
        """

    def overlaps(self, found: NDArray[Any], objects: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return how much detections and objects of one image overlap, each in [0, 1], as pycocotools computes it.

        Args:
            found: Rows of :meth:`column`, D of them.
            objects: G checked annotations.

        Returns:
            Shape (D, G).
        """


@dataclass(frozen=True)
class Boxes:
    """Upright boxes, by their intersection over union."""

    key: ClassVar[str] = "bbox"
    name: ClassVar[str] = "boxes"
    limit: ClassVar[int] = DETECTIONS
    sizes: ClassVar[tuple[str, ...]] = tuple(SIZES)

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing more."""
        return {}

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Need nothing more."""

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Count every one."""
        return True

    def column(self, detections: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return x, y, width and height, shape (D, 4)."""
        return np.array([each[self.key] for each in detections], dtype=np.float64).reshape(-1, 4)

    def areas(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return width times height."""
        return found[:, 2] * found[:, 3]

    def overlaps(
        self, found: NDArray[np.float64], objects: Sequence[Mapping[str, Any]]
    ) -> NDArray[np.float64]:
        """Return intersections over unions, of crowd regions over the detection."""
        from pycocotools.mask import iou

        return np.asarray(iou(found, self.column(objects), [each["iscrowd"] for each in objects]))


@dataclass(frozen=True)
class Masks:
    """Masks, by their intersection over union, pixel by pixel of the original image."""

    key: ClassVar[str] = "segmentation"
    name: ClassVar[str] = "masks"
    limit: ClassVar[int] = DETECTIONS
    sizes: ClassVar[tuple[str, ...]] = tuple(SIZES)

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return its run lengths, which need the size of the image."""
        mask, height, width = each.get(self.key), image.get("height"), image.get("width")
        if height is None or width is None:
            raise DataError(f"image {image['id']} has no 'height' and 'width', which masks need.")
        if isinstance(mask, Mapping):
            if list(mask.get("size", ())) != [height, width]:
                raise DataError(
                    f"{what} has a mask of size {mask.get('size')} in an image of {[height, width]}."
                )
        elif not mask or any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            raise DataError(
                f"{what} has no mask: 'segmentation' must be polygons of at least 3 points, or run lengths."
            )
        return {self.key: as_run_lengths(mask, (height, width))}

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Need compressed run lengths."""
        if not isinstance(each.get(self.key), Mapping):
            raise DataError(f"{what} has no mask: 'segmentation' must be compressed run lengths.")

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Count every one."""
        return True

    def column(self, detections: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
        """Return run lengths, shape (D,)."""
        found = np.empty(len(detections), dtype=object)
        found[:] = [each[self.key] for each in detections]
        return found

    def areas(self, found: NDArray[Any]) -> NDArray[np.float64]:
        """Return the number of their pixels."""
        from pycocotools.mask import area

        # one at a time: it keeps the length of a list in 8 bits, which NumPy 2 refuses from 256 on
        return np.array([area(each) for each in found], dtype=np.float64)

    def overlaps(self, found: NDArray[Any], objects: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return intersections over unions, of crowd regions over the detection."""
        from pycocotools.mask import iou

        masks = [each[self.key] for each in objects]
        return np.asarray(iou(list(found), masks, [each["iscrowd"] for each in objects]))


OBJECT_OF_BOX = 0.53
"""An object's area over that of its box, where labels do not say; as YOLO's validation takes it."""


@dataclass(frozen=True)
class Keypoints:
    """Key points, by COCO's object keypoint similarity (OKS).

    ``OKS = mean over labelled points of exp(-d^2 / (2 * area * (2 * sigma)^2))``, d their distance in pixels.

    Attributes:
        sigmas: How exactly each key point can be told, in units of the object's size.
        area_share: The object's area over that of its annotation.
    """

    sigmas: tuple[float, ...]
    area_share: float = 1.0
    key: ClassVar[str] = "keypoints"
    name: ClassVar[str] = "key points"
    limit: ClassVar[int] = POSES
    sizes: ClassVar[tuple[str, ...]] = ("all", "medium", "large")

    @property
    def terms(self) -> str:
        """What OKS is computed with, for a reader; sigmas once where they are equal."""
        listed = [f"{sigma:.3g}" for sigma in self.sigmas]
        sigmas = listed[:1] if len(set(listed)) == 1 else listed
        area = "its annotation" if self.area_share == 1 else f"{self.area_share:g} of its box"
        return f"sigmas {' '.join(sigmas)}, an object's area {area}"

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return its points, how many of them are labelled, and the area of the object."""
        points = list(each.get(self.key, ()))
        self._check(points, what)
        area = each["bbox"][2] * each["bbox"][3] if each.get("area") is None else each["area"]
        labelled = sum(1 for visible in points[2::3] if visible > 0)
        return {self.key: points, "num_keypoints": labelled, "area": area * self.area_share}

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Need as many points as there are sigmas."""
        self._check(each.get(self.key, ()), what)

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Count those with a labelled point."""
        return bool(annotation["num_keypoints"])

    def column(self, detections: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """Return x, y and visibility of each point, shape (D, 3 * points)."""
        width = 3 * len(self.sigmas)
        return np.array([each[self.key] for each in detections], dtype=np.float64).reshape(-1, width)

    def areas(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the area of the box around the points."""
        across, down = (found[:, axis::3].max(1) - found[:, axis::3].min(1) for axis in (0, 1))
        return np.asarray(across * down)

    def overlaps(
        self, found: NDArray[np.float64], objects: Sequence[Mapping[str, Any]]
    ) -> NDArray[np.float64]:
        """Return OKS; of objects without a labelled point how near the points are to twice their box."""
        return np.stack([self._similarity(found, each) for each in objects], axis=1)

    def _similarity(self, found: NDArray[np.float64], each: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return OKS of detections with one object; the operations are those of pycocotools, in its order."""
        x, y = found[:, 0::3], found[:, 1::3]
        points = np.array(each[self.key])
        labelled = points[2::3] > 0
        if labelled.any():
            across, down = x - points[0::3], y - points[1::3]
        else:
            left, top, width, height = each["bbox"]
            across, down = _beyond(x, left, width), _beyond(y, top, height)
        variances = (np.array(self.sigmas) * 2) ** 2
        error = (across**2 + down**2) / variances / (each["area"] + np.spacing(1)) / 2
        if labelled.any():
            error = np.ascontiguousarray(error[:, labelled])
        return np.asarray(np.sum(np.exp(-error), axis=1) / error.shape[1])

    def _check(self, points: Any, what: str) -> None:
        wanted = 3 * len(self.sigmas)
        if len(points) != wanted or not all(math.isfinite(value) for value in points):
            raise DataError(
                f"{what} has {len(points)} numbers in 'keypoints'; {wanted} finite ones (x, y, visibility of "
                f"{len(self.sigmas)} points) are needed."
            )


def _beyond(place: NDArray[np.float64], low: float, length: float) -> NDArray[np.float64]:
    """Return how far places lie outside of a range that is drawn out by its length on both sides."""
    begin, end = low - length, low + length * 2
    return np.asarray(np.maximum(0.0, begin - place) + np.maximum(0.0, place - end))


BOXES, MASKS = Boxes(), Masks()
