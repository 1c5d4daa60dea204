"""Cut the convolution before every layer that PyTorch has, and write what can be cut to docs/operators.md.

    python scripts/operator_table.py                     # writes the table, 20 s
    python scripts/operator_table.py --dtype bfloat16    # prints the rows that differ in another precision

Every row is a network of two convolutions with one layer or expression between them, about half of which is cut at
random. A row says that it is cut only if the first convolution did become narrower and the cut is proven exact; else
it gives the reason that the package gives.
"""

from __future__ import annotations

import argparse
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, least_channels
from yolo_prune.cut.proven import Anatomy, cut_proven_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import EquivalenceError

DOC = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
WIDTH, SIDE = 16, 8


class Swish(torch.autograd.Function):
    """An activation with a backward pass of its own, as memory-efficient ones have."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Return ``x * sigmoid(x)``."""
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return the gradient."""
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return grad * gate * (1 + x * (1 - gate))


def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * F.softplus(x).tanh()


def scripted_halves(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, 1)
    return left * right


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def shuffled_by_number(x: torch.Tensor) -> torch.Tensor:
    return x.view(1, 2, 8, SIDE, SIDE).transpose(1, 2).reshape(1, 16, SIDE, SIDE)


def halves_by_width(x: torch.Tensor) -> torch.Tensor:
    c = x.shape[1]
    return x[:, : c // 2] * x[:, c // 2 :]


class FrozenNorm(nn.Module):
    """A BatchNorm whose vectors are buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(WIDTH) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on an activation of 16 channels."""
        w, b, mean, var = (getattr(self, n).reshape(1, -1, 1, 1) for n in self._buffers)
        scale = w * (var + 1e-5).rsqrt()
        return x * scale + (b - mean * scale)


class ChannelAttention(nn.Module):
    """A convolution along the channels (efficient channel attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on an activation of 16 channels."""
        y = x.mean((2, 3), keepdim=True)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid()


class Excitation(nn.Module):
    """Squeeze and excitation with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on an activation of 16 channels."""
        b, c, _, _ = x.size()
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)


class Named(nn.Module):
    """Layers in a ``ModuleDict`` and a scale in a ``ParameterDict``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Conv2d(16, 16, 1), "b": nn.ReLU()})
        self.scales = nn.ParameterDict({"s": nn.Parameter(torch.rand(16, 1, 1))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on an activation of 16 channels."""
        for layer in self.layers.values():
            x = layer(x)
        return x * self.scales["s"]


class Listed(nn.Module):
    """Layers in a ``ModuleList`` and a scale in a ``ParameterList``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(16, 16, 1), nn.ReLU()])
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(16, 1, 1))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on an activation of 16 channels."""
        for layer in self.layers:
            x = layer(x)
        return x * self.scales[0]


# One line a row; `{a,b}` stands for several expressions. An expression without `x` makes a module; `t` is the map with
# its channels last, (batch, positions, channels). An expression's dimensions are those of its name (2 without any).
SECTIONS = {
    "Activations": """
        nn.ReLU(inplace={False,True})
        nn.ReLU6(inplace={False,True})
        nn.LeakyReLU(0.1, inplace={False,True})
        nn.PReLU()
        nn.PReLU(16)
        nn.RReLU(inplace={False,True})
        nn.ELU(inplace={False,True})
        nn.CELU(inplace={False,True})
        nn.SELU(inplace={False,True})
        nn.GELU({'none','tanh'})
        nn.SiLU(inplace={False,True})
        nn.Mish(inplace={False,True})
        nn.Hardswish(inplace={False,True})
        nn.Hardsigmoid(inplace={False,True})
        nn.Hardtanh(inplace={False,True})
        nn.{Hardshrink,Softshrink,Tanhshrink,Softplus,Softsign,Sigmoid,LogSigmoid,Tanh}()
        nn.Threshold(0.1, 0.5, inplace={False,True})
        nn.GLU(1)
        nn.GLU(-1)
        nn.Softmax2d()
        nn.{Softmax,Softmin,LogSoftmax}(1)
        nn.{Softmax,Softmin,LogSoftmax}(-1)
        F.normalize(x, dim=1)
        F.normalize(x, dim=2)
        F.{relu,leaky_relu,elu,hardtanh,celu,selu,rrelu}(x, inplace=True)
        x.{relu_,sigmoid_,tanh_,abs_,exp_,sin_,round_}()
        Swish.apply(x)
        scripted(x)
        scripted_halves(x)
    """,
    "Normalisation": """
        nn.BatchNorm{1,2,3}d(16)
        nn.BatchNorm2d(16, affine=False)
        nn.BatchNorm2d(16, track_running_stats=False)
        nn.SyncBatchNorm(16)
        ops.FrozenBatchNorm2d(16)
        FrozenNorm()
        nn.InstanceNorm{1,2,3}d(16)
        nn.InstanceNorm{1,2,3}d(16, affine=True)
        nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
        nn.GroupNorm(4, 16)
        nn.GroupNorm(16, 16)
        nn.GroupNorm(1, 16)
        nn.GroupNorm(4, 16, affine=False)
        F.group_norm(x, 4)
        F.instance_norm(x)
        nn.LayerNorm(16)(t)
        nn.RMSNorm(16)(t)
        nn.LayerNorm([8, 8])
        nn.LayerNorm([16, 8, 8])
        nn.LocalResponseNorm(4)
        nn.CrossMapLRN2d(4)
    """,
    "Pooling": """
        nn.MaxPool{1,2,3}d(2)
        nn.MaxPool2d(3, 1, 1, dilation=1, ceil_mode=True)
        nn.AvgPool{1,2,3}d(2)
        nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        nn.LPPool{1,2,3}d(2, 2)
        nn.AdaptiveAvgPool{1,2,3}d(1)
        nn.AdaptiveAvgPool{1,2,3}d(3)
        nn.AdaptiveMaxPool{1,2,3}d(3)
        nn.FractionalMaxPool{2,3}d(2, 4)
        F.max_pool2d(x, 2, return_indices=True)[0]
        F.adaptive_max_pool2d(x, 3, return_indices=True)[0]
        nn.MaxUnpool1d(2)(*F.max_pool1d(x, 2, return_indices=True))
        nn.MaxUnpool2d(2)(*F.max_pool2d(x, 2, return_indices=True))
        nn.MaxUnpool3d(2)(*F.max_pool3d(x, 2, return_indices=True))
        nn.MaxPool1d(2)(t)
    """,
    "Padding": """
        nn.ZeroPad{1,2,3}d(1)
        nn.ConstantPad{1,2,3}d(1, 0.5)
        nn.ReflectionPad{1,2,3}d(1)
        nn.ReplicationPad{1,2,3}d(1)
        nn.CircularPad{1,2,3}d(1)
        nn.Conv2d(16, 16, 3, padding=1, padding_mode={'zeros','reflect','replicate','circular'})
        F.pad(x, (0, 0, 0, 0, 2, 2))
        F.pad(x, (-1, -1))
    """,
    "Convolutions and products": """
        nn.Conv{1,2,3}d(16, 16, 3)
        nn.Conv{1,2,3}d(16, 16, 3, groups=16)
        nn.Conv2d(16, 32, 3, groups=16)
        nn.Conv{1,2,3}d(16, 16, 3, groups=4)
        nn.ConvTranspose{1,2,3}d(16, 16, 2, 2)
        nn.ConvTranspose{1,2,3}d(16, 16, 2, 2, groups=16)
        nn.ConvTranspose2d(16, 32, 2, 2, groups=16)
        nn.ConvTranspose2d(16, 16, 2, 2, groups=4)
        nn.Linear(16, 16)(t)
        nn.Linear(8, 8)
        nn.Sequential(nn.Flatten(), nn.Linear(1024, 16))
        nn.Bilinear(16, 16, 16)(t, t)
        Excitation()
        ops.SqueezeExcitation(16, 8)
        ChannelAttention()
        nn.CosineSimilarity(1)(x, x)
        nn.PairwiseDistance()(x, x)
        x * x.mean((2, 3), keepdim=True)
        x * x.mean(1, keepdim=True)
        x * x.amax(1, keepdim=True).sigmoid()
        x @ x.transpose(-1, -2)
        torch.einsum('bchw,bchv->bcwv', x, x)
        ops.DeformConv2d(16, 16, 3, padding=1)(x, torch.zeros(1, 18, 8, 8))
    """,
    "Resizing and sampling": """
        nn.Upsample(scale_factor=2, mode='nearest'){1,2,3}
        nn.Upsample(scale_factor=2, mode='nearest-exact'){1,2,3}
        nn.Upsample(scale_factor=2, mode='linear'){1}
        nn.Upsample(scale_factor=2, mode='{bilinear,bicubic}')
        nn.Upsample(scale_factor=2, mode='trilinear'){3}
        nn.Upsampling{Nearest,Bilinear}2d(scale_factor=2)
        F.interpolate(x, scale_factor=0.5, mode='area')
        F.interpolate(x, scale_factor=0.5, mode='bilinear', antialias=True)
        F.grid_sample(x, torch.zeros(1, 4, 4, 2), align_corners=False)
        F.grid_sample(x, torch.zeros(1, 4, 4, 4, 3), align_corners=False){3}
        ops.roi_align(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 3)
        ops.roi_pool(x, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 3)
    """,
    "Dropout": """
        nn.Dropout(0.5, inplace={False,True})
        nn.Dropout{1,2,3}d(0.5)
        nn.{AlphaDropout,FeatureAlphaDropout}(0.5)
        ops.StochasticDepth(0.5, 'row')
        ops.DropBlock2d(0.5, 3)
    """,
    "Shuffles, folds and shapes": """
        nn.ChannelShuffle(4)
        shuffled(x, 4)
        x.view(1, 4, -1, 8, 8).mean(1)
        shuffled_by_number(x)
        nn.PixelShuffle(2)
        nn.PixelUnshuffle(2)
        nn.Flatten()
        nn.Flatten(2)
        nn.Unflatten(1, (4, 4))
        nn.Unflatten(2, (2, 4))
        nn.Unfold(2, stride=2)
        nn.Sequential(nn.Unfold(2, stride=2), nn.Fold(8, 2, stride=2))
        x.unfold(2, 2, 2)
        x.chunk(2, 1)
        x.tensor_split(2, 1)
        halves_by_width(x)
        x.split(8, 1)
        x.split(x.shape[1] // 2, 1)
        x.split([8, 8], 1)
        x.unbind(1)
        x.chunk(2, 2)
        x.split(4, 2)
        x.unbind(2)
        x[:, :8]
        x[:, ::2]
        x[:, torch.arange(15, -1, -1)]
        x[:, :, ::2, 1::2]
        x[..., torch.arange(4)]
        x.narrow(2, 0, 4)
        x.index_select(1, torch.arange(8))
        x.index_select(2, torch.arange(4))
        x.gather(1, x.argsort(1))
        torch.cat([x, x], 1)
        torch.stack([x, x], 1).flatten(1, 2)
        torch.stack([x, x], 2).flatten(1, 2)
        x.repeat(1, 2, 1, 1)
        x.tile(1, 2, 1, 1)
        x.repeat_interleave(2, 1)
        x.repeat_interleave(2, 2)
        x.expand(2, -1, -1, -1)
        x.roll(1, {2,3})
        x.roll(1, 1)
        x.flip(1)
        x.flip(2)
        x.rot90(1, (2, 3))
        x.movedim(1, -1).movedim(-1, 1)
        x.contiguous(memory_format=torch.channels_last)
        x.masked_fill(x > 0.5, 0)
        torch.where(x > 0, x, 0.1 * x)
        x.cumsum(2)
        x.cumsum(1)
        x.cummax(2).values
        x.sort(1).values
        x.sort(2).values
        x.topk(4, 2).values
        x.{mean,sum,amax,amin,std,var,logsumexp}(2)
        x.norm(dim=2)
        x.median(2).values
        x.argmax(2).float()
        torch.fft.fft2(x).abs()
        x.to(torch.bfloat16).relu().to(x.dtype)
    """,
    "Sequences": """
        nn.{RNN,GRU,LSTM}(16, 16, batch_first=True)(t)[0]
        nn.{RNNCell,GRUCell,LSTMCell}(16, 16)(t[0])
        nn.MultiheadAttention(16, 4, batch_first=True)(t, t, t)[0]
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)(t)
        F.scaled_dot_product_attention(t, t, t)
        F.scaled_dot_product_attention(t, t, t, scale=0.25)
    """,
    "Containers": """
        nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())
        nn.Identity()
        Named()
        Listed()
    """,
}


_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@functools.cache
def names() -> dict[str, Any]:
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, and still met in the wild
        compiled = {f.__name__: torch.jit.script(f) for f in (scripted, scripted_halves)}
    return {**globals(), "ops": torchvision.ops, **compiled}


class Probe(nn.Module):
    """A convolution, a layer, and a convolution or linear layer that reads each of its results."""

    def __init__(self, expression: str, dims: int) -> None:
        super().__init__()
        free = set(re.findall(r"\b[xt]\b", expression))
        called = re.match(r"((?:nn|ops)\.\w+\(.*?\))\(.*[xt]", expression)
        made = expression if not free else called[1] if called else ""
        self.before = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](3, WIDTH, 1)
        self.layer = eval(made, names()) if made else None
        self.code = expression.replace(made, "layer") if made and free else expression if free else "layer(x)"
        self.channels_last = "t" in free
        self.after = nn.ModuleList()

    def forward(self, x: torch.Tensor) -> Any:
        """Run all three."""
        x = self.before(x)
        t = x.flatten(2).transpose(1, 2)
        y = eval(self.code, {**names(), "x": x, "t": t, "layer": self.layer})
        parts = [y] if isinstance(y, torch.Tensor) else list(y)
        if not self.after:
            self.after.extend(reader(part, self.channels_last) for part in parts)
        return [layer(part) for layer, part in zip(self.after, parts, strict=True)]


def reader(part: torch.Tensor, channels_last: bool) -> nn.Module:
    if channels_last or part.dim() == 2:
        return nn.Linear(part.shape[-1], 4, dtype=part.dtype)
    return _CONVOLUTIONS[part.dim()](part.shape[1], 4, 1, dtype=part.dtype)


def randomise_(net: nn.Module) -> None:
    """Give norms statistics and vectors that a trained network could have."""
    for layer in net.modules():
        if isinstance(getattr(layer, "running_mean", None), torch.Tensor):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and layer.weight.dim() == 1:
            layer.weight.data.uniform_(0.2, 2)


def measure(expression: str, dims: int, dtype: torch.dtype = torch.float32) -> str:
    """Trace and cut one network; return what a row says of it."""
    torch.manual_seed(0)
    net = Probe(expression, dims).to(dtype).eval()
    x = torch.rand(1, 3, *[SIDE] * dims, dtype=dtype)
    net(x)
    randomise_(net)
    anatomy = Anatomy(x)
    cost = anatomy.cost_of(net)
    graph = cost.graph
    channels = next(graph.axis_channels(axis) for axis in graph.axes if axis.label == "before.weight[0]")
    if graph.frozen[channels].all():
        reason, _, _ = graph.reasons[int(channels[0])].rpartition(" in '")
        return f"stays: {reason.rstrip(',')}"
    widths = Widths(1, 1)
    scores = np.random.default_rng(0).random(graph.channel_count)
    scores[channels] /= 1000  # so that they go first
    least = least_channels(cost, widths)
    floor = cost.macs(least) / cost.macs(np.ones_like(least))
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.5 + 0.5 * floor), widths=widths)
    try:
        cut_proven_(net, cost, least if keep[channels].all() else keep, anatomy)
    except EquivalenceError as error:
        return f"WRONG: {error}"
    if net.before.out_channels == WIDTH:
        return "WRONG: nothing was cut"
    return f"cut{how(graph, channels)}"


def how(graph: Any, channels: np.ndarray) -> str:
    """Say in what sets channels go, where any of them could not go alone."""
    together, tied = WIDTH // len(np.unique(channels)), max(len(tie) for tie in graph.ties)
    sets = f"{together} go together" if together > 1 else ""
    parts = f"{tied} parts lose equally many" if tied > 1 else ""
    return f": {', '.join(filter(None, (sets, parts)))}" if sets or parts else ""


def expand(line: str) -> Iterator[str]:
    """Yield the expressions of a line: one for each option in its braces."""
    match = re.search(r"\{([^{}]*)\}", line)
    for option in match[1].split(",") if match else ():
        yield from expand(line[: match.start()] + option + line[match.end() :])
    if not match:
        yield line


def cases(line: str) -> Iterator[tuple[str, int]]:
    """Yield the expressions of a line with their dimensions."""
    for expression in expand(line):
        last = re.match(r"(.*\))([123])$", expression)
        named = re.search(r"([123])d\(", expression)
        yield (last[1], int(last[2])) if last else (expression, int(named[1]) if named else 2)


def rows(dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, str, str]]:
    """Yield section, expressions and outcome of every row; expressions of a line that fare alike share a row."""
    for section, lines in SECTIONS.items():
        for line in filter(None, map(str.strip, lines.splitlines())):
            found: dict[str, list[str]] = {}
            for expression, dims in cases(line):
                found.setdefault(measure(expression, dims, dtype), []).append(expression)
            for outcome, expressions in found.items():
                alike = [re.sub(r"\)\{?[\d,]*\}?$", ")", line)] if len(found) == 1 else expressions
                yield section, ", ".join(f"`{name}`" for name in alike), outcome


HEAD = """# What can be cut

Made by `scripts/operator_table.py`: a convolution of 16 channels, the layer or expression, and a layer that reads it. A
row says *cut* where half of the network was cut at random and that is proven exact (see [a model of your
own](custom_models.md)); else why the 16 channels stay. `{a,b}` stands for several expressions that fare alike, `x` for the
convolution's output, `t` for the same with its channels last, `ops` for `torchvision.ops`; classes and functions without
a prefix are in the script. What is not listed and has no rule stays, and is named in `plan.frozen`.

"""


def document() -> str:
    """Measure everything and return the page."""
    text, current = HEAD, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for section, expressions, outcome in rows():
            if section != current:
                text += (
                    f"{chr(10) if current else ''}## {section}\n\n| layer | channels before it |\n|---|---|\n"
                )
                current = section
            text += f"| {expressions} | {outcome} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", help="print the rows that differ in this precision instead")
    options = parser.parse_args()
    if options.dtype is None:
        DOC.write_text(document(), "utf-8")
        return
    for lines in SECTIONS.values():
        for expression, dims in (case for line in lines.strip().splitlines() for case in cases(line.strip())):
            try:
                other = measure(expression, dims, getattr(torch, options.dtype))
            except (RuntimeError, NotImplementedError) as error:  # PyTorch has no such kernel on this device
                other = f"not run: {str(error).splitlines()[0][:80]}"
            if other != measure(expression, dims):
                print(f"{expression}: {other}")


if __name__ == "__main__":
    main()
