"""Run a module in other modes and leave everything as it was, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
