"""What two objects are compared by: boxes, masks or key points, in the form that pycocotools takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from yolo_prune.errors import DataError

DETECTIONS = 100
"""COCO looks at the best so many detections of a class and image: of boxes and of masks."""


class Compared(Protocol):
    """One way of comparing objects.

    Attributes:
        iou_type: pycocotools' name for it.
        key: Where annotations and detections keep what is compared.
        name: In the plural, in a sentence.
    """

    @property
    def iou_type(self) -> str: ...  # noqa: D102

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def name(self) -> str: ...  # noqa: D102

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return what pycocotools needs of an annotation beside its box and its area.

        Raises:
            DataError: It has none, or a malformed one; the text begins with ``what``.
        """

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Raise DataError where a detection does not have what is compared."""

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Tell whether an annotation is an object to find, beside crowd regions, which are not."""


@dataclass(frozen=True)
class Boxes:
    """Upright boxes, by their intersection over union."""

    iou_type: ClassVar[str] = "bbox"
    key: ClassVar[str] = "bbox"
    name: ClassVar[str] = "boxes"

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing more."""
        return {}

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Need nothing more."""

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Count every one."""
        return True


@dataclass(frozen=True)
class Masks:
    """Masks, by their intersection over union, pixel by pixel of the original image."""

    iou_type: ClassVar[str] = "segm"
    key: ClassVar[str] = "segmentation"
    name: ClassVar[str] = "masks"

    def of_annotation(self, each: Mapping[str, Any], what: str, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return its polygons or run lengths, which need the size of the image."""
        mask, size = each.get(self.key), [image.get("height"), image.get("width")]
        if None in size:
            raise DataError(f"image {image['id']} has no 'height' and 'width', which masks need.")
        if isinstance(mask, Mapping):
            if list(mask.get("size", ())) != size:
                raise DataError(f"{what} has a mask of size {mask.get('size')} in an image of {size}.")
        elif not mask or any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            raise DataError(
                f"{what} has no mask: 'segmentation' must be polygons of at least 3 points, or run lengths."
            )
        return {self.key: mask}

    def check_detection(self, each: Mapping[str, Any], what: str) -> None:
        """Need compressed run lengths."""
        if not isinstance(each.get(self.key), Mapping):
            raise DataError(f"{what} has no mask: 'segmentation' must be compressed run lengths.")

    def counts(self, annotation: Mapping[str, Any]) -> bool:
        """Count every one."""
        return True


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
    iou_type: ClassVar[str] = "keypoints"
    key: ClassVar[str] = "keypoints"
    name: ClassVar[str] = "key points"

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

    def _check(self, points: Any, what: str) -> None:
        wanted = 3 * len(self.sigmas)
        if len(points) != wanted or not all(math.isfinite(value) for value in points):
            raise DataError(
                f"{what} has {len(points)} numbers in 'keypoints'; {wanted} finite ones (x, y, visibility of "
                f"{len(self.sigmas)} points) are needed."
            )


BOXES, MASKS = Boxes(), Masks()
