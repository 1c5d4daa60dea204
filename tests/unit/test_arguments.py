"""How a module is called, and what is copied with it."""

import re

import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn

from yolo_prune.cost import count_macs
from yolo_prune.cost.macs import count_macs_per_operation
from yolo_prune.errors import ConfigError
from yolo_prune.graph.arguments import Arguments
from yolo_prune.graph.copies import copy_as, copy_with
from yolo_prune.graph.values import change_tensors, tensors_in
from yolo_prune.recover.structure import prune_module

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """Takes its input by keyword only."""

    def __init__(self):
        super().__init__()
        self.body, self.head = conv(32, 3), nn.Conv2d(32, 2, 1)

    def forward(self, *, image, scale=1.0):
        return self.head(self.body(image) * scale)


def batched():
    """Takes one dict, like detectors that are given a batch of the data loader."""
    return Net(lambda m, batch: m.head(m.body(batch["image"])), body=conv(32, 3), head=nn.Conv2d(32, 2, 1))


CALLS = {
    "by keyword only": (Named, {"image": X, "scale": torch.tensor(2.0)}),
    "a dict as the only argument": (batched, {"image": X}),
    "a dict within a tuple": (batched, ({"image": X},)),
    "a list of images": (
        lambda: Net(lambda m, x: m.head(m.body(torch.stack(x))), body=conv(32, 3), head=nn.Conv2d(32, 2, 1)),
        [X[0]],
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("depth", [False, True])
def test_a_module_is_pruned_however_it_is_called(name, depth):
    build, example = CALLS[name]
    net = randomise_(build())
    plan = prune_module(net, example, keep_macs=0.5, depth=depth, cost_input=example)
    assert plan.equivalence["exact"]
    assert net.head.in_channels == 16
    assert count_macs(net, example) == pytest.approx(plan.gmacs * 1e9)


def test_an_example_that_does_not_fit_is_one_sentence():
    text = (
        "the model does not run on the example input: TypeError: Named.forward() takes 1 positional argument but 2 were "
        "given. Its forward is Named.forward(*, image, scale=1.0): pass a tensor with its batch dimension, a tuple of "
        "positional arguments, a dict of keyword arguments, or for a detector that takes a list of images [image] with "
        "image of shape (C, H, W)."
    )
    net = Named()
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        prune_module(net, X, keep_macs=0.5)
    assert net.body[0].out_channels == 32


def test_an_error_of_a_rule_is_not_blamed_on_the_example():
    def rule(tracer, call):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match=r"^no such thing$"):
        prune_module(
            nn.Sequential(conv(32, 3), nn.Conv2d(32, 2, 1)), X, keep_macs=0.5, operators={"silu": rule}
        )


def test_random_arguments_keep_shapes_integers_and_what_is_shared():
    index = torch.tensor([1, 2])
    image = torch.zeros(2, 3)
    made = Arguments.of(nn.Identity(), ([image, image], {"index": index})).random(torch.float64)
    (first, second), named = made.positional
    assert first is second
    assert (first.dtype, first.shape, bool(first.any())) == (torch.float64, image.shape, True)
    assert torch.equal(named["index"], index)
    assert not image.any()


class Cached(nn.Module):
    """Holds tensors that it never registered: an attribute, a list, a dict, and one that autograd made."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.anchors = torch.ones(2)
        self.cells = [torch.ones(3), {"deep": torch.ones(4)}]
        self.loose = [nn.Parameter(torch.ones(5))]
        self.made = self.layer.weight.sum() * 2
        self.index = torch.arange(3)
        self.same = self.anchors

    def forward(self, x):
        return self.layer(x) * self.anchors.sum()


def test_a_copy_takes_along_the_tensors_that_nobody_registered():
    net = Cached()
    copied = copy_as(net, torch.float64)
    for tensor in (copied.anchors, copied.cells[0], copied.cells[1]["deep"], copied.loose[0], copied.made):
        assert tensor.dtype == torch.float64
    assert isinstance(copied.loose[0], nn.Parameter)
    assert copied.index.dtype == torch.int64
    assert copied.same is copied.anchors is not net.anchors
    meta = copy_with(net, lambda tensor: tensor.to("meta"))
    assert meta.cells[1]["deep"].is_meta
    assert net.anchors.dtype == torch.float32
    kept = copy_with(net, lambda tensor: tensor.to("meta"), attributes=False)
    assert (kept.layer.weight.is_meta, kept.anchors.is_meta) == (True, False)


def test_costs_are_counted_from_shapes_where_an_attribute_is_asked_for_its_number():
    class Strided(Cached):
        def forward(self, x):
            return self.layer(x)[..., :: int(self.anchors[0])]

    def fails(*_):
        raise AssertionError("counted for real")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.cost.macs.list_operations_for_real", fails)
        assert count_macs_per_operation(Strided(), X) == [16 * 16 * 12]


def test_tensors_are_found_once_and_modules_are_not_opened():
    a, b = torch.ones(1), torch.ones(2)
    loop = [a]
    loop.append(loop)
    assert [len(t) for t in tensors_in((loop, {"b": b, "again": a}, nn.Linear(1, 1), "text", None))] == [1, 2]
    changed = change_tensors({"a": [a], "b": (b, a)}, lambda t: t + 1)
    assert changed["a"][0] is changed["b"][1]
    assert changed["a"][0].item() == 2
