"""Which channels of which tensors live and die together."""

from yolo_prune.graph.atoms import Axis, MacUse
from yolo_prune.graph.groups import ChannelGraph, Group, trace_groups
from yolo_prune.graph.trace import ModuleRule, ModuleRules

__all__ = ["Axis", "ChannelGraph", "Group", "MacUse", "ModuleRule", "ModuleRules", "trace_groups"]
