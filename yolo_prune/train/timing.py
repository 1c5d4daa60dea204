"""A training that is cut to a time, or to widths that a runtime likes: what it asks of whoever can time its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from yolo_prune.cost.granularity import Granularity
from yolo_prune.cost.latency import Latency
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.recover.aim import Timed, how_it_was_met
from yolo_prune.recover.steps import CutResult

Measure = Callable[[nn.Module, PrunePlan], Timed]


def time_after(plan: PrunePlan) -> float | None:
    """Return the time of an image after a cut, measured where it was, else predicted; None without a budget of time."""
    met = plan.settings.get("latency")
    if met is None:
        return None
    return float(met["measured"]["ms"] if met["measured"] else met["predicted_ms"])


class Timekeeper(Protocol):
    """Times the models of one training on the runtime that counts, in its first process alone."""

    @property
    def where(self) -> Mapping[str, Any]:
        """Runtime, device and threads, as a plan keeps them."""

    def ask(self, parent: Traced) -> tuple[Latency | None, Granularity | None]:
        """Measure before the first epoch what the settings need, and keep it in the run folder.

        Args:
            parent: The model that the training begins with.

        Returns:
            What its layers take, for a budget of time, and which widths are liked, for ``round_to=auto``.
        """

    def keep(self, parent: nn.Module) -> None:
        """Write the model before the first cut: what is measured later is measured beside it."""

    def watch(self, whole_ms: float, cuts: str) -> AbstractContextManager[Measure | None]:
        """Yield what times models against that one; None where a table of another machine has to do.

        What was measured is kept, so that a cut that a kill interrupted is made again as it was.

        Args:
            whole_ms: What the model before all cuts takes.
            cuts: The plan of the cuts so far, as JSON; empty before the first one.
        """


@dataclass(frozen=True)
class Target:
    """A budget of time at a cut.

    Attributes:
        limit_ms: What an image may take after it.
        whole_ms: What the model before all cuts takes.
        where: Runtime, device and threads.
        measure: Times a cut model; None: what is predicted counts.
    """

    limit_ms: float
    whole_ms: float
    where: Mapping[str, Any]
    measure: Measure | None = None

    def met_by(self, cut: CutResult, before: Traced) -> dict[str, Any]:
        """Return what a plan keeps of it.

        Args:
            cut: The cut.
            before: The model before it.
        """
        now = before.cost.amount(before.cost.counts(before.cost.everything), "latency")
        predicted = now * cut.steps[-1].kept if cut.steps else now
        asked = {"target_ms": self.limit_ms, "parent_ms": self.whole_ms, "predicted_ms": predicted}
        return {**self.where, **how_it_was_met(cut.reached, **asked)}
