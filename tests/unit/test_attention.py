"""Attention whose heads go as a whole: what is tied to a head, and what holds it."""

import math

import pytest
import torch
from nets import Net, channels, free_width, randomise_, reason_of
from torch import nn
from torch.nn import functional

from yolo_prune import prune_module, restore
from yolo_prune.cost.macs import count_macs
from yolo_prune.graph import ModuleRule, trace_groups

WIDTH, HEADS = 32, 4
TOKENS = torch.rand(1, 6, 8)


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def fused(q, k, v, **options):
    return functional.scaled_dot_product_attention(q, k, v, **options)


def written_out(q, k, v):
    return (q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v


def scaled_by_shape(q, k, v):
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def linear_in_tokens(q, k, v):
    """Without softmax over tokens: values are summed up by keys first, and a column of ones counts them."""
    q, k = q.relu(), k.relu()
    sums = k.transpose(-1, -2) @ functional.pad(v, (0, 1), value=1.0)
    out = q @ sums
    return out[..., :-1] / (out[..., -1:] + 1e-3)


def attending(attend, view=None, **layers):
    """Self-attention on a normalised stream; the number of heads follows the width unless ``view`` says otherwise."""

    def run(m, x):
        stream = m.norm(m.embed(x))
        q, k, v = ((view or by_width)(layer(stream)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mixed = attend(q, k, v).transpose(1, 2)
        return m.head(stream + m.out(mixed.reshape(*x.shape[:2], -1)))

    parts = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    return Net(
        run, embed=nn.Linear(8, WIDTH), norm=nn.LayerNorm(WIDTH), **parts, head=nn.Linear(WIDTH, 3), **layers
    )


def by_width(x):
    return x.view(*x.shape[:2], -1, WIDTH // HEADS)


WAYS = [fused, lambda *qkv: fused(*qkv, scale=0.4), written_out, scaled_by_shape, linear_in_tokens]


@pytest.mark.parametrize(
    "attend", WAYS, ids=["fused", "fused at a scale", "written out", "by shape", "linear"]
)
def test_heads_go_as_a_whole_with_their_queries_keys_and_values(attend):
    net = attending(attend)
    graph = trace_groups(net, TOKENS)
    assert [free_width(graph, name) for name in ("q", "k", "v", "embed", "out")] == [
        WIDTH,
        WIDTH,
        WIDTH,
        0,
        0,
    ]
    by_head = [torch.tensor(channels(graph, name)).reshape(HEADS, -1) for name in ("q", "k", "v")]
    assert all(torch.equal(rows, by_head[0][:, :1].expand_as(rows)) for rows in by_head)
    assert len(by_head[0].unique()) == HEADS
    assert channels(graph, "out", dim=1) == channels(graph, "v")
    plan = prune_module(net, TOKENS, keep_macs=0.6)
    assert plan.equivalence["exact"]
    assert net.q.out_features == net.k.out_features == net.v.out_features == net.out.in_features < WIDTH
    assert plan.gmacs * 1e9 == pytest.approx(count_macs(net, TOKENS))
    assert plan.keep["q.weight[0]"] == plan.keep["k.weight[0]"] == plan.keep["v.weight[0]"]


def test_heads_cost_what_they_multiply():
    graph = trace_groups(attending(fused), TOKENS)
    used = [use for use in graph.uses if use.kind == "matmul"]
    assert [use.macs for use in used] == [2 * 6 * 6 * WIDTH]
    assert len(set(graph.channel_of[list(used[0].atoms)])) == HEADS


def test_a_mask_of_every_head_holds_the_heads():
    per_head, shared = torch.rand(1, HEADS, 6, 6), torch.rand(1, 1, 6, 6)
    for attend, free in [(per_head, 0), (shared, WIDTH)]:
        net = attending(lambda q, k, v, mask=attend: fused(q, k, v, attn_mask=mask, scale=0.3))
        assert free_width(trace_groups(net, TOKENS), "v") == free
        net = attending(lambda q, k, v, mask=attend: (q @ k.transpose(-1, -2) + mask).softmax(-1) @ v)
        assert free_width(trace_groups(net, TOKENS), "v") == free


def test_heads_that_are_fixed_on_one_side_stay_on_the_other():
    def by_number(x):
        return x.view(1, 6, HEADS, WIDTH // HEADS)

    def run(m, x):
        stream = m.norm(m.embed(x))
        q, k = (by_number(layer(stream)).transpose(1, 2) for layer in (m.q, m.k))
        mixed = written_out(q, k, by_width(m.v(stream)).transpose(1, 2)).transpose(1, 2)
        return m.out(mixed.reshape(1, 6, -1))

    parts = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v")}
    net = Net(run, embed=nn.Linear(8, WIDTH), norm=nn.LayerNorm(WIDTH), **parts, out=nn.Linear(WIDTH, 3))
    graph = trace_groups(net, TOKENS)
    assert [free_width(graph, name) for name in ("q", "k", "v")] == [0, 0, 0]
    assert "has its channels split by a reshape" in reason_of(graph, "q")


def test_keys_that_all_heads_share_keep_their_width():
    def run(m, x):
        stream = m.norm(m.embed(x))
        q = by_width(m.q(stream)).transpose(1, 2)
        k, v = (layer(stream).unsqueeze(1) for layer in (m.k, m.v))
        return m.out(fused(q, k, v, scale=0.3).transpose(1, 2).reshape(1, 6, -1))

    parts = {"q": nn.Linear(WIDTH, WIDTH), "k": nn.Linear(WIDTH, 8), "v": nn.Linear(WIDTH, 8)}
    net = Net(run, embed=nn.Linear(8, WIDTH), norm=nn.LayerNorm(WIDTH), **parts, out=nn.Linear(WIDTH, 3))
    graph = trace_groups(net, TOKENS)
    assert (free_width(graph, "q"), free_width(graph, "k"), free_width(graph, "v")) == (WIDTH, 0, 0)
    assert "is shared by heads that go as a whole" in reason_of(graph, "v")
    assert prune_module(net, TOKENS, keep_macs=0.8).equivalence["exact"]
    assert net.q.out_features < WIDTH


class OneProjection(nn.Module):
    """Queries, keys and values in one projection, taken apart by numbers."""

    def __init__(self, heads=HEADS):
        super().__init__()
        self.heads, self.width = heads, WIDTH // heads
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        mixed = fused(*qkv.unbind(0)).transpose(1, 2)
        return self.out(mixed.reshape(*x.shape[:2], self.heads * self.width))


def count_heads(module):
    module.heads = module.qkv.out_features // (3 * module.width)


RULES = {OneProjection: ModuleRule(count_heads, heads="heads")}


def transformer(heads=HEADS):
    layers = {"embed": nn.Linear(8, WIDTH), "norm": nn.LayerNorm(WIDTH), "attention": OneProjection(heads)}
    return Net(lambda m, x: m.head(m.attention(m.norm(m.embed(x)))), **layers, head=nn.Linear(WIDTH, 3))


@pytest.mark.parametrize("heads", [4, 8], ids=["4 heads of 8", "8 heads of 4"])
def test_a_rule_that_names_the_heads_cuts_one_projection_by_heads(heads, tmp_path):
    net = transformer(heads)
    assert free_width(trace_groups(net, TOKENS), "attention.qkv") == 0  # the control
    plan = prune_module(net, TOKENS, keep_macs=0.6, rules=RULES)
    assert plan.equivalence["exact"]
    left = net.attention.heads
    assert left < heads
    assert net.attention.qkv.out_features == 3 * left * (WIDTH // heads)
    kept = torch.tensor(plan.keep["attention.qkv.weight[0]"]).reshape(3, left, -1)
    assert torch.equal(kept - kept[:1], torch.tensor([0, WIDTH, 2 * WIDTH]).reshape(3, 1, 1).expand_as(kept))
    fresh = restore(transformer(heads), plan, rules=RULES)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(TOKENS), net(TOKENS))


def test_softmax_over_stacked_maps_couples_what_lies_above_each_other():
    def run(m, x):
        x = m.maps(m.stem(x))
        maps = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])
        scores = m.scores(maps.sum(1).mean((2, 3), keepdim=True))
        weights = scores.view(scores.shape[0], 2, scores.shape[1] // 2, 1, 1).softmax(1)
        return m.head((maps * weights).sum(1))

    layers = {"stem": nn.Conv2d(3, 32, 3), "maps": nn.Conv2d(32, 64, 1), "scores": nn.Conv2d(32, 64, 1)}
    net, x = Net(run, **layers, head=nn.Conv2d(32, 4, 1)), torch.rand(1, 3, 8, 8)
    graph = trace_groups(net, x)
    assert channels(graph, "scores")[:32] == channels(graph, "scores")[32:] == channels(graph, "maps")[:32]
    assert prune_module(randomise_(net), x, keep_macs=0.5).equivalence["exact"]
    assert net.maps.out_channels == 2 * net.head.in_channels < 64


def test_softmax_over_all_channels_holds_them():
    net = Net(lambda m, x: m.b(m.a(x).softmax(1)), a=nn.Conv2d(3, 32, 1), b=nn.Conv2d(32, 4, 1))
    assert "is normalised over by '_softmax'" in reason_of(trace_groups(net, torch.rand(1, 3, 8, 8)), "a")


@pytest.mark.parametrize(("scale", "free"), [(0.3, WIDTH), (None, 0)])
def test_one_head_is_cut_inside_where_its_scale_is_a_number(scale, free):
    def run(m, x):
        q, k, v = (layer(x).unsqueeze(1) for layer in (m.q, m.k, m.v))
        return m.out(fused(q, k, v, scale=scale).squeeze(1))

    net = Net(run, **{name: nn.Linear(8, WIDTH) for name in ("q", "k", "v")}, out=nn.Linear(WIDTH, 3))
    graph = trace_groups(net, TOKENS)
    assert (free_width(graph, "q"), free_width(graph, "k")) == (free, free)
    assert channels(graph, "q") == channels(graph, "k")
    assert free_width(graph, "v") == WIDTH
    plan = prune_module(net, TOKENS, keep_macs=0.8)
    assert plan.equivalence["exact"]
    assert (net.q.out_features < WIDTH) == (scale is not None)
    assert plan.gmacs * 1e9 == pytest.approx(count_macs(net, TOKENS))


class Sampled(nn.Module):
    """Attention at places of its own: every head weighs its values by position, without keys."""

    def __init__(self):
        super().__init__()
        self.heads, self.width = HEADS, WIDTH
        self.value, self.weights, self.out = nn.Linear(8, WIDTH), nn.Linear(8, HEADS * 6), nn.Linear(WIDTH, 3)

    def forward(self, x):
        values = self.value(x).view(1, 6, self.heads, self.width // self.heads).permute(0, 2, 3, 1)
        weights = self.weights(x).view(1, 6, self.heads, 6).softmax(-1).transpose(1, 2)
        mixed = values[:, :, :, None] * weights[:, :, None]
        return self.out(mixed.sum(-1).permute(0, 3, 1, 2).reshape(1, 6, self.width))


def test_values_that_are_weighed_by_place_lose_width_in_every_head():
    def count(module):
        module.width = module.value.out_features

    rules = {Sampled: ModuleRule(count)}
    net = Sampled()
    graph = trace_groups(net, TOKENS, rules=rules)
    assert (free_width(graph, "value"), free_width(graph, "weights")) == (WIDTH, 0)
    plan = prune_module(net, TOKENS, keep_macs=0.8, rules=rules, min_width=1, round_to=1)
    assert plan.equivalence["exact"]
    kept = torch.tensor(plan.keep["value.weight[0]"]) // (WIDTH // HEADS)
    assert len(set(kept.bincount().tolist())) == 1
    assert net.value.out_features < WIDTH
