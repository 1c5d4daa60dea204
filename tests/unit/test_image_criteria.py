"""Criteria that measure on images: cases worked by hand, every reader counts, and what needs images says so."""

import numpy as np
import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn

from yolo_prune import prune_module
from yolo_prune.criteria.calibration import Calibration, Labels
from yolo_prune.criteria.felt import score_by_activation, score_by_fisher, score_by_taylor
from yolo_prune.criteria.ranking import IMAGE_SCORES, score_channels
from yolo_prune.errors import ConfigError, DataError
from yolo_prune.graph.groups import trace_groups

X = torch.rand(1, 3, 8, 8)


def by_hand():
    """Two channels, which hold the first two colours, read with weights 2 and -1; all of it is linear."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)).eval()
    net[0].weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None]
    net[1].weight.data = torch.tensor([[2.0, -1.0]])[..., None, None]
    return net


def image(red, green):
    """One image of two pixels."""
    return torch.tensor([[red], [green], [[9.0, 9.0]]]).reshape(1, 3, 1, 2)


IMAGES = torch.cat([image([1.0, 3.0], [4.0, 0.0]), image([-2.0, 1.0], [5.0, 5.0])])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        # what channels hold, summed over two pixels: (4, 4) in one image, (-1, 10) in the other; gradients are 2 and -1
        (score_by_taylor, [8 + 2, 4 + 10]),
        (score_by_fisher, [8**2 + 2**2, 4**2 + 10**2]),
        # mean absolute values (2, 2) and (1.5, 5): sums 3.5 and 7, over their mean
        (score_by_activation, [3.5 / 5.25, 7 / 5.25]),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_two_channels_in_two_images_of_two_pixels_score_what_they_do_on_paper(score, expected, batch):
    net = by_hand()
    graph = trace_groups(net, torch.zeros(1, 3, 1, 2))
    calibration = Calibration(list(IMAGES.split(batch)), lambda outputs: outputs.sum())
    scores = score(net, graph, calibration)
    (made,) = (axis for axis in graph.axes if axis.name == "0.weight" and axis.role == "out")
    assert scores[graph.axis_channels(made)] == pytest.approx(expected)


def two_classes(batches):
    """What is in the images of some batches: the first class, the second, the first ..."""
    return [Labels([number % 2]) for number in range(sum(map(len, batches)))]


@pytest.mark.parametrize("score", IMAGE_SCORES.values())
def test_a_batch_in_which_a_layer_has_nothing_to_run_on_counts_nothing(score):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)).eval()
    graph, images = trace_groups(net, torch.zeros(1, 3, 2, 2)), torch.rand(2, 3, 2, 2)
    alone, beside = (
        score(net, graph, Calibration(batches, torch.sum, labels=lambda: two_classes([images])))
        for batches in ([images], [images[:0], images])
    )
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize("name", [name for name in IMAGE_SCORES if name != "svm"])
def test_a_channel_counts_by_all_that_read_it_and_a_flattened_one_counts_whole(name):
    torch.manual_seed(0)

    def forward(net, x):
        maps = net.stem(x)
        return net.left(maps).mean((2, 3)) + net.right(maps.flatten(1))

    net = Net(forward, stem=conv(4, 3), left=nn.Conv2d(4, 2, 1), right=nn.Linear(4 * 64, 2)).eval()
    graph = trace_groups(net, X)
    calibration = Calibration([torch.rand(4, 3, 8, 8)], lambda outputs: outputs.sum())

    def scores(module):
        (made,) = (axis for axis in graph.axes if axis.name.startswith("stem") and axis.role == "out")
        return IMAGE_SCORES[name](module, graph, calibration)[graph.axis_channels(made)]

    with torch.no_grad():
        maps = net.stem(calibration.batches[0]).double()
    left = net.left.weight.detach().sum(0).double().reshape(1, 4, 1) / 64
    right = net.right.weight.detach().sum(0).double().reshape(1, 4, 64)
    both = maps.flatten(2) * (left + right)
    held = maps.flatten(2).abs().mean(-1).sum(0)
    expected = {
        "taylor": both.sum(-1).abs().sum(0),
        "fisher": both.sum(-1).square().sum(0),
        "activation": held / held.mean(),
    }[name]
    assert scores(net) == pytest.approx(expected.numpy(), rel=1e-4)


@pytest.mark.parametrize("name", IMAGE_SCORES)
def test_prune_module_cuts_by_it_what_does_nothing_and_says_so(name):
    torch.manual_seed(0)
    net = randomise_(nn.Sequential(conv(16, 3), conv(16, 16), nn.Conv2d(16, 4, 1))).eval()
    with torch.no_grad():
        silent = (
            net[1]
            if isinstance(net[1], nn.Conv2d)
            else next(layer for layer in net[1].modules() if isinstance(layer, nn.Conv2d))
        )
        silent.weight[:8] = 0
        for norm in net[1].modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.bias[:8], norm.running_mean[:8] = 0, 0
    batches = [torch.rand(8, 3, 8, 8)]
    with torch.no_grad():
        before = net(batches[0])
    plan = prune_module(
        net,
        X,
        keep_macs=0.8,
        criterion=name,
        calibration=batches,
        labels=two_classes,
        steps=1,
        imitation_steps=0,
        round_to=4,
        min_width=4,
    )
    assert plan.settings["criterion"] == name
    with torch.no_grad():
        assert torch.allclose(net(batches[0]), before, atol=1e-4), "what held nothing went"


def test_what_cannot_be_measured_is_said():
    net = by_hand()
    graph = trace_groups(net, torch.zeros(1, 3, 1, 2))
    with pytest.raises(ConfigError, match=r"criterion=taylor measures on images: give calibration=\."):
        prune_module(nn.Sequential(conv(16, 3), nn.Conv2d(16, 4, 1)), X, keep_macs=0.5, criterion="taylor")
    with pytest.raises(ConfigError, match=r"unknown criterion 'tailor'; .* Did you mean 'taylor'\?"):
        score_channels("tailor", net, graph, Calibration([IMAGES]), 0)
    with pytest.raises(ConfigError, match="need a projection"):
        score_channels("fisher", net, graph, Calibration([IMAGES]), 0)
    wrong = Calibration([IMAGES * np.inf], lambda outputs: outputs.sum())
    with pytest.raises(DataError, match="is infinite or NaN"):
        score_channels("taylor", net, graph, wrong, 0)
