"""Random networks: whatever is built, the cut model computes what the zeroed one does, at the costs that were promised.

``YOLO_PRUNE_FUZZ=500 pytest tests/truth/test_fuzz.py`` tries more of them. A failure shrinks to a short program.
"""

import os

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import randomise_
from torch import nn

from yolo_prune.cost import count_macs, count_parameters
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, least_channels
from yolo_prune.cut.proven import Anatomy, cut_proven_
from yolo_prune.cut.widths import Widths
from yolo_prune.graph import ModuleRule

EXAMPLES = int(os.environ.get("YOLO_PRUNE_FUZZ", "100"))
X = torch.zeros(1, 3, 8, 8)


def attend(q, k, v):
    scores = (q.flatten(2).transpose(1, 2) @ k.flatten(2)) * 0.1
    return (v.flatten(2) @ scores.softmax(-1).transpose(1, 2)).view(*v.shape)


class Block(nn.Module):
    """Attention of several heads that knows its head's width."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).view(b, self.heads, 3 * self.dim, h * w).split([self.dim] * 3, dim=2)
        y = v @ (q.transpose(-2, -1) @ k).mul(0.1).softmax(-1).transpose(-2, -1)
        return self.out(y.reshape(b, -1, h, w))


def follow(block):
    block.dim = block.out.in_channels // block.heads


RULES = {Block: ModuleRule(follow)}


class Random(nn.Module):
    """Interprets a program: each step takes tensors made before and makes new ones."""

    def __init__(self, program):
        super().__init__()
        self.layers, self.steps, self.widths, self.used = nn.ModuleList(), [], [12], set()
        self.stem = nn.Conv2d(3, 12, 1)
        for name, a, b, size in program:
            getattr(self, f"add_{name}")(a % len(self.widths), b % len(self.widths), size)
        ends = [i for i in range(len(self.widths)) if i not in self.used]
        self.ends, self.head = ends, nn.Conv2d(sum(self.widths[i] for i in ends), 2, 1)

    def step(self, run, sources, widths, *layers):
        first = len(self.layers)
        self.layers.extend(layers)
        self.steps.append((run, sources, range(first, first + len(layers))))
        self.used.update(sources)
        self.widths += widths

    def normed(self, layer, width, size):
        kind = size % 5 // 2 if width % 2 == 0 else 0
        norm = [nn.BatchNorm2d, lambda _: nn.Identity(), lambda n: nn.GroupNorm(n // 2, n)][kind](width)
        return nn.Sequential(layer, norm, nn.SiLU())

    def add_conv(self, a, _, size):
        layer = nn.Conv2d(self.widths[a], size, 3 if size % 2 else 1, padding=size % 2, bias=size % 3 > 0)
        self.step(lambda xs, ls: [ls[0](xs[0])], [a], [size], self.normed(layer, size, size))

    def add_depthwise(self, a, _, size):
        width, many = self.widths[a], 1 + size % 2
        layer = nn.Conv2d(width, width * many, 3, padding=1, groups=width)
        self.step(lambda xs, ls: [ls[0](xs[0])], [a], [width * many], self.normed(layer, width * many, size))

    def add_grouped(self, a, _, size):
        width = self.widths[a]
        groups = next((g for g in (2, 4, 3) if width % g == 0), 1)
        layer = nn.Conv2d(width, groups * (2 + size % 3), 1, groups=groups)
        self.step(lambda xs, ls: [ls[0](xs[0])], [a], [groups * (2 + size % 3)], layer)

    def add_transposed(self, a, _, size):
        self.step(lambda xs, ls: [ls[0](xs[0])], [a], [size], nn.ConvTranspose2d(self.widths[a], size, 1))

    def add_sum(self, a, b, size):
        if self.widths[a] == self.widths[b]:
            run = [torch.add, torch.mul, torch.maximum][size % 3]
            self.step(lambda xs, ls: [run(xs[0], xs[1])], [a, b], [self.widths[a]])

    def add_cat(self, a, b, _):
        self.step(lambda xs, ls: [torch.cat(xs, 1)], [a, b], [self.widths[a] + self.widths[b]])

    def add_chunk(self, a, _, size):
        parts = 2 + size % 2
        if self.widths[a] % parts == 0:
            self.step(lambda xs, ls: list(xs[0].chunk(parts, 1)), [a], [self.widths[a] // parts] * parts)

    def add_again(self, a, b, _):
        """Run a layer a second time on another tensor of the width that it reads."""
        for _run, sources, layers in self.steps:
            if len(layers) == 1 and len(sources) == 1 and self.widths[sources[0]] == self.widths[a]:
                layer = self.layers[layers[0]]
                first = layer[0] if isinstance(layer, nn.Sequential) else layer
                if isinstance(first, (nn.Conv2d, nn.ConvTranspose2d)) and first.out_channels > 1:
                    self.step(lambda xs, ls: [ls[0](xs[0])], [a], [first.out_channels])
                    self.steps[-1] = (self.steps[-1][0], [a], layers)
                    return

    def add_excite(self, a, _, size):
        width = self.widths[a]
        gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, size, 1), nn.ReLU(), nn.Conv2d(size, width, 1)
        )
        self.step(lambda xs, ls: [xs[0] * ls[0](xs[0]).sigmoid()], [a], [width], gate)

    def add_gate(self, a, _, size):
        gate = nn.Conv2d(self.widths[a], 1, 1)
        self.step(lambda xs, ls: [xs[0] * ls[0](xs[0]).tanh()], [a], [self.widths[a]], gate)

    def add_attend(self, a, b, size):
        layers = [nn.Conv2d(self.widths[i], n, 1) for i, n in ((a, 4), (b, 4), (b, size))]
        run = lambda xs, ls: [attend(ls[0](xs[0]), ls[1](xs[1]), ls[2](xs[1]))]  # noqa: E731
        self.step(run, [a, b], [size], *layers)

    def add_heads(self, a, _, size):
        if self.widths[a] % 4 == 0:
            block = Block(self.widths[a], 2)
            self.step(lambda xs, ls: [ls[0](xs[0]) + xs[0]], [a], [self.widths[a]], block)

    def add_in_place(self, a, b, _):
        def run(xs, ls):
            y = xs[0].clone()
            y += xs[1]
            return [y.relu_()]

        if self.widths[a] == self.widths[b]:
            self.step(run, [a, b], [self.widths[a]])

    def add_stack(self, a, b, size):
        if self.widths[a] == self.widths[b]:
            run = lambda xs, ls: [torch.stack(xs, size % 2 * 2).mean(size % 2 * 2)]  # noqa: E731
            self.step(run, [a, b], [self.widths[a]])

    def add_shuffle(self, a, _, size):
        """Shuffle channels by the width that the activation has."""
        groups = 2 + size % 3

        def run(xs, ls):
            b, c, h, w = xs[0].shape
            return [xs[0].view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, -1, h, w)]

        if self.widths[a] % groups == 0:
            self.step(run, [a], [self.widths[a]])

    def add_slices(self, a, _, size):
        """Take a third or a half of the channels by a share of the width."""
        parts, width = 2 + size % 2, self.widths[a]
        if width % parts == 0 and width > parts:
            run = lambda xs, ls: [xs[0][:, : xs[0].size(1) // parts], xs[0][:, xs[0].size(1) // parts :]]  # noqa: E731
            self.step(run, [a], [width // parts, width - width // parts])

    def add_interleave(self, a, b, size):
        if self.widths[a] == self.widths[b]:
            run = lambda xs, ls: [torch.stack(xs, 1 + size % 2).flatten(1, 2)]  # noqa: E731
            self.step(run, [a, b], [2 * self.widths[a]])

    def add_glu(self, a, _, size):
        if self.widths[a] % 2 == 0:
            self.step(lambda xs, ls: [nn.functional.glu(xs[0], 1)], [a], [self.widths[a] // 2])

    def add_unknown(self, a, _, size):
        run = [
            lambda x: x.cumsum(1),
            lambda x: x.sort(1).values,
            lambda x: x.flip(1),
            lambda x: x.softmax(1),
            lambda x: x.roll(1, 1),
        ][size % 5]
        self.step(lambda xs, ls: [run(xs[0])], [a], [self.widths[a]])

    def forward(self, x):
        values = [self.stem(x)]
        for run, sources, layers in self.steps:
            values += run([values[i] for i in sources], [self.layers[i] for i in layers])
        return self.head(torch.cat([values[i] for i in self.ends], 1))


STEPS = sorted(name.removeprefix("add_") for name in vars(Random) if name.startswith("add_"))
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 30), st.integers(4, 12)),
    min_size=2,
    max_size=14,
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(program=PROGRAMS, share=st.sampled_from([0.0, 0.4, 0.8]), round_to=st.sampled_from([1, 1, 2, 4]))
def test_a_random_network_is_cut_exactly(program, share, round_to):
    torch.manual_seed(0)
    net = randomise_(Random(program), x=X)
    anatomy, widths = Anatomy(X, rules=RULES), Widths(round_to, 1)
    cost = anatomy.cost_of(net)
    everything = np.ones(cost.graph.channel_count, dtype=bool)
    least = cost.macs(least_channels(cost, widths)) / cost.macs(everything)
    if least == 1.0:
        return
    scores = np.random.default_rng(len(program)).random(len(everything))
    budget = Budget("keep_macs", least + share * (1 - least) + 1e-9)
    keep = choose_channels(cost, scores, budget, widths=widths)
    plan, proof = cut_proven_(net, cost, keep, anatomy)
    assert proof.exact
    assert count_parameters(net) == plan.params
    np.testing.assert_allclose(count_macs(net, X), plan.gmacs * 1e9, rtol=1e-9)
