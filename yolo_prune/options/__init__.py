"""The options of every command: what they are, how they are read and how they are written down."""

from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.options.check import CheckConfig
from yolo_prune.options.latency import LatencyConfig
from yolo_prune.options.runs import DemoConfig, PruneConfig, SweepConfig, TrainConfig
from yolo_prune.options.tools import (
    BenchConfig,
    CompletionConfig,
    DoctorConfig,
    EvalConfig,
    ExportConfig,
    InspectConfig,
    ReportConfig,
)
from yolo_prune.options.written import to_yaml

__all__ = [
    "BUDGETS",
    "TARGETS",
    "BenchConfig",
    "CheckConfig",
    "CompletionConfig",
    "DemoConfig",
    "DoctorConfig",
    "EvalConfig",
    "ExportConfig",
    "InspectConfig",
    "LatencyConfig",
    "PruneConfig",
    "ReportConfig",
    "SweepConfig",
    "TrainConfig",
    "to_yaml",
]
