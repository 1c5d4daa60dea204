"""Run a module in other modes and leave everything as it was, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from yolo_prune.graph.copies import narrow_tensors


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; every child gets the mode back that it had, after an error too.

    ``module.train(mode)`` would not do: a layer that was frozen by ``eval()`` would be trained from then on.
    """
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def plain_attention() -> Iterator[None]:
    """Make ``nn.MultiheadAttention`` run its ordinary operators instead of one opaque fused one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class WithoutAutocast(TorchFunctionMode):
    """Runs every function in the precision of its operands, in a region of autocast that a module opens itself too.

    Args:
        device: Whose autocast it is about: ``cpu``, ``cuda``, ...
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` with autocast off."""
        if not torch.is_autocast_enabled(self._device):
            return func(*args, **(kwargs or {}))
        with torch.autocast(self._device, enabled=False):
            return func(*args, **(kwargs or {}))


@contextmanager
def in_full_precision(module: nn.Module) -> Iterator[None]:
    """Run a module in float32 at least, whatever autocast is around it or inside it: 16 bits are too few to measure.

    Tensors of 16 bits are float32 until the block ends. What is written to buffers meanwhile (statistics) is rounded to
    their own precision then; parameters are as they were.
    """
    first = next(module.parameters(), None)
    narrow = [(tensor, tensor.data) for tensor in narrow_tensors(module)]
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        with WithoutAutocast("cpu" if first is None else first.device.type):
            yield
    finally:
        for tensor, data in narrow:
            if not isinstance(tensor, nn.Parameter):
                data.copy_(tensor.data)
            tensor.data = data
