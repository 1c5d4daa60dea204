"""Which channels of which tensors live and die together."""

from yolo_prune.graph.atoms import Axis, MacUse
from yolo_prune.graph.groups import ChannelGraph, Group, trace_groups
from yolo_prune.graph.module_rules import ModuleRule, ModuleRules
from yolo_prune.graph.rules import OPERATORS, Operator
from yolo_prune.graph.trace import Call, Tracer

__all__ = [
    "OPERATORS",
    "Axis",
    "Call",
    "ChannelGraph",
    "Group",
    "MacUse",
    "ModuleRule",
    "ModuleRules",
    "Operator",
    "Tracer",
    "trace_groups",
]
