"""What imitation may move of a cut network, and what stays as it is."""

import copy

import pytest
import torch
from nets import Net, conv
from test_imitation import detector, disturbed, images, learn
from torch import nn

from yolo_prune.graph import plugged
from yolo_prune.recover.learnable import learnable


class Scale(nn.Module):
    """Multiplies by a number that is no weight, although it stands in a parameter."""

    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.tensor([4.0]), requires_grad=False)

    def forward(self, x):
        return x * self.by


def network(width=16):
    torch.manual_seed(0)
    parts = {"stem": conv(width, 3), "body": conv(width, width), "scale": Scale()}
    return Net(lambda net, x: net.scale(net.body(net.stem(x))), **parts)


def names(student, teacher):
    moved = {id(weight) for weight in learnable(student, teacher)}
    return {name for name, weight in student.named_parameters() if id(weight) in moved}


def test_what_wants_no_gradient_where_others_do_stays_unless_it_was_cut():
    teacher, student = network(), network(8)
    everything = {name for name, _ in student.named_parameters()}
    assert names(student, teacher) == everything - {"scale.by"}
    student.stem.requires_grad_(False)  # cut all the same
    assert names(student, teacher) == everything - {"scale.by"}
    same = copy.deepcopy(teacher)
    same.stem.requires_grad_(False)
    assert names(same, teacher) == {name for name in everything if name.startswith("body.")}


def test_where_nothing_wants_a_gradient_the_flags_say_nothing():
    teacher = network()
    student = copy.deepcopy(teacher).requires_grad_(False)
    assert names(student, teacher) == {name for name, _ in student.named_parameters()}


@pytest.mark.parametrize("wanted", [True, False])
def test_what_an_adapter_knows_as_a_constant_stays_whatever_its_flag(wanted, monkeypatch):
    known = {f"{Scale.__module__}.{Scale.__qualname__}": ("by",)}
    monkeypatch.setattr(plugged, "plugged_in", lambda part: known if part == "constants" else {})
    teacher = network()
    student = copy.deepcopy(teacher).requires_grad_(wanted)
    assert names(student, teacher) == {name for name, _ in student.named_parameters()} - {"scale.by"}


def test_imitation_moves_what_may_move_alone():
    teacher = detector()
    student = disturbed(teacher)
    student.stem.requires_grad_(False)
    before = copy.deepcopy(student.state_dict())
    assert learn(student, teacher, [images(24)], steps=20).steps
    moved = {name for name, weight in student.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name, _ in student.named_parameters() if not name.startswith("stem.")}


def test_where_nothing_that_may_move_reaches_the_outputs_everything_stays():
    teacher = detector()
    teacher.beside = nn.Linear(2, 2)  # of a loss that only a training has
    student = disturbed(teacher)
    student.requires_grad_(False)
    student.beside.requires_grad_(True)
    before = copy.deepcopy(student.state_dict())
    assert learn(student, teacher, steps=20).steps == 0
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
