"""Cutting: parameters, width attributes, and what must not change."""

import re

import numpy as np
import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn

from yolo_prune.cost import cost_model
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels
from yolo_prune.cut.proof import compare_tensors
from yolo_prune.cut.proven import Anatomy, check_patterns, cut_proven_, freeze_modules
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import ConfigError, EquivalenceError, PlanError
from yolo_prune.graph import ModuleRule, trace_groups
from yolo_prune.recover.structure import prune_module

X = torch.zeros(1, 3, 8, 8)


def head(reads):
    return nn.Conv2d(reads, 2, 1)


NETS = {
    "plain": (lambda: [conv(16, 3), conv(32, 16), head(32)], X),
    "depthwise": (lambda: [conv(32, 3), conv(32, 32, groups=32), head(32)], X),
    "multiplied": (lambda: [conv(16, 3), nn.Conv2d(16, 32, 3, groups=16), head(32)], X),
    "grouped": (lambda: [conv(32, 3), conv(48, 32, groups=2), conv(32, 48, groups=4), head(32)], X),
    "transposed": (lambda: [conv(16, 3), nn.ConvTranspose2d(16, 32, 2, 2), head(32)], X),
    "depthwise transposed": (lambda: [conv(32, 3), nn.ConvTranspose2d(32, 32, 2, 2, groups=32), head(32)], X),
    "linear": (
        lambda: [conv(16, 3), nn.Flatten(), nn.Linear(1024, 32), nn.BatchNorm1d(32), nn.Linear(32, 2)],
        X,
    ),
    "group norm": (lambda: [nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.SiLU(), head(32)], X),
    "pixel shuffle": (lambda: [conv(64, 3), nn.PixelShuffle(2), conv(16, 16), head(16)], X),
    "one dimension": (
        lambda: [nn.Conv1d(3, 32, 3), nn.BatchNorm1d(32), nn.Conv1d(32, 2, 1)],
        torch.zeros(1, 3, 9),
    ),
    "three dimensions": (
        lambda: [nn.Conv3d(3, 32, 1), nn.BatchNorm3d(32), nn.Conv3d(32, 2, 1)],
        torch.zeros(1, 3, 2, 4, 4),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_cut_is_exact_and_every_layer_knows_its_width(name):
    make, x = NETS[name]
    net = randomise_(nn.Sequential(*make()))
    plan = prune_module(net, x, keep_macs=0.6, criterion="random")
    assert plan.equivalence["exact"]
    assert plan.equivalence["dtype"] == "float64"
    assert sum(p.numel() for p in net.parameters()) == plan.params
    for layer in net.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            assert tuple(weight.shape[:2]) == (layer.out_channels, layer.in_channels // layer.groups)
        elif isinstance(layer, nn.ConvTranspose2d):
            assert tuple(weight.shape[:2]) == (layer.in_channels, layer.out_channels // layer.groups)
        elif isinstance(layer, nn.Linear):
            assert tuple(weight.shape) == (layer.out_features, layer.in_features)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert {len(weight), len(layer.bias), len(layer.running_mean)} == {layer.num_features}
        elif isinstance(layer, nn.GroupNorm):
            assert layer.num_channels == len(weight)
            assert layer.num_channels // layer.num_groups == 4


def test_shared_and_frozen_parameters_stay_shared_and_frozen():
    net = Net(
        lambda m, x: m.h(m.s(m.t(m.a(x)))),
        a=conv(16, 3),
        s=nn.Conv2d(16, 16, 1),
        t=nn.Conv2d(16, 16, 1),
        h=head(16),
    )
    net.t.weight = net.s.weight
    net.s.weight.requires_grad_(False)
    prune_module(net, X, keep_macs=0.6, criterion="random")
    assert net.s.weight is net.t.weight
    assert not net.s.weight.requires_grad
    assert net.s.in_channels == net.t.in_channels == 8


def test_a_plan_for_another_model_cuts_nothing():
    net = nn.Sequential(conv(16, 3), head(16))
    with pytest.raises(
        PlanError, match=r"^the plan cuts 'x\.weight', which this model does not have\. It was made for"
    ):
        cut_(net, PrunePlan({"x.weight[0]": [0]}, {"x.weight[0]": 2}))
    plan = PrunePlan({"0.0.weight[0]": [0], "1.weight[1]": [0]}, {"0.0.weight[0]": 16, "1.weight[1]": 99})
    with pytest.raises(
        PlanError, match=r"^the plan expects width 99 at '1\.weight\[1\]', the model has 16\.$"
    ):
        cut_(net, plan)
    assert net[0][0].weight.shape[0] == 16


def test_a_plan_is_replayed_on_an_equal_model():
    first, second = (randomise_(nn.Sequential(conv(32, 3), conv(32, 32), head(32)), seed=3) for _ in range(2))
    second.load_state_dict(first.state_dict())
    plan = prune_module(first, X, keep_macs=0.5)
    cut_(second, PrunePlan.from_json(plan.to_json()))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(first.eval()(x), second.eval()(x))


class Literal(nn.Module):
    """Says its own width in code, where no trace can see it."""

    def __init__(self, width=32):
        super().__init__()
        self.width, self.a, self.b, self.c = width, conv(width, 3), conv(64, width), head(64)

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x.reshape(x.shape[0], self.width, *x.shape[2:])))


def test_a_cut_that_fails_names_the_module_and_leaves_it_alone():
    net = randomise_(nn.Sequential(Literal()))
    anatomy = Anatomy(X)
    cost = anatomy.cost_of(net)
    keep = choose_channels(cost, np.ones(cost.graph.channel_count), Budget("keep_macs", 0.3))
    with pytest.raises(
        EquivalenceError,
        match=r"^the cut is not exact: the cut model does not run: .*\(first seen in '0'\)\.$",
    ) as caught:
        cut_proven_(net, cost, keep, anatomy)
    assert caught.value.freeze == ("0.a.0",)
    assert net[0].a[0].out_channels == 32


def test_what_cannot_be_cut_is_frozen_and_the_rest_is_cut():
    net = randomise_(nn.Sequential(Literal()))
    plan = prune_module(net, X, keep_macs=0.55, criterion="random")
    assert plan.equivalence["exact"]
    assert net[0].a[0].out_channels == 32
    assert net[0].b[0].out_channels < 64
    assert "cannot be cut exactly" in plan.frozen["0.a.0"]


def test_a_rule_keeps_the_attribute_right_and_nothing_is_frozen():
    def follow(module):
        module.width = module.a[0].out_channels

    net = randomise_(nn.Sequential(Literal()))
    prune_module(net, X, keep_macs=0.3, criterion="random", rules={Literal: ModuleRule(follow)})
    assert net[0].width == net[0].a[0].out_channels < 32


@pytest.mark.parametrize(
    ("pattern", "frozen"), [("0", {"0"}), ("0.0", {"0"}), ("[01]", set()), ("[01].*", {"0", "1"})]
)
def test_frozen_modules_are_named_by_name_or_pattern(pattern, frozen):
    net = nn.Sequential(conv(16, 3), conv(16, 16), conv(16, 16), head(16))
    graph = freeze_modules(trace_groups(net, X), [pattern])
    held = {group.name[0] for group in graph.groups if group.frozen == ("frozen by choice",)}
    assert held == frozen


def test_a_pattern_that_matches_nothing_is_an_error():
    text = "keep_layers='0.1' matches no module of this model. Did you mean '0.0'?"
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        check_patterns(nn.Sequential(nn.Sequential(nn.ReLU())), ["0.1"])


def test_frozen_by_choice_stays_through_the_whole_flow():
    net = nn.Sequential(conv(32, 3), conv(32, 32), head(32))
    plan = prune_module(net, X, keep_macs=0.7, keep_layers=["0"])
    assert (net[0][0].out_channels, plan.frozen["0.0"]) == (32, "frozen by choice")
    assert net[1][0].out_channels < 32


def test_every_output_is_judged_at_its_own_scale():
    big, small = torch.full((3,), 1e6), torch.full((3,), 1.0)
    same = compare_tensors([big, small], [big, small], torch.float64)
    assert (same.exact, same.max_difference) == (True, 0.0)
    wrong = compare_tensors([big, small], [big, small + 1e-3], torch.float64)
    assert (wrong.exact, wrong.scale) == (False, 1.0)
    lost = compare_tensors([small], [torch.tensor([1.0, 1.0, float("nan")])], torch.float64)
    assert (lost.exact, lost.max_difference) == (False, float("inf"))
    nothing = torch.full((3,), float("nan"))
    assert not compare_tensors([nothing], [nothing], torch.float64).exact


def test_cost_model_counts_parameters_that_the_trace_never_met():
    net = Net(lambda m, x: m.c(m.a(x)), a=conv(16, 3), c=head(16), unused=nn.Linear(5, 5))
    cost = cost_model(trace_groups(net, X), net)
    assert cost.parameters(np.ones(cost.graph.channel_count, dtype=bool)) == sum(
        p.numel() for p in net.parameters()
    )
