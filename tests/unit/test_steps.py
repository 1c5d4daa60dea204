"""Steps: the composed plan is the sequence of cuts, budgets are met or refused, the parent stays whole."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut import proven
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError, EquivalenceError
from yolo_prune.recover import Recipe, cut_in_steps, one_step
from yolo_prune.recover.aim import waypoints
from yolo_prune.recover.drops import fidelity_to
from yolo_prune.recover.stages import recover_by_stages

IMAGES = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
FREE = Widths(1, 1)


class Branches(nn.Module):
    """A residual branch, a concatenation and two widths: enough structure for a plan to go wrong in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        self.branch = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.SiLU()
        )
        self.side = nn.Sequential(nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.last = nn.Conv2d(40, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        return self.last(torch.cat([x, self.side(x)], 1))


@pytest.fixture
def parent() -> nn.Module:
    torch.manual_seed(0)
    net = Branches().train()
    with torch.no_grad():
        for images in IMAGES * 5:
            net(images)
    return net.eval()


ANATOMY = Anatomy(IMAGES[0][:1])


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def cut(parent, value=0.5, **changes):
    recipe = Recipe(steps=3, widths=FREE, **changes)
    return cut_in_steps(Traced.of(parent, ANATOMY), Budget("keep_macs", value), recipe, Calibration(IMAGES))


@pytest.mark.parametrize("criterion", ["reconstruction", "bn_scale", "l1", "random"])
def test_the_composed_plan_is_the_sequence_of_cuts(parent, criterion):
    result = cut(parent, criterion=criterion)
    at_once = cut_(copy.deepcopy(parent), result.plan)
    assert shapes(at_once) == shapes(result.module)
    assert shapes(at_once) != shapes(parent)


@pytest.mark.parametrize("criterion", ["reconstruction", "bn_scale"])
def test_without_folding_the_composed_plan_gives_the_very_same_model(parent, criterion):
    result = cut(parent, criterion=criterion, fold=False)
    at_once = cut_(copy.deepcopy(parent), result.plan)
    assert all(torch.equal(t, result.module.state_dict()[n]) for n, t in at_once.state_dict().items())


def test_the_plan_survives_json(parent):
    plan = cut(parent).plan
    again = PrunePlan.from_json(plan.to_json())
    assert again == plan
    assert shapes(cut_(copy.deepcopy(parent), again)) == shapes(cut_(copy.deepcopy(parent), plan))


def test_the_parent_is_untouched(parent):
    before = copy.deepcopy(parent.state_dict())
    cut(parent)
    assert all(torch.equal(before[name], tensor) for name, tensor in parent.state_dict().items())
    assert not parent.training


def test_every_round_is_proven_and_the_worst_proof_is_kept(parent):
    result = cut(parent)
    assert len(result.steps) == 3
    assert all(each.equivalence["exact"] for each in result.steps)
    assert result.plan.equivalence in [each.equivalence for each in result.steps]


def test_rounds_descend_to_the_budget_and_the_plan_speaks_of_the_parent(parent):
    result = cut(parent, 0.5)
    kept = [each.kept for each in result.steps]
    assert kept == sorted(kept, reverse=True)
    assert 0.98 * 0.5 <= result.plan.kept_macs <= 0.5
    assert result.plan.kept_macs == pytest.approx(kept[-1])
    assert result.plan.params == sum(p.numel() for p in result.module.parameters())
    assert result.plan.kept_params == pytest.approx(
        result.plan.params / sum(p.numel() for p in parent.parameters())
    )
    assert result.plan.budget == {"keep_macs": 0.5}
    assert result.plan.widths["stem.0.weight[0]"] == 24  # the parent's, not those of the step before


def test_waypoints_are_evenly_spaced():
    assert waypoints(0.4, 3) == pytest.approx([0.8, 0.6, 0.4])


def test_folding_brings_the_output_closer(parent):
    with torch.no_grad():
        wanted = parent(IMAGES[0])
        folded, bare = (cut(parent, 0.6, fold=fold).module(IMAGES[0]) for fold in (True, False))
    assert float((folded - wanted).pow(2).mean()) < 0.5 * float((bare - wanted).pow(2).mean())


def test_the_same_seed_gives_the_same_plan_and_weights(parent):
    first, second = cut(parent), cut(parent)
    assert first.plan == second.plan
    assert all(torch.equal(t, second.module.state_dict()[n]) for n, t in first.module.state_dict().items())


@pytest.mark.parametrize(
    ("scores", "found"), [((0.5, 0.45, 0.4), [0.5, None, 0.4]), ((0.5, 0.45, 0.3), [0.5, 0.45, 0.3])]
)
def test_models_are_scored_where_the_scores_show_a_cliff(parent, scores, found):
    """First and last; between them only when the model fell by more than a quarter of the best score."""
    whole, recipe = Traced.of(parent, ANATOMY), Recipe(steps=3, widths=FREE)
    budget = Budget("keep_macs", 0.6)
    kept = [step.kept for step in cut_in_steps(whole, budget, recipe, Calibration(IMAGES)).steps]

    def validate(module):
        left = Traced.of(module, ANATOMY).amount(budget) / whole.amount(budget)
        return scores[kept.index(left)]

    result = cut_in_steps(whole, budget, recipe, Calibration(IMAGES), validate=validate)
    assert [step.score for step in result.steps] == found
    points = [[round(share, 4), score] for share, score in zip(kept, found, strict=True) if score is not None]
    assert result.plan.settings["cliff"] == points


def test_a_budget_above_the_model_cuts_nothing(parent):
    result = cut_in_steps(Traced.of(parent, ANATOMY), Budget("gmacs", 100.0), Recipe())
    assert result.plan.keep == {}
    assert result.plan.kept_macs == 1.0
    assert shapes(result.module) == shapes(parent)


def test_an_impossible_budget_says_what_is_possible(parent):
    recipe = Recipe(widths=Widths(8, 16))
    pattern = r"^cannot meet .* GMACs: .* GMACs remain with every group at its floor of 16 channels\. Raise"
    with pytest.raises(BudgetError, match=pattern):
        cut_in_steps(Traced.of(parent, ANATOMY), Budget("keep_macs", 0.1), recipe, Calibration(IMAGES))


def test_a_budget_that_reconstruction_cannot_reach_is_an_error(parent, monkeypatch):
    def keep_all(module, cost, *_, **__):
        return np.ones(cost.graph.channel_count, dtype=bool)

    monkeypatch.setattr(one_step, "choose_by_reconstruction", keep_all)
    with pytest.raises(
        BudgetError, match=r"^cannot meet keep_macs=0\.5 by reconstruction: 100\.0 % of the macs"
    ):
        cut(parent, 0.5)


def test_a_module_whose_cut_is_not_exact_is_frozen_and_the_round_starts_again(parent, monkeypatch):
    original, calls = one_step.cut_proven_, []

    def fails_once(module, cost, keep, anatomy):
        calls.append(anatomy.inexact)
        if len(calls) == 1:
            raise EquivalenceError("the cut is not exact: differs.", freeze=("branch",))
        return original(module, cost, keep, anatomy)

    monkeypatch.setattr(one_step, "cut_proven_", fails_once)
    result = cut(parent, 0.95)
    assert calls[:2] == [(), ("branch",)]
    assert result.plan.settings["keep_layers"] == ["branch"]
    assert "branch.0.weight[0]" not in result.plan.keep  # and so the stem, which it is added to
    assert "stem.0.weight[0]" not in result.plan.keep


def test_a_cut_that_is_never_exact_stops_the_run(parent, monkeypatch):
    def fails(*_):
        raise EquivalenceError("the cut is not exact: differs (first seen in 'stem').")

    monkeypatch.setattr(one_step, "cut_proven_", fails)
    with pytest.raises(EquivalenceError, match=r"not exact: differs \(first seen in 'stem'\)\.$"):
        cut(parent, 0.8)


def staged(parent, scores, **options):
    """Recover with the given scores: of the bare cut, with BatchNorm, folded, folded with BatchNorm."""
    result, queue = cut(parent, 0.6, fold=options.get("folded", True)), iter(scores)
    module, stages = recover_by_stages(
        Traced.of(parent, ANATOMY), result, Calibration(IMAGES), lambda _: next(queue), **options
    )
    return result, module, stages, list(queue)


@pytest.mark.parametrize(("scores", "better"), [((0.1, 0.2, 0.3, 0.4), True), ((0.1, 0.2, 0.3, 0.3), False)])
def test_batchnorm_is_re_estimated_where_that_validates_better(parent, scores, better):
    result, module, stages, left = staged(parent, scores)
    assert stages == dict(zip(("cut", "bn", "fold", "fold_bn"), scores, strict=True))
    assert (module is not result.module) is better
    assert not left


def test_re_estimation_can_be_switched_off_and_forced(parent):
    result, module, stages, _ = staged(parent, (0.1, 0.2, 0.3), recalibrate=False)
    assert module is result.module
    assert stages == {"cut": 0.1, "bn": 0.2, "fold": 0.3, "fold_bn": None}
    result, module, *_ = staged(parent, (0.1, 0.2, 0.3, 0.0), recalibrate=True)
    assert module is not result.module


def test_without_folding_the_bare_cut_competes_with_its_own_re_estimation(parent):
    result, module, stages, _ = staged(parent, (0.1, 0.2), folded=False)
    assert stages == {"cut": 0.1, "bn": 0.2, "fold": None, "fold_bn": None}
    assert module is not result.module
    assert not torch.equal(module.stem[1].running_mean, result.module.stem[1].running_mean)


def test_the_score_of_the_last_step_is_not_asked_for_again(parent):
    recipe = Recipe(steps=1, widths=FREE)
    result = cut_in_steps(
        Traced.of(parent, ANATOMY),
        Budget("keep_macs", 0.6),
        recipe,
        Calibration(IMAGES),
        validate=lambda _: 0.7,
    )
    queue = iter((0.1, 0.2, 0.4))
    _, stages = recover_by_stages(
        Traced.of(parent, ANATOMY), result, Calibration(IMAGES), lambda _: next(queue)
    )
    assert stages == {"cut": 0.1, "bn": 0.2, "fold": 0.7, "fold_bn": 0.4}


def test_each_model_on_the_way_is_traced_and_counted_once(parent, monkeypatch):
    traces, counts = [], []
    trace, count = proven.trace_groups, proven.with_macs_at
    monkeypatch.setattr(
        proven,
        "trace_groups",
        lambda module, *a, **k: traces.append(shapes(module)) or trace(module, *a, **k),
    )
    monkeypatch.setattr(proven, "with_macs_at", lambda *a, **k: counts.append(1) or count(*a, **k))
    anatomy = replace(ANATOMY, cost_input=IMAGES[0][:1])
    whole = Traced.of(parent, anatomy)
    recipe = Recipe(steps=3, widths=FREE, allocation="cost")
    cut_in_steps(whole, Budget("keep_macs", 0.6), recipe, Calibration(IMAGES))
    assert len(traces) == len(counts) == 4
    assert all(one != other for one, other in itertools.combinations(traces, 2))


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_batches_of_any_shape_run_through_the_calibrations_own_forward(parent, kind):
    """The plan and the statistics are those of tensors; what runs a batch is the one thing that differs."""

    def cut_and_recover(calibration):
        whole = Traced.of(parent, ANATOMY)
        recipe = Recipe(steps=2, widths=FREE)
        result = cut_in_steps(whole, Budget("keep_macs", 0.6), recipe, calibration)
        _, stages = recover_by_stages(
            whole, result, calibration, lambda module: float(module(IMAGES[0]).detach().sum())
        )
        return result, stages, fidelity_to(whole, calibration)(result.module)

    def project(out):
        return out.pow(2).sum()

    batches = {
        "list": [list(batch) for batch in IMAGES],
        "dict": [{"image": batch, "names": ["image"] * len(batch)} for batch in IMAGES],
    }[kind]

    def forward(module, batch):
        return module(torch.stack(batch) if kind == "list" else batch["image"])

    expected, stages, fidelity = cut_and_recover(Calibration(IMAGES, project))
    found, same, fidelity_too = cut_and_recover(Calibration(batches, project, forward))
    assert found.plan.keep == expected.plan.keep
    assert (same, fidelity_too) == (stages, fidelity)
    other, *_ = cut_and_recover(Calibration(batches, project, forward, seed=1))
    assert other.plan.equivalence["exact"]
