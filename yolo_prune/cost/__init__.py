"""What a network costs: multiply-accumulates and parameters, counted and as a function of the channels that stay."""

from yolo_prune.cost.macs import count_macs, count_macs_per_operation
from yolo_prune.cost.model import (
    CostModel,
    FloatArray,
    channel_gradient,
    cost_model,
    count_parameters,
    with_macs_at,
)

__all__ = [
    "CostModel",
    "FloatArray",
    "channel_gradient",
    "cost_model",
    "count_macs",
    "count_macs_per_operation",
    "count_parameters",
    "with_macs_at",
]
