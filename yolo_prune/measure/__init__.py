"""Everything that a report says, measured: accuracy and controls, speed, and what the plan changed."""

from yolo_prune.measure.run import measure_run
from yolo_prune.measure.speed import Evaluated

__all__ = ["Evaluated", "measure_run"]
