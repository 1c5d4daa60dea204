"""Pruning inside a running training: when to cut, how strongly to sparsify, what to remember.

Knows no host; the trainer that uses it is in ``adapters``.
"""

from yolo_prune.train.scales import ScaleWatch, draw_scales, is_separated
from yolo_prune.train.schedule import check_schedule, cut_budget, cut_is_due, cut_shares, what_is_left
from yolo_prune.train.state import CutRecord, RunState
from yolo_prune.train.strength import StrengthSearch, first_strength, most_strength

__all__ = [
    "CutRecord",
    "RunState",
    "ScaleWatch",
    "StrengthSearch",
    "check_schedule",
    "cut_budget",
    "cut_is_due",
    "cut_shares",
    "draw_scales",
    "first_strength",
    "is_separated",
    "most_strength",
    "what_is_left",
]
