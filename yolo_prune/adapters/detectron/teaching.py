"""The uncut model's help in a trainer that adds up the losses that its model returns: one more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from yolo_prune.errors import ConfigError
from yolo_prune.train.imitate import Lesson

LOSS = "loss_distill"


def add_teacher(model: nn.Module, next_lesson: Callable[[], Lesson | None]) -> list[Any]:
    """Let a model return how far its heads are from the uncut model's beside its losses; copies of it do not.

    Args:
        model: It returns a dict of losses in training.
        next_lesson: Called before every training step; None as long as there is no teacher.

    Returns:
        Handles with ``remove()``.
    """
    under_way: list[Lesson] = []

    def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module is model and module.training and torch.is_grad_enabled():
            lesson = next_lesson()
            if lesson is not None:
                lesson.begin()
                under_way.append(lesson)

    def after(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> Any:
        if module is not model:
            return None
        lesson = under_way.pop() if under_way else None
        if lesson is not None:
            lesson.end()
        if outputs is None or not (
            module.training and torch.is_grad_enabled()
        ):  # it failed, or does not train
            return None
        if not isinstance(outputs, dict):  # known from the first step on, not only after the cut
            raise ConfigError(
                f"distill=true adds '{LOSS}' to the losses that a model returns in training: expected a dict of "
                f"them, got {type(outputs).__name__}. Use distill=false."
            )
        if lesson is None:
            return None
        with _apart_from_the_log():
            apart = lesson.distance(lambda network: network(*arguments, **named))
        return {**outputs, LOSS: apart}

    return [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True, always_call=True),
    ]


@contextmanager
def _apart_from_the_log() -> Iterator[None]:
    """Keep what the teacher says of its own losses out of the storage of the training."""
    try:
        from detectron2.utils.events import EventStorage
    except ImportError:
        yield
        return
    with EventStorage(0):
        yield
