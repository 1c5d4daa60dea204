"""What a GPU would find wrong, on a device that is played on the CPU: no float64 there, no shared memory, little room."""

import copy

import numpy as np
import pytest
import torch
from nets import Net, conv, randomise_
from other_device import DEVICE, OtherDevice, There, move_
from torch import nn

from yolo_prune.cost import cost_model
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.criteria.weights import SCORES
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.optimizer import follow_cut
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.graph.groups import trace_groups
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.drops import fidelity_to
from yolo_prune.recover.fold import recalibrate_bn_
from yolo_prune.recover.structure import prune_module


def small():
    run = lambda m, x: m.head(m.b(m.a(x)))  # noqa: E731
    torch.manual_seed(0)
    return randomise_(Net(run, a=conv(16, 3), b=conv(16, 16), head=nn.Conv2d(16, 4, 1))).eval()


def batches(sizes=(4, 4)):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(sum(sizes), 3, 16, 16, generator=generator)
    return list(images.split(list(sizes)))


def squares(outputs):
    return outputs.square().sum()


EXAMPLE = torch.zeros(1, 3, 16, 16)


def test_the_stand_in_refuses_what_a_gpu_refuses():
    with OtherDevice():
        weight = torch.ones(2).to(DEVICE)
        assert (isinstance(weight, There), weight.device, weight.cpu().device.type) == (True, DEVICE, "cpu")
        assert isinstance(weight * 2, There)
        with pytest.raises(TypeError, match="float64"):
            weight.double()
        with pytest.raises(TypeError, match="numpy"):
            weight.numpy()
        with pytest.raises(RuntimeError, match="same device"):
            weight + torch.ones(2)


@pytest.mark.parametrize("name", SCORES)
def test_every_criterion_scores_a_module_that_is_elsewhere(name):
    module = small()
    graph = trace_groups(module, EXAMPLE)
    expected = SCORES[name](module, graph, 0)
    with OtherDevice():
        assert np.array_equal(SCORES[name](move_(module), graph, 0), expected)


def test_a_model_is_cut_and_recovered_where_it_is_and_images_come_a_batch_at_a_time():
    def cut(module):
        recipe = Recipe(steps=2, widths=Widths(4, 4))
        result = cut_in_steps(
            Traced.of(module, Anatomy(EXAMPLE)),
            Budget("keep_macs", 0.6),
            recipe,
            Calibration(batches(), squares),
        )
        recalibrate_bn_(result.module, Calibration(batches()))
        return result, fidelity_to(Traced.of(result.module, Anatomy(EXAMPLE)), Calibration(batches()))(
            result.module
        )

    expected, _ = cut(small())
    with OtherDevice() as device:
        found, fidelity = cut(move_(small()))
        assert all(isinstance(p, There) for p in found.module.parameters())
        assert (device.images, fidelity) == (4, 0.0)
        weights = {name: value.cpu() for name, value in found.module.state_dict().items()}
    assert found.plan == expected.plan
    for name, value in expected.module.state_dict().items():
        torch.testing.assert_close(weights[name], value)


@pytest.mark.parametrize("task", [squares, None])
def test_without_room_for_a_batch_it_is_halved_and_the_moments_are_the_same(task, caplog):
    module = small()
    graph = cost_model(trace_groups(module, EXAMPLE), module).graph
    expected = collect_moments(module, graph, Calibration(batches((5, 3)), task))
    images = batches((5, 3))
    with OtherDevice(room=2) as device:
        found = collect_moments(move_(copy.deepcopy(module)), graph, Calibration(images, task))
        assert device.images == 5
    assert [len(batch) for batch in images] == [2, 1, 2, 2, 1], "what fits is remembered"
    assert "no memory for 5 images at a time: measuring begins again with 3." in caplog.text
    assert "no memory for 3 images at a time: measuring begins again with 2." in caplog.text
    for name, moments in expected.items():
        assert found[name].samples == moments.samples, "nothing of an attempt that failed is counted"
        near = 1e-4 if task else 0.05  # without a task, a batch is measured by its own variance
        np.testing.assert_allclose(
            found[name].second, moments.second, rtol=near, atol=1e-3 if not task else 1e-6
        )
        assert found[name].energy == pytest.approx(moments.energy, rel=near)


def test_where_not_one_image_fits_the_error_is_the_devices_own():
    module = small()
    graph = trace_groups(module, EXAMPLE)
    with OtherDevice(room=0), pytest.raises(torch.OutOfMemoryError, match="MPS backend out of memory"):
        collect_moments(move_(module), graph, Calibration(batches()))


def test_mixed_precision_around_it_changes_no_moment():
    module = small()
    graph = trace_groups(module, EXAMPLE)
    expected = collect_moments(module, graph, Calibration(batches(), squares))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(batches()[0]).dtype == torch.bfloat16, "the control"
        found = collect_moments(module, graph, Calibration(batches(), squares))
    for name, moments in expected.items():
        assert np.array_equal(found[name].second, moments.second)


def channels_last(shape):
    """Strides of dense channels last, as ``to(memory_format=...)`` sets them."""
    return torch.empty(shape, memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_cut_keeps_the_memory_layout_of_weights_and_of_what_the_optimizer_remembers(layout):
    run = lambda m, x: m.head(m.deep(m.b(m.a(x))))  # noqa: E731
    deep = conv(16, 16, groups=16)
    module = Net(run, a=conv(16, 3), b=conv(16, 16), deep=deep, head=nn.Conv2d(16, 4, 1)).to(
        memory_format=layout
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.rand(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    wide = [weight.shape for weight in module.parameters() if weight.dim() == 4]
    prune_module(module, EXAMPLE, keep_macs=0.5, round_to=4, min_width=4)
    follow_cut(optimizer, module)
    weights = [weight for weight in module.parameters() if weight.dim() == 4]
    assert [weight.shape for weight in weights] != wide
    for weight in weights:
        like = channels_last if layout is torch.channels_last else lambda shape: torch.empty(shape).stride()
        assert weight.stride() == like(weight.shape), tuple(weight.shape)
        assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()
