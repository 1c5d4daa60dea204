"""The options of every command: how they are read, what they are, and which of the host's ride along."""

from yolo_prune.cut.budget import BUDGETS
from yolo_prune.options.make import make_config, rest_keys, to_yaml
from yolo_prune.options.runs import DemoConfig, PruneConfig, SweepConfig, TrainConfig
from yolo_prune.options.tools import BenchConfig, EvalConfig, ExportConfig, InspectConfig, ReportConfig

__all__ = [
    "BUDGETS",
    "BenchConfig",
    "DemoConfig",
    "EvalConfig",
    "ExportConfig",
    "InspectConfig",
    "PruneConfig",
    "ReportConfig",
    "SweepConfig",
    "TrainConfig",
    "make_config",
    "rest_keys",
    "to_yaml",
]
