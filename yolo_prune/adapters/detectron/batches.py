"""Batches of detectron2 and mayaku: a list of dicts, one an image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.errors import ConfigError

Batch = list[dict[str, Tensor]]
_SIDE = 128  # of the example in pixels: what is traced and proven does not depend on the size


def images_of(batch: Any) -> Batch:
    """Return the images of a training batch without their targets.

    Raises:
        ConfigError: It is no list of dicts with an ``image`` each.
    """
    if not isinstance(batch, (list, tuple)) or not all(_is_image(item) for item in batch) or not batch:
        raise ConfigError(
            f"expected batches that are a list of dicts with an 'image' of shape (C, H, W), got {_kind(batch)}. "
            "Give example_input=, calibration= and forward= for other ones."
        )
    return [{"image": item["image"].detach()} for item in batch]


def example_of(images: Batch) -> Batch:
    """Return the middle of a first image, as floating-point numbers: what is traced."""
    image = images[0]["image"]
    top, left = (max(size - _SIDE, 0) // 2 for size in image.shape[-2:])
    return [{"image": image[..., top : top + _SIDE, left : left + _SIDE].float().contiguous()}]


def whole_example_of(images: Batch) -> Batch:
    """Return a first image whole, as floating-point numbers: its MACs count."""
    return [{"image": images[0]["image"].float()}]


class RecentImages:
    """The latest images that a training was fed: what a cut is measured on, without reading the loader twice.

    A second reader of the loader would take batches away from the training, or start its workers anew.
    """

    def __init__(self, wanted: int, first: Batch) -> None:
        """Begin with what there is.

        Args:
            wanted: How many images are kept; the batches around them stay whole.
            first: Returned as long as nothing was fed.
        """
        self._wanted, self._first = wanted, first
        self._batches: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return iter(list(self._batches) or [self._first])

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def feed(self, batch: Any) -> None:
        """Keep the images of a batch and forget the oldest."""
        self._batches.append(images_of(batch))
        while len(self) - len(self._batches[0]) >= self._wanted:
            self._batches.popleft()


def watch_batches(model: nn.Module, note: Callable[[Any], None]) -> Any:
    """Call ``note`` with every batch that a model is trained on; copies of the model are not watched.

    Args:
        model: Its first argument is the batch.
        note: Called before the forward pass.

    Returns:
        A handle with ``remove()``.
    """

    def before_forward(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if module is model and module.training and torch.is_grad_enabled() and arguments:
            note(arguments[0])

    return model.register_forward_pre_hook(before_forward)


def _is_image(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("image"), Tensor)


def _kind(batch: Any) -> str:
    inside = f" of {type(batch[0]).__name__}" if isinstance(batch, (list, tuple)) and batch else ""
    return f"a {type(batch).__name__}{inside}"
