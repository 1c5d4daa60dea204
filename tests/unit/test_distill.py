"""Distances to the teacher: zero when equal, right when worked out by hand, and small steps on them help."""

import math

import pytest
import torch

from yolo_prune.train.distill import (
    anchor_weights,
    box_loss,
    class_loss,
    score_loss,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_equal_outputs_are_at_distance_zero():
    scores, boxes = torch.randn(2, 3, 5), torch.randn(2, 64, 5)
    assert score_loss(scores, scores).item() == pytest.approx(0, abs=1e-5)
    assert box_loss(boxes, boxes, anchor_weights(scores)).item() == pytest.approx(0, abs=1e-6)
    assert class_loss(scores[..., 0], scores[..., 0]).item() == pytest.approx(0, abs=1e-6)


def test_the_score_distance_of_one_anchor_worked_out_by_hand():
    probability = 1 / (1 + math.exp(-2.0))
    divergence = probability * math.log(probability / 0.5) + (1 - probability) * math.log(
        (1 - probability) / 0.5
    )
    loss = score_loss(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0))
    assert loss.item() == pytest.approx(divergence, rel=1e-5)  # the sum of weights is below 1: divided by 1


def test_the_box_distance_of_one_side_worked_out_by_hand():
    student, teacher = torch.zeros(1, 8, 1), torch.zeros(1, 8, 1)  # two bins a side
    teacher[0, 1] = math.log(3)  # the first side: 1/4 and 3/4
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert box_loss(student, teacher, torch.ones(1, 1)).item() == pytest.approx(divergence / 4, rel=1e-5)


def test_plain_distances_use_smooth_l1():
    student, teacher = torch.zeros(1, 4, 1), torch.tensor([0.5, 0.0, 3.0, 0.0]).view(1, 4, 1)
    assert box_loss(student, teacher, torch.ones(1, 1)).item() == pytest.approx((0.125 + 2.5) / 4)


def test_anchors_without_objects_do_not_pull_at_the_boxes():
    student, teacher = torch.randn(1, 64, 2), torch.randn(1, 64, 2)
    teacher[..., 0] = student[..., 0]
    only_background_differs = torch.tensor([[1.0, 0.0]])
    assert box_loss(student, teacher, only_background_differs).item() == pytest.approx(0, abs=1e-6)
    assert box_loss(student, teacher, only_background_differs.flip(1)).item() > 0.1


def test_no_object_anywhere_is_no_division_by_zero():
    scores = torch.full((1, 3, 4), -100.0)
    assert torch.isfinite(score_loss(scores, scores))
    assert box_loss(torch.randn(1, 64, 4), torch.randn(1, 64, 4), torch.zeros(1, 4)).item() == 0


@pytest.mark.parametrize("loss", [score_loss, lambda s, t: box_loss(s, t, anchor_weights(t[:, :1]))])
def test_gradients_reach_the_student_alone_and_point_the_right_way(loss):
    student, teacher = torch.randn(2, 64, 5, requires_grad=True), torch.randn(2, 64, 5, requires_grad=True)
    before = loss(student, teacher)
    before.backward()
    assert teacher.grad is None
    assert loss((student - 0.01 * student.grad).detach(), teacher) < before


def test_half_precision_outputs_give_a_float32_loss():
    scores, boxes = torch.randn(1, 3, 4).half(), torch.randn(1, 64, 4).half()
    assert score_loss(scores, scores.flip(2)).dtype == torch.float32
    assert box_loss(boxes, boxes.flip(2), anchor_weights(scores)).dtype == torch.float32
