"""Small networks and helpers that the tests of the graph core share."""

import torch
from torch import nn


def randomise_(module, seed=0, x=None):
    """Give every BatchNorm statistics that a trained network could have, in place.

    With an example ``x`` they are first measured on random input of its shape: without that, a signal fades from layer
    to layer of an untrained network, and a mistake in an early one could not be seen in the outputs.
    """
    torch.manual_seed(seed)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if x is not None:
        measure_(module, norms, x)
    for layer in norms:
        layer.running_mean += 0.3 * layer.running_var.sqrt() * torch.randn(layer.num_features)
        layer.running_var *= torch.empty(layer.num_features).uniform_(0.5, 2)
        if layer.affine:
            layer.weight.data.uniform_(0.2, 1.5)
            layer.bias.data.normal_(0, 0.3)
    return module


def measure_(module, norms, x):
    """Set the statistics of every BatchNorm to those of random input, layer by layer in one pass."""
    module.eval()
    hooks = [layer.register_forward_pre_hook(take_statistics) for layer in norms]
    with torch.no_grad():
        module(torch.rand(2, *x.shape[1:]))
    for hook in hooks:
        hook.remove()


def take_statistics(layer, inputs):
    values = inputs[0].transpose(0, 1).reshape(layer.num_features, -1)
    layer.running_mean.copy_(values.mean(1))
    layer.running_var.copy_(values.var(1, correction=0).clamp(min=1e-4))


class Net(nn.Module):
    """A network from layers and a function: ``Net(forward, a=nn.Conv2d(...))``."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv(makes, reads, size=3, **options):
    return nn.Sequential(
        nn.Conv2d(reads, makes, size, padding=size // 2, bias=False, **options),
        nn.BatchNorm2d(makes),
        nn.SiLU(),
    )


def group_of(graph, name):
    """Return the group that the layer of that name makes."""
    return next(group for group in graph.groups if any(p.startswith(f"{name}.") for p in group.producers))


def free_width(graph, name):
    """Return how many of the channels that a layer makes are free to go."""
    axis = next(a for a in graph.axes if a.name == f"{name}.weight" and a.role in ("out", "vector"))
    return int((~graph.frozen[graph.axis_channels(axis)]).sum())


def reason_of(graph, name):
    """Return why the channels that a layer makes are frozen."""
    axis = next(a for a in graph.axes if a.name == f"{name}.weight" and a.role in ("out", "vector"))
    return " | ".join(dict.fromkeys(graph.reasons.get(int(c), "") for c in graph.axis_channels(axis)))


def channels(graph, name, dim=0):
    """Return the channel ids along one dimension of a weight."""
    axis = next(a for a in graph.axes if a.name == f"{name}.weight" and a.dim == dim)
    return graph.axis_channels(axis).tolist()


def residual():
    return Net(
        lambda m, x: m.head((s := m.stem(x)) + m.b(m.a(s))),
        **{"stem": conv(32, 3), "a": conv(32, 32), "b": conv(32, 32), "head": nn.Conv2d(32, 4, 1)},
    )


def depthwise():
    return Net(
        lambda m, x: m.head(m.b(m.dw(m.stem(x)))),
        **{"stem": conv(32, 3), "dw": conv(32, 32, groups=32), "b": conv(32, 32, 1)},
        head=nn.Conv2d(32, 4, 1),
    )


def grouped():
    return Net(
        lambda m, x: m.head(m.b(m.a(m.stem(x)))),
        **{"stem": conv(32, 3), "a": conv(32, 32, groups=4), "b": conv(32, 32, 1)},
        head=nn.Conv2d(32, 4, 1),
    )


def attending():
    """A product of two activations, and linear layers on the tokens that it makes."""

    def run(m, x):
        x = m.stem(x)
        q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
        tokens = (v @ (q.transpose(1, 2) @ k).softmax(-1)).transpose(1, 2)
        return m.down(m.up(tokens).relu()).mean(1)

    layers = {"q": nn.Conv2d(32, 16, 1), "k": nn.Conv2d(32, 16, 1), "v": nn.Conv2d(32, 32, 1)}
    return Net(run, stem=conv(32, 3), **layers, up=nn.Linear(32, 64), down=nn.Linear(64, 4))


def transposed():
    return Net(
        lambda m, x: m.head(m.up(m.stem(x)).relu()),
        **{"stem": conv(32, 3), "up": nn.ConvTranspose2d(32, 32, 2, 2), "head": nn.Conv2d(32, 4, 1)},
    )


IMAGE = torch.zeros(1, 3, 16, 16)
KINDS = {
    **{"residual": residual, "depthwise": depthwise, "grouped": grouped},
    **{"attending": attending, "transposed": transposed},
}


def net_of(kind):
    """A small network of a kind, with the statistics that a trained one could have."""
    torch.manual_seed(0)
    return randomise_(KINDS[kind](), x=IMAGE).eval()
