"""Hand an optimizer the smaller parameters of a cut model, with what it remembers of the channels that stay.

A cut replaces parameters, and an optimizer that was made before it goes on training the old ones. Every cut notes which
parameter took the place of which, for as long as something still holds the old one.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from yolo_prune.errors import ConfigError
from yolo_prune.graph.copies import laid_out_as
from yolo_prune.progress import LOGGER


@dataclass(frozen=True)
class _Heir:
    """What took the place of a parameter: nothing (it went with its block), or its kept indices by dimension."""

    parameter: weakref.ref[nn.Parameter] | None
    keep: Mapping[int, Tensor]


# Keys are held weakly: an entry lasts as long as somebody (an optimizer) holds the old parameter.
_HEIRS: Any = WeakTensorKeyDictionary()
_ARE_HEIRS: Any = WeakTensorKeyDictionary()


def note_heir(old: nn.Parameter, new: nn.Parameter, keep: Mapping[int, Tensor]) -> None:
    """Note that ``new`` takes the place of ``old``.

    Args:
        old: A parameter that leaves its module.
        new: The smaller one.
        keep: Dimension -> indices of ``old`` that stay.
    """
    for older, heir in _entries_of(old):  # cut twice: the first one gets the last heir
        composed = {**heir.keep, **keep}
        for dim in heir.keep.keys() & keep.keys():
            composed[dim] = heir.keep[dim][keep[dim]]
        _HEIRS[older] = _Heir(weakref.ref(new), composed)
    _HEIRS[old] = _Heir(weakref.ref(new), dict(keep))
    _ARE_HEIRS[new] = True


def note_gone(old: Iterable[nn.Parameter]) -> None:
    """Note that parameters went with their block and have no successor."""
    for parameter in old:
        for older, _ in _entries_of(parameter):
            _HEIRS[older] = _Heir(None, {})
        _HEIRS[parameter] = _Heir(None, {})


def _entries_of(heir: nn.Parameter) -> list[tuple[nn.Parameter, _Heir]]:
    """Return those whose place ``heir`` took."""
    if heir not in _ARE_HEIRS:
        return []
    return [(old, entry) for old, entry in _HEIRS.items() if entry.parameter and entry.parameter() is heir]


def count_left_behind(module: nn.Module) -> int:
    """Return how many parameters that were replaced in ``module`` something (an optimizer) still holds."""
    now = {id(parameter) for parameter in module.parameters()}
    heirs = (heir.parameter() for heir in _HEIRS.values() if heir.parameter is not None)
    return sum(id(heir) in now for heir in heirs)


def check_can_follow(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Refuse an optimizer that cannot be handed the parameters of a cut module.

    Raises:
        ConfigError: It holds none of the module's parameters, or it is one that no cut can follow.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS remembers all parameters as one vector, which cannot follow a cut. Make a new one after it."
        )
    inside = {id(parameter) for parameter in module.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in inside or id(_heir_of(parameter)) in inside for parameter in held):
        raise ConfigError(
            f"the optimizer holds {len(held)} parameters, and none of them is or was one of this model's "
            f"{len(inside)}. Give the optimizer that trains this very object, not a copy of it."
        )


def able_to_follow(
    given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], module: nn.Module
) -> tuple[torch.optim.Optimizer, ...]:
    """Return one optimizer or several as a tuple.

    Raises:
        ConfigError: There is none, or one of them cannot follow a cut of the module.
    """
    optimizers = (given,) if isinstance(given, torch.optim.Optimizer) else tuple(given)
    if not optimizers:
        raise ConfigError("there is no optimizer: a training without one cannot be pruned on the way.")
    for one in optimizers:
        check_can_follow(one, module)
    return optimizers


def follow_cut(optimizer: torch.optim.Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """Let an optimizer that was made before a cut train the cut module: same groups, options, schedulers and hooks.

    State tensors of a parameter's shape (momenta, averages) are sliced to the kept channels, and so are factored ones,
    whose dimensions are some of the parameter's; numbers such as a step count are kept. State of any other shape is
    begun anew, with a warning. Parameters of dropped blocks leave their group. Gradients are not handed over.

    Args:
        optimizer: Any optimizer of PyTorch's kind but LBFGS, made before the cut.
        module: The module after the cut, or after several.

    Returns:
        The same optimizer.

    Raises:
        ConfigError: The optimizer holds none of the module's parameters, or it is one that no cut can follow;
            nothing was changed then.

    Example:
        >>> from yolo_prune import follow_cut, prune_module
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> plan = prune_module(net, torch.rand(1, 3, 16, 16), keep_macs=0.5)
        >>> follow_cut(optimizer, net).param_groups[0]["params"][0] is net[0].weight
        True
    """
    check_can_follow(optimizer, module)
    inside = {id(parameter) for parameter in module.parameters()}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    moved: dict[int, nn.Parameter | None] = {}
    states: dict[nn.Parameter, dict[str, Any]] = {}
    forgotten = []
    for old in [parameter for group in optimizer.param_groups for parameter in group["params"]]:
        heir = _HEIRS.get(old)
        new = _heir_of(old)
        if heir is None or (new is None and heir.parameter is not None):
            continue
        if new is not None and id(new) not in inside:
            continue
        moved[id(old)] = new
        state = optimizer.state.get(old)
        if new is None or state is None:
            continue
        sliced = {key: _followed(value, old, heir.keep) for key, value in state.items()}
        unknown = [key for key, value in sliced.items() if value is _UNKNOWN]
        if unknown:
            forgotten.append(f"{names[id(new)]} ({', '.join(unknown)})")
        else:
            states[new] = sliced
    _hand_over(optimizer, moved, states)
    if forgotten:
        LOGGER.warning(
            "what the optimizer remembers of %d parameters has a shape that cannot follow the cut, and begins anew: %s",
            len(forgotten),
            ", ".join(forgotten),
        )
    return optimizer


def _hand_over(
    optimizer: torch.optim.Optimizer,
    moved: Mapping[int, nn.Parameter | None],
    states: Mapping[nn.Parameter, dict[str, Any]],
) -> None:
    """Put new parameters and their state in the place of the old ones, after everything was computed."""
    for group in optimizer.param_groups:
        for old in group["params"]:
            if id(old) in moved:
                optimizer.state.pop(old, None)
        places = [moved.get(id(parameter), parameter) for parameter in group["params"]]
        kept = [index for index, parameter in enumerate(places) if parameter is not None]
        group["params"] = [places[index] for index in kept]
        if "param_names" in group:
            group["param_names"] = [group["param_names"][index] for index in kept]
    for new, state in states.items():
        optimizer.state[new] = state


def _heir_of(parameter: Tensor) -> nn.Parameter | None:
    heir = _HEIRS.get(parameter)
    return None if heir is None or heir.parameter is None else heir.parameter()


_UNKNOWN = object()


def _followed(value: Any, old: nn.Parameter, keep: Mapping[int, Tensor]) -> Any:
    """Return a state entry for the smaller parameter; ``_UNKNOWN`` where its shape does not tell how."""
    if not isinstance(value, Tensor):
        return value if value is None or isinstance(value, (bool, int, float, complex, str)) else _UNKNOWN
    if value.shape == old.shape:
        return _sliced(value, keep)
    if value.numel() == 1:
        return value
    found: list[Tensor] = []
    for dims in _placements(value.shape, old.shape):
        own = {place: keep[dim] for place, dim in dims.items() if dim in keep}
        found.append(_sliced(value, own))
    alike = all(torch.equal(found[0], other) for other in found[1:])
    return found[0] if found and alike else _UNKNOWN


def _placements(shape: torch.Size, of: torch.Size) -> Iterator[dict[int, int]]:
    """Yield how the dimensions of a factored state may be some of the parameter's: dimension of the state -> of it."""
    if len(shape) == len(of):
        if all(size in (1, whole) for size, whole in zip(shape, of, strict=True)):
            yield {dim: dim for dim, size in enumerate(shape) if size == of[dim]}
        return
    for dims in itertools.combinations(range(len(of)), len(shape)):
        if all(of[dim] == size for dim, size in zip(dims, shape, strict=True)):
            yield dict(enumerate(dims))


def _sliced(whole: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    value = whole
    for dim, indices in keep.items():
        value = value.index_select(dim, indices.to(value.device))
    return laid_out_as(value, whole)
