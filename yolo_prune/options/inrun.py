"""The options of pruning inside a training: the keys of ``train`` and of ``attach`` are these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from yolo_prune.cut.budget import BUDGETS
from yolo_prune.errors import ConfigError
from yolo_prune.options.fields import check_keys, coerce_, option, renamed


@dataclass(frozen=True, kw_only=True)
class InRunSettings:
    """How a running training is sparsified, cut and retrained."""

    keep_macs: float | None = option(
        "budget, one of three: fraction of the model's MACs that stays; of a pruned model, of what is left",
        None,
        low=0,
        high=1,
        inside=True,
    )
    gmacs: float | None = option("budget, one of three: MACs that stay, in 1e9 at imgsz", None, low=1e-6)
    keep_params: float | None = option(
        "budget, one of three: fraction of the model's parameters that stays",
        None,
        low=0,
        high=1,
        inside=True,
    )
    prune_at: float | str = option(
        "when to cut: late (0.7; of several cuts the first at 0.4), share, epochs, or auto (separated)",
        "late",
    )
    cuts: int = option("cuts on the way to the budget, spread over the run", 1, low=1, high=20, was="rounds")
    criterion: str = option(
        "what a channel is worth: auto (bn_scale once the scales have separated), or a name",
        "auto",
    )
    sparsify: float | bool | str = option(
        "lambda of the sparse epochs; auto looks for it, off leaves the scales alone", "auto"
    )
    max_drop: float = option("fall of the validation fitness that sparsify=auto allows", 0.02, low=0, high=1)
    distill: bool = option("learn from the uncut model after the cut", True)
    steps: int = option(
        "steps of measuring, choosing and folding on the way to the budget, in all cuts together",
        12,
        low=1,
        high=100,
    )
    round_to: int = option("widths become multiples of this many channels", 8, low=1, high=64)
    min_width: int = option("no layer gets narrower than this many channels", 8, low=1)
    min_keep: float | None = option(
        "share of its width that every layer keeps, 0 for none; chosen when not given", None, low=0, high=1
    )
    keep_layers: tuple[str, ...] = option("modules that keep their channels, such as model.0,model.22", ())
    fold: bool = option("fold what removed channels contributed into the kept ones", True)
    calibration_images: int = option("training images that folding and scoring look at", 96, low=1)
    exact_resume: bool = option(
        "a killed run cuts as an unbroken one: until the last cut, up to 5 times the weights lie on the disk",
        True,
    )
    threads: int | None = option(
        "CPU threads while training; the host's choice when not given", None, low=1, high=1024
    )

    def __post_init__(self) -> None:
        coerce_(self)
        if isinstance(self.prune_at, str) and self.prune_at not in ("auto", "late"):
            raise ConfigError(
                f"prune_at must be a share below 1, a number of epochs, auto or late, got '{self.prune_at}'."
            )
        if isinstance(self.prune_at, float) and self.prune_at < 0:
            raise ConfigError(f"prune_at must be at least 0, got {self.prune_at:g}.")
        if isinstance(self.sparsify, str) and self.sparsify != "auto":
            raise ConfigError(f"sparsify must be auto, off or a number, got '{self.sparsify}'.")
        if isinstance(self.sparsify, float) and self.sparsify < 0:
            raise ConfigError(f"sparsify must be at least 0, got {self.sparsify:g}.")
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ConfigError(f"give exactly one budget of {', '.join(BUDGETS)}; got {' and '.join(given)}.")

    @property
    def budget(self) -> tuple[str, float] | None:
        """The budget's name and value, None when there is none."""
        found = [(key, getattr(self, key)) for key in BUDGETS if getattr(self, key) is not None]
        return found[0] if found else None

    @property
    def strength(self) -> float | None:
        """Lambda as given; 0 for none, None to look for it."""
        if isinstance(self.sparsify, bool):
            return None if self.sparsify else 0.0
        return None if isinstance(self.sparsify, str) else float(self.sparsify)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that a restricted loader reads."""
        values = {field.name: getattr(self, field.name) for field in fields(InRunSettings)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def make_settings(options: Mapping[str, Any]) -> InRunSettings:
    """Make settings that have a budget.

    Raises:
        ConfigError: A key is unknown, a value is wrong, or there is no budget.
    """
    check_keys(options, InRunSettings, "")
    settings = InRunSettings(**options)
    if settings.budget is None:
        raise ConfigError(f"give exactly one budget of {', '.join(BUDGETS)}; got none.")
    return settings


def stored_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint holds, of this release or an earlier one, under their present names."""
    return renamed(InRunSettings, stored)


def same_settings(one: InRunSettings, other: InRunSettings) -> bool:
    """Tell whether two runs are pruned alike (threads do not matter)."""
    return asdict(one) | {"threads": None} == asdict(other) | {"threads": None}
