"""Which channels stay: budgets met from below, widths rounded, floors kept, plans as plain data."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from nets import Net, conv
from torch import nn

from yolo_prune.cost import channel_gradient, cost_model, count_macs, count_parameters
from yolo_prune.cut.budget import Budget, one_budget
from yolo_prune.cut.plan import choose_channels, make_plan
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError, PlanError
from yolo_prune.graph import trace_groups

X = torch.zeros(1, 3, 8, 8)
FINE = Widths(round_to=1, min_width=1)


def cost_of(*layers):
    net = nn.Sequential(*layers)
    return cost_model(trace_groups(net, X), net), net


def scores_of(cost, seed=0):
    return np.random.default_rng(seed).random(cost.graph.channel_count)


@pytest.mark.parametrize(("scores", "stays"), [([1, 2, 3], 2), ([3, 2, 1], 0), ([2, 3, 1], 1)])
def test_of_three_channels_the_best_one_stays(scores, stays):
    cost, _ = cost_of(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1))
    group = next(group for group in cost.graph.groups if not group.frozen)
    worth = np.zeros(cost.graph.channel_count)
    worth[group.channels] = scores
    keep = choose_channels(cost, worth, Budget("keep_macs", 0.34), widths=FINE)
    assert np.flatnonzero(keep[group.channels]).tolist() == [stays]


@pytest.mark.parametrize("kind", ["keep_macs", "keep_params"])
def test_a_bigger_budget_keeps_a_superset(kind):
    cost, _ = cost_of(conv(64, 3), conv(48, 64), conv(96, 48), nn.Conv2d(96, 2, 1))
    scores = scores_of(cost)
    kept = [choose_channels(cost, scores, Budget(kind, share), widths=FINE) for share in (0.3, 0.5, 0.7, 0.9)]
    for smaller, larger in pairwise(kept):
        assert larger[smaller].all()
        assert larger.sum() > smaller.sum()


@pytest.mark.parametrize("share", [0.25, 0.4, 0.55, 0.7, 0.85])
@pytest.mark.parametrize("kind", ["keep_macs", "keep_params"])
def test_the_budget_is_met_within_two_per_cent_from_below(kind, share):
    cost, _ = cost_of(conv(64, 3), conv(128, 64), conv(128, 128), conv(256, 128), nn.Conv2d(256, 2, 1))
    budget = Budget(kind, share)
    keep = choose_channels(cost, scores_of(cost), budget)
    used = budget.measure(cost, keep) / budget.limit(cost)
    assert 0.98 <= used <= 1.0
    for label, indices in make_plan(cost, keep).keep.items():
        assert len(indices) % 8 == 0, label


def test_widths_are_rounded_and_none_falls_below_its_floor():
    assert Widths(8, 8).steps(20, 20) == [4, 8]
    assert Widths(8, 16).steps(64, 64) == [8] * 6
    assert Widths(8, 8).steps(64, 20) == [8, 8]
    assert Widths(1, 1).steps(3, 3) == [1, 1]
    assert Widths(8, 8).steps(8, 8) == []
    assert Widths(8, 8).steps(16, 16, unit=4) == [2] * 7, "two channels of four indices make eight"
    assert Widths(8, 8).steps(16, 16, unit=3) == [8], "24 is the least multiple of eight"


def test_one_coarse_step_is_followed_by_giving_back_what_fits():
    cost, _ = cost_of(conv(16, 3), conv(512, 16), nn.Conv2d(512, 2, 1))
    coarse = Widths(round_to=128, min_width=8)
    scores = np.ones(cost.graph.channel_count)
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.6), widths=coarse)
    assert cost.macs(keep) <= 0.6 * cost.macs(np.ones_like(keep))


def test_an_impossible_budget_says_what_is_possible():
    cost, _ = cost_of(conv(16, 3), conv(16, 16), nn.Conv2d(16, 2, 1))
    macs = 64 * (3 * 8 * 9 + 8 * 8 * 9 + 8 * 2)
    expected = (
        f"cannot meet 1e-05 GMACs: {macs / 1e9:.3g} GMACs remain with every group at its floor of 8 channels. "
        f"Raise the budget or lower min_width; the largest part that remains is '1.0' ({64 * 8 * 8 * 9 / 1e9:.3g} GMACs)."
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(expected)}$"):
        choose_channels(cost, scores_of(cost), Budget("gmacs", 0.00001))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"keep_macs": None, "gmacs": None}, "give exactly one of keep_macs, gmacs; got none."),
        ({"keep_macs": 0.5, "gmacs": 1.0}, "give exactly one of keep_macs, gmacs; got keep_macs, gmacs."),
        ({"keep_macs": 1.5, "gmacs": None}, "keep_macs=1.5 is outside its range: (0, 1]."),
        ({"keep_macs": None, "gmacs": 0.0}, "gmacs=0.0 is outside its range: above 0."),
    ],
)
def test_a_budget_is_one_number_in_its_range(given, text):
    with pytest.raises(BudgetError, match=f"^{re.escape(text)}$"):
        one_budget(**given)


def test_tied_halves_lose_equally_many_channels():
    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.c(left) + m.d(right)

    net = Net(run, a=conv(64, 3), c=nn.Conv2d(32, 2, 1), d=nn.Conv2d(32, 2, 1))
    cost = cost_model(trace_groups(net, X), net)
    keep = choose_channels(cost, scores_of(cost), Budget("keep_macs", 0.5))
    left, right = (make_plan(cost, keep).keep[f"{name}.weight[1]"] for name in "cd")
    assert len(left) == len(right) == 16
    assert left != right


def test_costs_of_a_choice_are_those_of_the_closed_form():
    cost, net = cost_of(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1))
    keep = np.ones(cost.graph.channel_count, dtype=bool)
    assert (cost.macs(keep), cost.parameters(keep)) == (count_macs(net, X), count_parameters(net))
    group = next(group for group in cost.graph.groups if not group.frozen)
    saved = channel_gradient(cost, keep, "macs"), channel_gradient(cost, keep, "params")
    keep[group.channels[:4]] = False
    assert cost.macs(keep) == 64 * 12 * (27 + 2)
    assert cost.parameters(keep) == 12 * (27 + 1 + 2) + 2
    assert saved[0][group.channels].tolist() == [64 * (27 + 2)] * 16
    assert saved[1][group.channels].tolist() == [27 + 1 + 2] * 16


def test_a_plan_survives_json_and_refuses_what_is_none():
    cost, _ = cost_of(conv(16, 3), nn.Conv2d(16, 2, 1))
    plan = make_plan(
        cost, choose_channels(cost, scores_of(cost), Budget("keep_macs", 0.6)), settings={"a": 1}
    )
    assert PrunePlan.from_json(plan.to_json()) == plan
    with pytest.raises(PlanError, match=r"^the plan is not JSON: "):
        PrunePlan.from_json("{")
    with pytest.raises(PlanError, match=r"^the plan is not a version 1 plan of yolo_prune\.$"):
        PrunePlan.from_json("{}")
    with pytest.raises(PlanError, match=r"^the plan has fields that this version does not know: "):
        PrunePlan.from_json('{"version": 1, "keep": {}, "widths": {}, "colour": 1}')


def test_two_plans_in_a_row_make_one():
    first = PrunePlan({"a[0]": [0, 2, 4, 6]}, {"a[0]": 8})
    later = PrunePlan({"a[0]": [1, 3], "b[0]": [0]}, {"a[0]": 4, "b[0]": 2})
    both = first.then(later)
    assert both.keep == {"a[0]": [2, 6], "b[0]": [0]}
    assert both.widths == {"a[0]": 8, "b[0]": 2}
