"""Give back accuracy without training: second moments, selection by reconstruction, folding, BatchNorm re-estimation."""

from yolo_prune.recover.fold import fold_removed_, recalibrate_bn_
from yolo_prune.recover.moments import Moments, collect_moments
from yolo_prune.recover.select import choose_by_reconstruction

__all__ = ["Moments", "choose_by_reconstruction", "collect_moments", "fold_removed_", "recalibrate_bn_"]
