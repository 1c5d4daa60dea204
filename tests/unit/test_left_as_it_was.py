"""What the package changes for a while is put back, also when something fails in between."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from yolo_prune.cost import cost_model
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.graph import trace_groups
from yolo_prune.graph.modes import evaluating
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.recover import collect_moments

X = torch.rand(2, 3, 5, 5)


class DeliberateError(Exception):
    """Raised on purpose."""


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def failing(net):
    """Let the last layer of a network raise."""

    def refuse(*_):
        raise DeliberateError

    net[-1].register_forward_pre_hook(refuse)
    return net


def half_frozen():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)).train()
    net[1].eval()
    net[0].requires_grad_(False)
    return net


def state_of(net):
    modes = [layer.training for layer in net.modules()]
    hooks = [len(layer._forward_hooks) for layer in net.modules()]
    return modes, hooks, [parameter.requires_grad for parameter in net.parameters()]


def test_random_numbers_go_on_after_an_error():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(DeliberateError), untouched_randomness():
        draw()
        raise DeliberateError
    assert draw() == expected


def test_every_layer_gets_its_own_mode_back_after_an_error():
    net = half_frozen()
    before = state_of(net)
    with pytest.raises(DeliberateError), evaluating(net):
        assert not any(layer.training for layer in net.modules())
        raise DeliberateError
    assert state_of(net) == before


def test_measuring_takes_its_hooks_modes_and_gradients_back_after_an_error():
    net = half_frozen()
    graph = cost_model(trace_groups(net, X[:1]), net).graph
    failing(net)
    before = state_of(net)
    with pytest.raises(DeliberateError):
        collect_moments(net, graph, Calibration([X], lambda out: out.sum()))
    assert state_of(net) == before
    with pytest.raises(AttributeError):
        collect_moments(net, graph, Calibration([X]), blocks=["nowhere"])
    assert state_of(net) == before
