"""Blocks that users write: each is cut exactly or frozen by name; the examples of the documentation run."""

import re
from pathlib import Path

import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn
from torch.nn import functional

from yolo_prune.recover.structure import prune_module

X = torch.zeros(1, 3, 16, 16)
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "custom_models.md"


def block(run, **layers):
    """A stem, a block on 32 channels and a head."""
    return Net(lambda m, x: m.head(run(m, m.stem(x))), stem=conv(32, 3), head=nn.Conv2d(32, 2, 1), **layers)


def squeeze_and_excite():
    return block(
        lambda m, x: x * m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        down=nn.Conv2d(32, 16, 1),
        up=nn.Conv2d(16, 32, 1),
    )


def cbam():
    def run(m, x):
        pooled = [functional.adaptive_avg_pool2d(x, 1), functional.adaptive_max_pool2d(x, 1)]
        x = x * sum(m.up(m.down(p).relu()) for p in pooled).sigmoid()
        return x * m.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

    layers = {
        "down": nn.Conv2d(32, 16, 1),
        "up": nn.Conv2d(16, 32, 1),
        "spatial": nn.Conv2d(2, 1, 7, padding=3),
    }
    return block(run, **layers)


def convnext():
    def run(m, x):
        y = m.norm(m.dw(x).permute(0, 2, 3, 1))
        return x + (m.gamma * m.out(functional.gelu(m.up(y)))).permute(0, 3, 1, 2)

    layers = {"dw": nn.Conv2d(32, 32, 7, padding=3, groups=32), "norm": nn.LayerNorm(32)}
    net = block(run, **layers, up=nn.Linear(32, 128), out=nn.Linear(128, 32))
    net.gamma = nn.Parameter(torch.rand(32))
    return net


def channel_shuffle():
    def run(m, x):
        b, c, h, w = x.shape
        return m.b(m.a(x).view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))

    return block(run, a=conv(32, 32, groups=2), b=conv(32, 32))


def stock_channel_shuffle():
    return block(lambda m, x: m.b(m.s(m.a(x))), a=conv(32, 32), s=nn.ChannelShuffle(4), b=conv(32, 32))


def pixel_shuffle_down_and_up():
    return block(
        lambda m, x: m.up(m.mid(m.down(x))),
        down=nn.PixelUnshuffle(2),
        mid=conv(128, 128, 1),
        up=nn.PixelShuffle(2),
    )


def einsum_attention():
    def run(m, x):
        q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
        scores = torch.einsum("bcn,bcm->bnm", q, k).softmax(-1)
        return x + torch.einsum("bnm,bcm->bcn", scores, v).view(*x.shape)

    return block(run, q=nn.Conv2d(32, 16, 1), k=nn.Conv2d(32, 16, 1), v=nn.Conv2d(32, 32, 1))


def fused_attention():
    def run(m, x):
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape)

    return block(run, q=nn.Conv2d(32, 16, 1), k=nn.Conv2d(32, 16, 1), v=nn.Conv2d(32, 32, 1))


def multi_head_attention():
    def run(m, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + m.attention(tokens, tokens, tokens)[0]
        return (tokens + m.out(m.up(tokens).relu())).transpose(1, 2).reshape(*x.shape)

    layers = {"attention": nn.MultiheadAttention(32, 4, batch_first=True)}
    return block(run, **layers, up=nn.Linear(32, 96), out=nn.Linear(96, 32))


def encoder_layer():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0)
    return block(
        lambda m, x: m.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(*x.shape), layer=layer
    )


def focus():
    def run(m, x):
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return m.mix(torch.cat(parts, 1))

    return block(run, mix=conv(32, 128))


def deformable():
    operators = pytest.importorskip("torchvision.ops")
    return block(
        lambda m, x: m.deform(x, m.offset(x)),
        offset=nn.Conv2d(32, 18, 3, padding=1),
        deform=operators.DeformConv2d(32, 32, 3, padding=1),
    )


def weights_used_twice():
    return block(
        lambda m, x: m.a(m.shared(x)) + m.shared(m.b(x)), a=conv(32, 32), b=conv(32, 32), shared=conv(32, 32)
    )


def weight_standardised():
    def run(m, x):
        weight = m.a.weight - m.a.weight.mean((1, 2, 3), keepdim=True)
        return m.b(functional.conv2d(x, weight, padding=1))

    return block(run, a=nn.Conv2d(32, 32, 3), b=conv(32, 32))


def learned_positions():
    net = block(lambda m, x: m.a(x + m.position), a=conv(32, 32))
    net.position = nn.Parameter(torch.rand(1, 32, 16, 16))
    return net


def fixed_positions():
    net = block(lambda m, x: m.a(x + m.position), a=conv(32, 32))
    net.register_buffer("position", torch.rand(1, 32, 16, 16))
    return net


def grouped_bottleneck():
    return block(
        lambda m, x: x + m.c(m.b(m.a(x))), a=conv(64, 32, 1), b=conv(64, 64, groups=8), c=conv(32, 64, 1)
    )


def instance_norm():
    return block(
        lambda m, x: m.b(m.n(m.a(x))), a=conv(32, 32), n=nn.InstanceNorm2d(32, affine=True), b=conv(32, 32)
    )


def recurrent():
    def run(m, x):
        few = functional.avg_pool2d(m.a(x), 4)  # the tracer sees every step
        out, _ = m.cell(few.flatten(2).transpose(1, 2))
        return x + m.b(functional.interpolate(out.transpose(1, 2).reshape(-1, 16, 4, 4), scale_factor=4))

    return block(run, a=conv(32, 32), cell=nn.GRU(32, 16, batch_first=True), b=nn.Conv2d(16, 32, 1))


# Builder -> words that must be in the reasons of what is frozen; an empty string where nothing special is.
BLOCKS = {
    squeeze_and_excite: "",
    cbam: "is summed over by",
    convnext: "LayerNorm",
    channel_shuffle: "",
    stock_channel_shuffle: "",
    pixel_shuffle_down_and_up: "",
    einsum_attention: "",
    fused_attention: "scaled by the width of an attention head",
    multi_head_attention: "split",
    encoder_layer: "MultiheadAttention",
    focus: "",
    deformable: "is a sampling position",
    weights_used_twice: "",
    weight_standardised: "computed weight",
    learned_positions: "",
    fixed_positions: "constant of the same width",
    grouped_bottleneck: "",
    instance_norm: "",
    recurrent: "",
}


@pytest.mark.parametrize("build", BLOCKS, ids=lambda build: build.__name__)
def test_a_block_is_cut_exactly_or_frozen_by_name(build):
    net = randomise_(build(), x=X)
    parameters = sum(p.numel() for p in net.parameters())
    tail = nn.Sequential(net, conv(64, 2), nn.Conv2d(64, 2, 1))
    plan = prune_module(tail, X, keep_params=0.95, criterion="random", round_to=4, min_width=4)
    assert plan.equivalence["exact"]
    assert plan.params < parameters + 64 * 20
    assert BLOCKS[build] in " ".join(plan.frozen.values())
    tail.train()(torch.rand(2, 3, 16, 16)).sum().backward()


@pytest.mark.parametrize(
    ("mark", "check"),
    [
        ("module rule", "2 * net.gate.half"),
        ("operator rule", "net[0].out_channels"),
        ("optimizer", "len(optimizer.state[net[0].weight]['exp_avg'])"),
        ("calibration", "net[0].out_channels"),
        ("session", "net[0].out_channels"),
        ("report", "pruned[0].out_channels"),
        ("restore", "again[0].out_channels"),
    ],
)
def test_the_examples_of_the_guide_run(mark, check, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(rf"<!-- tested: {mark} -->\n```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)[1]
    scope = {"__name__": "guide"}
    exec(code, scope)
    assert scope["plan"].equivalence["exact"]
    assert eval(check, scope) == 32
