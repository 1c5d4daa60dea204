"""How far two models of the host are apart: nothing for a copy, more for every kind of output that differs."""

import copy

import pytest
import torch
from test_saliency import CLASSES, build, images
from ultralytics.nn import tasks

from yolo_prune.adapters.ultralytics.closeness import calibration_of
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


@pytest.mark.parametrize("config", ["yolov8n-cls.yaml"])
def test_imitation_brings_a_disturbed_model_closer(config):
    teacher = build(config)
    student = copy.deepcopy(teacher)
    disturb_(student.model[-1])
    result = imitate_(student, teacher, measured(teacher, images(8)), steps=6)
    assert result.steps
    assert result.after < result.before


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
