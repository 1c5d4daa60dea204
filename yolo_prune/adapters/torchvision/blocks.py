"""Blocks of timm that bake a width into an attribute, by where their classes are defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolo_prune.graph.module_rules import ModuleRule


def _leave(module: Any) -> None:
    """Nothing to set from the shapes alone."""


def _follow_mixed(module: Any, _: Mapping[str, Sequence[int]]) -> None:
    """One convolution for each part of the channels, of its own width."""
    module.splits = [conv.weight.shape[1] * conv.groups for conv in module.values()]


def _sync_cross_stage(module: Any) -> None:
    module.expand_chs = module.conv_exp.conv.weight.shape[0]


def _sync_hierarchy(module: Any) -> None:
    """Res2Net: equal parts that are convolved one after the other."""
    module.width = module.conv1.weight.shape[0] // module.scale


def _sync_selective_kernel(module: Any) -> None:
    """Paths with kernels of several sizes, each on its part of the input or all on the whole."""
    reads = int(module.paths[0].conv.weight.shape[1]) * module.paths[0].conv.groups
    module.in_channels = reads * module.num_paths if module.split_input else reads


def _follow_dual_path(module: Any, kept: Mapping[str, Sequence[int]]) -> None:
    """A residual path in front, and behind it a dense one that grows."""
    if module.b:
        module.num_1x1_c = int(module.c1x1_c1.weight.shape[0])
    else:
        module.num_1x1_c = _left(kept, "c1x1_c.conv.weight[0]", module.num_1x1_c)


def _follow_shortcut(module: Any, kept: Mapping[str, Sequence[int]]) -> None:
    """ReXNet: the shortcut is added to the first channels alone."""
    if module.use_shortcut:
        module.in_channels = _left(kept, "conv_pwl.conv.weight[0]", module.in_channels)


def _left(kept: Mapping[str, Sequence[int]], label: str, first: int) -> int:
    """Return how many of the first channels that an axis makes are left."""
    return sum(index < first for index in kept[label]) if label in kept else first


def _count_heads(module: Any) -> None:
    """Attention with queries, keys and values in one projection."""
    module.attn_dim = int(module.qkv.weight.shape[0]) // 3
    module.num_heads = module.attn_dim // module.head_dim


def _count_queries(module: Any) -> None:
    """Attention whose heads share keys and values."""
    module.num_heads = int(module.query.proj.weight.shape[0]) // module.key_dim


BLOCKS: dict[str, ModuleRule] = {
    "timm.layers.mixed_conv2d.MixedConv2d": ModuleRule(_leave, follow=_follow_mixed),
    "timm.layers.selective_kernel.SelectiveKernel": ModuleRule(_sync_selective_kernel),
    "timm.layers.attention.Attention": ModuleRule(_count_heads, heads="num_heads"),
    "timm.layers.attention2d.MultiQueryAttention2d": ModuleRule(_count_queries, heads="num_heads"),
    "timm.models.cspnet.CrossStage": ModuleRule(_sync_cross_stage),
    "timm.models.dpn.DualPathBlock": ModuleRule(_leave, follow=_follow_dual_path),
    "timm.models.res2net.Bottle2neck": ModuleRule(_sync_hierarchy),
    "timm.models.rexnet.LinearBottleneck": ModuleRule(_leave, follow=_follow_shortcut),
}
