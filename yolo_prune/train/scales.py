"""Whether BatchNorm scales move: one line an epoch, one picture, and a word when they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolo_prune.files import replacing
from yolo_prune.train.sparsify import ScaleSummary, summarise_scales

NEAR_ZERO = 1e-2
_MOVED = 0.01
_ENOUGH = 0.8


def is_separated(scales: Mapping[str, Tensor], wanted: float, threshold: float = NEAR_ZERO) -> bool:
    """Tell whether (nearly) as many scales are near zero as channels shall go, so that scales can rank channels.

    Args:
        scales: Vectors by name.
        wanted: Share of the channels that shall go.
        threshold: What counts as near zero.
    """
    return bool(scales) and summarise_scales(scales, threshold).below >= _ENOUGH * wanted


@dataclass(frozen=True)
class ScaleWatch:
    """Scales at the end of an epoch, against those before sparse training.

    Attributes:
        now: Where they are.
        first_mean: Their mean magnitude before.
        strength: lambda of the last step.
        epochs: Sparse epochs so far.
    """

    now: ScaleSummary
    first_mean: float
    strength: float
    epochs: int

    @property
    def moved(self) -> float:
        """By how much of itself the mean magnitude shrank; negative when it grew."""
        return 1.0 - self.now.mean / max(self.first_mean, 1e-12)

    def line(self) -> str:
        """Return the line of progress."""
        return (
            f"scales: {100 * self.now.below:.1f} % of {self.now.channels:,} below {NEAR_ZERO:g} "
            f"({100 * self.now.zero:.1f} % zero), median {self.now.median:.3f}, mean {100 * -self.moved:+.1f} % "
            f"since the start, lambda {self.strength:.3g}"
        )

    def complaint(self) -> str:
        """Return what to say when two sparse epochs moved nothing; empty when there is nothing to say."""
        if self.epochs != 2 or self.moved >= _MOVED or self.now.below >= _MOVED:
            return ""
        return (
            f"the scales do not move: their mean changed by {100 * -self.moved:+.1f} % in two sparse epochs at lambda "
            f"{self.strength:.3g}. Raise sparsify=, take more or larger steps (epochs, nbs, lr0), or set sparsify=off: "
            "the cut then ranks channels by reconstruction."
        )


def draw_scales(path: Path | str, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Path:
    """Draw two histograms of the scales' magnitudes, whole or not at all.

    Args:
        path: A ``.png`` to create or replace.
        before: Scales before sparse training.
        now: Scales now.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    old, new = _magnitudes(before), _magnitudes(now)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(0, max(float(old.max()), float(new.max()), 1e-6), 61)
    axes.hist(old, bins=bins.tolist(), histtype="step", color="0.5", label="before sparse training")
    axes.hist(new, bins=bins.tolist(), alpha=0.7, label="now")
    axes.set_xlabel("magnitude of the BatchNorm scale")
    axes.set_ylabel("channels")
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return Path(path)


def _magnitudes(scales: Mapping[str, Tensor]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return torch.cat([s.detach().abs().flatten().float().cpu() for s in scales.values()]).numpy()
