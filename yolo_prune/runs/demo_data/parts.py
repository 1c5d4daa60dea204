"""Machine parts as formulas: a signed distance and a height for every pixel, then light on metal.

Shapes live in a frame of their own where the part reaches from -1 to 1; a distance is negative inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from yolo_prune.runs.demo_data.textures import Image, value_noise

CLASS_NAMES = ("screw", "nut", "washer", "gear")
METALS = (
    (0.72, 0.72, 0.72),  # steel, BGR
    (0.78, 0.76, 0.68),  # zinc
    (0.36, 0.62, 0.76),  # brass
    (0.4, 0.52, 0.72),  # copper
    (0.26, 0.25, 0.25),  # black oxide
    (0.5, 0.7, 0.74),  # yellow zinc
)
PLASTICS = ((0.2, 0.2, 0.75), (0.7, 0.4, 0.15), (0.25, 0.55, 0.25), (0.15, 0.7, 0.85), (0.12, 0.12, 0.13))

_CAMERA = np.asarray((0, 0, 1), np.float32)
_RUST = np.asarray((0.1, 0.18, 0.3), np.float32)


@dataclass(frozen=True)
class Light:
    """One lamp: ``direction`` points to it (x right, y down, z to the camera); ``colour`` is BGR around 1."""

    direction: tuple[float, float, float]
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Patch:
    """A drawn part: ``colour`` (side, side, 3) and ``alpha`` (side, side), both float32 in [0, 1]."""

    colour: Image
    alpha: Image


Shape = Callable[[np.random.Generator, Image, Image], tuple[Image, Image]]
"""(rng, x, y) -> (signed distance, height), all float32 of one shape, in units of the part's half size."""


def _bevel(distance: Image, width: float) -> Image:
    rise: Image = np.sin(np.clip(-distance / width, 0, 1) * np.float32(np.pi / 2))
    return np.asarray(width * rise, np.float32)


def washer(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A flat ring, its hole 42 to 60 % of its diameter."""
    r = np.hypot(x, y)
    distance = np.maximum(r - 1, np.float32(rng.uniform(0.42, 0.6)) - r)
    return distance, _bevel(distance, 0.09)


def nut(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A hexagon with chamfered corners and a threaded hole."""
    r, hole = np.hypot(x, y), np.float32(rng.uniform(0.42, 0.54))
    sides = [np.abs(x * np.cos(a) + y * np.sin(a)) for a in np.float32(np.pi / 3) * np.arange(3)]
    hexagon = np.max(sides, axis=0) - np.float32(0.866)
    distance = np.maximum(np.maximum(hexagon, r - 0.985), hole - r)
    height = np.minimum(_bevel(distance, 0.12), 0.7 * (1.02 - r)) + 0.12
    thread = np.clip(1 - (r - hole) / 0.14, 0, 1)
    return distance, height - thread * (0.1 + 0.03 * np.sin(r * 70))


def gear(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A spur gear: 9 to 18 teeth, a bore, and a thinner web that may have holes."""
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    teeth, depth = int(rng.integers(9, 19)), np.float32(rng.uniform(0.14, 0.22))
    profile = np.clip(0.5 + 1.6 * np.cos(angle * teeth), 0, 1)
    bore = np.float32(rng.uniform(0.16, 0.3))
    distance = np.maximum(r - (1 - depth + depth * profile), bore - r)
    if rng.uniform() < 0.5:
        count, phase = int(rng.integers(3, 7)), rng.uniform(0, np.pi)
        for a in phase + 2 * np.pi * np.arange(count) / count:
            hole = np.float32(0.13) - np.hypot(x - 0.54 * np.cos(a), y - 0.54 * np.sin(a))
            distance = np.maximum(distance, hole.astype(np.float32))
    web = 1 / (1 + np.exp(-40 * (np.abs(r - 0.53) - 0.18)))
    return distance, _bevel(distance, 0.06) + np.float32(0.06) * web.astype(np.float32)


def screw(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A screw lying on its side: a head, a threaded shank, some with a point."""
    head, wide, thick = rng.uniform(0.2, 0.34), rng.uniform(0.27, 0.38), rng.uniform(0.12, 0.18)
    tip = rng.uniform(0.25, 0.5) if rng.uniform() < 0.5 else 0.06
    shank = np.clip((1 - x) / tip, 0, 1) * thick
    pan = wide * np.sqrt(np.clip(1 - ((x - head + 1) / head) ** 2, 0, 1)) if rng.uniform() < 0.5 else wide
    half = np.where(x < head - 1, pan, shank).astype(np.float32)
    distance = np.maximum(np.maximum(np.abs(y) - half, x - 1), -1 - x).astype(np.float32)
    round_ = half * np.sqrt(np.clip(1 - (y / (half + 1e-4)) ** 2, 0, 1))
    ridges = 0.035 * np.sin((x + 0.25 * y) * rng.uniform(38, 60)) * (x > head - 0.9)
    return distance, (0.8 * round_ + ridges).astype(np.float32)


def coin(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A clutter object: a disc without a hole, with a raised rim and relief."""
    r = np.hypot(x, y)
    distance = r - 1
    relief = 0.03 * np.sin(x * rng.uniform(5, 12)) * np.sin(y * rng.uniform(5, 12)) * (r < 0.75)
    return distance, (_bevel(distance, 0.06) + 0.05 * (r > 0.86) + relief).astype(np.float32)


def plate(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A clutter object: a rounded rectangle without a hole."""
    size = rng.uniform((0.5, 0.25), (0.85, 0.6))
    corner = np.hypot(np.maximum(np.abs(x) - size[0], 0), np.maximum(np.abs(y) - size[1], 0)) - 0.12
    distance = corner.astype(np.float32)
    return distance, _bevel(distance, 0.1)


def pin(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A clutter object: a smooth rod without head or thread."""
    thick = np.float32(rng.uniform(0.06, 0.14))
    distance = np.hypot(np.maximum(np.abs(x) - 0.8, 0), y) - thick
    return distance, np.sqrt(np.clip(thick**2 - np.minimum(distance + thick, thick) ** 2, 0, 1))


def o_ring(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image]:
    """A clutter object: a thin round-sectioned rubber ring."""
    thick = np.float32(rng.uniform(0.06, 0.11))
    distance = np.abs(np.hypot(x, y) - (1 - thick)) - thick
    return distance, np.sqrt(np.clip(thick**2 - np.minimum(distance + thick, thick) ** 2, 0, 1))


PARTS: dict[str, Shape] = {"screw": screw, "nut": nut, "washer": washer, "gear": gear}
CLUTTER: dict[str, Shape] = {"coin": coin, "plate": plate, "pin": pin, "o_ring": o_ring}


def draw_part(rng: np.random.Generator, kind: str, radius: float, light: Light) -> Patch:
    """Draw one part or clutter object in a random pose, material and wear.

    Args:
        rng: The source of randomness.
        kind: A key of ``PARTS`` or ``CLUTTER``.
        radius: Half of the longest extent, in pixels.
        light: The scene's lamp.

    Returns:
        A square patch with the part in its middle.
    """
    half = int(np.ceil(radius)) + 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32) / np.float32(radius)
    tilt, axis, turn = rng.uniform(0.78, 1.0), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    lean = np.cos(axis) * u + np.sin(axis) * v, (np.cos(axis) * v - np.sin(axis) * u) / tilt
    x = (np.cos(turn) * lean[0] + np.sin(turn) * lean[1]).astype(np.float32)
    y = (np.cos(turn) * lean[1] - np.sin(turn) * lean[0]).astype(np.float32)
    shape = PARTS.get(kind) or CLUTTER[kind]
    distance, height = shape(rng, x, y)
    alpha = np.clip(0.5 - distance * np.float32(radius), 0, 1).astype(np.float32)
    return Patch(_shade(rng, height * np.float32(radius), (x, y), kind, light), alpha)


def _material(rng: np.random.Generator, kind: str) -> tuple[tuple[float, float, float], float]:
    plastic = {"plate": 0.6, "o_ring": 1.0, "gear": 0.15, "washer": 0.08}.get(kind, 0.0)
    if rng.uniform() < plastic:
        return PLASTICS[int(rng.integers(len(PLASTICS)))], 0.25
    return METALS[int(rng.integers(len(METALS)))], float(rng.uniform(0.5, 0.95))


def _shade(
    rng: np.random.Generator, height: Image, local: tuple[Image, Image], kind: str, light: Light
) -> Image:
    base, gloss = _material(rng, kind)
    slope_y, slope_x = np.gradient(height)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    lamp = np.asarray(light.direction, np.float32)
    halfway = (lamp + _CAMERA) / np.linalg.norm(lamp + _CAMERA)
    facing = np.clip((lamp[2] - slope_x * lamp[0] - slope_y * lamp[1]) / length, 0, 1)
    shine = np.clip((halfway[2] - slope_x * halfway[0] - slope_y * halfway[1]) / length, 0, 1)
    x, y = local
    side = height.shape[0]
    reflection = (
        np.sin(np.arctan2(y, x) * 2 + rng.uniform(0, 6))
        if kind in ("washer", "coin")
        else x * rng.uniform(-1, 1)
    )
    streaks = value_noise(rng, side, side, (side / 3, 2), 2)
    wear = np.clip(value_noise(rng, side, side, (3, 3), 4) - 1.2, 0, 1) * rng.uniform(0, 0.8)
    tone = 0.28 + 0.72 * facing + gloss * (0.14 * reflection + 0.05 * streaks)
    colour = np.asarray(base, np.float32) * tone[..., None].astype(np.float32)
    colour = colour * (1 - wear[..., None]) + _RUST * wear[..., None]
    colour = colour + (gloss * 0.55 * shine[..., None] ** 28 * (1 - 0.8 * (facing[..., None] > 0.97)))
    return np.asarray(np.clip(colour * np.asarray(light.colour, np.float32), 0, 1), np.float32)
