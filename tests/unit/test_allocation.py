"""Layers lose channels in one ranking or in turns: each way on three layers whose scores would take all from one."""

import numpy as np
import pytest
import torch
from nets import conv
from torch import nn

from yolo_prune.criteria.apart import mean_distance
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.cut.allocation import ALLOCATIONS, Turns
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import ConfigError
from yolo_prune.recover import Recipe, allocating, cut_in_steps, one_step

X = torch.rand(2, 3, 8, 8)


def network():
    """Layers of 16, 32 and 32 channels, the last two alike; then the outputs, which stay."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), conv(32, 16), conv(32, 32), nn.Conv2d(32, 4, 3, padding=1)
    ).eval()


def traced():
    return Traced.of(network(), Anatomy(X[:1]))


def kept_widths(kind):
    """How many channels each layer keeps where those of the last are worth least, and those of the first most."""
    model = traced()
    graph = model.cost.graph
    scores = np.ones(graph.channel_count)
    order = {group.name: group for group in graph.groups if not group.frozen}
    assert len(order) == 3
    for worth, name in zip((9.0, 5.0, 1.0), sorted(order), strict=True):
        scores[order[name].channels] = worth + np.linspace(0, 0.1, len(order[name].channels))
    keep = choose_channels(
        model.cost,
        scores,
        Budget("keep_macs", 0.5),
        widths=Widths(4, 4, 0.0),
        cost_power=0.0,
        turns=Turns(kind, model.module, graph),
    )
    return [int(keep[order[name].channels].sum()) for name in sorted(order)]


def test_one_ranking_takes_from_the_layers_of_low_scores_alone():
    first, second, third = kept_widths("global")
    assert first == 16
    assert second >= 28, "a small step to meet the budget"
    assert third <= 8


def test_uniform_leaves_every_layer_the_same_share():
    shares = np.array(kept_widths("uniform")) / (16, 32, 32)
    assert np.ptp(shares) <= 4 / 16, "widths go in fours"
    assert shares.max() < 0.85


def test_isomorphic_ranks_layers_of_a_kind_together_and_kinds_lose_alike():
    """The first layer has a kind of its own, whatever its scores; of the other two the one of low scores pays."""
    first, second, third = kept_widths("isomorphic")
    assert second >= 28
    assert third <= 16
    assert abs(first / 16 - (second + third) / 64) <= 4 / 16


@pytest.mark.parametrize("kind", ALLOCATIONS)
@pytest.mark.parametrize("criterion", ["l1", "reconstruction"])
def test_every_way_meets_the_budget_and_is_proven(kind, criterion):
    parent = traced()
    recipe = Recipe(criterion, steps=2, widths=Widths(4, 4), allocation=kind)
    result = cut_in_steps(parent, Budget("keep_macs", 0.5), recipe, Calibration([X], lambda y: y.sum()))
    assert result.plan.kept_macs <= 0.5
    assert result.plan.equivalence["exact"]
    left = [layer.out_channels for layer in result.module.modules() if isinstance(layer, nn.Conv2d)]
    if kind == "uniform":
        assert np.ptp(np.array(left[:3]) / (16, 32, 32)) <= 4 / 16


def cut_by(parent, criterion, allocation, steps, images, keep=0.6):
    recipe = Recipe(criterion, steps=steps, widths=Widths(4, 4), allocation=allocation)
    return cut_in_steps(parent, Budget("keep_macs", keep), recipe, images)


def test_reconstruction_tries_three_rankings_and_takes_the_one_that_ends_nearest_to_the_parent():
    parent, images = traced(), Calibration([X], lambda y: y.sum())
    plan = cut_by(parent, "reconstruction", None, 3, images).plan
    tried = plan.settings["tried"]
    for name, distance in tried.items():
        alone = cut_by(parent, "reconstruction", name, 1, images)
        assert alone.plan.settings["allocation"] == name
        assert distance == pytest.approx(mean_distance(alone.module, parent.module, images, [X]))
    assert list(tried) == ["cost", "root", "global"]
    assert len(set(tried.values())) > 1, "a choice between equals would show nothing"
    assert plan.settings["allocation"] == min(tried, key=tried.get)
    assert plan.keep == cut_by(parent, "reconstruction", plan.settings["allocation"], 3, images).plan.keep


@pytest.mark.parametrize(
    ("criterion", "steps", "taken"),
    [("reconstruction", 2, "root"), ("l1", 3, "global"), ("taylor", 3, "global")],
)
def test_nothing_is_tried_in_few_steps_or_by_scores_that_do_not_compare_layers(criterion, steps, taken):
    parent, images = traced(), Calibration([X], lambda y: y.sum())
    plan = cut_by(parent, criterion, None, steps, images).plan
    assert "tried" not in plan.settings
    assert plan.settings["allocation"] == taken
    assert plan.keep == cut_by(parent, criterion, taken, steps, images).plan.keep


def test_the_parent_is_measured_once_for_the_trials_and_the_first_step(monkeypatch):
    measured = []
    for module in (allocating, one_step):
        monkeypatch.setattr(
            module,
            "collect_moments",
            lambda model, *a, **k: measured.append(model) or collect_moments(model, *a, **k),
        )
    parent, images = traced(), Calibration([X], lambda y: y.sum())
    cut_by(parent, "reconstruction", None, 3, images)
    assert len(measured) == 3
    assert measured[0] is parent.module
    assert parent.module not in measured[1:]


def test_where_outputs_cannot_be_compared_the_middle_is_taken():
    def refuse(ours, theirs):
        raise ConfigError("not comparable")

    images = Calibration([X], lambda y: y.sum(), distance=refuse)
    plan = cut_by(traced(), "reconstruction", None, 3, images).plan
    assert "tried" not in plan.settings
    assert plan.settings["allocation"] == "root"


def test_a_trial_looks_at_the_first_images_alone(monkeypatch):
    looked = []
    monkeypatch.setattr(
        "yolo_prune.recover.allocating.mean_distance",
        lambda student, teacher, calibration, batches: looked.append([len(b) for b in batches]) or 1.0,
    )
    images = Calibration([torch.rand(20, 3, 8, 8)] * 3, lambda y: y.sum())
    cut_by(traced(), "reconstruction", None, 3, images)
    assert looked == [[20, 12]] * 3


def test_an_unknown_way_is_answered_with_those_that_there_are():
    parent = traced()
    said = r"unknown allocation 'unifrom'; known are cost, root, global, isomorphic, uniform\. Did you mean 'uniform'\?"
    with pytest.raises(ConfigError, match=said):
        cut_in_steps(parent, Budget("keep_macs", 0.5), Recipe("l1", allocation="unifrom"))
