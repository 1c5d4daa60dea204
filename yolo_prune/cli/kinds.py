"""The words of the command line and the options of each, in the order of the help."""

from __future__ import annotations

from typing import Any

from yolo_prune import options as configs

KINDS: dict[str, type[Any]] = {
    "prune": configs.PruneConfig,
    "train": configs.TrainConfig,
    "sweep": configs.SweepConfig,
    "eval": configs.EvalConfig,
    "bench": configs.BenchConfig,
    "check": configs.CheckConfig,
    "export": configs.ExportConfig,
    "latency": configs.LatencyConfig,
    "inspect": configs.InspectConfig,
    "report": configs.ReportConfig,
    "doctor": configs.DoctorConfig,
    "demo": configs.DemoConfig,
    "completion": configs.CompletionConfig,
}
"""Command -> its options: what completion knows of it without what it calls."""
