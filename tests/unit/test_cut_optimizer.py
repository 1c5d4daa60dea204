"""An optimizer made before a cut: it follows with what it remembers, or says why it cannot."""

import copy
import logging

import pytest
import torch
from torch import nn

import yolo_prune
from yolo_prune.cut.optimizer import count_left_behind
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import ConfigError

KEPT = [0, 2, 3]
PLAN = PrunePlan(
    keep={"0.weight[0]": KEPT, "0.bias[0]": KEPT, "1.weight[1]": KEPT},
    widths={"0.weight[0]": 5, "0.bias[0]": 5, "1.weight[1]": 5},
)


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 1))


def linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 4))


def musgd(parameters):
    from ultralytics.optim import MuSGD

    groups = [
        {"params": [p for p in parameters if p.dim() == 4], "use_muon": True},
        {"params": [p for p in parameters if p.dim() != 4], "use_muon": False},
    ]
    return MuSGD(groups, lr=0.01, momentum=0.9, nesterov=True)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], lr=0.01),
    "MuSGD": musgd,
}
MIXES_CHANNELS = {
    "Adafactor",
    "Muon",
    "MuSGD",
}  # a channel's step depends on the others: only the state can be compared


def step(optimizer, gradients):
    for parameter, gradient in gradients:
        sparse = isinstance(optimizer, torch.optim.SparseAdam)
        parameter.grad = gradient.clone().to_sparse() if sparse else gradient.clone()
    optimizer.step()


def gradients_of(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return [(p, torch.randn(p.shape, generator=generator)) for p in model.parameters()]


def sliced(tensors):
    """What PLAN leaves of tensors in the order of the parameters."""
    first, bias, second, last = tensors
    return [first[KEPT], bias[KEPT], second[:, KEPT], last]


def test_every_optimizer_of_pytorch_is_tried_here():
    found = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
    }
    assert found <= {*OPTIMIZERS, "LBFGS"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_cut_an_optimizer_steps_as_it_would_have_on_the_channels_that_stay(name):
    whole = linears() if name == "Muon" else convolutions()
    model = copy.deepcopy(whole)
    steps = {}
    for each in (whole, model):
        optimizer = OPTIMIZERS[name](list(each.parameters()))
        step(optimizer, gradients_of(each, 1))
        step(optimizer, gradients_of(each, 2))
        steps[each] = optimizer
    remembered = {key: copy.deepcopy(value) for key, value in steps[whole].state[whole[0].weight].items()}
    cut_(model, PLAN)
    assert yolo_prune.follow_cut(steps[model], model) is steps[model]
    state = steps[model].state[model[0].weight]
    for key, value in remembered.items():
        same_rows = isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == 5
        expected = value[KEPT] if same_rows else value
        assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(expected)), key
    held = [p for group in steps[model].param_groups for p in group["params"]]
    assert {id(p) for p in held} <= {id(p) for p in model.parameters()}
    assert {id(p) for p in steps[model].state} <= {id(p) for p in held}
    before = model[0].weight.detach().clone()
    gradients = gradients_of(whole, 3)
    step(steps[whole], gradients)
    smaller = sliced([gradient for _, gradient in gradients])
    step(steps[model], list(zip(model.parameters(), smaller, strict=True)))
    assert not torch.equal(before, model[0].weight)
    if name not in MIXES_CHANNELS:
        for got, expected in zip(model.parameters(), sliced(list(whole.parameters())), strict=True):
            assert torch.allclose(got, expected, atol=1e-7)


def test_an_optimizer_that_does_not_follow_trains_what_is_gone():
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cut_(model, PLAN)
    before = [p.detach().clone() for p in model.parameters()]
    step(optimizer, gradients_of(model, 1))
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, False, True]
    assert count_left_behind(model) == 3
    yolo_prune.follow_cut(optimizer, model)
    assert count_left_behind(model) == 0


def test_a_cut_optimizer_keeps_groups_rates_schedulers_and_hooks():
    model, calls = convolutions(), []
    optimizer = torch.optim.SGD(
        [
            {"params": [model[0].weight], "tag": "a"},
            {"params": [model[0].bias, *model[1].parameters()], "lr": 0.5},
        ],
        lr=0.1,
        momentum=0.9,
    )
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    step(optimizer, gradients_of(model, 1))
    cut_(model, PLAN)
    yolo_prune.follow_cut(optimizer, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    assert optimizer.param_groups[1]["params"][-1] is model[1].bias  # not cut: the very same parameter
    step(optimizer, gradients_of(model, 2))
    scheduler.step()
    assert ([group["lr"] for group in optimizer.param_groups], len(calls)) == ([0.05, 0.25], 2)


def test_an_optimizer_catches_up_with_two_cuts_at_once():
    model = convolutions()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    step(optimizer, gradients_of(model, 1))
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    cut_(model, PLAN)
    again = {label: [0, 2] for label in PLAN.keep}
    cut_(model, PrunePlan(keep=again, widths=dict.fromkeys(again, 3)))
    yolo_prune.follow_cut(optimizer, model)
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum[[0, 3]])
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    step(optimizer, gradients_of(model, 2))


def test_what_has_no_place_in_the_smaller_parameter_begins_anew_with_one_line(caplog):
    class Odd(torch.optim.SGD):
        pass

    model = convolutions()
    optimizer = Odd(model.parameters(), lr=0.1, momentum=0.9)
    step(optimizer, gradients_of(model, 1))
    optimizer.state[model[0].weight]["basis"] = torch.zeros(7, 7)
    optimizer.state[model[0].bias]["history"] = [torch.zeros(5)]
    optimizer.state[model[1].weight]["rows"] = torch.arange(5.0)  # along the only dimension of that size
    cut_(model, PLAN)
    yolo_prune.follow_cut(optimizer, model)
    assert [record.getMessage() for record in caplog.records] == [
        "what the optimizer remembers of 2 parameters has a shape that cannot follow the cut, and begins anew: "
        "0.weight (basis), 0.bias (history)"
    ]
    assert set(optimizer.state) == {model[1].weight, model[1].bias}
    assert optimizer.state[model[1].weight]["rows"].tolist() == [0.0, 2.0, 3.0]
    step(optimizer, gradients_of(model, 2))


def test_parameters_of_a_dropped_block_leave_their_group():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x + self.conv(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Residual(), Residual()), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(optimizer, gradients_of(model, 1))
    second = model[1][1].conv.weight
    cut_(model, PrunePlan(keep={}, widths={}, dropped=["1.0"]))
    yolo_prune.follow_cut(optimizer, model)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert model[1][0].conv.weight is second
    assert set(optimizer.state) == set(model.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda model: torch.optim.LBFGS(model.parameters()),
            "^LBFGS remembers all parameters as one vector, which cannot follow a cut. Make a new one after it.$",
        ),
        (
            lambda model: torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1),
            "^the optimizer holds 4 parameters, and none of them is or was one of this model's 4. Give the optimizer "
            "that trains this very object, not a copy of it.$",
        ),
    ],
    ids=["lbfgs", "of a copy"],
)
def test_an_optimizer_that_cannot_follow_is_refused_before_anything_is_cut(make, text):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1))
    optimizer, before = make(model), list(model.parameters())
    with pytest.raises(ConfigError, match=text):
        yolo_prune.prune_module(model, torch.rand(1, 3, 8, 8), keep_macs=0.6, optimizer=optimizer)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ConfigError, match=text):
        yolo_prune.follow_cut(optimizer, model)


@pytest.mark.parametrize("depth", [False, True])
def test_prune_module_hands_the_optimizer_over_or_says_that_it_was_left_behind(depth, caplog):
    def train(given):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step(optimizer, gradients_of(model, 1))
        options = {"optimizer": optimizer} if given else {}
        yolo_prune.prune_module(model, torch.rand(1, 3, 8, 8), keep_macs=0.5, depth=depth, **options)
        before = [p.detach().clone() for p in model.parameters()]
        step(optimizer, gradients_of(model, 2))
        return [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]

    with caplog.at_level(logging.WARNING):
        assert train(given=True) == [True] * 6
        assert not caplog.records
        assert train(given=False) == [False] * 5 + [True]
    assert [record.getMessage() for record in caplog.records] == [
        "5 parameters were replaced by smaller ones, and something still holds the old: an optimizer made before this "
        "cut goes on training those. Call yolo_prune.follow_cut(optimizer, module)."
    ]
