"""Batches are as large as memory is known to allow before anything is measured."""

import pytest
import torch
from nets import conv
from torch import nn

from yolo_prune import prune_module
from yolo_prune.criteria import memory
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.memory import sized_for_memory
from yolo_prune.cut.proven import Anatomy, Traced

X = torch.rand(7, 3, 8, 8)


def small():
    net = nn.Sequential(conv(16, 3), nn.Conv2d(16, 4, 1)).eval()
    return net, Traced.of(net, Anatomy(X[:1], X[:1])).cost.graph


@pytest.fixture
def room_for_three(monkeypatch):
    _, graph = small()
    made = sum(use.elements for use in graph.uses)
    assert made == 20 * 64
    monkeypatch.setattr(memory, "_MOST", 3.5 * 4 * memory._HELD * made)


def test_a_batch_that_fits_stays_as_it_is():
    net, graph = small()
    images = Calibration([X])
    assert sized_for_memory(images, net, graph) is images


def test_batches_are_cut_to_what_fits_and_no_image_is_lost_or_moved(room_for_three):
    net, graph = small()
    images = Calibration([X, X[:2]], labels=lambda: ["one"])
    found = sized_for_memory(images, net, graph)
    assert [len(batch) for batch in found.batches] == [3, 3, 1, 2]
    assert torch.equal(torch.cat(list(found.batches)), torch.cat([X, X[:2]]))
    assert found.labels is images.labels
    assert len(images.batches) == 2, "the given ones stay"


def test_where_the_device_says_what_is_too_much_batches_stay(room_for_three):
    net, graph = small()
    images = Calibration([X])
    assert sized_for_memory(images, net.to("meta"), graph) is images


def test_a_cut_runs_on_batches_that_fit(room_for_three):
    net, _ = small()
    seen = []

    def forward(model, batch):
        seen.append(len(batch))
        return model(batch)

    prune_module(
        *(net, X[:1]),
        cost_input=X[:1],
        keep_macs=0.6,
        calibration=[X],
        forward=forward,
        steps=1,
        imitation_steps=2,
    )
    assert max(seen) == 3
    assert sum(seen[1:4]) == 7
