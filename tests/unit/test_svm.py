"""Channels are worth what linear SVMs make of them: cases worked by hand, and whoever has no labels hears of it."""

import sys

import numpy as np
import pytest
import torch
from nets import Net, conv
from torch import nn

from yolo_prune import PruningSession, prune_module
from yolo_prune.criteria.calibration import Calibration, Labels
from yolo_prune.criteria.svm import score_by_svm
from yolo_prune.errors import ConfigError, DataError, MissingRuntimeError
from yolo_prune.graph.groups import trace_groups

SIDE = 8


def through(channels):
    """A network whose second layer reads the colours as they are, the third one negated."""
    net = nn.Sequential(nn.Conv2d(3, channels, 1, bias=False), nn.Conv2d(channels, 1, 1)).eval()
    net[0].weight.data = torch.diag(torch.tensor([1.0, 1.0, -1.0]))[:channels, :, None, None]
    return net


def scores_of(net, batches, labels, seed=0):
    graph = trace_groups(net, torch.zeros(1, 3, SIDE, SIDE))
    scores = score_by_svm(net, graph, Calibration(batches, seed=seed, labels=lambda: labels))
    (made,) = (axis for axis in graph.axes if axis.name.endswith("0.weight") and axis.role == "out")
    return scores[graph.axis_channels(made)]


def grey(*colours):
    """An image of one colour."""
    return torch.tensor(colours, dtype=torch.float32).reshape(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)


@pytest.mark.parametrize("batch", [1, 3])
def test_two_channels_that_tell_the_classes_apart_share_the_weight_and_a_constant_one_has_none(batch):
    """Red and the negated blue are equal but for their sign: w = (w, 0, -w), so of a mean of 1 they have 1.5 each."""
    images = torch.cat([grey(number % 2, 0.7, number % 2) for number in range(6)])
    labels = [Labels([number % 2]) for number in range(6)]
    assert scores_of(through(3), list(images.split(batch)), labels) == pytest.approx([1.5, 0, 1.5], abs=1e-3)


def test_a_channel_that_says_less_of_the_class_is_worth_less():
    torch.manual_seed(0)
    images = torch.cat(
        [grey(number % 2, 0.3 * (number % 2) + torch.rand(1).item(), 0) for number in range(40)]
    )
    red, green = scores_of(through(2), [images], [Labels([number % 2]) for number in range(40)])
    assert red > 4 * green > 0


def scene(corner, size=4):
    """A black image with a square: red, and as much blue everywhere."""
    image, (top, left) = torch.zeros(1, 3, SIDE, SIDE), corner
    image[:, 0, top : top + size, left : left + size] = 1
    image[:, 2] = 0.5
    box = [left / SIDE, top / SIDE, (left + size) / SIDE, (top + size) / SIDE]
    return image, Labels([0], [box])


def test_objects_are_told_from_the_background_around_them_by_what_is_there():
    images, labels = zip(*[scene(corner) for corner in ((0, 0), (0, 4), (4, 0), (4, 4))], strict=True)
    found = scores_of(through(3), [torch.cat(images)], labels)
    assert found == pytest.approx([3, 0, 0], abs=1e-2)
    elsewhere = [Labels([0], [[0.9, 0.9, 1.0, 1.0]]) for _ in labels[:-1]]  # boxes beside what they name
    with pytest.raises(AssertionError):
        assert scores_of(through(3), [torch.cat(images[:-1])], elsewhere) == pytest.approx(
            [3, 0, 0], abs=1e-2
        )


def test_the_same_seed_draws_the_same_background_and_an_image_may_be_empty():
    torch.manual_seed(0)
    images = torch.rand(6, 3, SIDE, SIDE)
    labels = [Labels([0], [[0.0, 0.0, 0.25, 0.25]])] * 5 + [Labels([], np.zeros((0, 4)))]
    first, again, other = (scores_of(through(3), [images], labels, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_channels_whose_place_in_the_image_nobody_knows_are_neither_first_nor_last():
    """A layer on rows that are no images (proposals) says nothing of objects: what it reads gets the mean."""

    def forward(net, x):
        maps = net.stem(x)
        return net.head(maps), net.rows(net.narrow(maps).mean((2, 3)).repeat(2, 1))

    torch.manual_seed(0)
    parts = {"stem": conv(4, 3), "head": nn.Conv2d(4, 2, 1), "narrow": nn.Conv2d(4, 3, 1)}
    net = Net(forward, **parts, rows=nn.Linear(3, 2)).eval()
    graph = trace_groups(net, torch.zeros(1, 3, SIDE, SIDE))
    images, labels = zip(*[scene(corner) for corner in ((0, 0), (0, 4), (4, 0), (4, 4))], strict=True)
    scores = score_by_svm(net, graph, Calibration([torch.cat(images)], labels=lambda: labels))
    of = {
        axis.name: scores[graph.axis_channels(axis)]
        for axis in graph.axes
        if axis.role == "out" and axis.name.endswith("weight")
    }
    (stem,) = (values for name, values in of.items() if name.startswith("stem"))
    assert of["narrow.weight"] == pytest.approx([stem.mean()] * 3)
    assert stem.std() > 0


def test_who_has_no_labels_hears_of_it_before_anything_is_cut():
    net = nn.Sequential(conv(16, 3), nn.Conv2d(16, 4, 1)).eval()
    batches = [torch.rand(2, 3, SIDE, SIDE)]
    said = r"criterion=svm needs to know what is in the calibration images: give labels=, or take another criterion\."
    with pytest.raises(ConfigError, match=said):
        prune_module(net, batches[0][:1], keep_macs=0.5, criterion="svm", calibration=batches)
    with pytest.raises(ConfigError, match=said):
        PruningSession(
            *(net, torch.optim.SGD(net.parameters(), 0.1), batches[0][:1]),
            total=3,
            keep_macs=0.5,
            criterion="svm",
            calibration=batches,
        )
    with pytest.raises(ConfigError, match=r"criterion=svm measures on images: give calibration=\."):
        prune_module(net, batches[0][:1], keep_macs=0.5, criterion="svm")
    assert net[1].in_channels == 16


def test_labels_of_one_class_alone_or_of_other_images_are_refused():
    images = torch.rand(2, 3, SIDE, SIDE)
    with pytest.raises(DataError, match=r"needs the labels of each of 2 calibration images, got 1\."):
        scores_of(through(3), [images], [Labels([0])])
    with pytest.raises(
        DataError, match=r"all 2 regions of the calibration images are of one\. Take more images"
    ):
        scores_of(through(3), [images], [Labels([0]), Labels([0])])


def test_the_package_that_fits_them_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        MissingRuntimeError, match=r'criterion=svm needs .* pip install "yolo-prune\[svm\]"\.'
    ):
        scores_of(through(3), [torch.rand(2, 3, SIDE, SIDE)], [Labels([0]), Labels([1])])


def test_a_session_cuts_by_the_labels_of_its_batches():
    torch.manual_seed(0)
    net = nn.Sequential(conv(16, 3), nn.Conv2d(16, 4, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    batches = [(torch.rand(4, 3, SIDE, SIDE), torch.arange(4) % 2)]
    asked = []

    def labels(given):
        asked.append(len(given))
        return [Labels([int(kind)]) for _, kinds in given for kind in kinds]

    session = PruningSession(
        *(net, optimizer, batches[0][0][:1]),
        total=2,
        keep_macs=0.5,
        prune_at=0.5,
        criterion="svm",
        steps=1,
        calibration=batches,
        labels=labels,
        forward=lambda model, batch: model(batch[0]),
        imitation_steps=0,
    )
    session.before_train()
    for _ in range(2):
        net(batches[0][0]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_epoch()
    plan = session.finish()
    assert asked == [1]
    assert plan.kept_macs <= 0.5
    assert plan.settings["criterion"] == "svm"
