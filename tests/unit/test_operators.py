"""The table of what can be cut is true, complete and the one in the documentation."""

import importlib.util
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Net, channels, conv, free_width, group_of, randomise_, reason_of
from torch import nn

from yolo_prune.cost import cost_model
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, make_plan
from yolo_prune.cut.proven import Anatomy, cut_proven_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BudgetError
from yolo_prune.graph import trace_groups
from yolo_prune.recover.structure import prune_module

ROOT = Path(__file__).resolve().parents[2]
X = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("operator_table", ROOT / "scripts" / "operator_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_documentation_is_what_is_measured(table):
    made = table.document()
    assert "WRONG" not in made
    assert made == table.DOC.read_text("utf-8"), "run scripts/operator_table.py"


def test_control_a_cut_that_is_not_exact_or_not_made_is_no_row_of_the_table(table, monkeypatch):
    from yolo_prune.graph import OPERATORS

    assert table.measure("nn.Softmax(1)", 2) == "stays: is normalised over by '_softmax'"
    monkeypatch.setitem(OPERATORS, "_softmax", OPERATORS["pointwise"])
    assert table.measure("nn.Softmax(1)", 2).startswith("WRONG: the cut is not exact")
    monkeypatch.setattr(table, "cut_proven_", lambda *_: None)
    assert table.measure("nn.ReLU()", 2) == "WRONG: nothing was cut"


# What reads no channels, ends a network, becomes another layer at its first run or consists of listed ones.
NOT_LISTED = re.compile(
    r".*Loss.*|Lazy.*|Embedding.*|Module|Container|DataParallel|RNNBase|RNNCellBase|Transformer.*"
)


def test_every_layer_of_pytorch_is_in_the_table(table):
    lines = [line for text in table.SECTIONS.values() for line in text.splitlines()]
    named = set(re.findall(r"nn\.(\w+)", " ".join(e for line in lines for e in table.expand(line.strip()))))
    source = (ROOT / "scripts" / "operator_table.py").read_text("utf-8")
    named |= set(re.findall(r"nn\.(Module(?:Dict|List)|Parameter(?:Dict|List))\(", source))
    layers = {
        name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)
    }
    assert {name for name in layers - named if not NOT_LISTED.fullmatch(name)} == set()


def between(run, makes=16, reads=16, **layers):
    return Net(lambda m, x: m.b(run(m, m.a(x))), a=conv(makes, 3), b=nn.Conv2d(reads, 2, 1), **layers)


def cut_half(net, x=X):
    """Cut about half of a network at random, prove it, and return the widths that its layers have afterwards."""
    randomise_(net, x=x)
    anatomy = Anatomy(x)
    cost = anatomy.cost_of(net)
    scores = np.random.default_rng(0).random(cost.graph.channel_count)
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.5), widths=Widths(1, 1))
    _, proof = cut_proven_(net, cost, keep, anatomy)
    assert proof.exact
    return {name: layer.out_channels for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}


def test_a_split_by_a_number_of_channels_is_frozen_at_once_and_a_chunk_is_not(caplog):
    def run(split):
        return lambda m, x: m.c(torch.cat([m.d(part) for part in split(x)], 1))

    fixed = between(run(lambda x: x.split(8, 1)), c=conv(16, 16), d=nn.SiLU())
    plan = prune_module(fixed, X, keep_macs=0.6, round_to=2, min_width=2)
    assert plan.frozen["a.0"] == "is split by fixed sizes in 'the model'"
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING], "no cut was tried in vain"
    for split in (
        lambda x: x.chunk(2, 1),
        lambda x: torch.tensor_split(x, 2, 1),
        lambda x: x.split(x.size(1) // 2, 1),
    ):
        assert free_width(trace_groups(between(run(split), c=conv(16, 16), d=nn.SiLU()), X), "a.0") == 16


def test_parts_that_cannot_be_equal_are_frozen():
    uneven = between(lambda m, x: torch.cat(x.chunk(3, 1), 1))
    assert reason_of(trace_groups(uneven, X), "a.0") == "is split by fixed sizes in 'the model'"


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning"
)
def test_scripted_code_hides_what_it_asked_for_and_gets_the_safe_answer():
    class Halves(nn.Module):
        def forward(self, x):
            left, right = x.chunk(2, 1)
            return left * right

    net = between(lambda m, x: m.h(x), reads=8, h=torch.jit.script(Halves()))
    assert "is split by fixed sizes" in reason_of(trace_groups(net, X), "a.0")
    net = between(lambda m, x: m.h(x), reads=8, h=nn.Sequential(Halves()))
    assert free_width(trace_groups(net, X), "a.0") == 16


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning"
)
def test_a_scripted_layer_stays_and_what_is_around_it_is_cut():
    net = between(lambda m, x: m.s(m.c(x)), c=conv(16, 16), s=torch.jit.script(conv(16, 16)))
    graph = trace_groups(net, X)
    assert "belongs to a TorchScript module" in reason_of(graph, "c.0")
    assert free_width(graph, "a.0") == 16
    assert prune_module(net, X, keep_macs=0.8, round_to=2, min_width=2).equivalence["exact"]


def shuffle(x, groups):
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def test_a_channel_shuffle_by_the_width_is_cut_and_one_by_a_number_is_not():
    net = between(lambda m, x: m.c(shuffle(x, 4)), c=conv(16, 16))
    graph = trace_groups(net, X)
    assert channels(graph, "a.0") == channels(graph, "a.0")[:4] * 4, (
        "the same position of every group goes together"
    )
    widths = cut_half(net)
    assert widths["a.0"] < 16
    assert widths["a.0"] % 4 == 0
    fixed = between(lambda m, x: x.view(1, 4, 4, 8, 8).transpose(1, 2).reshape(1, 16, 8, 8))
    assert reason_of(trace_groups(fixed, X), "a.0") == "has its channels split by a reshape in 'the model'"


def test_a_shuffle_of_as_many_groups_as_channels_stays():
    graph = trace_groups(between(lambda m, x: shuffle(x, 16)), X)
    assert reason_of(graph, "a.0") == "has its channels split by a reshape in 'the model'"


@pytest.mark.parametrize(
    "shape",
    [
        lambda x, other: (1, 4, other.shape[1] // 4, 8, 8),
        lambda x, other: (1, 4, int(x.shape[1] / 4), 8, 8),
        lambda x, other: (1, x.shape[1] // 4, x.shape[1] // 4, 8, 8),
    ],
)
def test_a_width_that_is_another_ones_or_no_longer_a_share_stays_fixed(shape):
    def run(m, x):
        other = m.o(x)
        return m.c(x.view(shape(x, other)).flatten(1, 2)) + m.d(other)

    net = between(run, o=conv(16, 16), c=conv(16, 16), d=conv(16, 16))
    assert reason_of(trace_groups(net, X), "a.0") == "has its channels split by a reshape in 'the model'"


def test_halves_taken_by_slices_of_the_width_lose_equally_many():
    def run(m, x):
        half = x.shape[1] // 2
        return m.c(x[:, :half]) + m.d(x[:, half:])

    net = between(run, c=conv(16, 8), d=conv(16, 8))
    assert [len(tie) for tie in trace_groups(net, X).ties].count(2) == 1
    assert cut_half(net)["a.0"] % 2 == 0


def test_stacked_channels_that_are_interleaved_go_together():
    def run(m, x):
        return torch.stack([m.c(x), m.d(x)], 2).flatten(1, 2)

    net = between(run, reads=16, c=conv(8, 16), d=conv(8, 16))
    graph = trace_groups(net, X)
    assert channels(graph, "c.0") == channels(graph, "d.0")
    widths = cut_half(net)
    assert widths["c.0"] == widths["d.0"] < 8


@pytest.mark.parametrize(
    "activation", [nn.Hardswish(), nn.PReLU(), nn.Mish(inplace=True), nn.RReLU(), nn.LogSigmoid()]
)
def test_an_activation_in_every_layer_leaves_them_free(activation):
    net = nn.Sequential(conv(16, 3), conv(16, 16), nn.Conv2d(16, 2, 1))
    net[0][2] = net[1][2] = activation
    graph = trace_groups(net, X)
    assert graph.unknown == {}
    assert free_width(graph, "0.0") == free_width(graph, "1.0") == 16


def test_a_slope_for_every_channel_follows_them():
    net = between(lambda m, x: m.p(x), p=nn.PReLU(16))
    width = cut_half(net)["a.0"]
    assert width < 16
    assert net.p.num_parameters == net.p.weight.numel() == width


def test_an_affine_instance_norm_follows_its_channels():
    net = between(lambda m, x: m.n(x), n=nn.InstanceNorm2d(16, affine=True, track_running_stats=True))
    width = cut_half(net)["a.0"]
    assert (
        (net.n.num_features, len(net.n.weight), len(net.n.running_mean))
        == (width, width, width)
        != (16, 16, 16)
    )


def attend_to_channels(m, x):
    y = x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)
    return x * m.e(y).transpose(-1, -2).unsqueeze(-1).sigmoid()


def tied_to_sorted(m, x):
    c, d = m.c(x), m.d(x)
    left, _ = torch.cat([c, d], 1).chunk(2, 1)
    return left + d.sort(1).values.mean(1, keepdim=True)


WHOLE = {
    "a convolution over channels": lambda: between(attend_to_channels, e=nn.Conv1d(1, 1, 3, padding=1)),
    "a norm of one group": lambda: between(lambda m, x: m.n(x), n=nn.GroupNorm(1, 16)),
    "a part as wide as a frozen one": lambda: between(tied_to_sorted, reads=8, c=conv(8, 16), d=conv(8, 16)),
    "a gate of one channel": lambda: between(lambda m, x: x * m.g(x).sigmoid(), g=nn.Conv2d(16, 1, 1)),
    "one channel in between": lambda: between(lambda m, x: m.d(m.c(x)), c=conv(1, 16), d=conv(16, 1)),
    "a chain of shuffles": lambda: between(
        lambda m, x: shuffle(shuffle(torch.cat([x, m.c(x)], 1), 2).chunk(2, 1)[0], 4), c=conv(16, 16)
    ),
    "attention of heads": lambda: between(
        lambda m, x: (
            m.t(x.flatten(2).transpose(1, 2), x.flatten(2).transpose(1, 2), x.flatten(2).transpose(1, 2))[0]
            .transpose(1, 2)
            .reshape(-1, 16, 8, 8)
        ),
        t=nn.MultiheadAttention(16, 4, batch_first=True),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_group_that_is_not_listed_as_frozen_can_be_cut_alone(name):
    net = randomise_(WHOLE[name]().eval(), x=X)
    anatomy = Anatomy(X)
    cost = anatomy.cost_of(net)
    everything = np.ones(cost.graph.channel_count, dtype=bool)
    listed = make_plan(cost, everything).frozen
    free = [group for group in cost.graph.groups if group.producers and group.name not in listed]
    for group in free:
        scores = everything.astype(float)
        scores[group.channels] = 1e-9
        just_less = Budget("params", cost.parameters(everything) - 1)
        keep = choose_channels(cost, scores, just_less, widths=Widths(1, 1), cost_power=0, tolerance=1)
        assert not keep[group.channels].all(), group.name
    graph = cost.graph
    stay = {
        graph.groups[i].name
        for tie in graph.ties
        if all(graph.frozen[graph.groups[i].channels].all() for i in tie)
        for i in tie
    }
    assert {name for name in stay if group_named(graph, name).producers} == set(listed)


def group_named(graph, name):
    return next(group for group in graph.groups if group.name == name)


def test_what_is_tied_to_a_frozen_part_is_listed_with_that_reason():
    net = WHOLE["a part as wide as a frozen one"]()
    cost = cost_model(trace_groups(net, X), net)
    frozen = make_plan(cost, np.ones(cost.graph.channel_count, dtype=bool)).frozen
    assert frozen["d.0"] == "is normalised over by 'sort' in 'the model'"
    assert (
        frozen["c.0"] == "keeps as many channels as a part that is normalised over by 'sort' in 'the model'"
    )


def test_a_layer_behind_attention_over_channels_is_listed_with_the_layer_that_mixes_them():
    net = WHOLE["a convolution over channels"]()
    assert group_of(trace_groups(net, X), "a.0").frozen == (
        "has its channels mixed like positions by a layer in 'e'",
    )


def test_a_budget_that_operators_prevent_names_them_with_their_share():
    def run(m, x):
        x = m.d(m.s(m.c(x).sort(1).values).cumsum(1))
        return m.e(x)

    net = between(run, reads=16, c=conv(64, 16), d=conv(16, 64), e=conv(16, 16), s=nn.Identity())
    with pytest.raises(BudgetError) as caught:
        prune_module(net, X, keep_macs=0.1)
    text = str(caught.value)
    assert re.search(
        r"of the MACs stay in layers that cannot be cut freely: \d+% because of what is normalised over by 'sort' in 'the model'",
        text,
    ), text


def test_a_budget_below_what_is_frozen_on_both_sides_does_not_blame_the_floor():
    net = between(lambda m, x: m.c(x.sort(1).values).sort(1).values, c=conv(16, 16))
    with pytest.raises(
        BudgetError, match=r"Raise the budget: .* GMACs stay whatever the floor\. \d+% of the MACs"
    ):
        prune_module(net, X, keep_macs=0.1)
