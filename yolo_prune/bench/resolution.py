"""The control that decides whether pruning was worth it: the parent at a lower input resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yolo_prune.errors import BudgetError
from yolo_prune.imgsz import ImageSize, longer_side, pixels, size_text, with_longer_side


@dataclass(frozen=True)
class Resolution:
    """An input resolution and what the parent costs there.

    Attributes:
        imgsz: Size of the input, in pixels.
        macs: MACs of the parent at ``imgsz``.
        macs_fraction: ``macs`` over the parent's MACs at its own resolution.
    """

    imgsz: ImageSize
    macs: float
    macs_fraction: float


def lower_resolutions(
    parent_macs: float, imgsz: ImageSize, target_macs: float, stride: int
) -> tuple[Resolution, ...]:
    """Find the input resolutions at which the parent costs what the pruned model costs.

    MACs grow with the number of pixels: macs(h, w) = parent_macs * h * w / (height * width), exact for convolutions
    on inputs that are multiples of the stride, and a close upper bound where attention takes part. The longer side
    goes down in steps of the stride; the other one is the multiple that keeps the shape best.

    Args:
        parent_macs: MACs of the parent at ``imgsz``.
        imgsz: The parent's input resolution, multiples of ``stride``, in pixels.
        target_macs: MACs to reach, of the same unit.
        stride: Largest stride of the detector, in pixels.

    Returns:
        The nearest resolution at or below the target and the nearest above it, highest last. Only those
        smaller than ``imgsz`` and not smaller than ``stride`` are returned: one or two, never the parent
        itself. One of exactly the target's MACs is returned alone.

    Raises:
        BudgetError: The target is not between 0 and ``parent_macs``, or no lower resolution exists.

    Example:
        >>> [(r.imgsz, round(r.macs_fraction, 3)) for r in lower_resolutions(4.0, 640, 2.0, 32)]
        [(448, 0.49), (480, 0.562)]
    """
    if not 0 < target_macs < parent_macs:
        raise BudgetError(
            "a control at lower resolution needs fewer MACs than the parent's "
            f"{parent_macs:g}, got {target_macs:g}."
        )
    sides = range(stride, longer_side(imgsz), stride)
    if not sides:
        raise BudgetError(
            f"no input resolution below {size_text(imgsz)} px is a multiple of the stride {stride}."
        )
    lower = [with_longer_side(imgsz, side, stride) for side in sides]
    shares = [pixels(size) / pixels(imgsz) for size in lower]
    target = target_macs / parent_macs
    fitting = [index for index, share in enumerate(shares) if share <= target * (1 + 1e-9)]
    first = fitting[-1] if fitting else -1
    exact = first >= 0 and math.isclose(shares[first], target, rel_tol=1e-9)
    chosen = slice(max(first, 0), first + (1 if exact else 2))
    return tuple(
        Resolution(size, parent_macs * share, share)
        for size, share in zip(lower[chosen], shares[chosen], strict=True)
    )
