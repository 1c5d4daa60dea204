"""Everything that a report says, measured: accuracy and controls, speed, and what the plan changed."""

from yolo_prune.runs.measure.again import measure_speed_again
from yolo_prune.runs.measure.run import measure_run
from yolo_prune.runs.measure.speed import Evaluated

__all__ = ["Evaluated", "measure_run", "measure_speed_again"]
