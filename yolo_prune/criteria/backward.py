"""Run calibration images through a model and back from what its task feels, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from yolo_prune.criteria.calibration import Calibration, images_in, placed_batch
from yolo_prune.errors import DataError
from yolo_prune.graph.copies import check_has_weights
from yolo_prune.graph.modes import evaluating, in_full_precision
from yolo_prune.graph.values import change_tensors
from yolo_prune.progress import track

_MEASURED = "yolo_prune: measured"


def run_with_gradients(
    module: nn.Module,
    calibration: Calibration,
    description: str,
    *,
    after: Callable[[], None] | None = None,
) -> None:
    """Run images through a model in evaluation mode, and back from the task; the model is left as it was.

    Weights of 16 bits run in float32.

    Args:
        module: The model.
        calibration: Images, how they run, and the projection that the way back begins at; without one there is none.
        description: Label of the progress bar.
        after: Called after each batch; with it the weights hold the gradient of all batches so far, and keep it.

    Raises:
        ConfigError: The model is on the meta device.
        DataError: There was no image.
    """
    check_has_weights(module, "measuring on images")
    wanted = [p.requires_grad for p in module.parameters()]
    project = calibration.projection
    count = 0
    # A loop that trains in mixed precision may be around this, and 16 bits are too few to regress on.
    with evaluating(module), in_full_precision(module), ExitStack() as undo:
        undo.callback(_give_back_, module, wanted)
        module.requires_grad_(after is not None)
        for batch in track(calibration.batches, description):
            count += images_in(batch)
            own = _own(placed_batch(batch, module), project is not None)
            with torch.set_grad_enabled(project is not None), _KeptSigmoid():
                outputs = calibration.forward(module, own)
                if project is not None:
                    torch.autograd.backward(project(outputs))
            if after is not None:
                after()
    if not count:
        raise DataError("recovery needs calibration images, but got none.")


def _own(batch: Any, gradient: bool) -> Any:
    """Return a copy of a batch that the model may write into, and whose images want a gradient or none."""
    if isinstance(batch, Tensor):
        return batch.clone().requires_grad_(gradient)
    return change_tensors(
        batch, lambda tensor: tensor.clone().requires_grad_(gradient and tensor.is_floating_point())
    )


def _give_back_(module: nn.Module, wanted: Sequence[bool]) -> None:
    """Let parameters want gradients again as they did, and forget the graph of the last pass."""
    for parameter, flag in zip(module.parameters(), wanted, strict=True):
        parameter.requires_grad_(flag)
    for child in module.modules():
        _forget_graph_(child)


class _KeptSigmoid(TorchFunctionMode):
    """Keep the result of a sigmoid in place for the way back: the oldest host's pose head overwrites parts of it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``; a sigmoid in place is computed elsewhere and copied back."""
        if func is Tensor.sigmoid_:
            return args[0].copy_(args[0].sigmoid())
        return func(*args, **(kwargs or {}))


def _forget_graph_(module: nn.Module) -> None:
    """Detach what ``forward`` left in attributes (the oldest host: an angle), or no copy of it can be made."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            setattr(module, name, value.detach())


class WayBack:
    """Where the way back from the task may end: no gradient is wanted before the first layers that are measured.

    Their maps are the largest of most models. So the first measured output on each path is made a beginning of the
    graph: it still wants a gradient, and what it was made from is not gone through.
    """

    def __init__(self) -> None:
        self._start = torch.zeros((), requires_grad=True)

    def begin(self, out: Tensor) -> Tensor:
        """Return ``out``, the result of a measured layer, detached unless something measured comes before it."""
        if not self._leads_on(out.grad_fn):
            out = _Beginning.apply(out.detach(), self._start)
        _notes(out.grad_fn)[_MEASURED] = True
        return out

    def _leads_on(self, node: Any) -> bool:
        """Tell whether the way back through ``node`` comes to an output that is measured."""
        seen, pending = {None}, [node]
        while pending:
            node = pending.pop()
            if node is not None and _MEASURED in _notes(node):
                return True
            if node not in seen:
                seen.add(node)
                pending += [earlier for earlier, _ in node.next_functions]
        return False


def _notes(node: Any) -> dict[str, Any]:
    """Return what can be written down beside a node of the graph; it goes when the node does."""
    notes: dict[str, Any] = node.metadata
    return notes


class _Beginning(torch.autograd.Function):
    """The same tensor, wanting a gradient that goes nowhere. No leaf: the host writes into its maps."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, start: Tensor) -> Tensor:
        """Return ``out`` itself."""
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        """Send nothing further back."""
        return None, None
