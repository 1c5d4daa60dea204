"""What is checked and said before the first epoch of a training that prunes."""

from __future__ import annotations

from typing import Any

from yolo_prune.errors import ConfigError
from yolo_prune.progress import LOGGER
from yolo_prune.train import check_schedule

_ABSOLUTE = ("gmacs", "target_latency_ms", "target_fps")


def refuse_what_cannot_work(trainer: Any) -> None:
    """Raise ConfigError for options that exclude each other."""
    pruning, args = trainer.pruning, trainer.args
    if getattr(args, "distill_model", None):
        raise ConfigError("distill_model= and pruning in the run exclude each other: use distill=true.")
    if getattr(args, "quantize", None) in (8, "8", "int8"):
        raise ConfigError("prune first, then train with quantize=8: a quantised model cannot be cut.")
    if not args.time:
        check_schedule(pruning.moment, pruning.cuts, trainer.epochs)


def say_what_the_budget_is_of(trainer: Any) -> None:
    """Say of a model that was cut before that the budget counts from what is left of it."""
    (kind, value), state = trainer.pruning.budget, trainer.state
    if trainer.began_cut and kind not in _ABSOLUTE:
        LOGGER.info(
            "the model was pruned before: %s=%g is of what is left of it, %.3g GMACs and %s parameters.",
            kind,
            value,
            state.gmacs,
            f"{state.params:,}",
        )
