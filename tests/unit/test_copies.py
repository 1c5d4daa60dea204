"""Copies of modules: nothing is shared that could be changed, and what copies itself in a way of its own does so."""

import copy
import pickle

import pytest
import torch
from nets import conv
from torch import nn

from yolo_prune.graph.copies import copy_with


class Own(nn.Module):
    """A module that says how it is copied."""

    def __deepcopy__(self, memo):
        made = Own()
        made.copied = True
        return made


class Busy(nn.Module):
    """Holds what modules of users hold: a list of lists, a module under two names, its parent, a shared table."""

    def __init__(self):
        super().__init__()
        self.first, self.own = conv(8, 3), Own()
        self.again, self.widths, self.table = self.first, [[1], {2: (3, [4])}], {"a": [1]}
        self.first.table = self.table
        object.__setattr__(self.first, "parent", self)
        self.attention = nn.MultiheadAttention(8, 2)
        self.first.register_forward_hook(print)

    def forward(self, x):
        return self.attention(*[self.first(x).flatten(2).transpose(1, 2)] * 3)[0]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Busy().eval()


@pytest.fixture
def copied(net):
    return copy_with(net, torch.Tensor.clone)


def test_a_copy_is_what_deepcopy_makes(net, copied):
    expected = copy.deepcopy(net)
    for (name, one), (other, module) in zip(expected.named_modules(), copied.named_modules(), strict=True):
        assert (name, type(one)) == (other, type(module))
        assert list(vars(one)) == list(vars(module))
        assert [type(value) for value in vars(one).values()] == [
            type(value) for value in vars(module).values()
        ]
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in expected.state_dict().items())
    assert copied.widths == net.widths
    assert list(copied.first._forward_hooks.values()) == [print]


def test_nothing_that_can_be_changed_is_shared(net, copied):
    before = pickle.dumps([net.widths, net.table])
    ours = {
        id(held)
        for module in net.modules()
        for held in vars(module).values()
        if isinstance(held, (dict, list, set))
    }
    theirs = {id(held) for module in copied.modules() for held in vars(module).values()}
    assert not ours & theirs
    copied.widths[0].append(2), copied.widths[1][2][1].append(5), copied.table["a"].append(2)
    assert pickle.dumps([net.widths, net.table]) == before
    storages = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert not storages & {tensor.data_ptr() for tensor in copied.state_dict().values()}


def test_what_is_one_stays_one(copied):
    assert copied.first is copied.again
    assert copied.first.parent is copied
    assert copied.first.table is copied.table


def test_a_module_that_says_how_it_is_copied_is_asked(net, copied):
    assert copied.own.copied
    assert not hasattr(net.own, "copied")
