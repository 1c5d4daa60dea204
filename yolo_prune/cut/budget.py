"""How much of a network may stay; needs neither a network nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.errors import BudgetError

if TYPE_CHECKING:
    from yolo_prune.cost import CostModel
    from yolo_prune.graph.atoms import BoolArray

BUDGETS = ("keep_macs", "gmacs", "keep_params")
"""What a person can ask for; :class:`Budget` also knows ``params``, for what is left on the way."""


@dataclass(frozen=True)
class Budget:
    """How much may stay.

    Attributes:
        kind: ``keep_macs`` or ``keep_params`` (fractions of the parent in (0, 1]), ``gmacs`` or ``params`` (absolute,
            1e9 MACs and parameters).
        value: The amount.
    """

    kind: str
    value: float

    def limit(self, cost: CostModel) -> float:
        """Return the budget in MACs or parameters of this model."""
        everything = cost.everything
        if self.kind == "gmacs":
            return self.value * 1e9
        if self.kind == "params":
            return self.value
        return self.value * (
            cost.parameters(everything) if self.kind == "keep_params" else cost.macs(everything)
        )

    def absolute(self, cost: CostModel) -> Budget:
        """Return the same budget in MACs or parameters, whatever the model that it is applied to."""
        return Budget.of(self.gradient, self.limit(cost))

    @staticmethod
    def of(gradient: str, amount: float) -> Budget:
        """Return the budget of an amount of ``macs`` or ``params``."""
        return Budget("gmacs", amount / 1e9) if gradient == "macs" else Budget("params", amount)

    def measure(self, cost: CostModel, keep: BoolArray) -> float:
        """Return what a choice costs, in the budget's unit."""
        return cost.amount(cost.counts(keep), self.gradient)

    @property
    def gradient(self) -> str:
        """Which cost a channel's removal is measured in."""
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
    if value <= 0 or (kind != "gmacs" and value > 1):
        raise BudgetError(
            f"{kind}={value} is outside its range: {'above 0' if kind == 'gmacs' else '(0, 1]'}."
        )
    return Budget(kind, float(value))
