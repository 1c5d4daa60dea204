"""Residual blocks in the steps: what they cost, how their readers are fitted, and when they go."""

import copy

import pytest
import torch
from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.cut.blocks import find_residual_blocks, original_name, remove_blocks_
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import plan_drop
from yolo_prune.cut.proven import Anatomy, Traced, drop_proven_, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import DataError, EquivalenceError, PlanError
from yolo_prune.graph.arguments import Arguments
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.branches import branch_cost, drop_and_refit, readers_of
from yolo_prune.recover.drops import drop_while_it_pays, fidelity_to

IMAGES = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 2)]
IMAGE = Arguments((IMAGES[0],), {})
ANATOMY = Anatomy(IMAGES[0][:1])


class Block(nn.Module):
    """``x + branch(x)``; linear branches can be explained by the input, others cannot."""

    def __init__(self, width: int, linear: bool = False, size: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, 16, size, padding=size // 2)
        self.act = nn.Identity() if linear else nn.Tanh()
        self.second = nn.Conv2d(16, width, size, padding=size // 2)
        if linear:  # a constant is not the same beside a zero-padded border
            nn.init.zeros_(self.first.bias)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.act(self.first(x)))


class Dense(nn.Module):
    """A list of blocks whose outputs are all read, beside their inputs."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Conv2d(16 * (1 + len(blocks)), 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [torch.relu(self.stem(x))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.head(torch.relu(self.last(torch.cat(maps, 1))))


class Chain(nn.Module):
    """Blocks one after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))))


@pytest.fixture(params=["chain", "dense"])
def net(request):
    torch.manual_seed(0)
    blocks = [Block(16), Block(16), Block(16, linear=True, size=1)]
    return (Dense(blocks) if request.param == "dense" else Chain(*blocks)).eval()


def measured(net, task=None):
    cost = ANATOMY.cost_of(net)
    blocks = offered_blocks(net, ANATOMY)
    moments = collect_moments(
        net, cost.graph, Calibration(IMAGES, task), blocks=[block.name for block in blocks]
    )
    return cost, blocks, moments


def squares(out):
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(5))).sum()


def test_only_blocks_that_zero_weights_make_the_identity_are_found(net):
    assert [block.name.rpartition(".")[2] for block in find_residual_blocks(net, IMAGE)] == [
        "0",
        "1",
        "2",
    ]
    straight = Chain(nn.Conv2d(16, 16, 1), Block(16), nn.Sigmoid())
    assert [block.name for block in find_residual_blocks(straight, IMAGE)] == ["blocks.1"]


def test_a_block_that_is_used_twice_is_not_found():
    block = Block(16)
    assert not find_residual_blocks(Chain(block, block), IMAGE)


@pytest.mark.parametrize("task", [None, squares])
def test_what_the_input_explains_costs_nothing(net, task):
    _, blocks, moments = measured(net, task)
    bent, other, linear = (branch_cost(moments[block.name], ridge=1e-9) for block in blocks)
    assert linear < 1e-6 * min(bent, other)


@pytest.mark.parametrize("task", [None, squares])
def test_readers_take_over_what_a_linear_branch_did(net, task):
    _, blocks, _ = measured(net)
    fitted, plan = drop_and_refit(Traced.of(net, ANATOMY), blocks[-1], Calibration(IMAGES, task), ridge=1e-10)
    fitted = fitted.module
    bare = cut_(copy.deepcopy(net), plan)
    with torch.no_grad():
        expected, got, without = (model(IMAGES[0]) for model in (net, fitted, bare))
    assert (got - expected).abs().max() < 1e-3 * (without - expected).abs().max()


def test_fitting_leaves_less_error_than_dropping_alone(net):
    _, blocks, _ = measured(net)
    for block in blocks:
        fitted, plan = drop_and_refit(Traced.of(net, ANATOMY), block, Calibration(IMAGES))
        fitted = fitted.module
        bare = cut_(copy.deepcopy(net), plan)
        with torch.no_grad():
            expected, got, without = (model(IMAGES[0]) for model in (net, fitted, bare))
        assert (got - expected).pow(2).mean() < (without - expected).pow(2).mean()


@pytest.mark.parametrize("fold", [True, False])
def test_rounds_drop_an_empty_block_and_the_plan_replays_it(net, fold):
    block = net.get_submodule(offered_blocks(net, ANATOMY)[1].name)
    with torch.no_grad():
        for layer in (block.first, block.second):
            layer.weight *= 1e-4
            layer.bias *= 1e-4
    recipe = Recipe(steps=3, widths=Widths(8, 8), fold=fold, depth=True)
    result = cut_in_steps(Traced.of(net, ANATOMY), Budget("keep_macs", 0.5), recipe, Calibration(IMAGES))
    assert any(name.endswith(".1") for name in result.plan.dropped)
    assert result.plan.kept_macs <= 0.5
    assert all(step.equivalence["exact"] for step in result.steps)
    again = cut_(copy.deepcopy(net), PrunePlan.from_json(result.plan.to_json())).state_dict()
    assert {name: t.shape for name, t in again.items()} == {
        name: t.shape for name, t in result.module.state_dict().items()
    }
    if not fold:
        assert all(torch.allclose(t, again[name]) for name, t in result.module.state_dict().items())


def test_one_channel_is_enough_to_connect_a_block_with_its_readers():
    thin = Chain(Block(1))
    thin.stem, thin.head = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(1, 4, 1)
    graph = ANATOMY.cost_of(thin).graph
    assert [axis.name for axis in readers_of(graph, offered_blocks(thin, ANATOMY)[0])] == ["head.weight"]


def numbers(module):
    return [block.number for block in module.blocks]


def search(worth, order, budget=0.01, blocks=6):
    """Search in a chain of blocks that know their number; return which are left, and which were left at every try."""
    chain, tried = Chain(*(Block(16) for _ in range(blocks))), []
    for number, block in enumerate(chain.blocks):
        block.number = number

    def value(traced):
        tried.append(numbers(traced.module))
        return worth(tried[-1])

    def drop(traced, block):
        smaller = copy.deepcopy(traced.module)
        plan, _ = drop_proven_(smaller, traced.cost, block, ANATOMY)
        return Traced.of(smaller, ANATOMY), plan

    whole = Traced.of(chain, ANATOMY)
    names = [f"blocks.{number}" for number in order]
    absolute = Budget("keep_macs", budget).absolute(whole.cost)
    traced, plan = drop_while_it_pays(whole, absolute, names, drop, value)
    left = numbers(traced.module)
    assert len(chain.blocks) == blocks
    assert sorted(plan.dropped if plan else []) == [f"blocks.{n}" for n in range(blocks) if n not in left]
    return left, tried


def test_blocks_go_one_by_one_as_long_as_the_model_is_worth_more_without_them():
    bad = {1, 4, 5}
    left, tried = search(lambda left: -len(bad & set(left)), order=[4, 0, 1, 5, 2, 3])
    assert left == [0, 2, 3]
    assert tried[:3] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5], [1, 2, 3, 5]]


def test_two_blocks_in_a_row_that_do_not_pay_end_the_search():
    left, tried = search(lambda left: 4 not in left, order=[0, 1, 4, 2])
    assert left == list(range(6))
    assert len(tried) == 3


@pytest.mark.parametrize(("gain", "goes"), [(0.02, True), (0.005, False), (0.0, False)])
def test_a_gain_that_may_be_chance_is_none(gain, goes):
    assert (0 in search(lambda left: 0.5 * (1 + gain * (0 not in left)), order=[0])[0]) != goes
    assert (0 in search(lambda left: -0.5 * (1 - gain * (0 not in left)), order=[0])[0]) != goes


def test_a_block_that_saves_more_than_is_to_go_is_not_tried():
    assert search(lambda left: -len(left), order=[0, 1, 2], budget=0.95) == (list(range(6)), [])
    assert search(lambda left: -len(left), order=[0, 1, 2], budget=0.8)[0] == list(range(1, 6))


def test_outputs_judge_a_model_that_nothing_else_judges(net):
    judge = fidelity_to(Traced.of(net, ANATOMY), Calibration(IMAGES))
    other = copy.deepcopy(net)
    assert judge(other) == 0.0
    with torch.no_grad():
        other.head.weight.zero_()
        other.head.bias.zero_()
    assert judge(other) == pytest.approx(-1.0)
    with pytest.raises(DataError, match=r"^depth=true needs calibration images or a score to tell whether"):
        fidelity_to(Traced.of(net, ANATOMY), Calibration([]))


@pytest.mark.parametrize("wanted", [True, False])
def test_a_score_decides_about_blocks_where_there_is_one(net, wanted):
    def score(module):
        return float(len(module.blocks) < 3) if wanted else float(len(module.blocks))

    recipe = Recipe(steps=1, widths=Widths(8, 8), depth=True)
    result = cut_in_steps(
        Traced.of(net, ANATOMY), Budget("keep_macs", 0.5), recipe, Calibration(IMAGES), validate=score
    )
    assert len(result.plan.dropped) == wanted
    assert len(result.module.blocks) == 3 - wanted


def test_without_depth_no_block_goes(net):
    recipe = Recipe(steps=2, widths=Widths(1, 1))
    result = cut_in_steps(Traced.of(net, ANATOMY), Budget("keep_macs", 0.4), recipe, Calibration(IMAGES))
    assert result.plan.dropped == []


def test_what_is_frozen_by_name_keeps_its_siblings(net):
    inside = offered_blocks(net, ANATOMY)[0].name + ".first"
    assert not offered_blocks(net, Anatomy(IMAGES[0][:1], keep_layers=(inside,)))
    assert len(offered_blocks(net, Anatomy(IMAGES[0][:1], keep_layers=("head",)))) == 3


def test_a_list_whose_owner_counts_on_it_keeps_its_blocks():
    class Counted(Dense):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(self.last(torch.cat([x, self.blocks[0](x), self.blocks[1](x)], 1))))

    torch.manual_seed(0)
    net = Counted([Block(16), Block(16)])
    before = copy.deepcopy(net.state_dict())
    for block in offered_blocks(net, ANATOMY):
        with pytest.raises(EquivalenceError, match=rf"^'{block.name}' cannot be dropped exactly: "):
            drop_proven_(net, ANATOMY.cost_of(net), block, ANATOMY)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_plan_for_another_model_is_refused_before_anything_is_cut(net):
    plan = PrunePlan({}, {}, dropped=["blocks.9"])
    with pytest.raises(
        PlanError,
        match=r"^the plan drops 'blocks\.9', which this model does not have\. It was made for another model\.$",
    ):
        cut_(net, plan)


def test_names_count_on_what_stands_before_them():
    removed = ["a.1", "a.2", "a.4.m.0"]
    now = ["a.0.weight", "a.1.weight", "a.2.m.0.weight", "a.2.m.1.weight", "b.1.weight"]
    assert [original_name(name, removed) for name in now] == [
        "a.0.weight",
        "a.3.weight",
        "a.4.m.1.weight",
        "a.4.m.2.weight",
        "b.1.weight",
    ]


def test_blocks_with_names_of_their_own_go_without_renaming_the_others():
    from collections import OrderedDict

    net = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 16, 1), block=Block(16), last=nn.Conv2d(16, 2, 1)))
    (block,) = offered_blocks(net, ANATOMY)
    cut_(net, plan_drop(ANATOMY.cost_of(net), block))
    assert list(net._modules) == ["first", "last"]
    assert list(remove_blocks_(nn.Sequential(nn.ReLU(), nn.Tanh()), ["0"])._modules) == ["0"]
