"""The options of pruning inside a training: the keys of ``train`` and of ``attach`` are these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from yolo_prune.criteria import LABELLED, MEASURED
from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.options.common import MEASURING, RECOVERY, SPARSE, TRAINING, WHEN, shared
from yolo_prune.options.fields import check_keys, coerce_, option, renamed
from yolo_prune.options.places import check_place, has_place

_END = "end"
_MOMENTS = (_END, "late", "auto")
_KINDS = (*BUDGETS, *TARGETS)
_SCALES = "bn_scale"
_IMITATED_AT_END = 240


@dataclass(frozen=True, kw_only=True)
class InRunSettings:
    """How a running training is sparsified, cut and retrained."""

    keep_macs: float | None = shared("keep_macs")
    gmacs: float | None = shared("gmacs")
    keep_params: float | None = shared("keep_params")
    target_speedup: float | None = shared("target_speedup")
    target_latency_ms: float | None = shared("target_latency_ms")
    target_fps: float | None = shared("target_fps")
    runtime: str | None = shared("runtime")
    target_device: str = shared("target_device")
    target_threads: int | None = shared(
        "threads",
        help="of a target or round_to=auto: CPU threads of the runtime; all when not given",
        group=MEASURING,
    )
    latency: str | None = shared("latency")
    prune_at: float | str | None = option(
        "end, late (0.7; of several cuts 0.4 to 0.7), a share, epochs, or auto (scales have separated)",
        None,
        group=WHEN,
        words=_MOMENTS,
    )
    cuts: int = option(
        "cuts on the way to the budget, spread over the run", 1, group=WHEN, low=1, high=20, was="rounds"
    )
    criterion: str = shared(
        "criterion",
        help="what a channel is worth; auto: bn_scale once the scales have separated, else reconstruction",
    )
    sparsify: float | bool | str = option(
        "lambda; auto looks for it (prune_at=end: off), off leaves the scales alone",
        "auto",
        group=SPARSE,
        words=("auto", "off"),
    )
    max_drop: float = option(
        "fall of the validation fitness that sparsify=auto allows", 0.02, group=SPARSE, low=0, high=1
    )
    distill: bool = option("learn from the uncut model after the cut", True, group=TRAINING)
    steps: int = shared(
        "steps",
        help="steps of measuring, choosing and folding on the way to the budget, in all cuts together",
    )
    round_to: int | str = shared("round_to")
    min_width: int = shared("min_width")
    min_keep: float | None = shared("min_keep")
    keep_layers: tuple[str, ...] = shared("keep_layers")
    fold: bool = shared("fold")
    calibration_images: int | None = shared(
        "calibration_images",
        help="training images that folding and scoring look at; not given: 96, of classifiers 512",
        default=None,
    )
    imitation_steps: int | None = option(
        "steps of imitating the uncut model without labels; not given: 240 at the end, else 0",
        None,
        group=RECOVERY,
        low=0,
    )
    exact_resume: bool = option(
        "a killed run cuts as an unbroken one: until the last cut, up to 5 times the weights lie on the disk",
        True,
        group=WHEN,
    )
    threads: int | None = shared(
        "threads", help="CPU threads while training; the host's choice when not given"
    )

    def __post_init__(self) -> None:
        coerce_(self)
        if isinstance(self.prune_at, str) and self.prune_at not in _MOMENTS:
            raise ConfigError(
                f"prune_at must be a share below 1, a number of epochs, end, late or auto, got '{self.prune_at}'."
            )
        if self.prune_at == _END and self.cuts > 1:
            raise ConfigError(
                f"prune_at=end is one cut, after the last epoch, and cuts={self.cuts} are spread over the training: "
                "leave one of them out."
            )
        if isinstance(self.prune_at, float) and self.prune_at < 0:
            raise ConfigError(f"prune_at must be at least 0, got {self.prune_at:g}.")
        if isinstance(self.sparsify, str) and self.sparsify != "auto":
            raise ConfigError(f"sparsify must be auto, off or a number, got '{self.sparsify}'.")
        if isinstance(self.sparsify, float) and self.sparsify < 0:
            raise ConfigError(f"sparsify must be at least 0, got {self.sparsify:g}.")
        given = [key for key in _KINDS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ConfigError(f"give exactly one budget of {', '.join(_KINDS)}; got {' and '.join(given)}.")
        check_place(self, given[0] if given else None)
        if self.target_threads is not None and (self.latency is not None or not has_place(self)):
            raise ConfigError(
                "target_threads are those of the runtime that a target, or round_to=auto, is measured on, and none "
                "is: leave it out."
            )

    @property
    def budget(self) -> tuple[str, float] | None:
        """The budget's name and value, None when there is none."""
        found = [(key, getattr(self, key)) for key in _KINDS if getattr(self, key) is not None]
        return found[0] if found else None

    @property
    def moment(self) -> float | str:
        """When the training is cut; where that was not said, at its end, or late if scales or several cuts shall tell.

        At equal epochs a model that is trained to its end, then cut and recovered without labels is more accurate than
        one that is cut on the way: docs/results.md. What sparse epochs prepare needs a training behind it.
        """
        if self.prune_at is not None:
            return self.prune_at
        scales = self.criterion == _SCALES or not (isinstance(self.sparsify, str) or not self.sparsify)
        return "late" if scales or self.cuts > 1 else _END

    @property
    def at_end(self) -> bool:
        """Whether the cut comes after the last epoch, to the best weights of a training that knows nothing of it."""
        return self.moment == _END

    @property
    def learns_from_parent(self) -> bool:
        """Whether epochs with the uncut model as teacher follow the cut."""
        return self.distill and not self.at_end

    @property
    def steps_of_imitation(self) -> int:
        """Steps in which the cut model imitates the uncut one."""
        if self.imitation_steps is None:
            return _IMITATED_AT_END if self.at_end else 0
        return self.imitation_steps

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Options that were given and change nothing at this moment of the cut, as they were given."""
        default = InRunSettings()
        idle = ["distill", "exact_resume"] if self.at_end else []  # no epoch follows, and none before is ours
        if self.strength is not None:  # nobody looks for lambda
            idle.append("max_drop")
        given = [
            (name, getattr(self, name)) for name in idle if getattr(self, name) != getattr(default, name)
        ]
        return tuple(f"{name}={str(value).lower()}" for name, value in given)

    @property
    def strength(self) -> float | None:
        """Lambda as given; 0 for none, None to look for it."""
        if isinstance(self.sparsify, bool):
            return None if self.sparsify else 0.0
        if isinstance(self.sparsify, str):
            return 0.0 if self.at_end and self.criterion != _SCALES else None
        return float(self.sparsify)

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
        raise ConfigError(f"give exactly one budget of {', '.join(_KINDS)}; got none.")
    return settings


def refuse_places(settings: InRunSettings, timekeeper: object = None) -> None:
    """Refuse what has to be asked of a runtime, where nothing can ask it.

    Args:
        settings: What was asked for.
        timekeeper: What can.

    Raises:
        ConfigError: The budget is one of time, or the runtime shall choose the widths.
    """
    if timekeeper is None and has_place(settings):
        kind = next((key for key in TARGETS if getattr(settings, key) is not None), "round_to=auto")
        raise ConfigError(
            f"{kind}: the models of a loop of your own are in no file that a runtime could be timed on. Give one of "
            f"{', '.join(BUDGETS)} and a number as round_to=."
        )


def stored_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint holds, of this release or an earlier one, under their present names."""
    return renamed(InRunSettings, stored)


def same_settings(one: InRunSettings, other: InRunSettings) -> bool:
    """Tell whether two runs are pruned alike (threads do not matter)."""
    return asdict(one) | {"threads": None} == asdict(other) | {"threads": None}


def check_state(state: Mapping[str, Any], version: int, settings: InRunSettings) -> None:
    """Refuse the state of a session that another release saved, or one with other options.

    Args:
        state: As it was saved.
        version: Of states of this release.
        settings: Of the session that is to go on with it.

    Raises:
        CheckpointError: It is of another version.
        ConfigError: It was saved with other options.
    """
    if state.get("version") != version:
        raise CheckpointError(
            f"the session's state is of version {state.get('version')}, expected {version}."
        )
    if not same_settings(make_settings(state["settings"]), settings):
        raise ConfigError("the session's state was saved with other pruning options: begin with the same.")


def settings_for(options: Mapping[str, Any], *, images: bool, labels: bool) -> InRunSettings:
    """Return the settings of a session.

    Args:
        options: As the user gave them.
        images: Whether there is an image to measure on.
        labels: Whether it is known what is in the images.

    Raises:
        ConfigError: An option is wrong, or asks for what there is not.
    """
    settings = make_settings(options if images else without_images(options))
    if settings.criterion in LABELLED:
        from yolo_prune.criteria.svm import check_svm  # imports torch

        check_svm(labels=labels)
    return settings


def without_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for a session that has no image to measure on.

    Raises:
        ConfigError: An option asks for images.
    """
    if options.get("criterion", "auto") in MEASURED or options.get("fold"):
        raise ConfigError(
            f"criterion={'|'.join(MEASURED)} and fold=true measure on images: give calibration=."
        )
    if options.get("imitation_steps"):
        raise ConfigError("imitation_steps: the cut model imitates on images: give calibration=.")
    if options.get("prune_at") == _END:
        raise ConfigError("prune_at=end: no epoch follows the cut, and images recover it: give calibration=.")
    criterion = options.get("criterion", "auto")
    late = {"prune_at": "late"} if options.get("prune_at") is None else {}
    return {**options, **late, "criterion": _SCALES if criterion == "auto" else criterion, "fold": False}
