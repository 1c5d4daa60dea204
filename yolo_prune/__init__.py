"""Structural pruning of detectors and classifiers: cut channels, keep the accuracy, prove what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from yolo_prune.adapters.hosts import attach, inrun_trainer
    from yolo_prune.cut.optimizer import follow_cut
    from yolo_prune.cut.record import PrunePlan
    from yolo_prune.cut.restore import restore
    from yolo_prune.graph import trace_groups
    from yolo_prune.recover.structure import prune_module
    from yolo_prune.runs.modules import report_modules
    from yolo_prune.runs.prune import PruneResult, prune
    from yolo_prune.train.plain import PruningSession

_HOMES = {
    "attach": "yolo_prune.adapters.hosts",
    "follow_cut": "yolo_prune.cut.optimizer",
    "inrun_trainer": "yolo_prune.adapters.hosts",
    "PrunePlan": "yolo_prune.cut.record",
    "PruneResult": "yolo_prune.runs.prune",
    "PruningSession": "yolo_prune.train.plain",
    "prune": "yolo_prune.runs.prune",
    "prune_module": "yolo_prune.recover.structure",
    "report_modules": "yolo_prune.runs.modules",
    "restore": "yolo_prune.cut.restore",
    "trace_groups": "yolo_prune.graph",
}

__all__ = [
    "PrunePlan",
    "PruneResult",
    "PruningSession",
    "__version__",
    "attach",
    "follow_cut",
    "inrun_trainer",
    "prune",
    "prune_module",
    "report_modules",
    "restore",
    "trace_groups",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import yolo_prune`` needs nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'yolo_prune' has no attribute '{name}'")
    import importlib

    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from yolo_prune.extras import missing_extra

        missing = missing_extra(error, f"yolo_prune.{name}")
        if missing is None:
            raise
        raise missing from error
