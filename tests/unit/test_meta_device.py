"""A module on the meta device has shapes and no weights: it is traced, costed, planned and cut, and never proven."""

import copy
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import IMAGE, KINDS, Net, conv, net_of, reason_of
from torch import nn
from torch.utils import _pytree as pytree

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.criteria.weights import SCORES, find_criterion
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, make_plan
from yolo_prune.cut.proof import prove_equivalence
from yolo_prune.cut.proven import Anatomy, offered_blocks
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import ConfigError
from yolo_prune.graph.dispatch import OperatorMode
from yolo_prune.graph.groups import trace_groups
from yolo_prune.recover.fold import recalibrate_bn_
from yolo_prune.recover.structure import prune_module
from yolo_prune.runs.inspection import describe_groups

every_kind = pytest.mark.parametrize("kind", KINDS)
SIZE = torch.zeros(1, 3, 64, 32)


def planned(module, share=0.5):
    """Plan with no weights: the control of every criterion ranks, costs are counted at another size than traced."""
    cost = Anatomy(IMAGE, cost_input=SIZE).cost_of(module)
    scores = find_criterion("random")(module, cost.graph, 0)
    keep = choose_channels(cost, scores, Budget("keep_macs", share), widths=Widths(4, 4))
    return cost, make_plan(cost, keep)


def same(left, right):
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, tuple) and left and dataclasses.is_dataclass(left[0]):
        return str(left) == str(right)
    return left == right


@every_kind
def test_a_trace_finds_on_meta_what_it_finds_with_weights(kind):
    real, empty = net_of(kind), net_of(kind).to("meta")
    expected, found = (Anatomy(IMAGE, cost_input=SIZE).cost_of(module) for module in (real, empty))
    assert found.shapes == expected.shapes
    assert found.other_parameters == expected.other_parameters
    for field in dataclasses.fields(expected.graph):
        assert same(getattr(found.graph, field.name), getattr(expected.graph, field.name)), field.name
    assert all(parameter.is_meta for parameter in empty.parameters())


@every_kind
def test_a_plan_made_on_meta_cuts_the_module_with_weights_and_its_skeleton_alike(kind):
    module = net_of(kind)
    with torch.device("meta"):
        skeleton = KINDS[kind]()
    _, plan = planned(skeleton)
    assert plan == planned(module)[1]
    assert plan.kept_macs <= 0.5
    cut_(skeleton, plan)
    cut_(module, plan)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    skeleton.load_state_dict(module.state_dict(), assign=True)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(skeleton.eval()(x), module(x)), "widths that the layers remember are cut along"


class Largest(OperatorMode):
    """Remembers the size in bytes of the largest tensor with values that any operator made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return out


def test_more_than_a_thousand_million_parameters_are_planned_without_memory_for_one_layer():
    with torch.device("meta"):
        layers = [conv(4096, 4096 if index else 3) for index in range(10)]
        module = nn.Sequential(*layers, nn.Conv2d(4096, 4, 1))
    assert sum(parameter.numel() for parameter in module.parameters()) > 1.3e9
    with Largest() as largest:
        _, plan = planned(module)
        cut_(module, plan)
    assert 0 < largest.size < 2**20, "labels of channels, and nothing of 2 GB as one layer's weights are"
    assert plan.kept_macs == pytest.approx(0.5, rel=0.02)
    assert module[3][0].weight.shape == (module[4][0].in_channels, module[2][0].out_channels, 3, 3)
    assert module[3][0].out_channels < 4096


def test_groups_are_described_without_what_only_weights_tell():
    real, empty = net_of("residual"), net_of("residual").to("meta")
    rows, found = (describe_groups(module, Anatomy(IMAGE).cost_of(module)) for module in (real, empty))
    assert any(row["bn_scale"] for row in rows), "the control"
    assert found == [{**row, "bn_scale": None} for row in rows]


def prove(module):
    graph = trace_groups(module, IMAGE)
    return prove_equivalence(module, module, graph, np.ones(graph.channel_count, dtype=bool), IMAGE)


NEED = {
    "a cut that is proven": lambda m: prune_module(m, IMAGE, keep_macs=0.5, criterion="random"),
    "the proof that a cut is exact": prove,
    "every criterion but 'random'": lambda m: SCORES["l1"](m, trace_groups(m, IMAGE), 0),
    "measuring on images": lambda m: collect_moments(m, trace_groups(m, IMAGE), Calibration([IMAGE])),
    "estimating BatchNorm statistics": lambda m: recalibrate_bn_(m, Calibration([IMAGE])),
    "finding residual blocks": lambda m: offered_blocks(m, Anatomy(IMAGE)),
}


@pytest.mark.parametrize("what", NEED)
def test_what_needs_weights_says_so_and_leaves_the_module_alone(what):
    module = net_of("residual").to("meta")
    tensors = [id(tensor) for tensor in module.state_dict(keep_vars=True).values()]
    sentence = f"{what} needs weights, but 20 of the model's 20 tensors are on the meta device and have none. Load them"
    with pytest.raises(ConfigError) as caught:
        NEED[what](module)
    assert str(caught.value).startswith(sentence)
    assert [id(tensor) for tensor in module.state_dict(keep_vars=True).values()] == tensors


@pytest.mark.parametrize("name", [name for name in SCORES if name != "random"])
def test_no_criterion_ranks_weights_that_are_not_there(name):
    module = net_of("depthwise").to("meta")
    with pytest.raises(ConfigError, match=r"^every criterion but 'random' needs weights"):
        SCORES[name](module, trace_groups(module, IMAGE), 0)


def test_a_module_of_which_some_layers_are_still_empty_is_planned_and_not_proven():
    module = net_of("residual")
    expected = planned(module)[1]
    module.a.to("meta")
    assert planned(module)[1] == expected
    assert not module.b[0].weight.is_meta, "it is left as it was"
    with pytest.raises(ConfigError, match="but 6 of the model's 20 tensors are on the meta device"):
        prune_module(module, IMAGE, keep_macs=0.5)


def test_code_that_decides_by_values_is_refused_with_the_reason():
    def run(m, x):
        x = m.a(x)
        return m.head(x * 2 if float(x.mean()) > 0 else x)

    net = Net(run, a=conv(16, 3), head=nn.Conv2d(16, 4, 1))
    trace_groups(net, IMAGE)
    with pytest.raises(
        ConfigError, match=r"Its weights are on the meta device, where nothing has a value that code"
    ):
        trace_groups(net.to("meta"), IMAGE)


def test_a_number_beside_the_weights_stays_a_number_on_meta():
    def run(m, x):
        return m.head(m.a(x) * float(m.scale))

    net = Net(run, a=conv(16, 3), head=nn.Conv2d(16, 4, 1))
    net.scale = torch.tensor(2.0)
    graph = trace_groups(net.to("meta"), IMAGE)
    assert net.scale == 2
    assert len(graph.frozen) == len(trace_groups(net.to_empty(device="cpu"), IMAGE).frozen)


def test_a_weight_that_is_reached_past_the_copy_freezes_its_own_layer_on_meta_as_elsewhere():
    """No tensor on meta has an address: all layers would be told apart by none."""
    layer = conv(16, 16)
    net = Net(lambda m, x: m.head(layer(m.a(x))), a=conv(16, 3), b=layer, head=nn.Conv2d(16, 4, 1))
    graphs = [trace_groups(copy_past(net, layer, place), IMAGE) for place in ("cpu", "meta")]
    for graph in graphs:
        assert "held by a function" in reason_of(graph, "b.0")
        assert "held by a function" not in reason_of(graph, "a.0")
    assert np.array_equal(graphs[0].frozen, graphs[1].frozen)


def copy_past(net, layer, place):
    """Put a network and the layer that its function holds on a device, still the same layer."""
    net.to(place)
    assert net.b is layer
    return net


def test_a_cut_on_meta_is_followed_by_an_optimizer():
    from yolo_prune.cut.optimizer import follow_cut

    module = copy.deepcopy(net_of("residual")).to("meta")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        optimizer.state[parameter] = {"momentum_buffer": torch.empty_like(parameter)}
    cut_(module, planned(module)[1])
    follow_cut(optimizer, module)
    held = optimizer.param_groups[0]["params"]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in module.parameters()]
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in held)


def test_the_example_of_the_guide_runs():
    guide = (Path(__file__).resolve().parents[2] / "docs" / "custom_models.md").read_text("utf-8")
    code = re.search(r"<!-- tested: meta -->\n```python\n(.*?)```", guide, re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    assert scope["net"][0].weight.shape == (32, 3, 3, 3)
    assert scope["plan"].kept_macs == 0.5
