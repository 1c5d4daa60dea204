"""What each operator means for channels: a dict from operator name to rule.

A rule receives the tracer and the call after the operator ran. Whatever has no rule freezes the channels that reach
it, so a missing rule costs pruning, never correctness. Pass your own as ``operators={"name": rule}``; operators
outside PyTorch's own library are named ``library::operator``.
"""

from __future__ import annotations

from collections.abc import Callable

from yolo_prune.graph.rules import elementwise, layers, movement
from yolo_prune.graph.trace import Call, Tracer

Operator = Callable[[Tracer, Call], None]

_MOVES = (
    *(
        "t",
        "transpose",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "flip",
        "roll",
        "repeat",
        "detach",
        "alias",
    ),
    "pixel_unshuffle",
)
_CHANNELWISE = (
    *("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "max_pool1d"),
    *("_adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d", "mkldnn_max_pool2d"),
    *("upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
)
_BATCH_NORMS = (
    *("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"),
    "_native_batch_norm_legit_no_training",
)
_IGNORED = (
    *("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "empty_like", "full_like"),
    *(
        "rand_like",
        "randn_like",
        "size",
        "sym_size",
        "stride",
        "is_same_size",
        "equal",
        "_local_scalar_dense",
    ),
)
_ATTENTION = (
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable"),
)

OPERATORS: dict[str, Operator] = {
    "pointwise": elementwise.pointwise,
    "native_dropout": elementwise.pointwise,
    "dropout": elementwise.pointwise,
    "copy": elementwise.copy,
    "grid_sampler_2d": elementwise.sampled,
    "max": elementwise.maximum,
    "min": elementwise.maximum,
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std", "prod", "logsumexp"), elementwise.reduce),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), elementwise.along_dim),
    **dict.fromkeys(_CHANNELWISE, elementwise.channelwise),
    **dict.fromkeys(_IGNORED, elementwise.ignore),
    "convolution": layers.convolution,
    "addmm": layers.linear,
    "mm": layers.linear,
    "bmm": layers.matmul,
    "baddbmm": layers.matmul,
    "native_group_norm": layers.group_norm,
    "native_layer_norm": layers.fixed_norm,
    **dict.fromkeys(_BATCH_NORMS, layers.batch_norm),
    **dict.fromkeys(_ATTENTION, layers.attention),
    "cat": movement.cat,
    "stack": movement.stack,
    "constant_pad_nd": movement.pad,
    "pixel_shuffle": movement.pixel_shuffle,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), movement.split),
    **dict.fromkeys(("unbind", "slice", "select"), movement.cut_by_index),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), movement.view),
    **dict.fromkeys(("clone", "lift_fresh", "_to_copy", "contiguous"), movement.same),
    **dict.fromkeys(_MOVES, movement.move),
}

__all__ = ["OPERATORS", "Operator"]
