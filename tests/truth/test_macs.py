"""Multiply-accumulates: closed forms, PyTorch's own counter, and what a plan promises against what the cut model runs."""

import numpy as np
import pytest
import torch
from nets import Net, conv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.cost import count_macs, count_parameters
from yolo_prune.cost.macs import count_macs_for_real
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels
from yolo_prune.cut.proven import cut_proven_
from yolo_prune.recover.structure import prune_module


def attend(m, x):
    q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
    return v @ (q.transpose(1, 2) @ k)


CLOSED_FORMS = [
    (nn.Conv2d(3, 8, 3, padding=1), (3, 16, 16), 16 * 16 * 8 * 3 * 9),
    (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (3, 16, 16), 8 * 8 * 8 * 3 * 9),
    (nn.Conv2d(8, 8, 5, padding=2, groups=8), (8, 16, 16), 16 * 16 * 8 * 25),
    (nn.Conv2d(8, 12, 1, groups=4), (8, 16, 16), 16 * 16 * 12 * 2),
    (nn.ConvTranspose2d(8, 4, 2, 2), (8, 16, 16), 16 * 16 * 8 * 4 * 4),
    (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), (3, 8, 8), 192 * 5),
    (
        Net(attend, q=nn.Conv2d(3, 4, 1), k=nn.Conv2d(3, 4, 1), v=nn.Conv2d(3, 8, 1)),
        (3, 4, 4),
        16 * 3 * 16 + 256 * 12,
    ),
]


@pytest.mark.parametrize(("net", "shape", "macs"), CLOSED_FORMS)
def test_macs_in_closed_form(net, shape, macs):
    assert count_macs(net, torch.zeros(1, *shape)) == macs


def build(name):
    from ultralytics import YOLO

    return YOLO(f"{name}.yaml").model.eval()


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n-seg", "yolo12n", "yolo26n"])
def test_half_of_the_flops_that_pytorch_counts(name):
    model, x = build(name), torch.zeros(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert 2 * count_macs(model, x) == counter.get_total_flops()
    assert count_macs(model, x) == sum(count_macs_for_real(model, x))


@pytest.mark.parametrize("name", ["yolov5n", "yolo11n", "yolo12n"])
def test_a_plan_promises_what_the_cut_model_runs(name):
    model = build(name)
    anatomy = anatomy_of(model, 160)
    cost = anatomy.cost_of(model)
    before = count_macs(model, anatomy.cost_input), count_parameters(model)
    everything = np.ones(cost.graph.channel_count, dtype=bool)
    assert (cost.macs(everything), cost.parameters(everything)) == pytest.approx(before, rel=1e-12)
    keep = choose_channels(cost, np.random.default_rng(0).random(len(everything)), Budget("keep_macs", 0.6))
    plan, _ = cut_proven_(model, cost, keep, anatomy)
    assert count_parameters(model) == plan.params
    assert count_macs(model, anatomy.cost_input) == pytest.approx(plan.gmacs * 1e9, rel=1e-12)
    assert plan.kept_macs == pytest.approx(plan.gmacs * 1e9 / before[0], rel=1e-12)


def test_costs_at_another_size_than_the_trace():
    net = nn.Sequential(conv(16, 3), conv(32, 16), nn.Conv2d(32, 2, 1))
    whole = count_macs(net, torch.zeros(1, 3, 40, 24))
    plan = prune_module(net, torch.zeros(1, 3, 8, 8), cost_input=torch.zeros(1, 3, 40, 24), keep_macs=0.6)
    assert (
        count_macs(net, torch.zeros(1, 3, 40, 24))
        == plan.gmacs * 1e9
        == pytest.approx(plan.kept_macs * whole)
    )
