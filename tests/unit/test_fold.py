"""Folding is exact where the removed channels can be explained, and re-estimation is a plain average."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import Moments
from yolo_prune.cut.proof import zero_removed_
from yolo_prune.cut.proven import Anatomy
from yolo_prune.recover import collect_moments, fold_removed_, recalibrate_bn_
from yolo_prune.recover.fold import solve_fold

TINY = 1e-12  # a ridge that leaves exact solutions exact


class Explained(nn.Module):
    """Makes three channels, and a fourth and fifth that the first three explain exactly."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maker = nn.Conv2d(3, 5, 1)
        with torch.no_grad():
            for target, (a, b, c, constant) in {3: (0.5, -1.0, 2.0, 3.0), 4: (1.0, 1.0, 0.0, -2.0)}.items():
                mixed = a * self.maker.weight[0] + b * self.maker.weight[1] + c * self.maker.weight[2]
                self.maker.weight[target] = mixed
                bias = a * self.maker.bias[0] + b * self.maker.bias[1] + c * self.maker.bias[2]
                self.maker.bias[target] = bias + constant
        self.reader = reader

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reader(self.maker(x))


def folded_error(reader: nn.Module, *, fold: bool = True, side: int = 12, crop: int = 0) -> float:
    """Remove the explained channels, folded or not, and return the largest change of the output."""
    net = Explained(reader).double().eval()
    images = torch.rand(4, 3, side, side, dtype=torch.float64)
    graph = Anatomy(images[:1].float()).cost_of(copy.deepcopy(net).float()).graph
    keep = np.ones(graph.channel_count, dtype=bool)
    maker = next(axis for axis in graph.axes if axis.name == "maker.weight" and axis.role == "out")
    keep[graph.axis_channels(maker)[3:]] = False
    cut = copy.deepcopy(net)
    if fold:
        assert (
            fold_removed_(cut, graph, keep, collect_moments(net, graph, Calibration([images])), ridge=TINY)
            == 1
        )
    zero_removed_(cut, graph, keep)
    with torch.no_grad():
        difference = (net(images) - cut(images)).abs()
    return float(difference[..., crop : side - crop, crop : side - crop].max())


def shaken(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A BatchNorm with scales, shifts and statistics of its own."""
    with torch.no_grad():
        for vector in (norm.weight, norm.bias, norm.running_mean):
            vector.copy_(torch.randn(vector.shape))
        norm.running_var.copy_(torch.rand(norm.running_var.shape) + 0.5)
    return norm


class WrittenOut(nn.Module):
    """A frozen BatchNorm in products and sums, with buffers alone."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name, value in norm.state_dict().items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


READERS = {
    "1x1 with bias": (lambda: nn.Conv2d(5, 4, 1), 0),
    "1x1 with BatchNorm": (
        lambda: nn.Sequential(nn.Conv2d(5, 4, 1, bias=False), shaken(nn.BatchNorm2d(4)), nn.SiLU()),
        0,
    ),
    "1x1 with a BatchNorm that is written out": (
        lambda: nn.Sequential(nn.Conv2d(5, 4, 1, bias=False), WrittenOut(shaken(nn.BatchNorm2d(4)))),
        0,
    ),
    "1x1 with bias and BatchNorm": (lambda: nn.Sequential(nn.Conv2d(5, 4, 1), shaken(nn.BatchNorm2d(4))), 0),
    "3x3 with BatchNorm, inside": (
        lambda: nn.Sequential(nn.Conv2d(5, 4, 3, padding=1, bias=False), shaken(nn.BatchNorm2d(4))),
        1,
    ),
    "linear on a flattened map": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5 * 12 * 12, 4)), 0),
    "5x5 dilated with bias, inside": (lambda: nn.Conv2d(5, 4, 3, padding=2, dilation=2), 2),
}


@pytest.mark.parametrize("name", READERS)
def test_folding_is_exact_for_channels_that_the_kept_ones_explain(name):
    make, crop = READERS[name]
    assert folded_error(make(), crop=crop) < 1e-6
    assert folded_error(make(), crop=crop, fold=False) > 0.1  # the control: without folding they are missed


def test_a_layer_without_bias_and_norm_takes_what_it_can():
    """The constant has no place; the rest is folded all the same."""
    assert folded_error(nn.Conv2d(5, 4, 1, bias=False)) > 0.1


def test_zero_padded_borders_keep_an_error():
    """The constant is missing where the kernel reads padding: the documented limit of folding."""
    assert folded_error(nn.Conv2d(5, 4, 3, padding=1)) > 0.01


def test_folding_into_a_strided_convolution_is_exact():
    assert folded_error(nn.Conv2d(5, 4, 2, stride=2), side=12) < 1e-6


def test_the_constant_of_a_transposed_convolution_is_spread_over_its_taps():
    reader = nn.ConvTranspose2d(5, 4, 2, stride=2)
    with torch.no_grad():
        reader.weight.copy_(reader.weight[:, :, :1, :1].expand_as(reader.weight))  # every phase alike: exact
    assert folded_error(reader, side=8) < 1e-6


def test_folding_into_a_linear_layer_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double()
    with torch.no_grad():
        net[0].weight[4] = net[0].weight[0] - net[0].weight[1]
        net[0].bias[4] = net[0].bias[0] - net[0].bias[1] + 1.0
    x = torch.rand(30, 3, dtype=torch.float64)
    graph = Anatomy(x[:1].float()).cost_of(copy.deepcopy(net).float()).graph
    keep = np.ones(graph.channel_count, dtype=bool)
    keep[graph.axis_channels(next(a for a in graph.axes if a.name == "1.weight" and a.role == "in"))[4]] = (
        False
    )
    cut = copy.deepcopy(net)
    fold_removed_(cut, graph, keep, collect_moments(net, graph, Calibration([x])), ridge=TINY)
    zero_removed_(cut, graph, keep)
    assert float((net(x) - cut(x)).detach().abs().max()) < 1e-6


def test_coefficients_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)
    moments = Moments(x.T @ x / 200, x.mean(0), 1.0, np.ones(1), 200)
    kept, removed = np.array([0, 2, 3]), np.array([1, 4])
    coefficients, constants = solve_fold(moments, kept, removed, ridge=TINY)
    design = np.column_stack([x[:, kept], np.ones(200)])
    expected = np.linalg.lstsq(design, x[:, removed], rcond=None)[0]
    np.testing.assert_allclose(coefficients, expected[:3], atol=1e-6)
    np.testing.assert_allclose(constants, expected[3], atol=1e-6)


def test_a_constant_channel_folds_into_the_bias_alone():
    x = np.column_stack([np.linspace(0, 1, 50), np.full(50, 7.0)])
    moments = Moments(x.T @ x / 50, x.mean(0), 1.0, np.ones(1), 50)
    coefficients, constants = solve_fold(moments, np.array([0]), np.array([1]))
    assert coefficients == pytest.approx(np.zeros((1, 1)), abs=1e-9)
    assert constants == pytest.approx([7.0])


def test_nothing_is_folded_where_nothing_goes():
    net = Explained(nn.Conv2d(5, 4, 1))
    images = torch.rand(2, 3, 6, 6)
    graph = Anatomy(images[:1]).cost_of(net).graph
    before = copy.deepcopy(net.state_dict())
    keep = np.ones(graph.channel_count, dtype=bool)
    assert fold_removed_(net, graph, keep, collect_moments(net, graph, Calibration([images]))) == 0
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), shaken(nn.BatchNorm2d(4, momentum=0.3)), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


def test_statistics_are_plain_averages_over_the_batches():
    net = normed()
    batches = [torch.rand(4, 3, 5, 5), torch.rand(2, 3, 5, 5) * 3]
    with torch.no_grad():
        made = [net[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    assert recalibrate_bn_(net, Calibration(batches)) is net
    mean = torch.stack([each.mean(1) for each in made]).mean(0)
    variance = torch.stack([each.var(1) for each in made]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, variance)


def test_modes_and_momenta_come_back():
    net = normed().train()
    net[2].eval()
    recalibrate_bn_(net, Calibration([torch.rand(2, 3, 5, 5)]))
    assert [layer.training for layer in net] == [True, True, False, True]
    assert net[1].momentum == 0.3


def test_modes_and_momenta_come_back_after_an_error():
    net = normed().eval()
    with pytest.raises(RuntimeError):
        recalibrate_bn_(net, Calibration([torch.rand(2, 7, 5, 5)]))
    assert not any(layer.training for layer in net.modules())
    assert net[1].momentum == 0.3


def test_a_norm_that_does_not_run_keeps_its_statistics():
    net = normed()
    net.aside = shaken(nn.BatchNorm2d(4))
    net.forward = lambda x: net[3](net[2](net[1](net[0](x))))
    before = copy.deepcopy(net.aside.state_dict())
    recalibrate_bn_(net, Calibration([torch.rand(2, 3, 5, 5)]))
    assert all(torch.equal(before[name], value) for name, value in net.aside.state_dict().items())


def test_without_batches_everything_stays():
    net = normed()
    before = copy.deepcopy(net.state_dict())
    recalibrate_bn_(net, Calibration([]))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def narrowing() -> nn.Sequential:
    """Ends in a BatchNorm on maps of one pixel, as a classifier or a detector at a small size has it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        shaken(nn.BatchNorm2d(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 4, 1),
        shaken(nn.BatchNorm2d(4)),
    )


@pytest.mark.parametrize("sizes", [(4, 1), (1, 4), (1, 1, 1, 2), (2, 3)])
def test_a_batch_of_one_image_joins_the_one_beside_it(sizes):
    images = torch.rand(5, 3, 4, 4)
    joined = {(4, 1): (5,), (1, 4): (5,), (1, 1, 1, 2): (2, 3), (2, 3): (2, 3)}[sizes]
    net, expected = narrowing(), narrowing()
    recalibrate_bn_(net, Calibration(images.split(sizes)))
    recalibrate_bn_(expected, Calibration(images.split(joined)))
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert not torch.equal(net[4].running_mean, narrowing()[4].running_mean)


def test_one_image_alone_leaves_the_statistics_of_one_pixel_and_says_so(caplog):
    net = narrowing()
    recalibrate_bn_(net, Calibration([torch.rand(1, 3, 4, 4)]))
    assert [record.getMessage() for record in caplog.records] == [
        "'4' keeps its BatchNorm statistics: one image of one pixel has no variance, it takes two images."
    ]
    for name, value in narrowing()[4].state_dict().items():
        assert torch.equal(net[4].state_dict()[name], value), name
    assert not torch.equal(net[1].running_mean, narrowing()[1].running_mean)


def test_after_an_error_in_a_later_batch_all_statistics_are_the_old_ones():
    net = normed()
    with pytest.raises(RuntimeError):
        recalibrate_bn_(
            net, Calibration([torch.rand(2, 3, 5, 5), torch.rand(2, 7, 5, 5), torch.rand(2, 3, 5, 5)])
        )
    for name, value in normed().state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert not any(layer._forward_pre_hooks for layer in net.modules())
