"""How narrow a layer may get: a floor in channels, and one in shares of what the layer was before anything was cut."""

import re

import numpy as np
import pytest
import torch
from nets import Net, conv, group_of
from torch import nn

from yolo_prune.cost import cost_model
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.weights import SCORES
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import check_possible, choose_channels
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.widths import EVEN_SHARE, Lineage, Widths
from yolo_prune.errors import BudgetError
from yolo_prune.graph import trace_groups
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.structure import prune_module

X = torch.zeros(1, 3, 16, 16)


def pyramid():
    """A backbone with BatchNorm, then what detectors put behind it: a lateral and a tower without, on a large map."""

    def run(m, x):
        low = m.stem(x)
        high = m.deep(low)
        mixed = m.lateral(low) + nn.functional.interpolate(m.top(high), scale_factor=2)
        return m.predict(m.tower(mixed).relu()), m.place(m.other(mixed).relu())

    torch.manual_seed(0)
    return Net(
        run,
        stem=conv(64, 3),
        deep=nn.Sequential(conv(128, 64), conv(128, 128, stride=2), conv(256, 128)),
        lateral=nn.Conv2d(64, 64, 1),
        top=nn.Conv2d(256, 64, 1),
        tower=nn.Conv2d(64, 64, 3, padding=1),
        other=nn.Conv2d(64, 64, 3, padding=1),
        predict=nn.Conv2d(64, 12, 1),
        place=nn.Conv2d(64, 4, 1),
    ).eval()


LAYERS = ("stem", "deep.0", "deep.2", "lateral", "tower", "other")


def shares(cost, keep):
    return {name: float(keep[group_of(cost.graph, name).channels].mean()) for name in LAYERS}


def chosen(criterion, budget, widths):
    net = pyramid()
    cost = cost_model(trace_groups(net, X), net)
    scores = SCORES[criterion](net, cost.graph, 0)
    keep = choose_channels(cost, scores, Budget("keep_macs", budget), widths=widths)
    return shares(cost, keep), cost.macs(keep) / cost.macs(np.ones_like(keep))


def test_steps_end_at_the_larger_of_both_floors_and_count_from_the_parents_width():
    assert Widths(8, 8, 0.5).steps(64, 64) == [8] * 4
    assert Widths(8, 8, 0.0).steps(64, 64) == Widths(8, 8).steps(64, 64) == [8] * 7
    assert Widths(8, 48, 0.5).steps(64, 64) == [8, 8]
    assert Widths(8, 8, 0.5).steps(40, 40, whole=64) == [8]
    assert Widths(8, 8, 0.3).steps(64, 64) == [8] * 5, "24 is the least multiple of eight that is 0.3 of 64"
    assert Widths(8, 8, 1.0).steps(64, 64) == []


@pytest.mark.parametrize("criterion", ["bn_scale", "l1", "l2"])
@pytest.mark.parametrize("budget", [0.35, 0.5, 0.7])
def test_no_layer_collapses_without_data(criterion, budget):
    floor = EVEN_SHARE * budget**0.5
    found, kept = chosen(criterion, budget, Widths())
    assert min(found.values()) >= floor
    assert 0.98 * budget <= kept <= budget
    without, _ = chosen(criterion, budget, Widths(min_keep=0.0))
    assert min(without.values()) < floor, "nothing would have collapsed: this net shows nothing"


def test_channels_that_are_switched_off_go_whatever_the_default_floor():
    net = pyramid()
    net.deep[2][1].weight.data[16:] = 1e-4  # 15 of 16 channels, as sparse training leaves a layer
    cost = cost_model(trace_groups(net, X), net)
    scores = SCORES["bn_scale"](net, cost.graph, 0)
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.5))
    assert keep[group_of(cost.graph, "deep.2").channels].sum() == 16
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.5), widths=Widths(min_keep=0.25))
    assert keep[group_of(cost.graph, "deep.2").channels].sum() == 64, "a floor that was given holds"


def test_the_default_floor_gives_way_where_the_budget_needs_it(caplog):
    with caplog.at_level("INFO"):
        found, kept = chosen("l1", 0.03, Widths(soft_keep=0.4))
    assert kept <= 0.03
    assert min(found.values()) < 0.4
    assert [record.getMessage() for record in caplog.records] == [
        "the budget needs layers narrower than 0.40 of their width, the default floor; min_keep= sets one."
    ]


def test_a_floor_that_was_given_does_not_give_way_and_the_error_names_it():
    net = pyramid()
    cost = cost_model(trace_groups(net, X), net)
    keep = choose_channels(
        cost, np.ones(cost.graph.channel_count), Budget("keep_macs", 0.28), widths=Widths(min_keep=0.5)
    )
    assert min(shares(cost, keep).values()) >= 0.5
    text = (
        r"cannot meet 0\.0138 GMACs: 0\.0174 GMACs remain with every group at its floor of 8 channels or "
        r"min_keep=0\.5 of its width\. Raise the budget or lower min_keep; the largest part that remains is 'deep.0.0' "
    )
    with pytest.raises(BudgetError, match=text):
        check_possible(cost, Budget("keep_macs", 0.2), Widths(min_keep=0.5))
    with pytest.raises(BudgetError, match=re.escape("Raise the budget or lower min_keep and min_width;")):
        check_possible(cost, Budget("gmacs", 1e-5), Widths(min_keep=0.5))


@pytest.mark.parametrize("criterion", ["l1", "reconstruction"])
def test_rounds_share_one_floor_of_the_parents_widths(criterion):
    net = pyramid()
    images = [torch.rand(4, 3, 16, 16)]

    def lowest_share(min_keep):
        recipe = Recipe(criterion=criterion, steps=3, widths=Widths(8, 8, min_keep))
        result = cut_in_steps(
            Traced.of(net, Anatomy(X)), Budget("keep_macs", 0.45), recipe, Calibration(images)
        )
        assert result.plan.settings["min_keep"] == min_keep
        return min(
            len(kept) / result.plan.widths[label]
            for label, kept in result.plan.keep.items()
            if "[0]" in label
        )

    assert lowest_share(0.6) >= 0.6
    assert lowest_share(0.0) < 0.6


def test_a_later_cut_counts_from_the_widths_before_the_first():
    net = pyramid()
    lineage = Lineage.of(Anatomy(X).cost_of(net).graph)
    plan = prune_module(net, X, keep_macs=0.5, criterion="l1")
    graph = Anatomy(X).cost_of(net).graph
    wholes = lineage.then(plan).wholes(graph)
    before = dict(zip(LAYERS, (64, 128, 256, 64, 64, 64), strict=True))
    for name in LAYERS:
        index = next(i for i, group in enumerate(graph.groups) if group is group_of(graph, name))
        assert wholes[index] == before[name]
    recipe = Recipe(criterion="l1", steps=1, fold=False, widths=Widths(8, 8, 0.45))
    earlier = lineage.then(plan)
    again = cut_in_steps(
        Traced.of(net, Anatomy(X)), Budget("keep_macs", 0.55), recipe, lineage=earlier
    ).module
    assert again.lateral.out_channels >= 0.45 * 64
    alone = cut_in_steps(Traced.of(net, Anatomy(X)), Budget("keep_macs", 0.55), recipe).module
    assert alone.lateral.out_channels < 0.45 * 64, "nothing would have been narrower: this net shows nothing"


def test_the_halves_of_a_layer_remember_their_own_widths():
    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.c(left) + m.d(right)

    net = Net(run, a=conv(64, 3), c=nn.Conv2d(32, 2, 1), d=nn.Conv2d(32, 2, 1)).eval()
    lineage = Lineage.of(trace_groups(net, X))
    plan = prune_module(net, X, keep_macs=0.5)
    graph = trace_groups(net, X)
    wholes = lineage.then(plan).wholes(graph)
    halves = [(len(g.channels), int(w)) for g, w in zip(graph.groups, wholes, strict=True) if not g.frozen]
    assert halves == [(16, 32), (16, 32)]


def test_a_layer_without_norm_is_worth_what_its_weights_and_its_readers_say():
    torch.manual_seed(0)
    net = nn.Sequential(conv(16, 3), nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1)).eval()
    net[0][1].weight.data.uniform_(0.2, 1.0)
    with torch.no_grad():
        net[1].weight[0] = 0.0  # makes nothing
        net[3].weight[:, 1] = 0.0  # is not read
        net[1].weight[2] *= 3.0
        net[3].weight[:, 3] *= 3.0
    graph = trace_groups(net, X)
    channels = group_of(graph, "1").channels
    worth = SCORES["bn_scale"](net, graph, 0)[channels]
    assert worth[0] == worth[1] == 0.0
    assert {2, 3} == set(np.argsort(worth)[-2:].tolist())
    assert worth.mean() == pytest.approx(net[0][1].weight.detach().mean().item(), rel=0.2)
    with torch.no_grad():
        net[1].weight *= 100.0  # the reader may undo any scale
        net[3].weight /= 100.0
    assert np.allclose(SCORES["bn_scale"](net, graph, 0)[channels], worth)


def test_a_network_without_any_norm_is_ranked_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1))
    graph = trace_groups(net, X)
    worth = SCORES["bn_scale"](net, graph, 0)[group_of(graph, "0").channels]
    assert len(set(worth.tolist())) == 32
    assert worth.mean() == pytest.approx(1.0, rel=0.2)
