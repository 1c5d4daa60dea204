"""Modules of 16 bits and of mixed precision, and autocast around a module or inside it: the cut of their float32 twin."""

import contextlib
import copy
import logging

import numpy as np
import pytest
import torch
from nets import IMAGE, KINDS, Net, conv, net_of, randomise_
from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.criteria.weights import SCORES
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.optimizer import follow_cut
from yolo_prune.cut.proof import prove_equivalence, zero_removed_
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError, ConfigError
from yolo_prune.graph.decisions import Positions
from yolo_prune.graph.groups import trace_groups
from yolo_prune.graph.modes import in_full_precision
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.drops import fidelity_to
from yolo_prune.recover.fold import recalibrate_bn_
from yolo_prune.recover.structure import prune_module

NARROW = [torch.float16, torch.bfloat16]
narrow = pytest.mark.parametrize("dtype", NARROW, ids=["float16", "bfloat16"])
every_kind = pytest.mark.parametrize("kind", KINDS)
SMALL = {"round_to": 4, "min_width": 4}


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def prune(module, example=IMAGE, keep_macs=0.5, **options):
    return prune_module(module, example, keep_macs=keep_macs, **SMALL, **options)


def twins(kind, dtype):
    """A module of 16 bits, and the float32 module of the same weights."""
    module = net_of(kind).to(dtype)
    return module, copy.deepcopy(module).float()


def images(sizes=(4, 4)):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(size, 3, 16, 16, generator=generator) for size in sizes]


class Around(nn.Module):
    """A network with something before and around it."""

    def __init__(self, net, before=lambda x: x, around=contextlib.nullcontext):
        super().__init__()
        self.net, self.before, self.around = net, before, around

    def forward(self, x):
        with self.around():
            return self.net(self.before(x))


def from_bytes(x):
    return x.float() / 255  # whatever the weights are: no run in float64


BYTES = torch.randint(0, 256, IMAGE.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@narrow
@every_kind
def test_a_module_of_16_bits_is_cut_as_its_float32_twin(kind, dtype):
    module, twin = twins(kind, dtype)
    parent = copy.deepcopy(module)
    plan, expected = prune(module, IMAGE.to(dtype)), prune(twin)
    assert (plan.keep, plan.kept_macs) == (expected.keep, expected.kept_macs)
    assert plan.kept_macs <= 0.5
    assert plan.equivalence["exact"]
    assert (plan.equivalence["dtype"], plan.equivalence["tolerance"]) == (
        "float64",
        expected.equivalence["tolerance"],
    ), "16 bits are no excuse"
    for name, tensor in twin.state_dict().items():
        mine = module.state_dict()[name]
        assert mine.dtype == (dtype if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(mine, tensor.to(mine.dtype))
    graph = trace_groups(parent, IMAGE.to(dtype))
    x = torch.rand(2, 3, 16, 16).to(dtype)
    with torch.no_grad():
        found, wanted = module(x), zero_removed_(parent, graph, kept(graph, plan))(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02 * float(wanted.abs().max()))


def kept(graph, plan):
    """The choice of channels behind a plan."""
    keep = np.ones(graph.channel_count, dtype=bool)
    for axis in graph.axes:
        if axis.label in plan.keep:
            gone = sorted(set(range(axis.size)) - set(plan.keep[axis.label]))
            keep[graph.axis_channels(axis)[gone]] = False
    return keep


@every_kind
def test_autocast_around_a_cut_changes_nothing(kind, caplog):
    expected = prune(twin := net_of(kind))
    module = net_of(kind)
    with autocast():
        assert module(IMAGE).dtype == torch.bfloat16, "the control"
        plan = prune(module)
    assert plan == expected
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warned, "nothing holds the old weights: autocast forgets what it made of them"
    for name, tensor in twin.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)
        assert module.state_dict()[name].dtype == tensor.dtype


@every_kind
def test_autocast_inside_a_module_changes_nothing(kind):
    expected = prune(net_of(kind))
    module = Around(net_of(kind), around=autocast)
    plan = prune(module)
    assert {label.removeprefix("net."): indices for label, indices in plan.keep.items()} == expected.keep
    assert (plan.kept_macs, plan.equivalence) == (expected.kept_macs, expected.equivalence)
    assert module(IMAGE).dtype == torch.bfloat16, "the control"


@pytest.mark.parametrize("outside", [contextlib.nullcontext, autocast])
@pytest.mark.parametrize("inside", [contextlib.nullcontext, autocast])
def test_a_proof_in_float32_is_one_whatever_autocast_there_is(inside, outside):
    """In 16 bits two models that compute the same differ, and what they differ in would be kept for no reason."""
    torch.manual_seed(0)
    layers = {"a": conv(40, 3), "b": conv(40, 40), "c": conv(40, 40), "d": conv(40, 40)}
    run = lambda m, x: m.head(m.d(m.c(m.b(m.a(x)))))  # noqa: E731
    net = randomise_(Net(run, **layers, head=nn.Conv2d(40, 16, 1)), x=IMAGE).eval()
    expected = prune(Around(copy.deepcopy(net), from_bytes), BYTES, keep_macs=0.6)
    with outside():
        plan = prune(Around(net, from_bytes, inside), BYTES, keep_macs=0.6)
    assert plan == expected
    assert plan.equivalence["dtype"] == "float32"
    assert plan.equivalence["compared"] == 2, "the outputs, and what the last layer makes"


@pytest.mark.parametrize(
    ("example", "make"),
    [
        (IMAGE.half(), lambda: net_of("residual").half()),
        (IMAGE.bfloat16(), lambda: net_of("residual").bfloat16()),
        (IMAGE, lambda: Around(net_of("residual"), around=autocast)),
        (BYTES, lambda: Around(net_of("residual"), from_bytes, autocast)),
    ],
    ids=["float16", "bfloat16", "autocast", "bytes under autocast"],
)
def test_a_wrong_cut_of_low_precision_is_found(example, make):
    module = make()
    cost = Anatomy(example).cost_of(module)
    plan = prune(right := copy.deepcopy(module), example)
    keep = kept(cost.graph, plan)
    assert prove_equivalence(module, right, cost.graph, keep, example).exact
    label = next(label for label in plan.keep if label.endswith("a.0.weight[1]"))
    wrong = list(plan.keep[label])
    wrong[0] = next(index for index in range(plan.widths[label]) if index not in wrong)
    false = cut_(copy.deepcopy(module), copy_of(plan, label, wrong))
    assert not prove_equivalence(module, false, cost.graph, keep, example).exact


def copy_of(plan, label, indices):
    other = copy.deepcopy(plan)
    other.keep[label] = indices
    return other


def mixed(kind):
    """Weights of 16 bits beside BatchNorms of 32, as loops with master weights make them."""
    module = net_of(kind).half()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.float()
    return module


@every_kind
def test_a_module_of_mixed_precision_keeps_every_tensors_own(kind):
    module = mixed(kind)
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    assert len(set(types.values())) == 3, "the control: float16, float32 and counters"
    plan = prune(module, IMAGE.half())
    assert plan.equivalence["exact"]
    assert plan.kept_macs <= 0.5
    assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == types
    assert module(IMAGE.half()).dtype == torch.float16


@narrow
def test_blocks_are_dropped_from_a_module_of_16_bits(dtype):
    def chain():
        torch.manual_seed(0)
        blocks = [Net(lambda m, x: x + m.b(m.a(x)), a=conv(16, 16), b=conv(16, 16)) for _ in range(3)]
        run = lambda m, x: m.head(m.blocks(m.stem(x)))  # noqa: E731
        net = Net(run, stem=conv(16, 3), blocks=nn.Sequential(*blocks), head=nn.Conv2d(16, 4, 1))
        return randomise_(net, x=IMAGE).eval().to(dtype)

    options = {"keep_macs": 0.2, "depth": True}
    module, twin = chain(), chain().float()
    plan, expected = prune(module, IMAGE.to(dtype), **options), prune(twin, **options)
    assert plan.dropped == expected.dropped != []
    assert plan.keep == expected.keep
    other = chain().float()
    with autocast():
        assert prune(other, **options) == expected


def test_a_precision_that_only_the_module_knows_is_said_before_the_cut():
    module = Around(net_of("residual").half(), before=torch.Tensor.half)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        ConfigError, match=r"^a cut is proven in float64 or float32, and the model runs in neither: "
    ):
        prune(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_an_example_of_another_precision_does_for_16_bits_and_is_named_where_it_does_not_run():
    assert prune(net_of("residual").half(), IMAGE) == prune(net_of("residual").half(), IMAGE.half())
    with pytest.raises(
        ConfigError, match=r"\. The example is float16 and the weights are float32\. Its forward is "
    ):
        prune(net_of("residual"), IMAGE.half())


@narrow
def test_what_the_cpu_lacks_in_16_bits_is_traced_and_counted_in_float32(dtype):
    def run(m, x):
        by_value = float(x.mean()) > -1  # costs cannot be counted on shapes alone
        x = m.a(x)
        if by_value:
            x = torch.fft.rfft(x).abs() * x.sigmoid()[..., :9]
        return m.head(m.b(x))

    torch.manual_seed(0)
    net = Net(run, a=conv(32, 3), b=conv(32, 32), head=nn.Conv2d(32, 4, 1))
    module = randomise_(net, x=IMAGE).eval().to(dtype)
    with pytest.raises(RuntimeError, match="Unsupported dtype"):
        module(IMAGE.to(dtype))
    twin = copy.deepcopy(module).float()
    anatomy = {"example": IMAGE.to(dtype), "cost_input": torch.zeros(1, 3, 32, 16).to(dtype)}
    plan = prune(module, **anatomy)
    assert plan == prune(twin, IMAGE, cost_input=torch.zeros(1, 3, 32, 16))
    assert module.a[0].weight.dtype == dtype
    assert module.a[0].out_channels < 32


def test_a_run_that_fails_leaves_no_positions_behind():
    positions = Positions()
    decide = lambda values: (values > 0).nonzero()[:, 0].tolist()  # noqa: E731
    with pytest.raises(ZeroDivisionError), positions.of("trace"):
        decide(torch.tensor([1.0, -1.0]))
        raise ZeroDivisionError
    with positions.of("trace"):
        assert decide(torch.tensor([-1.0, 1.0])) == [1]
    with positions.of("trace"):
        assert decide(torch.tensor([1.0, -1.0])) == [1], "the first run that came to its end is repeated"


@narrow
@pytest.mark.parametrize("name", SCORES)
def test_a_criterion_ranks_16_bits_in_float64(name, dtype):
    module, twin = twins("depthwise", dtype)
    graph = trace_groups(twin, IMAGE)
    scores = SCORES[name](module, graph, 0)
    assert scores.dtype == np.float64
    assert np.array_equal(scores, SCORES[name](twin, graph, 0))


def faint(outputs):
    """A task of so small a gradient that float16 has nothing but zero for it."""
    return outputs.mean() * 1e-5


@narrow
def test_moments_of_16_bits_are_measured_in_float32_and_the_module_is_as_it_was(dtype):
    module, twin = twins("residual", dtype)
    graph = trace_groups(twin, IMAGE)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.state_dict().items()}
    weights = [id(parameter) for parameter in module.parameters()]
    expected = collect_moments(twin, graph, Calibration(images(), faint))
    with autocast():
        found = collect_moments(module, graph, Calibration(images(), faint))
    assert found.keys() == expected.keys() != set()
    for name, moments in expected.items():
        assert found[name].second.dtype == np.float64
        assert np.array_equal(found[name].second, moments.second)
        assert found[name].energy == moments.energy > 0
    assert [id(parameter) for parameter in module.parameters()] == weights
    for name, (place, value) in before.items():
        tensor = module.state_dict()[name]
        assert (tensor.data_ptr(), tensor.dtype) == (place, value.dtype)
        assert torch.equal(tensor, value)


def test_the_gradient_of_a_faint_task_is_lost_in_float16():
    """The control of the test above."""
    module = net_of("residual").half()
    faint(module(images()[0].half())).backward()
    assert not module.stem[0].weight.grad.any()


def test_after_an_error_a_module_of_16_bits_is_one_again():
    module = mixed("residual")
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    with pytest.raises(ZeroDivisionError), in_full_precision(module):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        raise ZeroDivisionError
    assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == types


@narrow
def test_statistics_of_16_bits_are_estimated_in_float32_and_rounded_once(dtype):
    module, twin = twins("residual", dtype)
    before = module.stem[1].running_mean.clone()
    recalibrate_bn_(twin, Calibration(images((4, 4, 4))))
    with autocast():
        recalibrate_bn_(module, Calibration(images((4, 4, 4))))
    assert not torch.equal(module.stem[1].running_mean, before)
    for name, tensor in twin.state_dict().items():
        mine = module.state_dict()[name]
        assert torch.equal(mine, tensor.to(mine.dtype)), name


def test_statistics_of_float32_are_the_same_under_autocast_around_and_inside():
    plain, module = net_of("residual"), net_of("residual")
    recalibrate_bn_(plain, Calibration(images()))
    with autocast():
        recalibrate_bn_(Around(module, around=autocast), Calibration(images()))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


@narrow
def test_fidelity_is_judged_in_float32(dtype):
    module, twin = twins("residual", dtype)
    other = copy.deepcopy(module)
    other.a[0].weight.data *= 1.1
    expected = fidelity_to(Traced.of(twin, Anatomy(IMAGE)), Calibration(images()))(
        copy.deepcopy(other).float()
    )
    with autocast():
        judge = fidelity_to(Traced.of(module, Anatomy(IMAGE)), Calibration(images()))
        assert judge(module) == 0.0
        assert judge(other) == expected < 0
    assert {p.dtype for p in (*module.parameters(), *other.parameters())} == {dtype}


@narrow
def test_a_module_of_16_bits_is_folded_in_float64_and_rounded_where_it_is_written(dtype):
    def cut(module):
        recipe = Recipe(steps=2, widths=Widths(4, 4))
        return cut_in_steps(
            Traced.of(module, Anatomy(IMAGE.to(module.head.weight.dtype))),
            Budget("keep_macs", 0.5),
            recipe,
            Calibration(images()),
        )

    module, twin = twins("residual", dtype)
    found, expected = cut(module), cut(twin)
    assert found.plan.keep == expected.plan.keep
    for name, tensor in expected.module.state_dict().items():
        mine = found.module.state_dict()[name]
        assert mine.dtype == module.state_dict()[name].dtype
        torch.testing.assert_close(mine.float(), tensor.float(), rtol=0.02, atol=0.02)
    bare = cut_(copy.deepcopy(module), found.plan)
    folded = [n for n, t in bare.state_dict().items() if not torch.equal(t, found.module.state_dict()[n])]
    assert "b.0.weight" in folded, "the control: something was folded"


@narrow
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_of_16_bits_follows_the_cut_and_goes_on(name, dtype):
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4),
    }[name]
    module = net_of("residual").to(dtype)
    optimizer = make(module.parameters())
    module(torch.rand(2, 3, 16, 16).to(dtype)).float().square().mean().backward()
    optimizer.step()
    weight = module.a[0].weight
    remembered = {key: value.clone() for key, value in optimizer.state[weight].items()}
    plan = prune(module, IMAGE.to(dtype), optimizer=optimizer)
    rows, columns = plan.keep["a.0.weight[0]"], plan.keep["a.0.weight[1]"]
    assert weight.shape != module.a[0].weight.shape
    weight = module.a[0].weight
    for key, value in optimizer.state[weight].items():
        assert value.dtype == remembered[key].dtype
        whole = remembered[key]
        assert torch.equal(value, whole[rows][:, columns] if whole.dim() else whole)
    module(torch.rand(2, 3, 16, 16).to(dtype)).float().square().mean().backward()
    optimizer.step()
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert all(p.isfinite().all() for p in module.parameters())


def test_what_an_optimizer_keeps_in_float32_beside_weights_of_16_bits_stays_float32():
    module = net_of("depthwise").half()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        optimizer.state[parameter] = {"momentum_buffer": torch.rand(parameter.shape)}
    before = optimizer.state[module.b[0].weight]["momentum_buffer"]
    plan = prune(module, IMAGE.half())
    follow_cut(optimizer, module)
    after = optimizer.state[module.b[0].weight]["momentum_buffer"]
    assert after.dtype == torch.float32
    rows, columns = plan.keep.get("b.0.weight[0]", range(32)), plan.keep["b.0.weight[1]"]
    assert torch.equal(after, before[list(rows)][:, columns])


def test_a_budget_that_cannot_be_met_leaves_a_module_of_16_bits_alone():
    module = net_of("residual").half()
    before = [id(parameter) for parameter in module.parameters()]
    with pytest.raises(BudgetError, match="cannot meet"):
        prune(module, IMAGE.half(), keep_macs=0.001)
    assert [id(parameter) for parameter in module.parameters()] == before


def test_costs_are_the_same_in_every_precision():
    expected = Anatomy(IMAGE, cost_input=IMAGE).cost_of(net_of("residual"))
    for module, example in ((net_of("residual").half(), IMAGE.half()), (mixed("residual"), IMAGE.half())):
        cost = Anatomy(example, cost_input=example).cost_of(module)
        assert cost.shapes == expected.shapes
        assert cost.graph.uses == expected.graph.uses


@pytest.mark.parametrize("name", [name for name in SCORES if name != "random"])
def test_weights_that_left_the_range_of_16_bits_rank_nothing(name):
    module = net_of("residual").half()
    for layer in (module.a[0], module.a[1]):
        layer.weight.data.flatten()[:2] = torch.tensor([1e6, float("nan")]).half()
    graph = trace_groups(module, IMAGE.half())
    expected = (
        r"^2 of the \d+ values of 'a\.[01]\.weight' are infinite or NaN, and rank no channels\. Load weights"
    )
    with pytest.raises(ConfigError, match=expected):
        SCORES[name](module, graph, 0)
    assert np.isfinite(SCORES["random"](module, graph, 0)).all()
