"""What each operator means for channels: a dict from operator name to rule.

A rule receives the tracer and the call after the operator ran. Whatever has no rule freezes the channels that reach
it, so a missing rule costs pruning, never correctness. Pass your own as ``operators={"name": rule}``; operators
outside PyTorch's own library are named ``library::operator``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from yolo_prune.graph.rules import elementwise, layers, movement, positions, products
from yolo_prune.graph.trace import Call, Tracer

Operator = Callable[[Tracer, Call], None]

_MOVES = (
    *("t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "flip", "repeat", "detach", "alias"),
    *("pixel_unshuffle", "rot90", "diagonal", "lift", "_conj"),
)
_CHANNELWISE = (
    *("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "max_pool1d"),
    *("max_pool3d_with_indices", "avg_pool3d", "mkldnn_max_pool2d", "mkldnn_max_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
)
_BATCH_NORMS = (
    *("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"),
    "_native_batch_norm_legit_no_training",
)
_IGNORED = (
    *("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "empty_like", "full_like"),
    *("rand_like", "randn_like", "size", "sym_size", "stride", "is_same_size", "equal"),
    *("_local_scalar_dense", "zero", "fill"),
)
_ATTENTION = (
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable"),
)

# Elementwise, though PyTorch does not tag them so.
_ELEMENTWISE = (
    *("native_dropout", "dropout", "hardswish", "_prelu_kernel", "floor_divide", "complex", "polar"),
    *("tril", "triu", "mse_loss", "smooth_l1_loss", "huber_loss"),
)
_REDUCTIONS = (
    *("sum", "mean", "amax", "amin", "var", "std", "prod", "logsumexp", "nansum", "any", "all"),
    *("var_mean", "std_mean", "argmax", "argmin", "median", "nanmedian", "mode", "count_nonzero"),
)
_ALONG = (
    *("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "cummax", "cummin", "sort"),
    *("_logcumsumexp", "logcumsumexp", "_fft_r2c", "_fft_c2c", "_fft_c2r"),
)

OPERATORS: dict[str, Operator] = {
    "pointwise": elementwise.pointwise,
    **dict.fromkeys(_ELEMENTWISE, elementwise.pointwise),
    **dict.fromkeys(("rrelu_with_noise", "log_sigmoid_forward"), elementwise.first_operand),
    "rrelu_with_noise_functional": elementwise.first_operand,
    "glu": elementwise.gated_half,
    "copy": elementwise.copy,
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), elementwise.sampled),
    **dict.fromkeys(("max", "min"), elementwise.maximum),
    **dict.fromkeys(_REDUCTIONS, elementwise.reduce),
    **dict.fromkeys(("linalg_vector_norm", "kthvalue"), partial(elementwise.reduce, position=2)),
    **dict.fromkeys(_CHANNELWISE, elementwise.channelwise),
    **dict.fromkeys(_IGNORED, elementwise.ignore),
    **dict.fromkeys(_ALONG, positions.along_dim),
    "topk": partial(positions.along_dim, position=2),
    "roll": positions.rolled,
    **dict.fromkeys(("index", "_unsafe_index", "index_select"), positions.indexed),
    "index_put": positions.written_at,
    "gather": positions.gathered,
    "unfold": positions.windows,
    "im2col": positions.unfolded,
    "col2im": positions.folded,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), positions.unpooled),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), layers.random_positions),
    "convolution": layers.convolution,
    "addmm": layers.linear,
    "mm": layers.linear,
    "bmm": products.matmul,
    "baddbmm": products.matmul,
    "native_group_norm": layers.group_norm,
    "native_layer_norm": layers.fixed_norm,
    **dict.fromkeys(_BATCH_NORMS, layers.batch_norm),
    **dict.fromkeys(_ATTENTION, products.attention),
    "torchvision::deform_conv2d": layers.deformed,
    **dict.fromkeys(("torchvision::roi_align", "torchvision::roi_pool"), positions.regions),
    "cat": movement.cat,
    "stack": movement.stack,
    "constant_pad_nd": movement.pad,
    "pixel_shuffle": movement.pixel_shuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), movement.shuffle),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), movement.split),
    "unsafe_split_with_sizes": movement.split,
    **dict.fromkeys(("unbind", "slice", "select"), movement.cut_by_index),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), movement.view),
    **dict.fromkeys(("clone", "lift_fresh", "_to_copy", "contiguous"), movement.same),
    **dict.fromkeys(_MOVES, movement.move),
}

__all__ = ["OPERATORS", "Operator"]
