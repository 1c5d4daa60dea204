"""Torch-Pruning's estimators on our groups say what they say on its own."""

import copy
import sys

import numpy as np
import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn

from yolo_prune import prune_module
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.criteria.ranking import check_criterion, score_channels
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.errors import ConfigError, DataError, MissingRuntimeError
from yolo_prune.graph.groups import trace_groups
from yolo_prune.options import PruneConfig
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.runs.configure import make_config

tp = pytest.importorskip("torch_pruning")
X = torch.zeros(1, 3, 8, 8)
WEIGHTS_ALONE = (
    "GroupMagnitudeImportance",
    "MagnitudeImportance",
    "BNScaleImportance",
    "LAMPImportance",
    "FPGMImportance",
)


def residual():
    """A stem of 16 channels that a block adds to and two layers read, one of them flattened."""

    def forward(net, x):
        maps = net.stem(x)
        maps = maps + net.second(net.first(maps))
        return net.left(maps).mean((2, 3)) + net.right(maps.flatten(1))

    torch.manual_seed(0)
    layers = {"stem": conv(16, 3), "first": conv(8, 16), "second": conv(16, 8)}
    return randomise_(Net(forward, **layers, left=nn.Conv2d(16, 4, 1), right=nn.Linear(16 * 64, 4))).eval()


def ours(name, module, calibration=None, at="stem"):
    graph = trace_groups(module, X)
    scores = score_channels(f"tp:{name}", module, graph, calibration or Calibration(), 0)
    (made,) = (axis for axis in graph.axes if axis.name == f"{at}.0.weight" and axis.role == "out")
    return scores[graph.axis_channels(made)]


def theirs(estimator, module, at="stem"):
    graph = tp.DependencyGraph().build_dependency(module, X)
    layer = module.get_submodule(at)[0]
    group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
    return estimator(group).double().numpy()


@pytest.mark.parametrize("name", WEIGHTS_ALONE)
@pytest.mark.parametrize("at", ["stem", "first"])
def test_a_channel_is_worth_what_it_is_worth_to_torch_pruning(name, at):
    module = residual()
    found = ours(name, module, at=at)
    assert found == pytest.approx(theirs(getattr(tp.importance, name)(), copy.deepcopy(module), at), rel=1e-5)
    assert np.ptp(found) > 0


def gradients_of(module, images):
    """Leave the gradient of the sum of all outputs in a copy of a module."""
    own = copy.deepcopy(module)
    own(images).sum().backward()
    return own


def test_what_goes_by_gradients_gets_those_of_the_projection_and_leaves_none():
    module, images = residual(), torch.rand(4, 3, 8, 8)
    module.stem[0].weight.grad = torch.ones_like(module.stem[0].weight)
    module.left.bias.requires_grad_(False)
    calibration = Calibration(list(images.split(2)), torch.sum)
    found = ours("GroupTaylorImportance", module, calibration, at="first")
    # of a flattened map theirs sorts the indices, and no longer knows which channel each of them is: no such group here
    expected = theirs(tp.importance.GroupTaylorImportance(), gradients_of(residual(), images), at="first")
    assert found == pytest.approx(expected, rel=1e-4)
    assert torch.equal(module.stem[0].weight.grad, torch.ones_like(module.stem[0].weight))
    assert module.first[0].weight.grad is None
    assert not module.left.bias.requires_grad


def test_the_hessian_is_that_of_single_images():
    module, images = residual(), torch.rand(1, 3, 8, 8)
    estimator = tp.importance.GroupHessianImportance()
    own = gradients_of(module, images)
    estimator.accumulate_grad(own)
    found = ours("GroupHessianImportance", module, Calibration([images], torch.sum), at="first")
    assert found == pytest.approx(theirs(estimator, own, at="first"), rel=1e-4)


def test_groups_that_it_has_no_number_for_go_last():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1)), conv(8, 8), nn.Conv2d(8, 2, 1)).eval()
    randomise_(module)
    without, with_norm = (ours("BNScaleImportance", module, at=at) for at in ("0", "1"))
    assert set(without) == {with_norm.max()}


def test_a_channel_that_stands_for_several_indices_is_worth_their_mean():
    """A shuffle in two: index 0 of one half goes with index 0 of the other."""

    def forward(net, x):
        left, right = net.stem(x).chunk(2, 1)
        return net.last(left + right)

    torch.manual_seed(0)
    module = randomise_(Net(forward, stem=conv(16, 3), last=nn.Conv2d(8, 2, 1))).eval()
    found = ours("MagnitudeImportance", module)  # by index of the stem: each channel has two of them
    assert found[:8] == pytest.approx(found[8:])
    made, norm = module.stem[0].weight.flatten(1).square().sum(1), module.stem[1].weight.square()
    read = module.last.weight.square().sum((0, 2, 3))
    # two indices of the stem, and what reads them belongs to the first of them
    worth = torch.stack([made[:8] + norm[:8] + read, made[8:] + norm[8:]]) / 3
    assert found[:8] == pytest.approx((worth / worth.mean()).mean(0).detach().double().numpy(), rel=1e-5)


def test_what_is_zero_throughout_is_worth_nothing_and_what_cannot_go_is_not_asked_about():
    module = residual()
    module.left.weight.data.zero_()
    module.right.weight.data.zero_()  # no gradient comes back, and estimators divide by the mean of nothing
    found = ours(
        "GroupTaylorImportance", module, Calibration([torch.rand(2, 3, 8, 8)], torch.sum), at="first"
    )
    assert set(found) == {0.0}


@pytest.mark.parametrize(
    "name", ["GroupTaylorImportance", "GroupHessianImportance", "BNScaleImportance", "FPGMImportance"]
)
def test_a_detector_with_frozen_groups_and_attention_is_ranked_and_cut(name):
    config = "yolo11n-pose.yaml"
    loaded = load_detector(config)
    host, module = find_host(config), loaded.module
    parent = Traced.of(module, host.anatomy(module, 64))
    images = host.calibration(module, [torch.rand(1, 3, 64, 64)], imgsz=64, classes=len(loaded.names), seed=0)
    cut = cut_in_steps(
        parent, Budget("keep_macs", 0.6), Recipe(criterion=f"tp:{name}", steps=1, fold=False), images
    )
    assert cut.plan.equivalence["exact"]
    assert cut.plan.kept_macs <= 0.601
    copy.deepcopy(module)  # nothing of the way back is left in it


def test_it_is_a_criterion_of_prune_module_and_of_the_commands():
    module = residual()
    plan = prune_module(module, X, keep_macs=0.6, criterion="tp:MagnitudeImportance", min_width=4, round_to=4)
    assert plan.equivalence["exact"]
    assert plan.settings["criterion"] == "tp:MagnitudeImportance"
    on_images = prune_module(
        residual(),
        X,
        keep_macs=0.6,
        criterion="tp:GroupTaylorImportance",
        calibration=[torch.rand(4, 3, 8, 8)],
        min_width=4,
        round_to=4,
        steps=1,
    )
    assert on_images.equivalence["exact"]
    options = {"model": "a.pt", "data": "d.yaml", "keep_macs": 0.5}
    assert (
        make_config(PruneConfig, {**options, "criterion": "tp:LAMPImportance"}).criterion
        == "tp:LAMPImportance"
    )
    with pytest.raises(ConfigError, match="criterion must be one of"):
        make_config(PruneConfig, {**options, "criterion": "LAMPImportance"})


def test_what_is_not_there_or_cannot_be_measured_is_said(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"^unknown criterion 'tp:Magnitude'; known of .* tp:GroupMagnitudeImportance, .*\."
    ):
        check_criterion("tp:Magnitude")
    with pytest.raises(ConfigError, match=r"Did you mean 'tp:BNScaleImportance'\?$"):
        check_criterion("tp:BNScaleImportence")
    for name in ("OBDCImportance", "Importance"):  # hooks on its own tracer; no estimator
        with pytest.raises(ConfigError, match="unknown criterion"):
            check_criterion(f"tp:{name}")
    with pytest.raises(
        ConfigError, match=r"^criterion=tp:TaylorImportance measures on images: give calibration=\.$"
    ):
        prune_module(residual(), X, keep_macs=0.6, criterion="tp:TaylorImportance")
    with pytest.raises(ConfigError, match="need a projection"):
        ours("TaylorImportance", residual(), Calibration([X]))
    broken = residual()
    broken.first[1].weight.data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"says infinite or NaN of channels of 'first"):
        ours("BNScaleImportance", broken)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(
        MissingRuntimeError, match=r'needs Torch-Pruning: pip install "yolo-prune\[compare\]"\.$'
    ):
        check_criterion("tp:MagnitudeImportance")
