"""A latency model that is told what layers take: it adds up, reads off ladders, and says what a channel saves."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.nets import Net, conv
from yolo_prune.bench import layers as bench_layers
from yolo_prune.bench.clock import Step
from yolo_prune.bench.layer_rounds import ROUNDS, signs, time_layers, together
from yolo_prune.cost import CostModel, cost_model, with_macs_at
from yolo_prune.cost.latency import Latency
from yolo_prune.errors import BudgetError, MissingRuntimeError
from yolo_prune.graph.groups import trace_groups
from yolo_prune.layers import NOTHING, LayerShape, ladder, rungs, shapes_to_time
from yolo_prune.runtimes import layers as layer_files
from yolo_prune.runtimes import pytorch
from yolo_prune.runtimes.runtime import Settings

X = torch.rand(1, 3, 32, 32)
CPU = Settings("cpu", 1, 1)


def linear_time(shape):
    """Of a machine that takes 1 ms for 1e6 multiply-accumulates (the layers here have a stride of 1 and a padding)."""
    return shape.weights * shape.height * shape.width / 1e6


def chain():
    return nn.Sequential(conv(32, 3), conv(64, 32), conv(16, 64, size=1)).eval()


def timed(module, x=X, *, time_of=linear_time, rest=0.0, fixed=0.5):
    """Return a module's cost model with the times that ``time_of`` makes up."""
    graph = with_macs_at(trace_groups(module, x), module, x)
    layers = [use.layer for use in graph.uses if use.layer]
    ms = {shape: time_of(shape) for shape in shapes_to_time(layers)}
    whole = sum(time_of(layer) for layer in layers) + rest
    latency = Latency.fitted(ms, graph.uses, network_ms=whole, fixed_ms=fixed)
    return replace(cost_model(graph, module), latency=latency)


def keeping(cost: CostModel, label, count):
    """Keep the first ``count`` channels of one layer, and all others."""
    axis = next(a for a in cost.graph.axes if a.label == label)
    keep = cost.everything
    keep[cost.graph.axis_channels(axis)[count:]] = False
    return keep


def ms(cost, keep):
    return cost.amount(cost.counts(keep), "latency")


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (64, [16, 32, 48, 64]),
        (20, [8, 16, 20]),
        (8, [8]),
        (3, [3]),
        (80, [16, 40, 64, 80]),
    ],
)
def test_a_layer_is_timed_at_multiples_of_eight_and_at_its_own_width(width, expected):
    assert rungs(width) == expected
    assert all(rung % 8 == 0 for rung in rungs(width)[:-1])


def test_a_depthwise_layer_has_one_side_and_its_groups_follow():
    shape = LayerShape(64, 1, (3, 3), padding=(1, 1), groups=64, height=8, width=8)
    assert ladder(shape) == ([16, 32, 48, 64], [1])
    assert {one.groups for one in shapes_to_time([shape])} == {16, 32, 48, 64}
    assert {one.family for one in shapes_to_time([shape])} == {shape.family}


def test_layers_of_one_shape_are_timed_once():
    shape = LayerShape(16, 16, (3, 3), height=8, width=8)
    assert len(shapes_to_time([shape, shape])) == len(set(shapes_to_time([shape]))) == 4


def test_shapes_of_layers_are_those_that_pytorch_runs():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(3, 16, (3, 5), stride=(2, 1), padding=(1, 2))
            self.depth = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
            self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
            self.out = nn.Linear(8, 5)

        def forward(self, x):
            return self.out(self.up(self.depth(self.wide(x))).mean((2, 3)))

    graph = with_macs_at(trace_groups(Mixed().eval(), X), Mixed().eval(), X)
    assert [use.layer for use in graph.uses] == [
        LayerShape(16, 3, (3, 5), (2, 1), (1, 2), height=32, width=32),
        LayerShape(16, 1, (3, 3), (1, 1), (2, 2), (2, 2), 16, 16, 32),
        LayerShape(8, 8, (2, 2), (2, 2), groups=2, height=16, width=32, transposed=True),
        LayerShape(5, 8),
    ]
    assert [use.elements for use in graph.uses] == [16 * 16 * 32, 16 * 16 * 32, 8 * 32 * 64, 5]


def test_the_parent_takes_what_was_measured_of_it():
    cost = timed(chain(), rest=3.0)
    whole = sum(linear_time(use.layer) for use in cost.graph.uses)
    assert ms(cost, cost.everything) == pytest.approx(whole + 3.0 + 0.5)


@pytest.mark.parametrize("count", [32, 24, 20, 8])
def test_where_time_follows_macs_it_is_predicted_for_every_width(count):
    cost = timed(chain())
    keep = keeping(cost, "1.0.weight[0]", count)
    assert ms(cost, keep) == pytest.approx(cost.macs(keep) / 1e6 + 0.5)


def test_the_rest_follows_the_numbers_that_the_layers_make():
    bare, cost = timed(chain()), timed(chain(), rest=7.0)
    keep = keeping(cost, "1.0.weight[0]", 32)
    elements = np.array([32, 32, 16]) / (32 + 64 + 16)
    assert ms(cost, keep) - ms(bare, keep) == pytest.approx(7.0 * elements.sum())


def test_a_channel_saves_what_the_model_is_shorter_without_it():
    """To first order; in a chain the second layer's channels are made once and read once."""
    cost = timed(chain(), rest=2.0)
    saved = cost.saved_by_channel(cost.everything, "latency")
    axis = next(a for a in cost.graph.axes if a.label == "1.0.weight[0]")
    channel = int(cost.graph.axis_channels(axis)[-1])
    fewer = ms(cost, keeping(cost, "1.0.weight[0]", 63))
    assert saved[channel] == pytest.approx(ms(cost, cost.everything) - fewer)
    assert (saved >= 0).all()


def test_a_step_of_the_runtime_is_seen_where_macs_see_a_slope():
    """A machine that takes as long for 48 channels as for 64, and half as long for 32."""

    def steps(shape):
        return linear_time(shape.resized(-(-shape.outputs // 32) * 32, shape.reads))

    cost = timed(chain(), time_of=steps)
    keep = [keeping(cost, "1.0.weight[0]", count) for count in (64, 48, 32)]
    first, second, third = (cost.amount_per_use(cost.counts(one), "latency")[1] for one in keep)
    assert first == pytest.approx(second)
    assert third == pytest.approx(first / 2)


def test_noise_never_makes_a_narrower_layer_dearer():
    rng = np.random.default_rng(0)
    cost = timed(chain(), time_of=lambda shape: linear_time(shape) * rng.uniform(0.5, 1.5))
    counts = [cost.counts(keeping(cost, "1.0.weight[0]", n)) for n in range(8, 65, 4)]
    times = [cost.amount(each, "latency") for each in counts]
    assert times == sorted(times)


def test_a_product_of_two_activations_is_in_the_rest():
    net = Net(
        lambda self, x: self.a(x).flatten(2) @ self.b(x).flatten(2).mT, a=conv(16, 3), b=conv(24, 3)
    ).eval()
    cost = timed(net, rest=1.0)
    assert [use.layer is None for use in cost.graph.uses] == [False, False, True]
    per_use = cost.amount_per_use(cost.counts(cost.everything), "latency")
    assert per_use[2] == pytest.approx(1.0 * 16 * 24 / (16 * 24 + (16 + 24) * 32 * 32))


def test_a_cut_model_reads_the_ladders_of_its_parent():
    cost = timed(chain())
    narrow = nn.Sequential(conv(16, 3), conv(40, 16), conv(16, 40, size=1)).eval()
    graph = with_macs_at(trace_groups(narrow, X), narrow, X)
    after = replace(cost_model(graph, narrow), latency=cost.latency)
    assert ms(after, after.everything) == pytest.approx(after.macs(after.everything) / 1e6 + 0.5)


def test_times_of_another_size_are_refused():
    cost, net = timed(chain()), chain()
    larger = torch.rand(1, 3, 64, 64)
    graph = with_macs_at(trace_groups(net, larger), net, larger)
    other = replace(cost_model(graph, net), latency=cost.latency)
    with pytest.raises(
        BudgetError, match=r"those of another model or image size: nothing like conv 32x3 k3x3 .* @ 64x64 is"
    ):
        ms(other, other.everything)


def test_a_budget_of_time_without_times_is_refused():
    cost = cost_model(trace_groups(chain(), X), chain())
    with pytest.raises(BudgetError, match="needs the times of layers, and none were measured"):
        ms(cost, cost.everything)


class Machine:
    """Its clocks move when something runs; for half of the time it is three times as slow.

    Where it is ``busy``, whatever runs for more than 1 ms is interrupted for as long again, which the wall clock sees.
    """

    def __init__(self, busy):
        self.now, self.cpu, self.calls, self.busy = 0.0, 0.0, 0, busy

    def spend(self, seconds):
        self.calls += 1
        seconds *= 3.0 if self.calls // 500 % 2 else 1.0
        self.cpu += seconds
        self.now += 2 * seconds if self.busy and seconds > 1e-3 else seconds

    def network(self, number):
        start, cpu = self.now, self.cpu
        self.spend(0.010)
        net, busy = 1e3 * (self.now - start), 1e3 * (self.cpu - cpu)
        return Step(net * 1.2, net * 0.1, net, net * 0.1, cpu_ms=busy * 1.2)


@pytest.mark.parametrize(("busy", "threads"), [(False, 1), (True, 1), (False, 2)])
def test_layers_are_timed_in_turns_with_the_network_whatever_slows_the_machine(monkeypatch, busy, threads):
    machine = Machine(busy)
    shapes = [LayerShape(width, 8, height=4, width=4) for width in range(8, 8 * 51, 8)]

    def opened(runtime, file, shape, settings):
        return lambda: machine.spend(shape.outputs * 1e-6)

    monkeypatch.setattr("yolo_prune.bench.layer_rounds.open_layer", opened)
    groups = together([(shape, None) for shape in shapes], 1)
    settings, clocks = Settings("cpu", threads, 1), (lambda: machine.now, lambda: machine.cpu)
    answers = list(time_layers(groups, "torch", settings, machine.network, *clocks))
    assert len(answers) == signs(groups) == 2 + ROUNDS
    assert [answer is None for answer in answers] == [True] * (len(answers) - 1) + [False]
    result = answers[-1]
    shares = np.array(result["ms"]) / result["network_ms"]
    assert shares == pytest.approx([shape.outputs * 1e-6 / 0.010 for shape in shapes])
    assert result["fixed_ms"] == pytest.approx(0.2 * result["network_ms"])


def test_only_so_many_weights_and_threads_are_held_at_once():
    layers = [(LayerShape(1024, 1024, (5, 5)), None)] * 5
    assert [len(group) for group in together(layers, 1)] == [1, 1, 1, 1, 1]
    assert [len(group) for group in together([(NOTHING, None)] * 1000, 4)] == [341, 341, 318]
    assert [len(group) for group in together([(NOTHING, None)] * 1000, 1)] == [1000]


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """A worker that takes 1 ms for every weight, and 0.25 ms for a call; the requests that it got."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def ask(request, threads):
        asked.append([LayerShape.from_dict(one["shape"]) for one in request["layers"]])
        slow = 1.0 if len(asked) == 1 else 2.0
        times = [0.25 * slow if one == NOTHING else (one.weights + 0.25) * slow for one in asked[-1]]
        return {"result": {"ms": times, "network_ms": 50.0, "fixed_ms": 1.0, "facts": {"runtime": "torch"}}}

    monkeypatch.setattr(bench_layers, "ask_worker", ask)
    return asked


def measured(layers, tmp_path, settings=CPU):
    network = bench_layers.Network(tmp_path / "parent.pt", 32)
    return bench_layers.measure_layers(layers, network, runtime="torch", settings=settings)


SOME = (LayerShape(16, 32, height=4, width=4), LayerShape(64, 16, height=4, width=4))


def test_what_was_measured_here_is_scaled_to_the_machine_of_today_and_not_measured_again(worker, tmp_path):
    first = measured(SOME[:1], tmp_path)
    assert first.ms == {shape: pytest.approx(shape.weights) for shape in shapes_to_time(SOME[:1])}
    again = measured(SOME, tmp_path)
    known, fresh = set(shapes_to_time(SOME[:1])), set(shapes_to_time(SOME))
    assert fresh - known <= set(worker[1])
    assert len(known & set(worker[1])) == min(len(known), 8)
    assert again.ms == {shape: pytest.approx(2.0 * shape.weights) for shape in fresh}
    third = measured(SOME, tmp_path)
    assert third.ms == {shape: pytest.approx(2.0 * shape.weights) for shape in fresh}
    assert len(worker[2]) == 1 + 8


def test_another_number_of_threads_is_measured_anew(worker, tmp_path):
    measured(SOME, tmp_path)
    measured(SOME, tmp_path, Settings("cpu", 2, 1))
    assert set(worker[0]) == set(worker[1])


def test_times_that_cannot_be_read_are_measured_anew(worker, tmp_path, caplog):
    measured(SOME, tmp_path)
    bench_layers.cache_file("torch", CPU).write_text("{")
    with caplog.at_level("WARNING", "yolo_prune"):
        measured(SOME, tmp_path)
    assert set(worker[0]) == set(worker[1])
    assert "all layers are timed again" in caplog.text


LAYERS = [
    LayerShape(8, 3, (3, 3), (2, 2), (1, 1), height=9, width=7),
    LayerShape(8, 1, (3, 3), padding=(2, 2), dilation=(2, 2), groups=8, height=6, width=6),
    LayerShape(6, 4, (1, 3), padding=(0, 1), groups=2, height=5, width=4),
    LayerShape(6, 8, (2, 2), (2, 2), height=5, width=4, transposed=True),
    LayerShape(8, 2, (2, 2), (2, 2), groups=4, height=3, width=4, transposed=True),
    LayerShape(5, 8),
]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "ncnn"])
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: shape.text)
def test_the_file_of_a_layer_computes_what_the_layer_computes(shape, runtime, tmp_path, monkeypatch):
    pytest.importorskip(runtime)
    kept = {}

    def layer(shape, weight, bias, file):
        kept.update(weight=torch.from_numpy(weight), bias=torch.from_numpy(bias))
        write(shape, weight, bias, file)

    name = "_write_ncnn" if runtime == "ncnn" else "_write_onnx"
    write = getattr(layer_files, name)
    monkeypatch.setattr(layer_files, name, layer)
    file = layer_files.write_layer(shape, tmp_path / f"layer{layer_files.ENDINGS[runtime]}")
    found = layer_files.open_layer(runtime, file, shape, CPU)()
    images = np.random.default_rng(0).random((1, shape.channels, shape.height, shape.width), np.float32)
    run = nn.functional.conv_transpose2d if shape.transposed else nn.functional.conv2d
    options = {"stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation}
    expected = run(torch.from_numpy(images), **kept, groups=shape.groups, **options)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: shape.text)
def test_a_layer_of_pytorch_has_the_shape_that_was_asked_for(shape, monkeypatch):
    made = []
    for name in ("Conv2d", "ConvTranspose2d"):
        kind = getattr(torch.nn, name)
        monkeypatch.setattr(torch.nn, name, lambda *a, kind=kind, **k: made.append(kind(*a, **k)) or made[-1])
    images = np.zeros((1, shape.channels, shape.height, shape.width), np.float32)
    pytorch.open_layer(shape, images, CPU)()
    (layer,) = made
    assert layer.weight.numel() == shape.weights
    assert (layer.stride, layer.groups, layer.out_channels) == (shape.stride, shape.groups, shape.outputs)


def test_writing_a_layer_without_onnx_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingRuntimeError, match=r'needs \'onnx\'.*pip install "yolo-prune\[onnx\]"'):
        layer_files.write_layer(NOTHING, tmp_path / "a.onnx")
