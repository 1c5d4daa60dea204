"""How much of a network may stay; needs neither a network nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.errors import BudgetError

if TYPE_CHECKING:
    from yolo_prune.cost import CostModel
    from yolo_prune.graph.atoms import BoolArray

BUDGETS = ("keep_macs", "gmacs", "keep_params")
"""What can be counted; :class:`Budget` also knows ``params``, for what is left on the way."""
TARGETS = ("target_speedup", "target_latency_ms", "target_fps")
"""What is measured on a runtime; :class:`Budget` also knows ``latency_ms``, a predicted time, for the way there."""


@dataclass(frozen=True)
class Budget:
    """How much may stay.

    Attributes:
        kind: ``keep_macs`` or ``keep_params`` (fractions of the parent in (0, 1]), ``gmacs`` or ``params`` (absolute,
            1e9 MACs and parameters), ``target_speedup`` (above 1), ``target_latency_ms`` or ``latency_ms`` (of one
            image) or ``target_fps``.
        value: The amount.
    """

    kind: str
    value: float

    def limit(self, cost: CostModel) -> float:
        """Return the budget in MACs, parameters or milliseconds of this model."""
        relative = self.kind == "target_speedup" or self.kind.startswith("keep_")
        return self.limit_of(self.measure(cost, cost.everything) if relative else 0.0)

    def limit_of(self, whole: float) -> float:
        """Return the budget in MACs, parameters or milliseconds, of a model that has ``whole`` of them."""
        if self.kind == "gmacs":
            return self.value * 1e9
        if self.kind == "target_fps":
            return 1e3 / self.value
        if self.kind in ("params", "latency_ms", "target_latency_ms"):
            return self.value
        return whole / self.value if self.kind == "target_speedup" else self.value * whole

    def absolute(self, cost: CostModel) -> Budget:
        """Return the same budget in MACs, parameters or ms, whatever the model that it is applied to."""
        return Budget.of(self.gradient, self.limit(cost))

    @staticmethod
    def of(gradient: str, amount: float) -> Budget:
        """Return the budget of an amount of ``macs``, ``params`` or ``latency``."""
        kind, scale = {"macs": ("gmacs", 1e9), "params": ("params", 1), "latency": ("latency_ms", 1)}[
            gradient
        ]
        return Budget(kind, amount / scale)

    def measure(self, cost: CostModel, keep: BoolArray) -> float:
        """Return what a choice costs, in the budget's unit."""
        return cost.amount(cost.counts(keep), self.gradient)

    @property
    def gradient(self) -> str:
        """Which cost a channel's removal is measured in."""
        if self.kind in (*TARGETS, "latency_ms"):
            return "latency"
        return "params" if self.kind in ("keep_params", "params") else "macs"


def one_budget(**budgets: float | None) -> Budget:
    """Return the single budget given.

    Raises:
        BudgetError: None or several were given, or a fraction lies outside (0, 1].
    """
    given = {kind: value for kind, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise BudgetError(f"give exactly one of {', '.join(budgets)}; got {', '.join(given) or 'none'}.")
    ((kind, value),) = given.items()
    share = kind.startswith("keep_")
    least = 1.0 if kind == "target_speedup" else 0.0
    if value <= least or (share and value > 1):
        raise BudgetError(
            f"{kind}={value} is outside its range: {'(0, 1]' if share else f'above {least:g}'}."
        )
    return Budget(kind, float(value))
