"""The control that decides whether pruning was worth it: the parent at a lower input resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yolo_prune.errors import BudgetError

STRIDE = 32


@dataclass(frozen=True)
class Resolution:
    """An input resolution and what the parent costs there.

    Attributes:
        imgsz: Side of the square input, in pixels.
        macs: MACs of the parent at ``imgsz``.
        macs_fraction: ``macs`` over the parent's MACs at its own resolution.
    """

    imgsz: int
    macs: float
    macs_fraction: float


def lower_resolutions(
    parent_macs: float, imgsz: int, target_macs: float, stride: int = STRIDE
) -> tuple[Resolution, ...]:
    """Find the input resolutions at which the parent costs what the pruned model costs.

    MACs grow with the number of pixels: macs(s) = parent_macs * (s / imgsz)**2, exact for convolutions on
    inputs that are multiples of the stride, and a close upper bound where attention takes part.

    Args:
        parent_macs: MACs of the parent at ``imgsz``.
        imgsz: The parent's input resolution, a multiple of ``stride``, in pixels.
        target_macs: MACs to reach, of the same unit.
        stride: Largest stride of the detector, in pixels.

    Returns:
        The nearest resolution at or below the target and the nearest above it, highest last. Only those
        smaller than ``imgsz`` and not smaller than ``stride`` are returned: one or two, never the parent
        itself. One of exactly the target's MACs is returned alone.

    Raises:
        BudgetError: The target is not between 0 and ``parent_macs``, or no lower resolution exists.

    Example:
        >>> [(r.imgsz, round(r.macs_fraction, 3)) for r in lower_resolutions(4.0, 640, 2.0)]
        [(448, 0.49), (480, 0.562)]
    """
    if not 0 < target_macs < parent_macs:
        raise BudgetError(
            "a control at lower resolution needs fewer MACs than the parent's "
            f"{parent_macs:g}, got {target_macs:g}."
        )
    if imgsz <= stride:
        raise BudgetError(f"no input resolution below {imgsz} px is a multiple of the stride {stride}.")
    below = math.floor(imgsz * math.sqrt(target_macs / parent_macs) / stride + 1e-9) * stride
    below = min(below, (math.ceil(imgsz / stride) - 1) * stride)
    exact = math.isclose((below / imgsz) ** 2, target_macs / parent_macs, rel_tol=1e-9)
    sizes = [below] if exact else [below, below + stride]
    return tuple(
        Resolution(size, parent_macs * (size / imgsz) ** 2, (size / imgsz) ** 2)
        for size in sizes
        if stride <= size < imgsz
    )
