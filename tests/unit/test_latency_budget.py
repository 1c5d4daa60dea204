"""A budget of time is met by what is measured, however wrong the prediction is; stand-ins take the place of clocks."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.nets import conv
from tests.unit.test_latency import timed
from yolo_prune.cut.budget import Budget, one_budget
from yolo_prune.cut.plan import check_possible
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.aim import Timed

X = torch.rand(1, 3, 16, 16)
FINE = Recipe(criterion="l1", steps=4, fold=False, widths=Widths(round_to=1, min_width=1))


def parent(**options):
    torch.manual_seed(0)
    net = nn.Sequential(conv(96, 3), conv(128, 96), conv(64, 128), conv(16, 64, size=1)).eval()
    cost = timed(net, X, **options)
    return Traced(net, Anatomy(X, latency=cost.latency), cost)


def whole(traced):
    return traced.amount(Budget("latency_ms", 1.0))


class Watch:
    """Measures a share of what is predicted to be saved; it keeps the models that it saw."""

    def __init__(self, traced, share):
        self.traced, self.share, self.seen = traced, share, []

    def truth(self, module):
        full = whole(self.traced)
        return full - self.share * (full - whole(Traced.of(module, self.traced.anatomy)))

    def __call__(self, module, plan):
        self.seen.append(module)
        ms = self.truth(module)
        return Timed(ms, 0.99 * ms, 1.01 * ms)


@pytest.mark.parametrize("share", [1.0, 0.8, 0.65, 1.25])
@pytest.mark.parametrize("validate", [None, lambda module: 0.5])
def test_a_target_is_met_within_three_per_cent_of_what_is_measured(share, validate):
    traced = parent(rest=5.0)
    watch, budget = Watch(traced, share), Budget("target_speedup", 1.8)
    cut = cut_in_steps(traced, budget, FINE, measure=watch, validate=validate)
    ms = watch.truth(cut.module)
    assert whole(traced) / ms == pytest.approx(1.8, rel=0.03)
    assert cut.reached.measured.ms == pytest.approx(ms)
    assert cut.reached.missed == ""
    assert cut.reached.speedup == pytest.approx(1.8, rel=0.03)
    assert cut.reached.looks[-1] == (pytest.approx(cut.reached.predicted_ms), pytest.approx(ms))
    assert len(watch.seen) <= 4
    assert cut.plan.budget == {"target_speedup": 1.8}
    assert len(cut.steps) == FINE.steps


def test_without_a_watch_the_prediction_is_met_and_the_truth_is_not():
    """The control: what makes the test above pass is the measuring."""
    traced = parent(rest=5.0)
    watch = Watch(traced, 0.65)
    cut = cut_in_steps(traced, Budget("target_speedup", 1.8), FINE)
    predicted = whole(Traced.of(cut.module, traced.anatomy))
    assert whole(traced) / predicted == pytest.approx(1.8, rel=0.03)
    assert whole(traced) / watch.truth(cut.module) < 1.5
    assert cut.reached is None


@pytest.mark.parametrize(
    ("kind", "value"), [("target_latency_ms", 30.0), ("target_fps", 1000 / 30.0), ("latency_ms", 30.0)]
)
def test_every_kind_of_target_is_a_time(kind, value):
    traced = parent(rest=5.0)
    cut = cut_in_steps(traced, Budget(kind, value), FINE, measure=Watch(traced, 0.9))
    assert cut.reached.measured.ms == pytest.approx(30.0, rel=0.03)


def test_the_plan_of_the_corrected_model_makes_the_model_again():
    traced = parent(rest=5.0)
    cut = cut_in_steps(traced, Budget("target_speedup", 1.8), FINE, measure=Watch(traced, 0.65))
    again = cut_(deepcopy(traced.module), cut.plan)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in cut.module.state_dict().items()
    }


def test_what_cannot_be_reached_is_said_and_the_closest_model_is_kept():
    traced = parent(rest=5.0)
    watch = Watch(traced, 0.2)
    cut = cut_in_steps(traced, Budget("target_speedup", 1.8), FINE, measure=watch)
    best = min(watch.truth(module) for module in watch.seen)
    assert watch.truth(cut.module) == best
    assert cut.reached.missed.startswith(f"{best:.3g} ms ({whole(traced) / best:.2f}x) were reached, ")
    assert "cannot meet" in cut.reached.missed


def test_coarse_widths_that_no_step_gets_closer_with_are_said():
    traced = parent(rest=5.0)
    coarse = replace(FINE, widths=Widths(round_to=64, min_width=64), steps=1)
    cut = cut_in_steps(traced, Budget("target_speedup", 1.3), coarse, measure=Watch(traced, 1.6))
    assert "no step of allowed widths comes closer" in cut.reached.missed


def test_an_impossible_target_is_refused_before_anything_is_cut():
    traced = parent(rest=5.0, fixed=2.0)
    with pytest.raises(
        BudgetError,
        match=r"cannot meet 1\.1 ms: [\d.]+ ms remain of 55\.\d, [\d.]+ times as fast, with every group at its floor of 8 "
        r"channels\. Raise the budget: [\d.]+ ms stay whatever the floor\.",
    ):
        check_possible(traced.cost, Budget("target_speedup", 50.0), Widths())


def test_channels_save_where_they_take_time_not_where_they_take_macs():
    """On a machine whose 1x1 layers take twenty times as long for a MAC, channels save most there."""
    net = nn.Sequential(conv(64, 3), conv(64, 64), conv(64, 64, size=1), conv(16, 64, size=1)).eval()

    def slow_points(shape):
        return shape.weights * shape.height * shape.width / 1e6 * (20.0 if shape.kernel == (1, 1) else 1.0)

    cost = timed(net, X, time_of=slow_points)
    stem, point = (
        int(cost.graph.axis_channels(next(a for a in cost.graph.axes if a.label == label))[0])
        for label in ("0.0.weight[0]", "2.0.weight[0]")
    )
    macs, ms = (cost.saved_by_channel(cost.everything, of) for of in ("macs", "latency"))
    assert macs[stem] > 5 * macs[point]
    assert ms[stem] < ms[point] / 2


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"target_speedup": 1.0}, r"target_speedup=1.0 is outside its range: above 1\."),
        ({"target_fps": 0.0}, r"target_fps=0.0 is outside its range: above 0\."),
        (
            {"target_fps": 9.0, "gmacs": 1.0},
            r"give exactly one of target_fps, gmacs; got target_fps, gmacs\.",
        ),
    ],
)
def test_a_target_outside_its_range_is_refused(budget, message):
    with pytest.raises(BudgetError, match=message):
        one_budget(**budget)
