"""What a run must remember to go on after a crash: plain values, stored in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CheckpointError


@dataclass
class CutRecord:
    """One cut of the run.

    Attributes:
        epoch: Epochs that were over.
        criterion: What a channel was worth.
        gmacs: What stayed, in 1e9 MACs.
        params: What stayed, in parameters.
        fitness: Of the model right after it, None where it was not measured.
        ms: Time of an image after it, measured where it was, else predicted; None without a budget of time.
    """

    epoch: int
    criterion: str
    gmacs: float
    params: int
    fitness: float | None = None
    ms: float | None = None


@dataclass
class RunState:
    """Where the run is.

    Attributes:
        gmacs: Of the model that the run began with.
        params: Of the model that the run began with.
        cuts: The cuts so far.
        plan: The plan from the model that the run began with to the one it trains now, as JSON; empty before a cut.
        sparse_steps: Optimizer steps with the sparsifier.
        sparse_epochs: Epochs with the sparsifier.
        first_mean: Mean magnitude of the scales before the sparsifier.
        strength: lambda, None before it is known.
        first_strength: The first lambda of the search.
        best_fitness: Highest fitness that the search saw.
        most_strength: The largest lambda that the search may take.
        rest: Epochs until the search may raise lambda again.
        ramp_steps: Length of lambda's ramp in optimizer steps, None while the sparsifier is off.
        widths: Of the model that the run began with, for the floors of later cuts, see
            :class:`yolo_prune.cut.widths.Lineage`; empty when there is one cut.
        latency: What its layers took before the first epoch, as JSON of :class:`yolo_prune.cost.latency.Latency`;
            empty without a budget of time, and after the last cut.
        ms: Time of an image that was measured then.
        round_to: What widths are multiples of, where the runtime chose it.
        granularity: What that was chosen by.
    """

    gmacs: float
    params: int
    cuts: list[CutRecord] = field(default_factory=list)
    plan: str = ""
    sparse_steps: int = 0
    sparse_epochs: int = 0
    first_mean: float | None = None
    strength: float | None = None
    first_strength: float | None = None
    best_fitness: float | None = None
    most_strength: float | None = None
    rest: int = 0
    ramp_steps: int | None = None
    widths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    latency: str = ""
    ms: float | None = None
    round_to: int | None = None
    granularity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def current_params(self) -> int:
        """Parameters of the model that the run trains now."""
        return self.cuts[-1].params if self.cuts else self.params

    @property
    def current_ms(self) -> float:
        """Time of an image of the model that the run trains now."""
        return (self.cuts[-1].ms if self.cuts else None) or self.ms or 0.0

    @property
    def wholes(self) -> dict[str, float]:
        """MACs, parameters and ms of the model that the run began with, by the names of what a budget counts."""
        return {"macs": self.gmacs * 1e9, "params": float(self.params), "latency": self.ms or 0.0}

    @property
    def current_gmacs(self) -> float:
        """1e9 MACs of the model that the run trains now."""
        return self.cuts[-1].gmacs if self.cuts else self.gmacs

    def whole_plan(self, made: PrunePlan, budget: dict[str, float]) -> PrunePlan:
        """Return one plan from the model that the run began with to the one after a cut.

        Args:
            made: The plan of that cut alone.
            budget: Asked for of the whole run.
        """
        plan = PrunePlan.from_json(self.plan).then(made) if self.plan else made
        macs, params = plan.gmacs / self.gmacs, plan.params / self.params
        settings = {**plan.settings, **({"granularity": dict(self.granularity)} if self.granularity else {})}
        return replace(plan, budget=budget, kept_macs=macs, kept_params=params, settings=settings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that a restricted loader reads."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RunState:
        """Read what :meth:`to_dict` wrote.

        Raises:
            CheckpointError: The values are of another version.
        """
        try:
            cuts = [CutRecord(**record) for record in values["cuts"]]
            return RunState(**{**values, "cuts": cuts})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the run was saved by another version of yolo_prune and cannot be resumed: {error}."
            ) from error
