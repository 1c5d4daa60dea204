"""Value noise and the bench tops that parts lie on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
"""Height x width (x 3, BGR), float32, nominally in [0, 1]."""


def value_noise(
    rng: np.random.Generator, height: int, width: int, cells: tuple[float, float], octaves: int = 4
) -> Image:
    """Smooth noise: random grids, each twice as fine and half as strong as the one before, summed.

    Args:
        rng: The source of randomness.
        height: Rows of the result.
        width: Columns of the result.
        cells: Rows and columns of the coarsest grid; unequal numbers give streaks.
        octaves: How many grids to sum.

    Returns:
        float32 (height, width), mean about 0, standard deviation about 1.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        rows, columns = (min(max(2, round(cell * 2**octave)), 2 * height) for cell in cells)
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def _tint(rng: np.random.Generator, tone: Image, low: Sequence[float], high: Sequence[float]) -> Image:
    """Colour a grey picture with a random mix of two BGR colours."""
    mix = np.float32(rng.uniform())
    colour = np.asarray(low, np.float32) * (1 - mix) + np.asarray(high, np.float32) * mix
    return np.asarray(tone[..., None] * colour, np.float32)


def wood(rng: np.random.Generator, size: int) -> Image:
    """Boards with grain: rings of a stretched noise field, with dark seams between boards."""
    field = value_noise(rng, size, size, (rng.uniform(4, 9), 1.2), 3)
    fibres = value_noise(rng, size, size, (size / 3, 4), 2)
    rings = np.sin(field * rng.uniform(5, 11)) * 0.5 + 0.5
    tone = 0.82 + 0.18 * rings + 0.035 * fibres
    seams = np.ones(size, np.float32)
    step = int(rng.uniform(0.3, 0.7) * size)
    seams[int(rng.integers(step)) :: step] = 0.55
    tone = tone * cv2.GaussianBlur(seams[:, None], (1, 3), 0.7).reshape(size, 1)
    image = _tint(rng, tone, (0.22, 0.34, 0.48), (0.5, 0.66, 0.8))
    return np.ascontiguousarray(image.transpose(1, 0, 2)) if rng.uniform() < 0.5 else image


def concrete(rng: np.random.Generator, size: int) -> Image:
    """Grey with stains, fine grain and pits."""
    stains = value_noise(rng, size, size, (3, 3), 5)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    pits = cv2.GaussianBlur(
        (rng.random((size, size), dtype=np.float32) > 0.9985).astype(np.float32), (0, 0), 1.0
    )
    tone = 1 + 0.08 * stains + 0.04 * grain - 1.6 * pits
    return _tint(rng, tone, (0.34, 0.36, 0.38), (0.62, 0.64, 0.64))


def brushed_metal(rng: np.random.Generator, size: int) -> Image:
    """A steel sheet: long fine streaks, a broad reflection and some scratches."""
    streaks = value_noise(rng, size, size, (size / 2, 3), 2)
    reflection = value_noise(rng, size, size, (1.5, 2), 2)
    image = _tint(rng, 1 + 0.07 * streaks + 0.1 * reflection, (0.38, 0.36, 0.35), (0.7, 0.68, 0.66))
    for _ in range(int(rng.integers(3, 12))):
        ends = rng.uniform(0, size, 4).astype(int).tolist()
        shade = float(rng.uniform(0.5, 0.95))
        cv2.line(image, (ends[0], ends[1]), (ends[2], ends[3]), (shade, shade, shade), 1, cv2.LINE_AA)
    return image


def cutting_mat(rng: np.random.Generator, size: int) -> Image:
    """A self-healing mat: one strong colour with a printed grid and cuts."""
    image = _tint(rng, np.ones((size, size), np.float32), (0.25, 0.36, 0.1), (0.42, 0.26, 0.12))
    step, first = int(rng.integers(size // 9, size // 4)), int(rng.integers(size // 9))
    line = (image[0, 0] + 0.22).tolist()
    for at in range(first, size, step):
        cv2.line(image, (at, 0), (at, size), line, 1)
        cv2.line(image, (0, at), (size, at), line, 1)
    return np.asarray(image * (1 + 0.07 * value_noise(rng, size, size, (6, 6), 5))[..., None], np.float32)


def cloth(rng: np.random.Generator, size: int) -> Image:
    """A woven shop towel with folds."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    pitch = rng.uniform(1.1, 2.2)
    weave = np.sin(x * pitch) * np.sin(y * pitch)
    folds = value_noise(rng, size, size, (2.5, 1.5), 3)
    tone = 1 + 0.06 * weave + 0.13 * folds
    return _tint(rng, tone, (0.5, 0.25, 0.2), (0.72, 0.72, 0.78))


BENCHES: tuple[Callable[[np.random.Generator, int], Image], ...] = (
    wood,
    concrete,
    brushed_metal,
    cutting_mat,
    cloth,
)


def bench_top(rng: np.random.Generator, size: int) -> Image:
    """Draw one of the bench tops, rotated a little and turned a random way up.

    Args:
        rng: The source of randomness.
        size: Side in pixels.

    Returns:
        float32 (size, size, 3), BGR in [0, 1].
    """
    big = round(size * 1.2)
    image = BENCHES[int(rng.integers(len(BENCHES)))](rng, big)
    turn = cv2.getRotationMatrix2D(
        (big / 2, big / 2), float(rng.uniform(-12, 12)), float(rng.uniform(1.05, 1.3))
    )
    turned = cv2.warpAffine(image, turn, (big, big), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    first = (big - size) // 2
    return np.asarray(np.clip(turned[first : first + size, first : first + size], 0, 1), np.float32)
