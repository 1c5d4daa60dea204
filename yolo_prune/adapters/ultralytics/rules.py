"""Ultralytics blocks that bake a width into an attribute, and which of a model's outputs have a fixed width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from yolo_prune.graph import ModuleRule, ModuleRules


def _out_channels(block: Any) -> int:
    """Width of a host convolution block (convolution, norm, activation)."""
    return int(block.conv.weight.shape[0])


def _sync_halves(module: Any) -> None:
    """Blocks whose first convolution is split into two halves of ``c`` channels."""
    module.c = _out_channels(module.cv1) // 2


def _sync_attention(module: Any) -> None:
    """Heads stay; every head keeps equally many key and value dimensions. The stored scale stays as trained."""
    module.head_dim = _out_channels(module.pe) // module.num_heads
    module.key_dim = (_out_channels(module.qkv) // module.num_heads - module.head_dim) // 2


def _sync_area_attention(module: Any) -> None:
    """As above, for the block that derives its scale from the head's width: the queries make up for the change."""
    heads, before = module.num_heads, module.head_dim
    after = _out_channels(module.pe) // heads
    if after == before:
        return
    factor = (after / before) ** 0.5
    layer = module.qkv.bn if hasattr(module.qkv, "bn") else module.qkv.conv
    with torch.no_grad():
        for vector in (layer.weight, layer.bias):
            vector.view(heads, 3 * after, -1)[:, :after] *= factor
    module.head_dim = after
    module.all_head_dim = after * heads


def _sync_text_attention(module: Any) -> None:
    """Attention between a map and texts, scaled by its head's width: the texts' projection makes up for the change."""
    before, after = module.hc, int(module.gl.weight.shape[0]) // module.nh
    with torch.no_grad():
        for tensor in (module.gl.weight, module.gl.bias):
            tensor *= (after / before) ** 0.5
    module.hc = after


def _follow_splits(module: Any, kept: Mapping[str, Sequence[int]]) -> None:
    """One convolution whose output is split into maps of their own width."""
    if "conv.weight[0]" not in kept:
        return
    borders = [0, *accumulate(module.c2s)]
    indices = kept["conv.weight[0]"]
    module.c2s = [sum(a <= index < b for index in indices) for a, b in pairwise(borders)]


def _leave(module: Any) -> None:
    """Nothing to set from the shapes alone."""


def block_rules() -> ModuleRules:
    """Return the rules of all blocks that the installed host has.

    Returns:
        Module class -> rule, for :func:`yolo_prune.graph.trace_groups`.
    """
    from ultralytics.nn.modules import block

    attention_width = ((("qkv.conv.weight", 1), ("pe.conv.weight", 0)),)
    # Without "all_head_dim" (the oldest host) area attention shaped its heads by the width of what it reads.
    area_knows_width = "all_head_dim" in block.AAttn.forward.__code__.co_names
    table = {
        "C2f": ModuleRule(_sync_halves),
        "C2": ModuleRule(_sync_halves),
        "RepNCSPELAN4": ModuleRule(_sync_halves),
        "C2PSA": ModuleRule(_sync_halves),
        "PSA": ModuleRule(_sync_halves),
        "Attention": ModuleRule(_sync_attention, equal=attention_width),
        "AAttn": ModuleRule(_sync_area_attention, equal=() if area_knows_width else attention_width),
        "C2fAttn": ModuleRule(_sync_halves),
        "MaxSigmoidAttnBlock": ModuleRule(_sync_text_attention),
        "CBLinear": ModuleRule(_leave, follow=_follow_splits),
    }
    return {getattr(block, name): rule for name, rule in table.items() if hasattr(block, name)}


def raw_outputs(outputs: Any) -> Any:
    """Pick the raw predictions: the decoded ones follow from them, and the feature maps are free to change width.

    Args:
        outputs: What a host model returns in evaluation mode.

    Returns:
        The same structure without decoded boxes (their order may depend on a sort) and without feature maps.
    """
    if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], dict):
        return raw_outputs(outputs[1])
    if isinstance(outputs, dict):
        return {key: raw_outputs(value) for key, value in outputs.items() if key != "feats"}
    return outputs
