"""Numbers that the host keeps as weights and never trains are known, and imitation leaves them alone."""

import copy

import pytest
import torch
from test_closeness import disturb_, measured
from test_saliency import build, images

from yolo_prune.graph.plugged import known_of
from yolo_prune.recover.imitate import imitate_

CONFIGS = [
    *("yolov5n.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"),
    *("yolov8n-seg.yaml", "yolov8n-pose.yaml", "yolov8n-obb.yaml", "yolov8n-cls.yaml"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_weight_that_the_host_builds_without_a_gradient_is_known(config):
    module = build(config)
    known = {
        id(part.get_parameter(name))
        for part in module.modules()
        for name in known_of("constants", type(part)) or ()
    }
    assert {id(weight) for weight in module.parameters() if not weight.requires_grad} <= known


@pytest.mark.parametrize("wanted", [True, False])
def test_imitation_leaves_the_numbers_that_boxes_are_read_by(wanted):
    teacher = build("yolov8n.yaml")
    student = copy.deepcopy(teacher).requires_grad_(wanted)
    disturb_(student.model[-1].cv2)
    assert imitate_(student, teacher, measured(teacher, images(8)), steps=6).steps
    read_by = student.get_parameter("model.22.dfl.conv.weight")
    assert torch.equal(read_by.flatten(), torch.arange(16.0))
    assert read_by.requires_grad is wanted
