"""Branches that no trace can run: what they may read stays, and they are listed."""

import pytest
import torch
from nets import conv, free_width, reason_of
from torch import nn
from torch.nn import functional

from yolo_prune.cut.record import PrunePlan
from yolo_prune.graph import trace_groups
from yolo_prune.recover.structure import prune_module
from yolo_prune.runs.inspection import describe_groups

X = torch.zeros(1, 3, 32, 32)


class TargetsMissingError(Exception):
    """An error class of the user's own."""


class Assistant(nn.Module):
    """A detector whose training has a second neck and a head that reads both necks' maps side by side."""

    def __init__(self, fails=None):
        super().__init__()
        self.stem, self.body = conv(44, 3), conv(48, 44)
        self.neck, self.head = conv(32, 48), nn.Conv2d(32, 7, 1)
        self.aux_neck = nn.Sequential(conv(24, 48), conv(32, 24))
        self.aux_head = nn.Sequential(conv(64, 64), nn.Conv2d(64, 7, 1))
        self.fails = fails

    def forward(self, x, targets=None):
        features = self.body(self.stem(x))
        maps = self.neck(features)
        found = self.head(maps)
        if not self.training:
            return found
        if targets is None and self.fails:
            self.fails()
        targets = targets.float()
        aux = self.aux_head(torch.cat([maps, self.aux_neck(features)], 1))
        return functional.mse_loss(found, targets) + functional.mse_loss(aux, targets)


def wants():
    raise TargetsMissingError("targets, please")


def unbound():
    if X.sum() > 1:
        loss = 1
    return loss


def missing():
    raise NotImplementedError


FAILS = {
    "targets are None": None,
    "an own class": wants,
    "an unbound name": unbound,
    "not implemented": missing,
}


@pytest.mark.parametrize("fails", FAILS)
def test_what_an_auxiliary_head_may_read_stays(fails):
    net = Assistant(FAILS[fails])
    graph = trace_groups(net, X)
    reason = "may be read by 'aux_neck', which no trace met"
    assert free_width(graph, "body.0") == 0
    assert reason_of(graph, "body.0") == reason
    assert free_width(graph, "neck.0") == 0  # read beside the second neck's 32 channels, as 64
    assert reason_of(graph, "neck.0") == "may be read by 'aux_head', which no trace met"
    assert free_width(graph, "stem.0") == 44  # no untraced layer expects it, alone or beside another
    assert {name.split(".")[0] for name in graph.untraced} == {"aux_neck", "aux_head"}


def test_a_model_with_an_auxiliary_head_trains_after_the_cut():
    net = Assistant()
    plan = prune_module(net, X, keep_macs=0.7)
    assert net.stem[0].out_channels < 44
    assert "aux_head.1.weight" in plan.untraced
    assert PrunePlan.from_json(plan.to_json()).untraced == plan.untraced
    net.train()(torch.rand(2, 3, 32, 32), torch.zeros(2, 7, 32, 32)).backward()
    assert net.aux_head[1].weight.grad is not None


def test_a_plan_without_the_list_is_read():
    assert PrunePlan.from_json('{"version": 1, "keep": {}, "widths": {}}').untraced == []


def test_a_branch_that_runs_in_training_is_cut_along_and_proven_there():
    class Branched(Assistant):
        def forward(self, x):
            features = self.body(self.stem(x))
            maps = self.neck(features)
            if not self.training:
                return self.head(maps)
            return self.head(maps), self.aux_head(torch.cat([maps, self.aux_neck(features)], 1))

    net = Branched()
    plan = prune_module(net, X, keep_params=0.5, criterion="random")
    assert plan.equivalence["exact"]
    assert (plan.untraced, net.aux_head[0][0].out_channels < 64) == ([], True)
    assert net.train()(torch.rand(2, 3, 32, 32))[1].shape == (2, 7, 32, 32)


def test_scalars_that_run_are_met_and_layers_that_do_not_are_listed():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = conv(16, 3), nn.Conv2d(16, 2, 1), nn.Linear(5, 6)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.b(self.a(x) * self.scale)

    net = Scaled()
    graph = trace_groups(net, X)
    assert graph.untraced == ("unused.weight", "unused.bias")
    assert free_width(graph, "a.0") == 16
    from yolo_prune.cost import cost_model

    row = describe_groups(net, cost_model(graph, net))[-1]
    assert (row["group"], row["width"], row["params"], row["frozen"]) == ("unused", 6, 36, "no trace met it")
