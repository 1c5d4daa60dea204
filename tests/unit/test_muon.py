"""The optimizers of imitation: updates without a direction that outweighs, of the size that the rate says."""

import pytest
import torch
from torch import nn

from yolo_prune.recover.muon import Muon, optimizers_for, orthogonal


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (4, 60), (60, 4)])
def test_all_directions_become_alike(shape):
    left, _, right = torch.linalg.svd(random(*shape), full_matrices=False)
    uneven = left @ torch.diag(torch.logspace(0, -2, min(shape))) @ right
    made = orthogonal(uneven)
    values = torch.linalg.svdvals(made)
    assert made.shape == shape
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert float((made * (left @ right)).sum()) > 0.95 * float(made.norm() * min(shape) ** 0.5), (
        "the directions stay"
    )


def test_nothing_is_made_of_nothing():
    assert float(orthogonal(torch.zeros(3, 5)).abs().max()) == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_update_is_as_large_as_the_rate_says_whatever_the_gradient(scale):
    weight = nn.Parameter(random(6, 4, 3, 3))
    before = weight.detach().clone()
    weight.grad = scale * random(6, 4, 3, 3, seed=1)
    Muon([weight], lr=0.5).step()
    moved = weight.detach() - before
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=1e-4)
    assert float((moved * weight.grad).sum()) < 0, "downhill"


def test_momentum_carries_on_and_a_weight_without_a_gradient_stays():
    weight, other = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight, other], lr=1.0)
    weight.grad = torch.eye(2)
    optimizer.step()
    first = weight.detach().clone()
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.allclose(weight.detach(), 2 * first, rtol=1e-3)
    assert torch.equal(other.detach(), torch.ones(2, 2))


def test_what_mixes_channels_is_trained_by_muon_and_all_else_by_adamw():
    net = nn.ModuleDict(
        {
            "mixing": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "norm": nn.BatchNorm2d(8),
            "row": nn.Linear(8, 1, bias=False),
            "linear": nn.Linear(8, 4),
            "frozen": nn.Linear(8, 4).requires_grad_(False),
            "table": nn.Embedding(5, 4),
        }
    )
    net["tied"] = net["linear"]
    muon, adamw = optimizers_for(net, lambda weight: weight.numel())
    assert {id(group["params"][0]) for group in muon.param_groups} == {
        id(net[name].weight) for name in ("mixing", "linear")
    }
    assert [group["size"] for group in muon.param_groups] == [216, 32]
    names = {
        name
        for name, weight in net.named_parameters()
        for group in adamw.param_groups
        if weight is group["params"][0]
    }
    biases = {"mixing.bias", "depthwise.bias", "norm.bias", "linear.bias"}
    assert names == {*biases, "depthwise.weight", "norm.weight", "row.weight", "table.weight"}


def test_a_network_without_matrices_has_one_optimizer():
    (only,) = optimizers_for(nn.BatchNorm2d(4), lambda weight: 1.0)
    assert isinstance(only, torch.optim.AdamW)
    assert optimizers_for(nn.ReLU(), lambda weight: 1.0) == []
