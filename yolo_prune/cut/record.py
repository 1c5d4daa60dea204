"""What was cut, as plain data: a plan is reviewed, compared, composed and replayed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from yolo_prune import files
from yolo_prune.cut.blocks import original_name
from yolo_prune.errors import PlanError

VERSION = 1
"""Of plan.json; it goes up when a key is renamed or removed, or means something else."""
_FORMER_SETTINGS = {"rounds": "steps", "freeze": "keep_layers"}
"""Names that settings had in earlier releases."""


@dataclass(frozen=True)
class PrunePlan:
    """Which indices of which parameters stay.

    Attributes:
        keep: Axis label (``name[dim]``) -> kept indices, ascending; axes that keep everything are left out.
        widths: Axis label -> width before.
        budget: The budget asked for, e.g. ``{"keep_macs": 0.5}``.
        kept_macs: Fraction of the parent's MACs that stays.
        kept_params: Fraction of the parent's parameters that stays.
        gmacs: What stays, in 1e9 MACs.
        params: What stays, in parameters.
        frozen: Group name -> why it could not be cut.
        equivalence: Outcome of the proof, see :func:`yolo_prune.cut.proof.prove_equivalence`; empty before the cut.
        settings: Criterion, rounding and whatever else explains the choice.
        dropped: Residual blocks that go as a whole, by their names in the parent; the later ones of a list move up.
        added: In order, what is added up before anything is cut: ``{"axis": label, "from": [...], "to": [...]}``, where
            a layer read a dropped block's output beside its input.
        untraced: Parameters that no trace met: they are as wide as they were, and so is what they may read.
    """

    keep: dict[str, list[int]]
    widths: dict[str, int]
    budget: dict[str, float] = field(default_factory=dict)
    kept_macs: float = 1.0
    kept_params: float = 1.0
    gmacs: float = 0.0
    params: int = 0
    frozen: dict[str, str] = field(default_factory=dict)
    equivalence: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    added: list[dict[str, Any]] = field(default_factory=list)
    untraced: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    def save(self, path: Path | str) -> Path:
        """Write the plan, whole or not at all."""
        return files.write_text(path, self.to_json())

    @staticmethod
    def from_json(text: str) -> PrunePlan:
        """Read a plan.

        Raises:
            PlanError: The text is no plan of this version.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"the plan is not JSON: {error}.") from error
        if not isinstance(data, dict) or data.pop("version", None) != VERSION or "keep" not in data:
            raise PlanError(f"the plan is not a version {VERSION} plan of yolo_prune.")
        settings = data.get("settings", {})
        data["settings"] = {_FORMER_SETTINGS.get(key, key): value for key, value in settings.items()}
        try:
            return PrunePlan(**data)
        except TypeError as error:
            raise PlanError(f"the plan has fields that this version does not know: {error}.") from error

    @staticmethod
    def load(path: Path | str) -> PrunePlan:
        """Read the file that :meth:`save` wrote.

        Raises:
            PlanError: It cannot be read, or holds no plan of this version.
        """
        try:
            return PrunePlan.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise PlanError(f"the plan '{path}' cannot be read: {why}.") from error

    def then(self, later: PrunePlan) -> PrunePlan:
        """Return one plan for this cut followed by ``later``, whose names and indices refer to the model after this.

        Of the two proofs it carries the worse.
        """
        later = later._before(self)
        keep = dict(self.keep)
        for label, indices in later.keep.items():
            keep[label] = [keep[label][i] for i in indices] if label in keep else list(indices)
        whole = replace(
            later,
            keep=keep,
            widths={**later.widths, **self.widths},
            dropped=[*self.dropped, *later.dropped],
            added=[*self.added, *later.added],
            equivalence=max(self.equivalence, later.equivalence, key=_relative_difference),
        )
        return whole._without_dropped()

    def _before(self, earlier: PrunePlan) -> PrunePlan:
        """Return this plan with the names, and the indices of what is added, that were valid before ``earlier``."""

        def rename(name: str) -> str:
            return original_name(name, earlier.dropped)

        def place(label: str, indices: list[int]) -> list[int]:
            return [earlier.keep[label][i] for i in indices] if label in earlier.keep else indices

        added = [{**entry, "axis": rename(entry["axis"])} for entry in self.added]
        added = [
            {**entry, **{side: place(entry["axis"], entry[side]) for side in ("from", "to")}}
            for entry in added
        ]
        return replace(
            self,
            keep={rename(label): kept for label, kept in self.keep.items()},
            widths={rename(label): width for label, width in self.widths.items()},
            dropped=[rename(name) for name in self.dropped],
            added=added,
            untraced=[rename(name) for name in self.untraced],
        )

    def _without_dropped(self) -> PrunePlan:
        """Leave out what is said of the insides of dropped blocks."""

        def stays(name: str) -> bool:
            return not any(name.startswith(f"{block}.") for block in self.dropped)

        return replace(
            self,
            keep={label: kept for label, kept in self.keep.items() if stays(label)},
            widths={label: width for label, width in self.widths.items() if stays(label)},
            dropped=[name for name in self.dropped if stays(name)],
            added=[entry for entry in self.added if stays(entry["axis"])],
        )


def _relative_difference(proof: dict[str, Any]) -> float:
    return float(proof["max_difference"]) / max(float(proof["scale"]), 1e-12) if proof else -1.0
