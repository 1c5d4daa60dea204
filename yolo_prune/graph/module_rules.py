"""Rules for module classes: what one that bakes widths into attributes needs, and where its rule comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from yolo_prune.graph.plugged import known_of


@dataclass(frozen=True)
class ModuleRule:
    """What a module class that bakes widths into attributes needs.

    Attributes:
        sync: Called with the module after its parameters were cut; sets the attributes from the new shapes.
        may_split: The class's own forward may split or reshape a channel dimension (``sync`` keeps it right).
        equal: Pairs of (parameter path below the module, dim) that must keep equally many channels.
        follow: As ``sync``, called after it with the kept indices of each cut axis below the module as well, e.g.
            ``{"conv.weight[0]": [0, 2, 3]}``. With it, the parts of a split may keep different numbers of channels.
        heads: Name of the class's attribute that counts attention heads. With it, heads go as a whole: where channels
            are reshaped, the dimension of that size gets shorter, and ``sync`` sets the attribute.
    """

    sync: Callable[[nn.Module], None]
    may_split: bool = True
    equal: tuple[tuple[tuple[str, int], tuple[str, int]], ...] = ()
    follow: Callable[[nn.Module, Mapping[str, Sequence[int]]], None] | None = None
    heads: str | None = None


ModuleRules = Mapping[type[nn.Module], ModuleRule]


def rule_for(rules: ModuleRules, module: nn.Module) -> ModuleRule | None:
    """Return the rule of a module's class, or of the nearest base class that has one; then what adapters know of it."""
    found = next((rules[base] for base in type(module).__mro__ if base in rules), None)
    return found or known_of("blocks", type(module))
