"""Removal costs equal a refit by brute force, and the choice keeps budget, widths and ties."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from yolo_prune.cost import CostModel
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import Moments
from yolo_prune.criteria.reconstruction import _Ahead, _Reader
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.widths import Widths
from yolo_prune.recover import choose_by_reconstruction, collect_moments
from yolo_prune.recover.fold import solve_fold

ANY = Widths(1, 1)


def problem(seed: int, channels: int = 6, outputs: int = 3):
    """Correlated inputs, weights and importances of outputs: x (P, C), W (C, O), r (O,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, channels)) @ rng.normal(size=(channels, channels))
    return x - x.mean(0), rng.normal(size=(channels, outputs)), rng.random(outputs)


def refit_error(x: np.ndarray, weight: np.ndarray, rows: np.ndarray, removed: tuple[int, ...]) -> float:
    """Least error of the weighted outputs when the kept channels may take any weights, by least squares."""
    kept = [j for j in range(x.shape[1]) if j not in removed]
    wanted = x @ weight
    fitted = x[:, kept] @ np.linalg.lstsq(x[:, kept], wanted, rcond=None)[0]
    return float((((wanted - fitted) ** 2).mean(0) * rows).sum())


def reader(x: np.ndarray, weight: np.ndarray, rows: np.ndarray) -> _Reader:
    scaled = weight * np.sqrt(rows)
    return _Reader(np.linalg.inv(x.T @ x / len(x)), scaled @ scaled.T)


@pytest.mark.parametrize("seed", range(4))
def test_the_cost_of_a_channel_is_the_error_of_the_best_refit_without_it(seed):
    x, weight, rows = problem(seed)
    costs = _Ahead(reader(x, weight, rows)).costs(np.arange(6))
    expected = [refit_error(x, weight, rows, (j,)) for j in range(6)]
    np.testing.assert_allclose(costs, expected, rtol=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [(4, 0, 2), (1, 5, 3)])
@pytest.mark.parametrize("settled", [(), (0,), (1,), (0, 1)])
def test_costs_of_successive_removals_add_up_to_the_refit_without_all_of_them(seed, order, settled):
    x, weight, rows = problem(seed)
    state, total = reader(x, weight, rows), 0.0
    ahead = _Ahead(state)
    for number, index in enumerate(order):
        total += float(ahead.costs(np.array([index]))[0])
        ahead.remove(index)
        if number in settled:
            state.settle(ahead)
            ahead = _Ahead(state)
    assert total == pytest.approx(refit_error(x, weight, rows, order), rel=1e-8)


def test_without_the_refit_the_costs_are_wrong():
    """The control: the plain energy of the removed channels is not what it costs to lose them."""
    x, weight, rows = problem(0)
    state = reader(x, weight, rows)
    plain = np.diag(state.gram) * x.var(0)
    expected = [refit_error(x, weight, rows, (j,)) for j in range(6)]
    assert not np.allclose(plain, expected, rtol=0.1)


def test_without_the_update_later_costs_are_wrong():
    x, weight, rows = problem(1)
    stale = _Ahead(reader(x, weight, rows)).costs(np.array([0, 3])).sum()
    assert stale != pytest.approx(refit_error(x, weight, rows, (0, 3)), rel=0.05)


def test_looking_ahead_changes_nothing():
    state = reader(*problem(0))
    before = state.gram.copy(), state.inverse.copy()
    _Ahead(state).remove(2)
    np.testing.assert_array_equal(state.gram, before[0])
    np.testing.assert_array_equal(state.inverse, before[1])


def measured(net: nn.Module, images: torch.Tensor) -> tuple[CostModel, dict[str, Moments]]:
    cost = Anatomy(images[:1]).cost_of(net)
    return cost, collect_moments(net, cost.graph, Calibration([images]))


def chain(*widths: int, seed: int = 0) -> nn.Sequential:
    """Convolutions of the given widths, 3 channels in and 4 out."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for reads, makes in itertools.pairwise((3, *widths)):
        layers += [nn.Conv2d(reads, makes, 3, padding=1), nn.BatchNorm2d(makes), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, 1)).eval()


def kept_widths(cost: CostModel, keep: np.ndarray) -> dict[str, int]:
    return {group.name: int(keep[group.channels].sum()) for group in cost.graph.groups if group.producers}


@pytest.mark.parametrize("removed", [1, 2])
def test_the_cheapest_channels_of_a_layer_go(removed):
    """With one reader: the channel whose best refit errs least, and then the next one given that it is gone."""
    net, images = chain(5), torch.rand(8, 3, 8, 8)
    cost, moments = measured(net, images)
    everything = np.ones(cost.graph.channel_count, dtype=bool)
    budget = Budget("gmacs", cost.macs(everything) * (5 - removed) / 5 / 1e9 * 1.001)
    keep = choose_by_reconstruction(net, cost, moments, budget, widths=ANY, ridge=1e-9)
    group = next(g for g in cost.graph.groups if g.name == "0")
    gone = tuple(np.flatnonzero(~keep[group.channels]).tolist())
    with torch.no_grad():
        x = net[:3](images).permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    weight = net[3].weight.detach().double().numpy()[:, :, 0, 0].T
    expected: tuple[int, ...] = ()
    for _ in range(removed):
        longer = [(*expected, j) for j in range(5) if j not in expected]
        expected = min(longer, key=lambda some: refit_error(x - x.mean(0), weight, np.ones(4), some))
    assert gone == tuple(sorted(expected))


@pytest.mark.parametrize(
    ("kind", "value"), [("keep_macs", 0.8), ("keep_macs", 0.5), ("keep_params", 0.6), ("gmacs", 0.002)]
)
def test_the_budget_is_met_from_below(kind, value):
    net, images = chain(48, 56, 48), torch.rand(4, 3, 8, 8)
    cost, moments = measured(net, images)
    budget = Budget(kind, value)
    keep = choose_by_reconstruction(net, cost, moments, budget, widths=ANY)
    assert 0.98 * budget.limit(cost) <= budget.measure(cost, keep) <= budget.limit(cost)


def test_the_budget_is_met_even_where_every_step_is_a_large_one():
    net, images = chain(16, 16), torch.rand(4, 3, 8, 8)
    cost, moments = measured(net, images)
    budget = Budget("keep_macs", 0.7)
    keep = choose_by_reconstruction(net, cost, moments, budget, widths=Widths(8, 8))
    assert budget.measure(cost, keep) <= budget.limit(cost)
    assert sorted(kept_widths(cost, keep).values()) == [4, 8, 16]  # one step, not two


@pytest.mark.parametrize(("round_to", "min_width"), [(8, 8), (4, 12), (1, 20), (16, 1)])
def test_widths_are_honoured(round_to, min_width):
    net, images = chain(32, 48, 40), torch.rand(4, 3, 8, 8)
    cost, moments = measured(net, images)
    keep = choose_by_reconstruction(
        net, cost, moments, Budget("keep_macs", 0.6), widths=Widths(round_to, min_width)
    )
    before = kept_widths(cost, np.ones_like(keep))
    for name, width in kept_widths(cost, keep).items():
        if width != before[name]:
            assert width % round_to == 0
            assert width >= min_width


class Halves(nn.Module):
    """Splits a tensor in two halves that are read apart: they must lose equally many channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maker = nn.Conv2d(3, 32, 3, padding=1)
        self.first, self.second = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.maker(x).chunk(2, 1)
        return self.last(torch.cat([self.first(first), self.second(second)], 1))


def test_tied_halves_lose_equally_many():
    net, images = Halves(), torch.rand(4, 3, 8, 8)
    cost, moments = measured(net, images)
    keep = choose_by_reconstruction(net, cost, moments, Budget("keep_macs", 0.5), widths=ANY)
    tied = next(tie for tie in cost.graph.ties if len(tie) == 2)
    widths = [int(keep[cost.graph.groups[index].channels].sum()) for index in tied]
    assert widths[0] == widths[1] < 16


def test_frozen_channels_stay():
    net, images = chain(16, 16), torch.rand(4, 3, 8, 8)
    cost = Anatomy(images[:1], keep_layers=("0",)).cost_of(net)
    moments = collect_moments(net, cost.graph, Calibration([images]))
    keep = choose_by_reconstruction(net, cost, moments, Budget("keep_macs", 0.6), widths=ANY)
    assert kept_widths(cost, keep)["0"] == 16


def test_channels_whose_readers_were_not_measured_stay():
    net, images = chain(16, 16), torch.rand(4, 3, 8, 8)
    cost, moments = measured(net, images)
    del moments["3.weight"]  # the reader of the first layer
    keep = choose_by_reconstruction(net, cost, moments, Budget("keep_macs", 0.6), widths=ANY)
    assert kept_widths(cost, keep)["0"] == 16
    assert kept_widths(cost, keep)["3"] < 16


def test_an_input_that_hardly_varies_beside_its_mean_is_chosen_from_without_an_overflow():
    net = chain(64, 8)
    cost, moments = measured(net, torch.rand(8, 3, 12, 12))
    rng, still = np.random.default_rng(0), {}
    for name, seen in moments.items():
        values = 200 + 1e-6 * rng.normal(size=(500, len(seen.mean)))
        still[name] = replace(seen, second=values.T @ values / 500, mean=values.mean(0))
    widest = max(still.values(), key=lambda seen: len(seen.mean))
    assert np.linalg.eigvalsh(widest.covariance)[0] < -1e-3 * np.trace(widest.covariance) / 64, "rounding"
    with np.errstate(all="raise"):
        keep = choose_by_reconstruction(net, cost, still, Budget("keep_macs", 0.3), widths=ANY)
        coefficients, _ = solve_fold(widest, np.arange(32), np.arange(32, 64))
    assert cost.macs(keep) <= 0.3 * cost.macs(cost.everything)
    assert np.abs(coefficients).max() < 10


def test_a_channel_that_the_others_explain_goes_first():
    net, images = chain(8), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias):
            tensor[5] = tensor[2]  # a twin; its reader's weights are the largest of all
        net[3].weight[:, 5] = 10.0
    cost, moments = measured(net, images)
    keep = choose_by_reconstruction(net, cost, moments, Budget("keep_macs", 0.9), widths=ANY)
    group = next(g for g in cost.graph.groups if g.name == "0")
    assert np.flatnonzero(~keep[group.channels]).tolist() in ([2], [5])


def test_a_larger_budget_keeps_a_superset():
    net, images = chain(24, 24), torch.rand(4, 3, 8, 8)
    cost, moments = measured(net, images)
    fewer, more = (
        choose_by_reconstruction(net, cost, moments, Budget("keep_macs", value), widths=ANY)[0]
        for value in (0.5, 0.7)
    )
    assert not (fewer & ~more).any()
