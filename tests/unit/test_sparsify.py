"""Sparse training: scales shrink, dead channels reach exactly zero, and no step is missed or doubled."""

import pytest
import torch
from torch import nn

from yolo_prune.errors import ConfigError
from yolo_prune.train.sparsify import (
    Ramp,
    batchnorm_scales,
    shrinkage,
    soft_threshold_,
    sparsify,
    summarise_scales,
)


class DeadChannels(nn.Module):
    """Eight channels whose scales matter to the output and eight that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images))[:, :8]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(8, 4, 4, 4, generator=generator)
        optimizer.zero_grad()
        loss = (model(images) - images.repeat(1, 2, 1, 1)).square().mean()
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.05), 0.2),
    "sgd with momentum": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True), 0.2),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0), 1.0),
}


@pytest.mark.parametrize(("make", "strength"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_dead_channels_reach_exactly_zero_and_live_ones_do_not(make, strength):
    model = DeadChannels()
    optimizer = make(model.parameters())
    with sparsify(optimizer, batchnorm_scales(model), strength):
        train(model, optimizer, 150)
    scales = model.norm.weight.detach()
    assert (scales[8:] == 0).all()
    assert (scales[:8].abs() > 0.05).sum() >= 4


def test_without_the_hook_dead_channels_stay_where_they_were():
    model = DeadChannels()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train(model, optimizer, 150)
    assert torch.equal(model.norm.weight.detach()[8:], torch.ones(8))


def test_a_removed_handle_does_nothing_more_and_can_be_removed_again():
    model = DeadChannels()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = sparsify(optimizer, batchnorm_scales(model), 0.2)
    train(model, optimizer, 3)
    after_three = model.norm.weight.detach()[8:].clone()
    handle.remove()
    handle.remove()
    train(model, optimizer, 3)
    assert not handle.active
    assert handle.steps == 3
    assert torch.equal(model.norm.weight.detach()[8:], after_three)
    assert torch.allclose(after_three, torch.full((8,), 1 - 3 * 0.05 * 0.2))


def test_each_group_shrinks_by_its_own_rate():
    norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
    optimizer = torch.optim.SGD(
        [{"params": norms[0].parameters(), "lr": 0.1}, {"params": norms[1].parameters(), "lr": 0.01}]
    )
    sparsify(optimizer, batchnorm_scales(norms), 0.5)
    optimizer.step()
    assert torch.allclose(norms[0].weight.detach(), torch.full((4,), 0.95))
    assert torch.allclose(norms[1].weight.detach(), torch.full((4,), 0.995))


def test_loading_an_optimizer_state_keeps_the_hook_on_the_new_rates():
    norm = nn.BatchNorm2d(4)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    sparsify(optimizer, batchnorm_scales(norm), 0.5)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.2
    optimizer.load_state_dict(state)
    optimizer.step()
    assert torch.allclose(norm.weight.detach(), torch.full((4,), 0.9))


def test_accumulated_batches_shrink_once_a_step():
    model = DeadChannels()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = sparsify(optimizer, batchnorm_scales(model), 0.2)
    for _ in range(4):
        model(torch.randn(4, 4, 4, 4)).square().mean().backward()
    optimizer.step()
    assert handle.steps == 1
    assert torch.allclose(model.norm.weight.detach()[8:], torch.full((8,), 0.99))


def test_a_step_that_amp_skips_does_not_shrink():
    model = DeadChannels()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    handle = sparsify(optimizer, batchnorm_scales(model), 0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = model(torch.randn(4, 4, 4, 4)).square().mean()
    scaler.scale(loss * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert handle.steps == 0
    assert torch.equal(model.norm.weight.detach(), torch.ones(16))


@pytest.mark.parametrize(("found_inf", "expected"), [(1.0, 1.0), (0.0, 0.99)])
def test_a_fused_optimizer_that_skips_in_its_kernel_does_not_shrink(found_inf, expected):
    norm = nn.BatchNorm2d(4)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.05)
    handle = sparsify(optimizer, batchnorm_scales(norm), 0.2)
    optimizer.found_inf = torch.tensor([found_inf])  # as GradScaler leaves it there during such a step
    handle._after_step(optimizer, (), {})
    assert torch.allclose(norm.weight.detach(), torch.full((4,), expected))


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"lr": 0.1}, 0.02),
        ({"lr": 0.1, "momentum": 0.0}, 0.02),
        ({"lr": 0.1, "momentum": 0.9}, 0.2),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, 0.1),
        ({"lr": 0.1, "betas": (0.9, 0.999)}, 0.02),
        ({"lr": 0.0, "momentum": 0.9}, 0.0),
    ],
)
def test_the_threshold_follows_rate_and_momentum(group, expected):
    assert shrinkage(group, 0.2) == pytest.approx(expected)


def test_soft_threshold_worked_out_by_hand():
    scales = [torch.tensor([1.0, -1.0, 0.05, -0.05, 0.0]), torch.tensor([0.1])]
    soft_threshold_(scales, 0.1)
    assert torch.allclose(scales[0], torch.tensor([0.9, -0.9, 0.0, 0.0, 0.0]))
    assert (scales[0][2:] == 0).all()
    assert scales[1].item() == 0


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0), (75, 0.6), (100, 0.2), (200, 0.2)]
)
def test_lambda_ramps_up_stays_and_decays(step, factor):
    assert Ramp(steps=100, up=0.1, down_from=0.5, end=0.2).at(step) == pytest.approx(factor)


def test_the_ramp_reaches_the_scales():
    norm = nn.BatchNorm2d(4)
    optimizer = torch.optim.SGD(norm.parameters(), lr=1.0)
    handle = sparsify(optimizer, batchnorm_scales(norm), 0.1, Ramp(steps=10, up=0.2, down_from=1.0))
    optimizer.step()
    assert handle.current == pytest.approx(0.05)
    optimizer.step()
    assert handle.current == pytest.approx(0.1)
    assert torch.allclose(norm.weight.detach(), torch.full((4,), 0.85))


def test_frozen_scales_are_left_alone():
    norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
    norms[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(norms.parameters(), lr=0.1)
    sparsify(optimizer, batchnorm_scales(norms), 0.5)
    optimizer.step()
    assert torch.equal(norms[0].weight, torch.ones(4))
    assert (norms[1].weight < 1).all()


def test_scales_are_found_once_and_only_where_there_are_any():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(
        shared, shared, nn.BatchNorm2d(2, affine=False), nn.GroupNorm(1, 4), nn.BatchNorm1d(3)
    )
    assert {name: len(scale) for name, scale in batchnorm_scales(model).items()} == {"0": 4, "4": 3}


def test_the_summary_counts_zeros_and_near_zeros():
    summary = summarise_scales({"a": torch.tensor([0.0, 0.005]), "b": torch.tensor([-0.5, 1.0])})
    assert (summary.channels, summary.zero, summary.below) == (4, 0.25, 0.5)
    assert summary.mean == pytest.approx(0.37625)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: sparsify(
                torch.optim.SGD(nn.BatchNorm2d(2).parameters()), batchnorm_scales(nn.BatchNorm2d(2)), 1
            ),
            "this optimizer trains none of the 1 BatchNorm scales. "
            "Attach to the optimizer that does, and unfreeze the layers.",
        ),
        (
            lambda: sparsify(torch.optim.SGD(nn.BatchNorm2d(2).parameters()), {}, -1.0),
            "lambda must be 0 or more, got -1.0.",
        ),
        (lambda: Ramp(steps=0), "a ramp needs at least 1 step, got 0."),
        (
            lambda: Ramp(steps=5, up=0.6, down_from=0.5),
            "a ramp needs 0 <= up <= down_from <= 1, got up=0.6, down_from=0.5.",
        ),
        (lambda: summarise_scales({}), "there are no BatchNorm scales to summarise."),
    ],
)
def test_wrong_use_is_said_in_a_sentence(call, sentence):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == sentence
