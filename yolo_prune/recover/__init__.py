"""Give back accuracy without training: second moments, selection by reconstruction, folding, BatchNorm."""

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import Moments, collect_moments
from yolo_prune.criteria.reconstruction import choose_by_reconstruction
from yolo_prune.recover.fold import fold_removed_, recalibrate_bn_
from yolo_prune.recover.one_step import Recipe
from yolo_prune.recover.steps import CutResult, cut_in_steps

__all__ = [
    "Calibration",
    "CutResult",
    "Moments",
    "Recipe",
    "choose_by_reconstruction",
    "collect_moments",
    "cut_in_steps",
    "fold_removed_",
    "recalibrate_bn_",
]
