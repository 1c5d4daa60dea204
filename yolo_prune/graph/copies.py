"""Copies of a module whose tensors are changed on the way, so that no weight exists once more than needed."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.errors import ConfigError
from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.values import tensors_in

_PLAIN = (bool, int, float, str, type(None))


def copy_with(module: nn.Module, change: Callable[[Tensor], Tensor], *, attributes: bool = True) -> nn.Module:
    """Copy a module deeply, with ``change(tensor)`` in the place of every parameter and buffer.

    Args:
        module: Any module; untouched.
        change: Returns a new tensor, or the same one to share a parameter's storage (other tensors are never shared).
        attributes: Change the tensors as well that are plain attributes of modules, or lie in lists, dicts and objects
            there (cached anchors); else they are copied as they are.

    Returns:
        The copy; shared parameters stay shared.
    """
    memo: dict[int, object] = {}
    for tensor in module.buffers():
        memo[id(tensor)] = change(tensor.detach().clone())
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad)
    for tensor in _plain_tensors(module):
        if id(tensor) not in memo:
            fresh = tensor.detach().clone()
            memo[id(tensor)] = _like(tensor, change(fresh) if attributes else fresh)
    return _deeply(module, memo)


def copy_as(module: nn.Module, dtype: torch.dtype, *, own: bool = True) -> nn.Module:
    """Return a copy on the CPU in evaluation mode whose floating tensors have ``dtype``.

    Without ``own`` it may share parameters with the module: for running it, not for writing to it.
    """

    def convert(tensor: Tensor) -> Tensor:
        here = tensor.cpu()  # before it changes type: not every device has float64
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        return here.to(dtype=wanted, copy=own and here is tensor)

    return copy_with(module, convert).eval()


def has_weights(module: nn.Module) -> bool:
    """Tell whether all tensors of a module have values: those on the meta device are shapes alone."""
    return not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def check_has_weights(module: nn.Module, what: str) -> None:
    """Refuse a module on the meta device.

    Args:
        module: Any module.
        what: What needs its weights, to begin the sentence with.

    Raises:
        ConfigError: Some of its tensors have no values.
    """
    if has_weights(module):
        return
    tensors = [*module.parameters(), *module.buffers()]
    empty = sum(tensor.is_meta for tensor in tensors)
    raise ConfigError(
        f"{what} needs weights, but {empty} of the model's {len(tensors)} tensors are on the meta device and have "
        "none. Load them first: model.to_empty(device='cpu'), then load_state_dict(...)."
    )


def copies_to_run(module: nn.Module, example_input: Any) -> Iterator[tuple[nn.Module, Arguments]]:
    """Yield a copy of a module, in evaluation mode, with its arguments: on the CPU, or on meta where the module is.

    Of a module with weights of 16 bits one in float32 follows, for whom the first does not run: the CPU lacks some
    operators in 16 bits. On meta a tensor of no dimension stays where it is: it may be a number that code asks for.

    Args:
        module: Any module; untouched. The copy may share parameters with it: for running it, not for writing to it.
        example_input: As for :meth:`yolo_prune.graph.arguments.Arguments.of`.
    """
    arguments = Arguments.of(module, example_input)
    if has_weights(module):
        yield copy_with(module, _on_cpu).eval(), arguments.changed(_on_cpu)
    else:
        yield copy_with(module, _on_meta).eval(), arguments.changed(_on_meta)
    if has_weights(module) and narrow_tensors(module):
        yield copy_as(module, torch.float32, own=False), arguments.as_given(torch.float32)


def narrow_tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers that are floating numbers of 16 bits or less."""
    tensors = (*module.parameters(), *module.buffers())
    return [t for t in tensors if t.is_floating_point() and t.element_size() < 4]


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta") if tensor.dim() else tensor.detach()


def _plain_tensors(module: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold without having registered them."""
    registered = ("_parameters", "_buffers", "_modules")
    return tensors_in(
        [
            value
            for owner in module.modules()
            for name, value in vars(owner).items()
            if not (_is_plain(value) or name in registered or name.endswith("_hooks"))
        ]
    )


def _deeply(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as ``copy.deepcopy`` does, in half of its time: nearly all that a module holds is empty or plain.

    Modules with a way of their own to be copied are left to it.
    """
    plain = [owner for owner in module.modules() if _copies_as_any_module(type(owner))]
    for owner in plain:  # all of them first: a module may hold another one, or itself, as an attribute
        memo[id(owner)] = object.__new__(type(owner))
    for owner in plain:
        memo[id(owner)].__setstate__({name: _value(held, memo) for name, held in vars(owner).items()})
    copied: nn.Module = copy.deepcopy(module, memo)
    return copied


def _value(held: Any, memo: dict[int, Any]) -> Any:
    """Copy an attribute of a module deeply."""
    if _is_plain(held):
        return held
    kind = type(held)
    if id(held) in memo:
        return memo[id(held)]
    if kind not in (dict, OrderedDict):
        return copy.deepcopy(held, memo)
    fresh = memo[id(held)] = kind()
    for key, value in held.items():
        fresh[_value(key, memo)] = _value(value, memo)
    return fresh


def _is_plain(held: Any) -> bool:
    """Tell whether an attribute needs no copy."""
    kind = type(held)
    return kind in _PLAIN or (kind is tuple and all(type(part) in _PLAIN for part in held))


def _copies_as_any_module(kind: type[nn.Module]) -> bool:
    """Tell whether modules of a class are copied attribute by attribute, in any order."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__", "__slots__")
    as_any = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in own)
    return as_any and kind.__setstate__.__module__.startswith("torch.") and kind not in copyreg.dispatch_table


def _like(tensor: Tensor, fresh: Tensor) -> Tensor:
    """Return a tensor of the same kind: a parameter that no module registers is one still."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fresh, requires_grad=tensor.requires_grad)
    return fresh.requires_grad_(tensor.requires_grad and tensor.is_leaf and fresh.is_floating_point())


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a dense copy with the dimensions in memory in the order of ``like``: channels last stays channels last.

    A weight of one pixel is dense either way; its strides tell what was meant, and operators go by them.
    """
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if like.dim() == dims and like.stride() == _strides(like, layout) != _strides(like):
            return tensor.clone(memory_format=layout)
    return tensor.clone(memory_format=torch.contiguous_format)


def _strides(tensor: Tensor, layout: torch.memory_format = torch.contiguous_format) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta", memory_format=layout).stride()
