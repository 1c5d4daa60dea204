"""Detectors of torchvision, as whole models: heads are compared though nothing is detected, and budgets hold.

Small backbones stand in for the stock ones; the stock ones are marked slow.
"""

import copy
from functools import reduce
from typing import get_type_hints

import numpy as np
import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn

from yolo_prune.criteria.apart import outputs_apart
from yolo_prune.criteria.calibration import Calibration, call
from yolo_prune.criteria.heads import known_heads, last_layers, measured_at_heads
from yolo_prune.criteria.moments import collect_moments
from yolo_prune.criteria.predictions import PredictionProjection, missed_overlap
from yolo_prune.criteria.projection import output_projection
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, make_plan
from yolo_prune.cut.proof import prove_equivalence, zero_removed_
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.surgery import cut_
from yolo_prune.graph.plugged import plugged_in
from yolo_prune.recover.structure import prune_module
from yolo_prune.train.imitate import HeadTeacher

detection = pytest.importorskip("torchvision.models.detection")
SIZES = {"min_size": 64, "max_size": 64}


def backbone(out=32):
    net = nn.Sequential(conv(32, 3, stride=4), conv(32, 32, stride=2), conv(out, 32))
    net.out_channels = out
    return net


def anchors(sizes=((16, 32),)):
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


def pool(size=3):
    from torchvision.ops import MultiScaleRoIAlign

    return MultiScaleRoIAlign(["0"], size, 2)


def two_stage(cls=None, **heads):
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    return (cls or detection.FasterRCNN)(
        backbone(),
        rpn_anchor_generator=anchors(),
        box_roi_pool=pool(),
        box_head=TwoMLPHead(32 * 9, 64),
        box_predictor=FastRCNNPredictor(64, 4),
        rpn_post_nms_top_n_test=12,
        box_detections_per_img=4,
        **heads,
        **SIZES,
    )


def mask_rcnn():
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    heads = {"mask_head": MaskRCNNHeads(32, (32, 32), 1), "mask_predictor": MaskRCNNPredictor(32, 32, 4)}
    return two_stage(detection.MaskRCNN, mask_roi_pool=pool(4), **heads)


def keypoint_rcnn():
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

    heads = {
        "keypoint_head": KeypointRCNNHeads(32, (32, 32)),
        "keypoint_predictor": KeypointRCNNPredictor(32, 3),
    }
    return two_stage(detection.KeypointRCNN, keypoint_roi_pool=pool(4), **heads)


def retinanet():
    return detection.RetinaNet(backbone(), 5, anchor_generator=anchors(), **SIZES)


def fcos():
    return detection.FCOS(backbone(), 5, anchor_generator=fcos_anchors(), **SIZES)


def fcos_anchors():
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(((8,),), ((1.0,),))


def ssd():
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    maps = Net(lambda m, x: {"0": m.layers(x)}, layers=backbone())
    maps.out_channels = [32]
    return detection.ssd.SSD(maps, DefaultBoxGenerator([[2, 3]]), (64, 64), 5)


# Builder -> last layers of its heads, each of which must be seen when it breaks.
DETECTORS = {
    retinanet: ("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
    fcos: (
        *("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
        "head.regression_head.bbox_ctrness",
    ),
    ssd: ("head.classification_head.module_list.0", "head.regression_head.module_list.0"),
    two_stage: (
        *("rpn.head.cls_logits", "rpn.head.bbox_pred"),
        *("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
    ),
    mask_rcnn: ("rpn.head.cls_logits", "roi_heads.box_predictor.bbox_pred"),
    keypoint_rcnn: ("rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score"),
}
X = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def built(build):
    torch.manual_seed(0)
    net = build().eval()
    return randomise_(net)


@pytest.mark.parametrize("build", DETECTORS, ids=lambda build: build.__name__)
def test_a_detector_is_cut_within_its_budget_and_its_heads_are_compared(build):
    net = built(build)
    heads = {name: net.get_submodule(name).weight.shape[0] for name in DETECTORS[build]}
    plan = prune_module(net, X, keep_macs=0.7, criterion="l1")
    assert 0.65 < plan.kept_macs <= 0.7
    assert plan.equivalence["exact"]
    assert plan.equivalence["compared"] >= len(DETECTORS[build])
    assert heads == {name: net.get_submodule(name).weight.shape[0] for name in heads}
    net([torch.rand(3, 64, 64)])


@pytest.mark.parametrize("build", DETECTORS, ids=lambda build: build.__name__)
def test_a_broken_head_fails_the_proof(build):
    net = built(build)
    cost = Anatomy(X).cost_of(net)
    scores = np.random.default_rng(0).random(cost.graph.channel_count)
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.7))
    for layer in (None, *DETECTORS[build]):
        cut = cut_(copy.deepcopy(net), make_plan(cost, keep))
        if layer:
            cut.get_submodule(layer).weight.data += 0.01
        assert prove_equivalence(net, cut, cost.graph, keep, X).exact == (layer is None)


def pyramid():
    """A detector of two maps, of which the second is for boxes that no image of this size has."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    maps = Net(
        lambda m, x: {"0": m.fine(m.stem(x)), "1": m.coarse(m.fine(m.stem(x)))},
        stem=conv(32, 3, stride=4),
        fine=conv(32, 32, stride=2),
        coarse=conv(32, 32, stride=2),
    )
    maps.out_channels = 32
    return detection.FasterRCNN(
        maps,
        rpn_anchor_generator=anchors(((16,), (32,))),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_head=TwoMLPHead(32 * 9, 64),
        box_predictor=FastRCNNPredictor(64, 4),
        rpn_post_nms_top_n_test=12,
        **SIZES,
    )


def test_a_map_on_which_no_region_lies_is_cut_along_with_those_on_which_regions_lie():
    net = built(pyramid)
    cost = Anatomy(X).cost_of(net)
    frozen = [group.name for group in cost.graph.groups if group.frozen]
    assert not [name for name in frozen if name.startswith("backbone")]
    scores = np.random.default_rng(0).random(cost.graph.channel_count)
    keep = choose_channels(cost, scores, Budget("keep_macs", 0.5))
    cut = cut_(copy.deepcopy(net), make_plan(cost, keep)).double()
    assert cut.backbone.fine[0].out_channels == cut.backbone.coarse[0].out_channels < 32
    zero_removed_(net.double(), cost.graph, keep)
    boxes = [torch.tensor([[0.0, 0.0, 60.0, 60.0], [0.0, 0.0, 500.0, 500.0]]).double()]  # one of each map
    made = [
        model.roi_heads.box_head(model.roi_heads.box_roi_pool(model.backbone(X.double()), boxes, [(64, 64)]))
        for model in (net, cut)
    ]
    both = [
        model.roi_heads.box_predictor(features)[0] for model, features in zip((net, cut), made, strict=True)
    ]
    assert torch.allclose(*both, rtol=1e-10)
    assert not torch.equal(both[0][0], both[0][1])


@pytest.mark.parametrize("build", DETECTORS, ids=lambda build: build.__name__)
def test_a_detector_that_filters_its_boxes_is_measured_at_its_heads(build):
    net = built(build)
    batches = [list(torch.rand(2, 3, 64, 64)) for _ in range(2)]
    calibration = Calibration(batches, output_projection())
    graph = Anatomy(X).cost_of(net).graph
    felt = measured_at_heads(net, graph, calibration)
    assert felt is not calibration
    assert set(DETECTORS[build]) <= set(last_layers(net, graph))
    moments = collect_moments(net, graph, felt)
    assert {f"{name}.weight" for name in DETECTORS[build]} <= set(moments)
    plan = prune_module(net, X, keep_macs=0.6, calibration=batches, steps=2, imitation_steps=4)
    assert plan.kept_macs <= 0.6
    assert plan.equivalence["exact"]
    assert plan.settings["criterion"] == "reconstruction"


CODERS = {retinanet: "box_coder", fcos: "box_coder", ssd: "box_coder", two_stage: "rpn.box_coder"}


@pytest.mark.parametrize("build", CODERS, ids=lambda build: build.__name__)
def test_boxes_of_heads_overlap_as_those_that_the_library_makes_of_them(build):
    """Whatever the anchors are: what a head says of a box is in the sides of its anchor."""
    from torchvision.ops import generalized_box_iou_loss

    net, other = built(build), built(build)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn_like(weight)
        ours, theirs = (known_heads(one, call)(one, X)[0] for one in (net, other))
    corner = torch.rand(ours.boxes.shape[1], 2, generator=torch.Generator().manual_seed(1)) * 40
    anchors = torch.cat([corner, corner + torch.tensor([12.0, 20.0])], 1)
    coder = reduce(getattr, CODERS[build].split("."), net)
    decode = getattr(coder, "decode_single", coder.decode)
    made = [decode(one.boxes[0], anchors) for one in (ours, theirs)]
    if build is fcos:  # the library clips nothing of what its head made positive
        assert all(bool((one.boxes >= 0).all()) for one in (ours, theirs))
    real = [(box[:, 2:] > box[:, :2]).all(1) for box in made]
    seen = real[0] & real[1]
    assert int(seen.sum()) > 20
    expected = generalized_box_iou_loss(*made)
    apart = missed_overlap(ours.corners[0], theirs.corners[0])
    assert float(expected[seen].mean()) > 0.05, "or nothing would be compared"
    assert torch.allclose(apart[seen], expected[seen], atol=0.05)


@pytest.mark.parametrize("build", DETECTORS, ids=lambda build: build.__name__)
def test_every_head_of_a_detector_is_compared_and_felt(build):
    net = built(build)
    graph = Anatomy(X).cost_of(net).graph
    felt = measured_at_heads(net, graph, Calibration([X], output_projection()))
    assert isinstance(felt.projection, PredictionProjection)
    assert felt.paired
    felt.projection(felt.run(net, X)).backward()
    silent = [name for name in DETECTORS[build] if not net.get_submodule(name).weight.grad.abs().sum()]
    assert not silent
    assert float(outputs_apart(net, net, felt, X).detach()) == pytest.approx(0, abs=2e-7)
    for name in DETECTORS[build]:
        changed = copy.deepcopy(net)
        with torch.no_grad():
            weight = changed.get_submodule(name).weight
            weight += torch.randn_like(weight)
        assert float(outputs_apart(changed, net, felt, X).detach()) > 1e-6, name


@pytest.mark.parametrize("objects", [0, 2])
def test_a_teacher_of_masks_is_at_no_distance_from_itself_and_far_from_another(objects):
    """With masks of what is there, and where nothing is."""
    net = built(mask_rcnn).train()
    net.backbone.eval()  # what a teacher normalises by is its own
    boxes, masks = torch.tensor([[4.0, 4, 40, 40], [20, 8, 60, 30]]), torch.ones(2, 64, 64)
    whole = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks.byte()}
    target = {key: value[:objects] for key, value in whole.items()}

    def distance(student):
        torch.manual_seed(0)
        lesson = HeadTeacher(copy.deepcopy(net), known_heads(net, call)).lesson(student)
        lesson.watch(lambda: run(student))
        return float(lesson.distance(run).detach())

    def run(network):
        return network(list(X), [target])

    other = copy.deepcopy(net)
    with torch.no_grad():
        other.roi_heads.mask_predictor.mask_fcn_logits.bias += 2.0
    assert distance(net) == pytest.approx(0, abs=1e-5)
    assert (distance(other) > 0.01) == bool(objects)


def test_a_detector_inside_ones_own_module_is_known_two_are_not():
    one = Net(lambda m, x: m.detector(x), detector=built(two_stage))
    assert set(known_heads(one, call).layers) == {"detector.rpn.head", "detector.roi_heads.box_predictor"}
    both = nn.ModuleList([built(two_stage), built(retinanet)])
    assert known_heads(both, call) is None
    assert known_heads(built(backbone), call) is None


def test_whatever_detector_a_name_builds_has_known_heads():
    """The class says it; nothing is built."""
    from torchvision.models import get_model_builder, list_models

    known = {name.rpartition(".")[2] for name in plugged_in("heads")}
    makes = {
        name: get_type_hints(get_model_builder(name))["return"] for name in list_models(module=detection)
    }
    unknown = [name for name, kind in makes.items() if not known & {base.__name__ for base in kind.__mro__}]
    assert len(makes) > 8
    assert not unknown


def test_a_projection_that_was_given_and_a_model_that_filters_nothing_are_measured_as_before():
    net = built(retinanet)
    graph = Anatomy(X).cost_of(net).graph
    given = Calibration([X], lambda outputs: outputs[0]["boxes"].sum())
    assert measured_at_heads(net, graph, given) is given
    plain = built(backbone)
    calibration = Calibration([X], output_projection())
    assert measured_at_heads(plain, Anatomy(X).cost_of(plain).graph, calibration) is calibration


def test_a_list_of_images_works_and_a_single_one_is_a_sentence():
    from yolo_prune.errors import ConfigError

    net = built(retinanet)
    plan = prune_module(net, [X[0]], keep_macs=0.7)
    assert plan.equivalence["exact"]
    with pytest.raises(
        ConfigError,
        match=r"^the model does not run on the example input: ValueError: images is expected .* \[image\] with image of",
    ):
        prune_module(net, X[0], keep_macs=0.7)


STOCK = (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16"),
    *("ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_a_stock_detector_is_cut_within_its_budget(name):
    torch.manual_seed(0)
    options = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    if "rcnn" in name:
        options |= {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5}
    net = getattr(detection, name)(weights=None, weights_backbone=None, **options).eval()
    side = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 96)
    plan = prune_module(net, torch.rand(1, 3, side, side), keep_macs=0.6)
    assert 0.57 < plan.kept_macs <= 0.6
    assert plan.equivalence["exact"]
    assert plan.equivalence["compared"] > 4
