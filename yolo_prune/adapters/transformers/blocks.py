"""Blocks of the transformers package that keep a number of heads, or a width, in attributes."""

from __future__ import annotations

from typing import Any

from yolo_prune.graph.module_rules import ModuleRule


def _count_heads(module: Any) -> None:
    """Self-attention of a vision transformer: the heads that are left."""
    module.all_head_size = int(module.query.weight.shape[0])
    module.num_attention_heads = module.all_head_size // module.attention_head_size


def _count_crossing_heads(module: Any) -> None:
    """Cross-attention whose queries and keys have two halves, of contents and of positions."""
    module.num_attention_heads = int(module.v_proj.weight.shape[0]) // module.head_dim


def _width_of_values(module: Any) -> None:
    """Attention at sampled places: every head keeps equally many values; the places stay."""
    module.d_model = int(module.value_proj.weight.shape[0])


def _sync_halves(module: Any) -> None:
    """A convolution whose result is split into two halves."""
    module.conv_dim = int(module.conv1.conv.weight.shape[0]) // 2


def _leave(module: Any) -> None:
    """Nothing: the numbers of its reshapes are widths that it asked for."""


_MODELS = "transformers.models"
_WIDTH = ModuleRule(_width_of_values)
_LEAVE = ModuleRule(_leave)
BLOCKS: dict[str, ModuleRule] = {
    f"{_MODELS}.yolos.modeling_yolos.YolosSelfAttention": ModuleRule(
        _count_heads, heads="num_attention_heads"
    ),
    f"{_MODELS}.conditional_detr.modeling_conditional_detr.ConditionalDetrDecoderCrossAttention": ModuleRule(
        _count_crossing_heads, heads="num_attention_heads"
    ),
    f"{_MODELS}.deformable_detr.modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention": _WIDTH,
    f"{_MODELS}.deformable_detr.modeling_deformable_detr.MultiScaleDeformableAttention": _LEAVE,
    f"{_MODELS}.rt_detr.modeling_rt_detr.RTDetrMultiscaleDeformableAttention": _WIDTH,
    f"{_MODELS}.rt_detr.modeling_rt_detr.MultiScaleDeformableAttention": _LEAVE,
    f"{_MODELS}.d_fine.modeling_d_fine.DFineRepNCSPELAN4": ModuleRule(_sync_halves),
    f"{_MODELS}.rt_detr_v2.modeling_rt_detr_v2.RTDetrV2MultiscaleDeformableAttention": _WIDTH,
}
