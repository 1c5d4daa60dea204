"""How a module is called: one example input in the form that its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.graph.values import change_tensors


@dataclass(frozen=True)
class Arguments:
    """Arguments of one forward pass.

    Attributes:
        positional: Positional arguments.
        named: Keyword arguments.
    """

    positional: tuple[Any, ...]
    named: dict[str, Any]

    @staticmethod
    def of(module: nn.Module, example_input: Any) -> Arguments:
        """Read an example input.

        Args:
            module: The module that will be called.
            example_input: A tuple of positional arguments; a dict of keyword arguments, when the module's forward takes
                arguments of those names; anything else (a tensor, a list of images) is the only argument.
        """
        if isinstance(example_input, tuple):
            return Arguments(example_input, {})
        if isinstance(example_input, Mapping) and _takes(module, example_input):
            return Arguments((), dict(example_input))
        return Arguments((example_input,), {})

    def run(self, module: nn.Module) -> Any:
        """Call a module."""
        return module(*self.positional, **self.named)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """Return a deep copy with ``change(tensor)`` in the place of every tensor."""
        positional, named = change_tensors((self.positional, self.named), change)
        return Arguments(positional, named)

    def random(self, dtype: torch.dtype) -> Arguments:
        """Return random arguments of the same shapes on the CPU; integers stay as they are."""
        generator = torch.Generator().manual_seed(0)

        def fresh(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.detach().cpu()
            return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)

        return self.changed(fresh)

    def as_given(self, dtype: torch.dtype) -> Arguments:
        """Return the arguments on the CPU, floating ones in ``dtype``."""
        return self.changed(
            lambda tensor: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        )


def _takes(module: nn.Module, named: Mapping[Any, Any]) -> bool:
    """Tell whether a module's forward takes arguments of these names."""
    if not named or not all(isinstance(key, str) for key in named):
        return False
    try:
        inspect.signature(module.forward).bind(**named)
    except (TypeError, ValueError):  # other names; or a forward without a signature
        return False
    return True


def call_text(module: nn.Module) -> str:
    """Return the head of a module's forward, for an error message."""
    try:
        signature = str(inspect.signature(module.forward))
    except (TypeError, ValueError):
        signature = "(...)"
    return f"{type(module).__name__}.forward{signature}"
