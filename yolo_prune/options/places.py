"""Where a budget of time is met, and where widths that a runtime likes are measured: one rule for all commands."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

from yolo_prune.cut.budget import TARGETS
from yolo_prune.errors import ConfigError

AUTO = "auto"
"""As ``round_to``: the runtime says which widths it likes."""


class Placed(Protocol):
    """Options of a run that may be about a certain runtime."""

    @property
    def round_to(self) -> int | str:
        """What widths are multiples of, or ``auto``."""

    @property
    def runtime(self) -> str | None:
        """A key of ``RUNTIMES``; None: chosen."""

    @property
    def target_device(self) -> str:
        """Device of the runtime."""

    @property
    def latency(self) -> str | None:
        """Table of times that were measured elsewhere."""


def read_round_to(value: Any) -> int | str:
    """Return a number of channels, or ``auto``.

    Raises:
        ConfigError: It is neither.
    """
    if value == AUTO:
        return AUTO
    try:
        number = float(value)
        if not isinstance(value, bool) and number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"round_to must be a whole number or {AUTO}, got '{value}'.")


def has_target(options: Placed) -> bool:
    """Tell whether the budget is one of time."""
    return any(getattr(options, key) is not None for key in TARGETS)


def has_place(options: Placed) -> bool:
    """Tell whether something is asked of a runtime before anything is cut."""
    return has_target(options) or options.round_to == AUTO


def measures(options: Placed) -> bool:
    """Tell whether a target is met by measuring: a table is of a machine that is elsewhere."""
    return has_target(options) and options.latency is None


def runtime_of(options: Placed) -> str:
    """Return the runtime that is meant."""
    if options.runtime is not None:
        return options.runtime
    return "onnxruntime" if importlib.util.find_spec("onnxruntime") else "torch"


def check_place(options: Placed, budget: str | None, more: str = "") -> None:
    """Refuse a place where nothing is asked of it, and two places.

    Args:
        options: What was asked for.
        budget: Its budget's name.
        more: A sentence on what else names runtimes.

    Raises:
        ConfigError: There is one too many.
    """
    places = {"runtime": options.runtime, "target_device": options.target_device, "latency": options.latency}
    asked = [f"{key}={value}" for key, value in places.items() if value not in (None, "cpu")]
    if asked and not has_place(options):
        raise ConfigError(
            f"{asked[0]} is where a target is met, and {f'{budget} is' if budget else 'there is'} none: give one of "
            f"{', '.join(TARGETS)}, or round_to={AUTO}, or leave it out.{more and f' {more}'}"
        )
    if options.latency is not None and len(asked) > 1:
        raise ConfigError(
            f"{' and '.join(asked)}: the table says what it was measured on. Leave the others out."
        )
