"""What a row says of the file that was timed, beside its speed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deployed:
    """What was found of the very file that ran, on its runtime; None means "not measured".

    Attributes:
        metric: ``ap`` of boxes, or ``top1``.
        accuracy: That, in [0, 1], every image padded (or cropped) to the file's input.
        low: Lower bound of its 95 % interval over the choice of images.
        high: Upper bound.
        images: On how many.
        not_measured: Why there is none.
        difference: How far its outputs were from the checkpoint's in PyTorch, as a share of their scale.
        tolerance: How far they may be.
        compared: On how many images.
    """

    metric: str | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    images: int | None = None
    not_measured: str | None = None
    difference: float | None = None
    tolerance: float | None = None
    compared: int | None = None
