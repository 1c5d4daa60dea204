"""Blocks of known libraries: their rules are found by themselves, and a rule of one's own comes first."""

import importlib
import importlib.util

import pytest
import torch
from nets import Net, free_width
from torch import nn

from yolo_prune import prune_module, restore
from yolo_prune.graph import ModuleRule, trace_groups
from yolo_prune.graph.module_rules import rule_for
from yolo_prune.graph.plugged import plugged_in

LIBRARIES = sorted({name.partition(".")[0] for name in plugged_in("blocks")})


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_block_with_a_rule_is_in_the_library(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    names = [name for name in plugged_in("blocks") if name.startswith(f"{library}.")]
    for home, _, name in (name.rpartition(".") for name in names):
        kind = getattr(importlib.import_module(home), name)
        assert (kind.__module__, kind.__qualname__) == (home, name)


def mobile(width=32):
    """Attention of timm between convolutions, on tokens of a map."""
    from timm.layers import Attention

    def run(m, x):
        x = m.stem(x)
        tokens = m.attention(m.norm(x.flatten(2).transpose(1, 2)))
        return m.head(tokens.mean(1))

    layers = {"stem": nn.Conv2d(3, width, 3), "norm": nn.LayerNorm(width), "attention": Attention(width, 4)}
    return Net(run, **layers, head=nn.Linear(width, 4))


def test_heads_of_a_library_are_cut_and_restored_without_a_word(tmp_path):
    pytest.importorskip("timm")
    net, x = mobile(), torch.rand(1, 3, 8, 8)
    plan = prune_module(net, x, keep_macs=0.75)
    assert plan.equivalence["exact"]
    assert 0 < net.attention.num_heads < 4
    assert net.attention.attn_dim == 8 * net.attention.num_heads == net.attention.proj.in_features
    fresh = restore(mobile(), plan.save(tmp_path / "plan.json"))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(x), net.eval()(x))


def test_a_rule_of_ones_own_comes_first():
    timm_layers = pytest.importorskip("timm.layers")
    rules = {timm_layers.Attention: ModuleRule(lambda module: None, may_split=False)}
    net, x = mobile(), torch.rand(1, 3, 8, 8)
    assert free_width(trace_groups(net, x), "attention.qkv") == 96
    assert free_width(trace_groups(net, x, rules=rules), "attention.qkv") == 0


def test_a_subclass_has_the_rule_of_its_library_and_other_classes_have_none():
    attention = pytest.importorskip("timm.layers").Attention
    own = type("Own", (attention,), {})
    assert rule_for({}, own(32, 4)) is rule_for({}, attention(32, 4)) is not None
    assert rule_for({}, nn.MultiheadAttention(32, 4)) is None


@pytest.mark.parametrize("name", ["dpn68", "skresnet18", "rexnet_100"])
def test_networks_whose_blocks_know_their_width_are_free(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False, num_classes=4).eval()
        graph = trace_groups(net, torch.rand(1, 3, 64, 64))
    made = torch.cat([torch.from_numpy(group.channels) for group in graph.groups if group.producers])
    assert graph.frozen[made.unique().numpy()].mean() < 0.02
