"""Hand an optimizer the smaller parameters of a cut model, with what it remembers of the channels that stay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from yolo_prune.cut.record import PrunePlan


def resize_optimizer_(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, nn.Parameter],
    after: Mapping[str, nn.Parameter],
    plan: PrunePlan,
) -> torch.optim.Optimizer:
    """Put new parameters in the place of old ones, in place: same groups, options, schedulers and hooks.

    State tensors of a parameter's own shape (momenta, averages) are sliced to the kept channels; whatever else an
    optimizer remembers of a parameter (a step count) is handed over as it is. Gradients are not.

    Args:
        optimizer: Any optimizer of PyTorch's kind.
        before: The parameters by name, as they were before the cut.
        after: The parameters by the same names, as they are now.
        plan: Which indices stay.

    Returns:
        The same optimizer.
    """
    kept = _kept_by_name(plan)
    moved: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        for name, old in before.items():
            new = after[name]
            if new is old:
                continue
            moved[id(old)] = new
            state = optimizer.state.pop(old, None)
            if state is not None:
                optimizer.state[new] = {
                    key: _sliced(value, kept.get(name, {})) if _is_of_shape(value, old) else value
                    for key, value in state.items()
                }
    for group in optimizer.param_groups:
        group["params"] = [moved.get(id(parameter), parameter) for parameter in group["params"]]
    return optimizer


def _kept_by_name(plan: PrunePlan) -> dict[str, dict[int, list[int]]]:
    """Return parameter name -> dimension -> indices that stay."""
    kept: dict[str, dict[int, list[int]]] = {}
    for label, indices in plan.keep.items():
        name, _, dim = label[:-1].rpartition("[")
        kept.setdefault(name, {})[int(dim)] = indices
    return kept


def _is_of_shape(value: object, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and parameter.dim() > 0 and value.shape == parameter.shape


def _sliced(value: Tensor, by_dim: Mapping[int, list[int]]) -> Tensor:
    for dim, indices in by_dim.items():
        value = value.index_select(dim, torch.tensor(indices, dtype=torch.int64, device=value.device))
    return value.clone(memory_format=torch.contiguous_format)
