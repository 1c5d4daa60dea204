"""The host's blocks that know their own widths: exact after a cut, fit for training, and head-aware."""

import copy

import numpy as np
import pytest
import torch
from nets import randomise_
from torch import nn

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.rules import block_rules
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels
from yolo_prune.cut.proven import cut_proven_
from yolo_prune.graph import trace_groups
from yolo_prune.recover.structure import prune_module


def host(name):
    from ultralytics.nn.modules import block

    if not hasattr(block, name):
        pytest.skip(f"this host has no {name}")
    return getattr(block, name)


def wrapped(block, width=64, reads=64):
    """A block between a layer that makes its channels and one that reads them."""
    net = nn.Sequential(
        nn.Conv2d(3, reads, 1), nn.BatchNorm2d(reads), nn.SiLU(), block, nn.Conv2d(width, 4, 1)
    )
    return randomise_(net, x=torch.zeros(1, 3, 8, 8))


BLOCKS = {
    "Attention": (lambda: host("Attention")(64, num_heads=2), 0.5),
    "PSABlock": (lambda: host("PSABlock")(64, num_heads=2), 0.5),
    "C2PSA": (lambda: host("C2PSA")(64, 64, e=1.0), 0.5),  # narrower ones have no head in 8.4.0
    "AAttn": (lambda: host("AAttn")(64, num_heads=2, area=4), 0.5),
    "A2C2f": (lambda: host("A2C2f")(64, 64, 1, True, 4), 0.5),
    "C2f": (lambda: host("C2f")(64, 64, 2, True), 0.4),
    "C3k2": (lambda: host("C3k2")(64, 64, 1, True), 0.4),
    "RepNCSPELAN4": (lambda: host("RepNCSPELAN4")(64, 64, 64, 32, 1), 0.4),
    "GhostBottleneck": (lambda: host("GhostBottleneck")(64, 64), 0.6),
    "SCDown": (lambda: host("SCDown")(64, 64, 3, 2), 0.5),
    "CIB": (lambda: host("CIB")(64, 64, True, 0.5, True), 0.5),
    "SPPF": (lambda: host("SPPF")(64, 64), 0.5),
    "SPPELAN": (lambda: host("SPPELAN")(64, 64, 32), 0.5),
    "ADown": (lambda: host("ADown")(64, 64), 0.5),
    "ResNetLayer": (lambda: host("ResNetLayer")(64, 16, 1, n=2), 0.5),
    "HGBlock": (lambda: host("HGBlock")(64, 32, 64, n=2, shortcut=True), 0.5),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_cut_exactly_and_trains(name):
    make, share = BLOCKS[name]
    net = wrapped(make())
    plan = prune_module(
        net,
        torch.zeros(1, 3, 16, 16),
        keep_params=share,
        criterion="random",
        rules=block_rules(),
        round_to=4,
        min_width=4,
    )
    assert plan.equivalence["exact"]
    assert not any("cannot be cut exactly" in why for why in plan.frozen.values())
    net.train()(torch.rand(2, 3, 16, 16)).square().mean().backward()


def test_every_head_keeps_equally_many_dimensions():
    net = wrapped(host("Attention")(64, num_heads=2))
    prune_module(
        net,
        torch.zeros(1, 3, 8, 8),
        keep_params=0.4,
        criterion="random",
        rules=block_rules(),
        round_to=1,
        min_width=1,
    )
    attention = net[3]
    per_head = 2 * attention.key_dim + attention.head_dim
    assert attention.qkv.conv.out_channels == 2 * per_head
    assert attention.pe.conv.out_channels == attention.proj.conv.in_channels == 2 * attention.head_dim
    assert attention.head_dim < 32


class Texts(nn.Module):
    """A map and eight fixed texts through an attention block with several heads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 1)
        self.block = host("C2fAttn")(64, 64, 1, ec=32, nh=2, gc=512)
        self.head = nn.Conv2d(64, 4, 1)
        self.register_buffer("texts", torch.randn(1, 8, 512))

    def forward(self, x):
        return self.head(self.block(self.stem(x), self.texts.expand(len(x), -1, -1)))


def test_attention_to_texts_is_cut_in_every_head_and_keeps_its_scale():
    net = randomise_(Texts(), x=torch.zeros(1, 3, 8, 8))
    plan = prune_module(
        net,
        torch.zeros(1, 3, 8, 8),
        keep_params=0.4,
        criterion="random",
        rules=block_rules(),
        round_to=1,
        min_width=1,
    )
    attention = net.block.attn
    assert plan.equivalence["exact"]
    assert attention.gl.out_features == attention.nh * attention.hc < 32


class Splits(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.split = nn.Conv2d(3, 32, 1), host("CBLinear")(32, [16, 48])
        self.heads = nn.ModuleList(nn.Conv2d(width, 2, 1) for width in (16, 48))

    def forward(self, x):
        return [head(part) for head, part in zip(self.heads, self.split(self.stem(x)), strict=True)]


def test_a_split_into_unequal_maps_follows_what_each_part_keeps():
    net = Splits()
    prune_module(
        net,
        torch.zeros(1, 3, 8, 8),
        keep_params=0.5,
        criterion="random",
        rules=block_rules(),
        round_to=1,
        min_width=1,
    )
    assert net.split.c2s == [head.in_channels for head in net.heads]
    assert sum(net.split.c2s) == net.split.conv.out_channels < 64


def build(name):
    from ultralytics import RTDETR, YOLO

    return randomise_(
        (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml").model, x=torch.zeros(1, 3, 128, 128)
    )


def test_a_head_for_training_alone_is_cut_along():
    if not hasattr(__import__("ultralytics.nn.tasks", fromlist=["x"]), "SemanticSegmentationModel"):
        pytest.skip("this host has no semantic segmentation")
    model = build("yolo26n-sem")
    anatomy = anatomy_of(model, 128)
    cost = anatomy.cost_of(model)
    scores = np.random.default_rng(0).random(cost.graph.channel_count)
    cut_proven_(model, cost, choose_channels(cost, scores, Budget("keep_macs", 0.5)), anatomy)
    main, auxiliary = model.train()(torch.rand(2, 3, 64, 64))
    (main.mean() + auxiliary.mean()).backward()


@pytest.mark.parametrize("name", ["yolov10n", "yolo26n", "rtdetr-l"])
def test_both_ways_through_a_detector_survive_the_cut(name):
    model = build(name)
    anatomy = anatomy_of(model, 128)
    cost = anatomy.cost_of(model)
    scores = np.random.default_rng(0).random(cost.graph.channel_count)
    cut_proven_(model, cost, choose_channels(cost, scores, Budget("keep_macs", 0.7)), anatomy)
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, 128, 128))
        model.train()(torch.rand(2, 3, 128, 128))
    fused = copy.deepcopy(model).eval()
    if hasattr(fused, "fuse"):
        fused.fuse(verbose=False)


def test_attention_of_the_transformer_is_frozen_by_name_and_its_feed_forward_is_not():
    graph = trace_groups(build("rtdetr-l"), torch.zeros(1, 3, 128, 128), rules=block_rules())
    names = {axis.name: axis for axis in graph.axes if axis.role == "out"}
    assert not graph.frozen[graph.axis_channels(names["model.11.fc1.weight"])].any()
    held = {reason for reason in graph.reasons.values() if "model.11" in reason}
    assert any("model.11.ma" in reason for reason in held)
