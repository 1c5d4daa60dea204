"""Detectors take images as they come: they are framed before, so that every runtime sees the same pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class AsTheyCome(GeneralizedRCNNTransform):  # type: ignore[misc]
    """The library's transform without resizing: images are normalised and batched.

    ``imgsz`` is the size of a canvas. An image is scaled into it with its aspect ratio and padded with grey, as every
    deployed model of fixed input is fed, or stretched to it for SSD, which its library does, too.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return what came."""
        return image, target


def take_as_they_come_(module: nn.Module) -> None:
    """Put the transform without resizing into a detector, in the place of its own."""
    own: Any = module.transform
    module.transform = AsTheyCome(
        own.min_size,
        own.max_size,
        own.image_mean,
        own.image_std,
        size_divisible=own.size_divisible,
        fixed_size=own.fixed_size,
    )


def is_stretched(module: nn.Module) -> bool:
    """Tell whether a detector sees images stretched to its input."""
    transform: Any = module.transform
    return transform.fixed_size is not None


def learn_from_(module: nn.Module, regions: int) -> None:
    """Let a second stage learn from so many regions an image, a quarter of them objects where there are as many."""
    if is_two_stage(module):
        heads: Any = module.roi_heads
        heads.fg_bg_sampler = BalancedPositiveNegativeSampler(regions, 0.25)


def is_two_stage(module: nn.Module) -> bool:
    """Tell whether a detector looks again at the regions that it proposes."""
    return hasattr(module, "roi_heads")
