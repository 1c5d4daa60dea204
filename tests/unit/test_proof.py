"""What a proof compares, and that it does not count as one when it compared nothing."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from nets import Net, conv, free_width, randomise_, reason_of
from torch import nn

from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, make_plan
from yolo_prune.cut.proof import compare_tensors, prove_equivalence
from yolo_prune.cut.proven import Anatomy, cut_proven_
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import BudgetError, ConfigError, EquivalenceError
from yolo_prune.graph import ModuleRule, trace_groups
from yolo_prune.graph.decisions import Decisions
from yolo_prune.recover.structure import prune_module

X = torch.zeros(1, 3, 16, 16)


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


class Fields:
    """Like the instances of some detectors: an object with a dict of fields."""

    def __init__(self, **fields):
        self._size, self._fields = (16, 16), fields
        self._fields["owner"] = self  # a cycle


class Slots:
    __slots__ = ("boxes",)

    def __init__(self, boxes):
        self.boxes = boxes


@dataclass
class Record:
    boxes: torch.Tensor


PACKS = {
    "dataclass": Record,
    "fields": lambda y: Fields(boxes=Record(y)),
    "slots": Slots,
    "namespace": lambda y: [SimpleNamespace(boxes=y)],
    "mapping": lambda y: MappingProxyType({"boxes": y}),
    "set": lambda y: {y},
}


@pytest.mark.parametrize("pack", PACKS)
def test_outputs_are_found_however_they_are_packed(pack):
    net = Net(lambda m, x: PACKS[pack](m.head(m.body(x))), body=conv(32, 3), head=nn.Conv2d(32, 16, 1))
    randomise_(net)
    plan = prune_module(net, X, keep_macs=0.5)
    assert (net.head.out_channels, plan.equivalence["exact"]) == (16, True)
    assert "is an output" in plan.frozen["head"]


def test_a_head_that_leaves_as_an_array_of_another_library_is_not_cut():
    net = Net(lambda m, x: m.head(m.body(x)).numpy(), body=conv(32, 3), head=nn.Conv2d(32, 16, 1))
    plan = prune_module(randomise_(net), X, keep_macs=0.5)
    assert net.head.out_channels == 16
    assert plan.frozen["head"] == "is read by nothing that was traced"
    assert plan.equivalence["compared"] == 1  # what the last layer made


def test_outputs_that_were_not_selected_may_be_cut():
    net = Net(lambda m, x: (m.head(m.body(x)), m.side(x)), body=conv(32, 3), head=nn.Conv2d(32, 2, 1))
    net.side = conv(32, 3)
    graph = trace_groups(net, X, select_outputs=lambda outputs: outputs[0])
    assert free_width(graph, "side.0") == 32


def test_a_proof_that_compared_nothing_is_none_and_nothing_is_cut():
    net = nn.Sequential(conv(32, 3), nn.Conv2d(32, 2, 1))
    nothing = torch.zeros(0, 3, 16, 16)
    anatomy = Anatomy(X)
    cost = anatomy.cost_of(net)
    keep = choose_channels(cost, np.ones(cost.graph.channel_count), Budget("keep_macs", 0.5))
    text = r"^the cut cannot be proven: the model returned nothing with elements that could be compared\. Give select"
    with pytest.raises(EquivalenceError, match=text) as caught:
        cut_proven_(net, cost, keep, Anatomy(nothing))
    assert (net[0][0].out_channels, caught.value.freeze) == (32, ())
    assert not compare_tensors([torch.zeros(0)], [torch.zeros(0)], torch.float64).exact


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (float("nan"), 0.0),
        (float("inf"), torch.finfo(torch.float64).max),
        (-float("inf"), float("inf")),
        (-float("inf"), torch.finfo(torch.float64).min),
    ],
)
def test_what_is_no_number_equals_nothing_else(left, right):
    a, b = (torch.tensor([1.0, value], dtype=torch.float64) for value in (left, right))
    assert not compare_tensors([a], [b], torch.float64).exact
    assert not compare_tensors([b], [a], torch.float64).exact
    assert compare_tensors([a], [a.clone()], torch.float64).exact  # the control


class Detector(nn.Module):
    """Two heads, a threshold and a sort: boxes of what scores above ``above``, best first."""

    def __init__(self, above=0.5, chaotic=False):
        super().__init__()
        self.body, self.score, self.box = conv(64, 3), self.head(1), self.head(4)
        self.above, self.chaotic = above, chaotic

    def head(self, makes):
        return nn.Sequential(conv(32, 64), nn.Conv2d(32, makes, 1))

    def forward(self, x):
        x = self.body(x)
        scores, boxes = self.score(x)[0].sigmoid().flatten(), self.box(x).flatten(2)[0].t()
        if self.chaotic:  # its order is one of rounding errors
            scores = scores.exp().log() - scores
        order = scores.argsort(descending=True)
        scores, boxes = scores[order], boxes[order]
        return {"scores": scores[scores > self.above], "boxes": boxes[scores > self.above]}


def proven(net, damage=lambda cut: None):
    x = X.to(next(net.parameters()).dtype)
    anatomy = Anatomy(x)
    cost = anatomy.cost_of(net)
    keep = choose_channels(
        cost, np.random.default_rng(0).random(cost.graph.channel_count), Budget("keep_macs", 0.5)
    )
    cut = cut_(copy.deepcopy(net), make_plan(cost, keep))
    with torch.no_grad():
        damage(cut)
    return prove_equivalence(net, cut, cost.graph, keep, x)


HEADS = ["score.0.0", "score.1", "box.0.0", "box.1", "body.0"]


@pytest.mark.parametrize("layer", HEADS)
def test_a_broken_head_is_seen_though_nothing_is_detected(layer):
    def damage(cut):
        cut.get_submodule(layer).weight[0, 0] += 0.01

    net = randomise_(Detector(above=2.0), x=X)
    assert not proven(net, damage).exact
    sound = proven(net)
    assert (sound.exact, sound.unseen) == (True, ())
    assert sound.scale > 0


def test_an_order_of_rounding_errors_is_no_difference():
    def shift(cut):
        cut.score[1].weight *= 1 + 1e-14  # as another order of summation would

    net = randomise_(Detector(above=-1.0, chaotic=True), x=X).double()
    assert proven(net, shift).exact
    assert not proven(net, lambda cut: cut.box[1].weight[0, 0].add_(1e-6)).exact  # the control


def test_decisions_are_recorded_and_repeated():
    def run(x):
        return x.topk(2).indices, x > 0.5, x.nonzero(), x.floor(), int(x[0]), x.argmax(), x * 2

    a, b = torch.tensor([3.7, 0.0, 0.4]), torch.tensor([0.1, 0.2, 0.9])
    with Decisions() as first:
        expected = run(a)
    with Decisions(first.made) as second:
        got = run(b)
    assert not second.diverged
    for left, right in zip(expected[:-1], got[:-1], strict=True):
        assert left == right if isinstance(left, int) else torch.equal(left, right)
    assert torch.equal(got[-1], b * 2)  # the control: what is no decision is computed
    with Decisions(first.made) as third:
        b.argmax()
    assert third.diverged == "'argmax' where it was 'topk'"


def test_what_goes_into_a_decision_that_nobody_uses_may_be_rescaled():
    def best(m, x):
        a, b = m.a(x).flatten(2), m.b(x).flatten(2)
        return (a.transpose(1, 2) @ b).max(-1)[0] / m.a.out_channels**0.5

    def rescale(m):
        for tensor in (m.a.weight.data, m.a.bias.data):
            tensor *= (m.a.out_channels / 32) ** 0.5

    net = Net(best, a=nn.Conv2d(3, 32, 3), b=nn.Conv2d(3, 32, 3))
    plan = prune_module(net, X, keep_macs=0.5, criterion="random", rules={Net: ModuleRule(rescale)})
    assert (plan.equivalence["exact"], net.a.out_channels) == (True, 16)


def test_a_decision_that_is_returned_is_one_that_is_used():
    net = Net(lambda m, x: m.head(m.body(x)).argmax(1), body=conv(32, 3), head=nn.Conv2d(32, 4, 1))
    assert proven(randomise_(net, x=X)).exact
    assert not proven(net, lambda cut: cut.head.weight[0, 0].add_(0.01)).exact  # the control


class TwoStage(nn.Module):
    """As many rows in the second stage as proposals passed the first."""

    def __init__(self, above=0.0):
        super().__init__()
        self.body, self.propose = nn.Sequential(conv(32, 3), conv(32, 32)), nn.Conv2d(32, 1, 1)
        self.second, self.out, self.above = (
            nn.Sequential(nn.Linear(32, 64), nn.ReLU()),
            nn.Linear(64, 2),
            above,
        )

    def forward(self, x):
        x = self.body(x)
        chosen = self.propose(x)[0].flatten() > self.above
        return self.out(self.second(x.flatten(2)[0].t()[chosen]))


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_parent_and_cut_are_counted_at_the_same_positions(seed):
    def passing():
        with torch.no_grad():
            return int((net.propose(net.body(x)) > net.above).sum())

    def macs():
        stem = net.body[0][0].out_channels
        return 256 * (27 * stem + 9 * 32 * stem + 32) + many * 64 * (32 + 2)

    torch.manual_seed(seed)
    net = randomise_(TwoStage(), seed, x=X).eval()
    x = torch.rand_like(X)
    with torch.no_grad():
        net.above = float(net.propose(net.body(x)).quantile(0.3))
    many = passing()
    before = macs()
    plan = prune_module(net, x, keep_macs=0.8, criterion="random", seed=seed, keep_layers=["second"])
    assert plan.equivalence["exact"]
    assert plan.gmacs * 1e9 == pytest.approx(macs())
    assert 0.7 < plan.kept_macs <= 0.8
    assert plan.kept_macs == pytest.approx(macs() / before)
    assert passing() != many  # the control: left to itself, it does something else


class Stubborn(TwoStage):
    """Does more, where no operator shows it, once its proposals are not what they were."""

    def forward(self, x):
        x = self.body(x)
        same = np.allclose(np.asarray(self.propose(x).double()), self.above, atol=1e-3)
        for _ in range(1 if same else 9):
            y = self.out(self.second(x.flatten(2)[0].t()))
        return y


def test_a_budget_that_is_missed_is_an_error_and_the_module_is_untouched():
    net = randomise_(Stubborn(), x=X).eval()
    x = torch.rand(X.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.above = net.propose(net.body(x)).double().numpy()
    before = {name: tuple(p.shape) for name, p in net.named_parameters()}
    with pytest.raises(
        BudgetError, match=r"^the budget was 0\.00\d+ GMACs, but the cut model costs 0\.0\d+ on the example: "
    ):
        prune_module(net, x, keep_macs=0.8, criterion="random", keep_layers=["second"])
    assert before == {name: tuple(p.shape) for name, p in net.named_parameters()}


def test_a_second_stage_without_proposals_is_frozen_by_name():
    net = randomise_(TwoStage(above=1e9), x=X)
    graph = trace_groups(net, X)
    assert free_width(graph, "second.0") == 0
    assert reason_of(graph, "second.0") == "makes a tensor without elements from this example in 'second.0'"


def test_an_example_with_something_in_it_proves_what_random_numbers_do_not():
    class Bright(TwoStage):
        def forward(self, x):
            bright = (x[0].mean(0) > 1.0).flatten()
            x = self.body(x)
            return self.out(self.second(x.flatten(2)[0].t()[bright]))

    x = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) * 4
    net = randomise_(Bright(), x=X)
    plan = prune_module(net, x, keep_params=0.95, criterion="random", keep_layers=["body"])
    assert plan.equivalence["exact"]
    assert net.second[0].out_features < 64


def test_a_layer_that_shows_in_nothing_is_named_and_can_be_frozen():
    class Shy(TwoStage):
        def forward(self, x):
            chosen = (x[0].mean(0) > 1.0).flatten()
            y = self.body(x)
            return self.propose(y), self.out(self.second(y.flatten(2)[0].t()[chosen]) * 1.0)

    net = randomise_(Shy(), x=X)
    bright, dark = Anatomy(torch.full(X.shape, 2.0), keep_layers=("body.0",)), Anatomy(X)
    cost = bright.cost_of(net)
    keep = choose_channels(cost, np.ones(cost.graph.channel_count), Budget("keep_params", 0.95))
    text = r"^the cut cannot be proven for second\.0, out: nothing that was compared depends on them\. Give an example"
    with pytest.raises(EquivalenceError, match=text) as caught:
        cut_proven_(net, cost, keep, dark)
    graph = bright.without(caught.value).cost_of(net).graph
    assert reason_of(graph, "second.0") == "shows in nothing that a proof could compare"
    assert (free_width(graph, "second.0"), free_width(graph, "body.1.0")) == (0, 0)
    assert cut_proven_(net, cost, keep, bright)[1].exact  # the control


class CachedAnchors(nn.Module):
    """A detector that makes its anchors once for every size, as those with a cache at the function do."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1)
        self.anchors = lru_cache(make_anchors)

    def forward(self, x):
        features = self.head(self.stem(x).relu()).flatten(2)
        anchors, valid = self.anchors(features.shape[-1], x.dtype)
        scores = torch.where(valid, features.amax(1) + anchors, -1.0)
        return scores.gather(1, scores.topk(5).indices)


def make_anchors(count, dtype):
    places = torch.arange(count, dtype=dtype) / count
    return places, (places > 0.01) & (places < 0.99)


def test_what_numbers_decide_may_be_cached_between_models():
    net = CachedAnchors()
    plan = prune_module(net, torch.rand(1, 3, 16, 16), keep_macs=0.5)
    assert plan.equivalence["exact"]
    assert not any("cannot be cut exactly" in reason for reason in plan.frozen.values())
    assert net.stem.out_channels == 16


def test_what_a_number_decides_may_be_worked_out_in_the_first_run_alone():
    """As pooling of regions does with its scales, which it then keeps."""
    x = torch.tensor([[0.2, 0.7, 0.4]])
    with Decisions() as first:
        assert float(torch.tensor(0.25).log2().round()) == -2
        kept = x > 0.5
    with Decisions(first.made) as second:
        same = (1 - x) > 0.5
    assert ([decision.name for decision in first.made], second.diverged) == (["gt"], "")
    assert torch.equal(same, kept)
    with Decisions() as of_a_list:
        torch.tensor([0.2, 0.7]).round()
    assert [decision.name for decision in of_a_list.made] == ["round"], "NumPy may have had them of a feature"


def test_a_constant_that_a_feature_is_written_into_decides_as_the_feature():
    x = torch.rand(1, 8)
    with Decisions() as decisions:
        mixed = torch.zeros(1, 8)
        mixed > 0.5  # noqa: B015 - numbers alone
        before = len(decisions.made)
        mixed[:, :4] = x[:, :4]
        mixed > 0.5  # noqa: B015
        torch.rand(3) > 0.5  # noqa: B015 - drawn, and another run would draw others
    assert (before, [decision.name for decision in decisions.made]) == (0, ["gt", "gt"])


def test_a_model_that_makes_nothing_finite_is_told_so():
    net = Net(lambda m, x: m.b(m.a(x)) * torch.inf, a=nn.Conv2d(3, 32, 3), b=nn.Conv2d(32, 4, 1))
    with pytest.raises(
        ConfigError, match=r"^the model makes NaN or infinity alone in every tensor that it returns"
    ):
        prune_module(net, X, keep_macs=0.5)
    assert net.a.out_channels == 32
