"""How far two models of the host are apart: nothing for a copy, more for every kind of output that differs."""

import copy

import pytest
import torch
from test_saliency import CLASSES, build, images
from ultralytics.nn import tasks

from yolo_prune.adapters.ultralytics.closeness import PredictionDistance, calibration_of
from yolo_prune.recover.imitate import imitate_

PARTS = {
    "yolov8n.yaml": ("cv2", "cv3"),
    "yolov8n-seg.yaml": ("cv2", "cv3", "cv4", "proto"),
    "yolov8n-pose.yaml": ("cv2", "cv3", "cv4"),
    "yolov8n-obb.yaml": ("cv2", "cv3", "cv4"),
}


def measured(module, batch, seed=0):
    return calibration_of(module, [batch], imgsz=64, classes=CLASSES, seed=seed)


def apart(student, teacher):
    calibration = measured(teacher, images(2))
    with torch.no_grad():
        return float(
            calibration.distance(student.eval()(calibration.batches[0]), teacher(calibration.batches[0]))
        )


def disturb_(module):
    torch.manual_seed(1)
    for weight in module.parameters():
        weight.data += 0.1 * torch.randn_like(weight) + 0.1 * weight.abs().mean() * torch.randn_like(weight)
    return module


@pytest.mark.parametrize("config", [*PARTS, "yolo26n-seg.yaml", "yolov8n-cls.yaml"])
def test_a_copy_is_no_distance_away_and_a_disturbed_one_is(config):
    teacher = build(config)
    student = copy.deepcopy(teacher)
    assert apart(student, teacher) < 1e-5
    disturb_(student)
    assert apart(student, teacher) > 1e-4


@pytest.mark.parametrize("config", PARTS)
def test_every_part_of_a_head_counts(config):
    teacher = build(config)
    for scores in teacher.model[-1].cv3:
        scores[-1].bias.data.zero_()  # sure enough of objects for what is seen of them to count
    for part in PARTS[config]:
        student = copy.deepcopy(teacher)
        disturb_(getattr(student.model[-1], part))
        assert apart(student, teacher) > 1e-9, part


@pytest.mark.parametrize("config", [*PARTS, "yolo26n-seg.yaml", "yolov8n-cls.yaml"])
def test_imitation_brings_a_disturbed_model_closer(config):
    teacher = build(config)
    student = copy.deepcopy(teacher)
    disturb_(student.model[-1])
    result = imitate_(student, teacher, measured(teacher, images(8)), steps=6)
    assert result.steps
    assert result.after < 0.8 * result.before


@pytest.mark.slow
def test_queries_of_a_decoder_are_compared_where_both_look_at_the_same_locations():
    torch.manual_seed(0)
    teacher = tasks.RTDETRDetectionModel("rtdetr-l.yaml", nc=CLASSES, verbose=False).eval()
    student = copy.deepcopy(teacher)
    disturb_(student.model[1])
    batch = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    calibration = calibration_of(teacher, [batch], imgsz=160, classes=CLASSES, seed=0)
    assert calibration.paired
    assert imitate_(copy.deepcopy(teacher), teacher, calibration, steps=1).before < 1e-6
    result = imitate_(student, teacher, calibration, steps=3)
    assert result.before > 1e-4
    assert result.after <= result.before


def outputs(move=0.0, side=16.0):
    """Of one image and one location: a certain object, and its box as the head decodes it."""
    raw = {"scores": torch.tensor([[[9.0], [-9.0], [-9.0]]]), "boxes": torch.zeros(1, 64, 1), "feats": []}
    box = torch.tensor([[[30.0 + move], [30.0], [side], [side]]])
    return torch.cat([box, raw["scores"].sigmoid()], 1), raw


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_boxes_count_by_their_overlap(weight):
    distance = PredictionDistance(64, CLASSES, overlap=weight)
    assert float(distance(outputs(), outputs())) == pytest.approx(0.0, abs=1e-6)
    assert float(distance(outputs(side=0), outputs(side=0))) == pytest.approx(0.0, abs=1e-3), (
        "without an area"
    )
    found = float(distance(outputs(move=4.0), outputs()))
    assert found == pytest.approx(weight * (1 - 12 / 20), rel=0.02), "12 of the 20 columns that they cover"
    apart = float(distance(outputs(move=32.0), outputs()))
    assert apart == pytest.approx(weight * (1 + 16 / 48), rel=0.02), "a hull of 48 columns, 16 of them empty"


def test_sides_of_a_second_branch_overlap_as_boxes_do():
    box = {"boxes": torch.tensor([[[1.0], [1.0], [1.0], [1.0]]]), "scores": torch.full((1, CLASSES, 1), 9.0)}
    moved = {**box, "boxes": torch.tensor([[[0.5], [1.0], [1.5], [1.0]]])}
    theirs, ours = (
        (torch.zeros(1, 1, 6), {name: {**one, "feats": []} for name in ("one2many", "one2one")})
        for one in (box, moved)
    )
    with_it, without = (
        PredictionDistance(64, CLASSES, overlap=weight)(ours, theirs) for weight in (1.0, 0.0)
    )
    assert float(with_it - without) == pytest.approx(1 - 1.5 / 2.5, rel=0.02)
