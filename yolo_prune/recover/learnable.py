"""Which weights of a cut network may be learnt again: constants that stand in it as weights may not."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from yolo_prune.graph.plugged import known_of


def learnable(student: nn.Module, teacher: nn.Module) -> list[nn.Parameter]:
    """Return the floating-point parameters that may move.

    Not those that an adapter knows to be constants of their module, as the numbers 0 to 15 are by which the host reads
    boxes, and not those that want no gradient where others of the network do, as long as the cut left them as they
    were: what was cut has to be mended, frozen or not. Files often say of no weight that it wants a gradient; then the
    flags say nothing.

    Args:
        student: The cut network.
        teacher: The uncut one.
    """
    fixed = set(_constants(student))
    uncut = {name: weight.shape for name, weight in teacher.named_parameters()}
    weights = {name: weight for name, weight in student.named_parameters() if weight.is_floating_point()}
    if any(weight.requires_grad for weight in weights.values()):
        fixed |= {
            weight
            for name, weight in weights.items()
            if not weight.requires_grad and uncut.get(name) == weight.shape
        }
    return [weight for weight in weights.values() if weight not in fixed]


def _constants(module: nn.Module) -> Iterator[nn.Parameter]:
    for part in module.modules():
        names = known_of("constants", type(part)) or ()
        yield from (part.get_parameter(name) for name in names)
