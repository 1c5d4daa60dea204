"""Parameters that no trace met: which channels they may read all the same.

An auxiliary head that needs targets runs in training alone, and no trace can see it run. Its owner handed it something,
though: what the owner was given, or what the owner's other children returned. Channels of those tensors stay when their
width is one that an untraced layer reads, alone or in a concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor, nn

from yolo_prune.graph.labels import compact
from yolo_prune.graph.trace import Tracer

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Visit:
    """One call of a module: what went in and what came out."""

    module: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def untraced_parameters(model: nn.Module, tracer: Tracer) -> tuple[str, ...]:
    """Return the names of the parameters that no operator of the traces used."""
    return tuple(name for name, _ in model.named_parameters() if name not in tracer.met)


def freeze_what_may_be_read(model: nn.Module, tracer: Tracer, visits: Iterable[Visit]) -> None:
    """Freeze the channels whose width an untraced layer expects, where that layer could get hold of them."""
    names = tracer.found.untraced
    ran: dict[str, list[Visit]] = {}
    for visit in visits:
        ran.setdefault(visit.module, []).append(visit)
    roots = list(_roots(model, set(names)))
    for root in roots:
        owner = _nearest(root, ran)
        inside = [name for name in ran if name != owner and _nearest(name, ran) == owner]
        given = [t for visit in ran.get(owner, ()) for t in visit.inputs]
        given += [t for name in inside for visit in ran[name] for t in visit.outputs]
        siblings = [other for other in roots if _nearest(other, ran) == owner]
        made = [width for other in siblings for width in _widths(model.get_submodule(other), reads=False)]
        wanted = _widths(model.get_submodule(root), reads=True)
        _freeze_widths(tracer, root, given, wanted, made)


def _roots(model: nn.Module, untraced: set[str]) -> Iterator[str]:
    """Yield the topmost modules of whose parameters none was met."""
    taken: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        if own and untraced.issuperset(own) and not any(name.startswith(f"{up}.") for up in taken if up):
            taken.append(name)
            yield name


def _nearest(name: str, ran: dict[str, list[Visit]]) -> str:
    """Return the nearest module above that ran; the model itself if none did."""
    while name:
        name = name.rpartition(".")[0]
        if name in ran:
            return name
    return ""


def _widths(module: nn.Module, *, reads: bool) -> list[int]:
    """Return the widths that the layers below a module read, or make."""
    if not any(p.dim() > 1 for p in module.parameters()):  # a norm of its own
        return [p.shape[0] for p in module.parameters() if p.dim()]
    widths: list[int] = []
    for layer in module.modules():
        known = "in" if reads else "out"
        width = getattr(layer, f"{known}_channels", getattr(layer, f"{known}_features", None))
        weights = [p for p in layer.parameters(recurse=False) if p.dim() > 1]
        if isinstance(width, int):
            widths.append(width)
        else:  # which dimension a class of its own reads is not known: all
            widths += list(chain.from_iterable(tuple(p.shape) for p in weights))
    return widths


def _freeze_widths(
    tracer: Tracer, root: str, given: list[Tensor], wanted: list[int], made: list[int]
) -> None:
    labelled = [(tensor, tracer.label(tensor)) for tensor in given if tensor.dim() > 1]
    found = [(tensor, label) for tensor, label in labelled if label is not None]
    widths = [_width(tensor) for tensor, _ in found]
    for index, (tensor, label) in enumerate(found):
        others = [*widths[:index], *widths[index + 1 :], *made]
        sums = _sums(others, max(wanted, default=0)) << tensor.shape[1]  # beside others in a concatenation
        flat = {int(tensor.shape[-1]), math.prod(tensor.shape[1:])}  # as a linear layer reads it
        if flat & set(wanted) or any(sums >> width & 1 for width in wanted):
            atoms = np.unique(compact(label).numpy())
            reason = f"may be read by '{root}', which no trace met"
            tracer.found.frozen.append((atoms[atoms > 0], reason))


def _width(tensor: Tensor) -> int:
    return int(tensor.shape[1])


def _sums(widths: Iterable[int], limit: int) -> int:
    """Return the sums up to ``limit`` of any of the widths, each taken once at most: bit ``n`` is set for sum ``n``."""
    sums = 1
    for width in widths:
        sums |= sums << width & (1 << limit + 1) - 1
    return sums
