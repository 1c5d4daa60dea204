"""Copies of a module whose tensors are changed on the way, so that no weight exists once more than needed."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn


def copy_with(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a module deeply, with ``change(tensor)`` in the place of every parameter and buffer.

    Args:
        module: Any module; untouched.
        change: Returns a new tensor, or the same one to share a parameter's storage (buffers are never shared).

    Returns:
        The copy; shared parameters stay shared.
    """
    memo: dict[int, object] = {}
    for tensor in module.buffers():
        memo[id(tensor)] = change(tensor.detach().clone())
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo)
