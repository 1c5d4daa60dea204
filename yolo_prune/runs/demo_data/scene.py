"""A photograph of parts on a bench: place, shadow, occlude, then what a cheap camera adds."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from yolo_prune.runs.demo_data.parts import CLASS_NAMES, CLUTTER, Light, Patch, draw_part
from yolo_prune.runs.demo_data.textures import Image, bench_top, value_noise

VISIBLE = 0.55
"""No part is covered by others beyond this share of its own pixels."""


@dataclass(frozen=True)
class Box:
    """The visible pixels of one part: class index, left, top, width, height in pixels."""

    category: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Scene:
    """``image`` is uint8 (size, size, 3) BGR."""

    image: npt.NDArray[np.uint8]
    boxes: tuple[Box, ...]


class _Canvas:
    """The picture so far and, per pixel, which object is on top (0: the bench)."""

    def __init__(self, background: Image) -> None:
        self.image = background
        self.owner = np.zeros(background.shape[:2], np.int32)
        self.areas: dict[int, int] = {}

    def place(self, patch: Patch, centre: tuple[int, int], light: Light, lift: float) -> int | None:
        """Lay a patch down with its shadow; None where it would hide another part or leave the picture."""
        size, side = len(self.owner), len(patch.alpha)
        left, top = centre[0] - side // 2, centre[1] - side // 2
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
        cut = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        area, alpha, solid = (slice(y0, y1), slice(x0, x1)), patch.alpha[cut], patch.alpha[cut] > 0.5
        if solid.sum() < 0.7 * (patch.alpha > 0.5).sum() or self._hides(area, solid):
            return None
        self._cast_shadow(patch.alpha, (left, top), light, lift)
        view = self.image[area]
        view += alpha[..., None] * (patch.colour[cut] - view)
        number = len(self.areas) + 1
        self.owner[area][solid] = number
        self.areas[number] = int(solid.sum())
        return number

    def _hides(self, area: tuple[slice, slice], solid: npt.NDArray[np.bool_]) -> bool:
        covered = np.unique(self.owner[area][solid])
        for number in covered[covered > 0]:
            left = (self.owner == number).sum() - (self.owner[area][solid] == number).sum()
            if left < VISIBLE * self.areas[int(number)]:
                return True
        return False

    def _cast_shadow(self, alpha: Image, corner: tuple[int, int], light: Light, lift: float) -> None:
        size, pad = len(self.owner), int(lift * 4) + 2
        shadow = cv2.GaussianBlur(
            cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT), (0, 0), lift
        )
        left = corner[0] - pad - round(light.direction[0] * lift * 3)
        top = corner[1] - pad - round(light.direction[1] * lift * 3)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + shadow.shape[1], size), min(top + shadow.shape[0], size)
        if x0 < x1 and y0 < y1:
            self.image[y0:y1, x0:x1] *= 1 - 0.55 * shadow[y0 - top : y1 - top, x0 - left : x1 - left, None]


def draw_scene(rng: np.random.Generator, size: int, objects: tuple[int, int] = (3, 8)) -> Scene:
    """Draw one picture and the boxes of its parts.

    Args:
        rng: The source of randomness; the same state gives the same picture.
        size: Side in pixels.
        objects: Fewest and most parts.

    Returns:
        The picture and one box per part, none of them for clutter.
    """
    azimuth, slant = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
    warmth = float(rng.uniform(-0.08, 0.08))
    direction = (float(np.cos(azimuth) * slant), float(np.sin(azimuth) * slant), float(np.sqrt(1 - slant**2)))
    light = Light(direction, (1 - warmth, 1.0, 1 + warmth))
    canvas = _Canvas(bench_top(rng, size))
    _scribble(rng, canvas.image)
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    kinds = [CLASS_NAMES[int(rng.integers(len(CLASS_NAMES)))] for _ in range(wanted)]
    kinds += [list(CLUTTER)[int(rng.integers(len(CLUTTER)))] for _ in range(int(rng.integers(1, 5)))]
    rng.shuffle(kinds)
    common = rng.uniform(0.05, 0.1)
    found = {}
    for kind in kinds:
        radius = size * float(np.clip(common * np.exp(rng.normal(0, 0.3)), 0.035, 0.16))
        radius *= 1.45 if kind in ("screw", "pin") else 1.0
        patch = draw_part(rng, kind, radius, light)
        for _ in range(12):
            centre = (int(rng.integers(size)), int(rng.integers(size)))
            number = canvas.place(patch, centre, light, max(1.0, radius * 0.09))
            if number is not None:
                found[number] = kind
                break
    boxes = tuple(_box(canvas.owner, number, kind) for number, kind in found.items() if kind in CLASS_NAMES)
    return Scene(_photograph(rng, canvas.image), boxes)


def _box(owner: npt.NDArray[np.int32], number: int, kind: str) -> Box:
    rows, columns = np.nonzero(owner == number)
    x, y = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) - x + 1, int(rows.max()) - y + 1
    return Box(CLASS_NAMES.index(kind), x, y, width, height)


def _scribble(rng: np.random.Generator, image: Image) -> None:
    """Lay wires, a paper scrap and stains on the bench."""
    size = image.shape[0]
    if rng.uniform() < 0.35:
        corner = (rng.uniform(0, size, 2), rng.uniform(0.15, 0.4, 2) * size, float(rng.uniform(0, 180)))
        shade = float(rng.uniform(0.7, 0.95))
        cv2.fillPoly(
            image, [cv2.boxPoints(corner).astype(np.int32)], (shade * 0.94, shade * 0.98, shade), cv2.LINE_AA
        )
    for _ in range(int(rng.integers(0, 3))):
        t = np.linspace(0, 1, 40)[:, None]
        a, b, c, d = rng.uniform(-0.1, 1.1, (4, 2)) * size
        curve = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
        colour, thick = rng.uniform(0.05, 0.7, 3), int(rng.integers(2, max(3, size // 70)))
        for inner, width in ((0.6, thick + 1), (1.0, thick - 1)):
            cv2.polylines(
                image, [curve.astype(np.int32)], False, (colour * inner).tolist(), width, cv2.LINE_AA
            )
    if rng.uniform() < 0.5:
        stain = np.clip(value_noise(rng, size, size, (3, 3), 4) - 0.9, 0, 1)
        image *= 1 - 0.5 * stain[..., None]


def _photograph(rng: np.random.Generator, image: Image) -> npt.NDArray[np.uint8]:
    """Add uneven light, defocus, contrast, sensor noise."""
    size = image.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - np.float32(0.5)
    slope, angle = rng.uniform(0, 0.5), rng.uniform(0, 2 * np.pi)
    lit = 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) - rng.uniform(0, 0.5) * (x**2 + y**2)
    image = image * lit[..., None].astype(np.float32)
    blur = float(rng.uniform(0, 0.9)) * size / 320
    if blur > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    exposure, gamma = rng.uniform(0.8, 1.25), rng.uniform(0.85, 1.2)
    image = np.clip(image * np.float32(exposure), 0, 1) ** np.float32(gamma)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.004, 0.025))
    return np.asarray(np.clip((image + noise) * 255 + 0.5, 0, 255), np.uint8)
