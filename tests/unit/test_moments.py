"""Second moments equal a direct computation, gradients weigh pixels and channels, and the module stays as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from yolo_prune.criteria.backward import run_with_gradients
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import _sample, reading_layers
from yolo_prune.criteria.reconstruction import choose_by_reconstruction
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import DataError
from yolo_prune.recover import collect_moments

SEEN = "2.weight"


def small_net(kernel: int = 1, side: int = 6) -> tuple[nn.Module, torch.Tensor]:
    """A net in which only the last layer reads prunable channels, and few enough pixels that all are taken."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, kernel, padding=kernel // 2))
    return net, torch.rand(5, 3, side + 2, side + 2)


def graph_of(net: nn.Module, example: torch.Tensor):
    return Anatomy(example[:1]).cost_of(net).graph


def pixels(x: torch.Tensor) -> np.ndarray:
    """All pixels of all images as rows, shape (B H W, C)."""
    return x.detach().double().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


def weighted(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and covariance, one pixel at a time."""
    mean = sum(w * row for w, row in zip(weight, x, strict=True)) / weight.sum()
    centred = x - mean
    parts = (w * np.outer(row, row) for w, row in zip(weight, centred, strict=True))
    return mean, sum(parts) / weight.sum()


def test_plain_moments_are_those_of_all_pixels():
    net, images = small_net()
    seen = collect_moments(net, graph_of(net, images), Calibration([images]))[SEEN]
    x = pixels(net[:2](images))
    assert seen.samples == len(x)
    np.testing.assert_allclose(seen.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(seen.second, x.T @ x / len(x), rtol=1e-6)
    np.testing.assert_allclose(seen.covariance, np.cov(x.T, bias=True), atol=1e-7)
    np.testing.assert_allclose(seen.rows, 0.25)


def test_plain_moments_count_relative_to_the_energy_of_the_output():
    net, images = small_net()
    graph = graph_of(net, images)
    seen = collect_moments(net, graph, Calibration([images]))[SEEN]
    variance = pixels(net(images)).var(0).sum()
    assert seen.energy == pytest.approx(len(images) / variance, rel=1e-5)
    with torch.no_grad():
        net[2].weight *= 10.0
        net[2].bias *= 10.0
    again = collect_moments(net, graph, Calibration([images]))[SEEN]
    assert again.energy == pytest.approx(seen.energy / 100, rel=1e-5)


def test_gradients_weigh_pixels_and_channels():
    net, images = small_net()
    task_weight = torch.rand(4, 6, 6)

    def task(out: torch.Tensor) -> torch.Tensor:
        return (task_weight * out.pow(2)).sum()

    seen = collect_moments(net, graph_of(net, images), Calibration([images[:3], images[3:]], task))[SEEN]
    out = net(images)
    squared = pixels((2 * task_weight * out).pow(2))  # the gradient at the layer's output, by hand
    mean, covariance = weighted(pixels(net[:2](images)), squared.sum(1))
    np.testing.assert_allclose(seen.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(seen.covariance, covariance, atol=1e-6)
    np.testing.assert_allclose(seen.rows, squared.sum(0) / squared.sum(), rtol=1e-5)
    assert seen.energy == pytest.approx(squared.sum(), rel=1e-5)
    plain = collect_moments(net, graph_of(net, images), Calibration([images]))[SEEN]
    assert not np.allclose(seen.covariance, plain.covariance, atol=1e-6)  # the control: weights do matter


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_sampled_stands_for_all_positions(kernel):
    """A map of 40 x 40 counts as a hundred of 4 x 4 do, though both are sampled at 256 positions or fewer."""
    net, _ = small_net(kernel)

    def energy(side: int) -> float:
        images = torch.rand(3, 3, side + 2, side + 2)
        return collect_moments(net, graph_of(net, images), Calibration([images], lambda out: out.sum()))[
            SEEN
        ].energy

    assert energy(40) == pytest.approx(100 * energy(4), rel=1e-5)


def test_a_layer_that_the_task_does_not_feel_has_no_moments():
    net, images = small_net()
    assert not collect_moments(net, graph_of(net, images), Calibration([images], lambda out: 0.0 * out.sum()))


def test_the_result_depends_on_nothing_but_the_seed():
    net, _ = small_net()
    images = torch.rand(2, 3, 40, 40)  # more pixels than are sampled
    graph = graph_of(net, images)
    first, second, other = (
        collect_moments(net, graph, Calibration([images], seed=seed))[SEEN].second for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_pixels_of_a_wider_kernel_are_those_under_its_centre(kernel):
    net, images = small_net(kernel)

    def task(out: torch.Tensor) -> torch.Tensor:
        return out[:, :, 2, 3].sum()  # one output pixel alone

    seen = collect_moments(net, graph_of(net, images), Calibration([images], task))[SEEN]
    x = net[:2](images)[:, :, 2, 3].detach().double().numpy()
    np.testing.assert_allclose(seen.mean, x.mean(0), rtol=1e-6)


def test_positions_map_through_strides_and_upsampling():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 1, 4, 4)
    chosen, halved = _sample(x, torch.zeros(1, 1, 2, 2), True, generator)
    expected = (chosen // 4 // 2) * 2 + chosen % 4 // 2
    assert torch.equal(halved, expected)
    chosen, doubled = _sample(x, torch.zeros(1, 1, 8, 8), True, generator)
    assert torch.equal(doubled, (chosen // 4 * 2 + 1) * 8 + chosen % 4 * 2 + 1)


def test_linear_layers_are_measured_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.rand(50, 3)
    seen = collect_moments(net, Anatomy(x[:1]).cost_of(net).graph, Calibration([x]))[SEEN]
    hidden = net[:2](x).detach().double().numpy()
    np.testing.assert_allclose(seen.second, hidden.T @ hidden / 50, rtol=1e-6)


def flattened_and_convolution():
    """A linear layer on a flattened map of 3 x 3, and the convolution of 3 x 3 that it is."""
    torch.manual_seed(0)
    maker, linear = nn.Conv2d(3, 6, 3), nn.Linear(6 * 9, 4)
    conv = nn.Conv2d(6, 4, 3)
    conv.weight.data, conv.bias.data = linear.weight.data.view(4, 6, 3, 3), linear.bias.data
    flat = nn.Sequential(maker, nn.Tanh(), nn.Flatten(), linear)
    return flat, nn.Sequential(copy.deepcopy(maker), nn.Tanh(), conv, nn.Flatten()), torch.rand(5, 3, 5, 5)


@pytest.mark.parametrize("project", [None, lambda out: (out * torch.arange(1.0, 5)).tanh().sum()])
def test_a_linear_layer_on_a_flattened_map_is_measured_as_the_convolution_that_it_is(project):
    flat, conv, images = flattened_and_convolution()
    assert torch.allclose(flat(images), conv(images), atol=1e-6)
    calibration = Calibration([images], project)
    ours = collect_moments(flat, graph_of(flat, images), calibration)["3.weight"]
    theirs = collect_moments(conv, graph_of(conv, images), calibration)[SEEN]
    assert ours.second.shape == (6, 6)
    for name in ("second", "mean", "rows", "energy"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5)


@pytest.mark.parametrize("project", [None, lambda out: out.tanh().sum()])
def test_a_batch_in_which_a_layer_has_nothing_to_run_on_adds_nothing(project):
    flat, _, images = flattened_and_convolution()
    graph = graph_of(flat, images)
    alone = collect_moments(flat, graph, Calibration([images], project))["3.weight"]
    beside = collect_moments(flat, graph, Calibration([images[:0], images], project))["3.weight"]
    np.testing.assert_array_equal(alone.second, beside.second)
    assert alone.energy == beside.energy


def test_channels_of_a_flattened_map_are_chosen_as_those_of_the_convolution_are():
    flat, conv, images = flattened_and_convolution()
    kept = []
    for net in (flat, conv):
        cost = Anatomy(images[:1]).cost_of(net)
        moments = collect_moments(net, cost.graph, Calibration([images], lambda out: out.tanh().sum()))
        keep = choose_by_reconstruction(
            net, cost, moments, Budget("keep_macs", 0.5), widths=Widths(round_to=1, min_width=1)
        )
        maker = next(axis for axis in cost.graph.axes if axis.name == "0.weight" and axis.role == "out")
        kept.append(keep[cost.graph.axis_channels(maker)].tolist())
    assert kept[0] == kept[1]
    assert sum(kept[0]) == 3


def test_the_module_is_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)).train()
    net[0].weight.requires_grad_(False)
    images = torch.rand(4, 3, 8, 8)
    graph = graph_of(net, images)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    collect_moments(net, graph, Calibration([images], lambda out: out.sum()))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net[1].training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())


def test_the_module_is_left_as_it_was_when_the_task_fails():
    net, images = small_net()

    def task(_):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        collect_moments(net, graph_of(net, images), Calibration([images], task))
    assert all(p.requires_grad for p in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())


class Awkward(nn.Module):
    """Overwrites part of what a sigmoid in place made, and keeps a part of its output."""

    def forward(self, x):
        self.angle = x[:, :1] * 2
        y = x.clone()
        y[:, 1:].sigmoid_()
        y[:, :2] = y[:, :2] * 3
        return y


def test_a_sigmoid_in_place_can_be_overwritten_and_a_kept_output_does_not_stop_a_copy():
    head, x = Awkward(), torch.zeros(1, 3, 2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # control
        head(x).sum().backward()
    run_with_gradients(head, Calibration([x], torch.sum), "running")
    assert x.grad[0, :, 0, 0].tolist() == [3.0, 0.75, 0.25]
    assert torch.equal(copy.deepcopy(head).angle, torch.zeros(1, 1, 2, 2))


def test_each_module_keeps_its_own_mode():
    net, images = small_net()
    net.train()
    net[1].eval()
    collect_moments(net, graph_of(net, images), Calibration([images]))
    assert [layer.training for layer in net] == [True, False, True]


def test_no_images_is_an_error():
    net, images = small_net()
    with pytest.raises(DataError, match=r"^recovery needs calibration images, but got none\.$"):
        collect_moments(net, graph_of(net, images), Calibration([]))


def test_only_layers_that_read_free_channels_are_measured():
    net, images = small_net()
    assert list(reading_layers(net, graph_of(net, images))) == [SEEN]  # the first reads the image


class NoWayBack(torch.autograd.Function):
    """The input itself; going back through it is an error."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("went back")


class Guarded(nn.Module):
    """A stem that no gradient may reach, a layer that reads it and is overwritten, and a path beside both."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.stem, self.mid, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)
        self.beside = beside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = NoWayBack.apply(self.stem(x))
        out = self.last(self.mid(maps).relu_())
        return out + maps.mean() if self.beside else out


def test_nothing_is_gone_back_through_before_the_first_layer_that_is_measured():
    torch.manual_seed(0)
    net, images = Guarded(beside=False), torch.rand(2, 3, 8, 8)
    graph = graph_of(net, images)
    seen = collect_moments(net, graph, Calibration([images], lambda out: out.pow(2).sum()))
    assert set(seen) == {"mid.weight", "last.weight"}
    x = net.stem(images).detach()
    squared = pixels(
        torch.autograd.functional.vjp(lambda z: net.last(z.relu()), net.mid(x), 2 * net(images))[1].pow(2)
    )
    mean, covariance = weighted(pixels(x), squared.sum(1))
    np.testing.assert_allclose(seen["mid.weight"].mean, mean, rtol=1e-5)
    np.testing.assert_allclose(seen["mid.weight"].covariance, covariance, atol=1e-6)
    with pytest.raises(RuntimeError, match="went back"):  # the control: another path leads there
        collect_moments(Guarded(beside=True), graph, Calibration([images], lambda out: out.pow(2).sum()))


def test_what_is_read_behind_a_detached_map_is_not_felt(monkeypatch):
    monkeypatch.setattr(NoWayBack, "backward", staticmethod(lambda ctx, gradient: gradient))
    torch.manual_seed(0)
    net, images = Guarded(beside=True), torch.rand(2, 3, 8, 8)
    graph = graph_of(Guarded(beside=False), images)
    assert set(collect_moments(net, graph, Calibration([images], lambda out: out.pow(2).sum()))) == {
        "mid.weight",
        "last.weight",
    }
    net.mid.register_forward_hook(lambda layer, inputs, out: out.detach())
    assert not collect_moments(net, graph, Calibration([images], lambda out: out.pow(2).sum()))
