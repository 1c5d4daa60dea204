"""What heads say at many locations: what a task feels of it, and how far two networks are apart, worked out by hand."""

import math

import pytest
import torch

from yolo_prune.criteria.predictions import (
    PredictionProjection,
    Predictions,
    missed_overlap,
    prediction_distance,
)


def boxes(*corners):
    return torch.tensor(corners)


def test_half_a_box_is_missed():
    assert float(missed_overlap(boxes([0.0, 0, 1, 2]), boxes([0.0, 0, 2, 2]))) == pytest.approx(0.5, abs=0.02)


def test_a_box_far_away_is_missed_by_more_than_all_of_it():
    """Of a box 3 wide around both, 2 are theirs: 1 + 1/3."""
    missed = missed_overlap(boxes([0.0, 0, 1, 1]), boxes([2.0, 0, 3, 1]))
    assert float(missed) == pytest.approx(4 / 3, abs=0.02)


def test_the_unit_of_an_axis_is_of_no_account():
    ours, theirs = torch.rand(2, 50, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.cat([-c[:, :2], c[:, 2:]], 1) for c in (ours, theirs))
    unit = torch.tensor([3.0, 5, 3, 5])
    assert torch.allclose(missed_overlap(ours * unit, theirs * unit), missed_overlap(ours, theirs), atol=1e-4)


@pytest.mark.parametrize("corners", [[0.0, 0, 0, 0], [1.0, 2, 1, 4], [-1.0, -1, 1, 1]])
def test_nothing_is_missed_of_the_same_box_though_it_has_no_area(corners):
    assert float(missed_overlap(boxes(corners), boxes(corners))) == pytest.approx(0, abs=1e-3)


def test_a_box_is_drawn_to_its_teachers():
    ours = boxes([0.0, 0, 1, 1]).requires_grad_()
    missed_overlap(ours, boxes([0.0, 0, 2, 1])).sum().backward()
    assert float(ours.grad[0, 2]) < -0.4


def test_corners_count_four_times_what_is_missed_of_them_by_the_teachers_score():
    scores = torch.tensor([[[0.8], [0.2]]])
    known = boxes([0.0, 0, 2, 2], [0.0, 0, 2, 2])[None]
    half = boxes([0.0, 0, 2, 2], [0.0, 0, 1, 2])[None]
    numbers = torch.zeros(1, 2, 4)
    apart = prediction_distance([Predictions(scores, numbers, half)], [Predictions(scores, numbers, known)])
    assert float(apart) == pytest.approx(4 * 0.2 * 0.5, rel=0.04)
    unknown = prediction_distance([Predictions(scores, numbers)], [Predictions(scores, numbers, known)])
    assert float(unknown) == 0


def test_the_overlap_may_count_otherwise_or_not_at_all():
    ours, theirs = (Predictions(torch.full((1, 1, 1), 0.5), torch.zeros(1, 1, 4), c[None]) for c in HALF)
    counted = [float(prediction_distance([ours], [theirs], overlap=weight)) for weight in (0.0, 1.0, 2.0)]
    assert counted == pytest.approx([0, 0.5, 1.0], rel=0.04)


HALF = boxes([0.0, 0, 1, 2]), boxes([0.0, 0, 2, 2])


def gradients(*heads):
    """Return the absolute gradients of the projection with respect to scores and what is beside them."""
    leaves = [[None if part is None else part.requires_grad_() for part in head] for head in heads]
    PredictionProjection(0)([Predictions(*head) for head in leaves]).backward()
    return [[None if part is None else part.grad for part in head] for head in leaves]


def test_boxes_are_felt_as_much_as_scores_relative_to_their_sides_where_an_object_is():
    scores = torch.tensor([[[0.5, 0.1], [0.1, 0.3]]])
    corners = boxes([0.0, 0, 2, 4], [0.0, 0, 1, 1])[None]
    felt, numbers, sides = gradients((scores, torch.zeros(1, 2, 4), corners))[0]
    unit = math.sqrt(0.5 + 0.3)
    assert torch.allclose(felt.abs() * unit, torch.ones(1, 2, 2))
    assert numbers is None, "what corners are read from is felt through them"
    expected = torch.tensor([[0.5 / 2, 0.5 / 4, 0.5 / 2, 0.5 / 4], [0.3, 0.3, 0.3, 0.3]])
    assert torch.allclose(sides.abs()[0] * unit, expected)


@pytest.mark.parametrize("unit", [1.0, 300.0])
def test_a_box_that_has_collapsed_does_not_outweigh_all_others(unit):
    corners = boxes(*([0.0, 0, 2, 4] for _ in range(99)), [1.0, 1, 1, 5])[None] * unit
    _, _, sides = gradients((torch.full((1, 100, 1), 0.5), torch.zeros(1, 100, 4), corners))[0]
    usual = float(sides[0, 0, 0].abs())
    assert float(sides[0, 99, 0].abs()) == pytest.approx(usual / 0.05, rel=0.02)
    assert float(sides[0, 99, 1].abs()) == pytest.approx(float(sides[0, 0, 1].abs()))


def test_numbers_of_an_unknown_kind_are_felt_relative_to_their_spread():
    numbers = torch.tensor([[[0.0], [6.0]]])
    _, felt, _ = gradients((torch.full((1, 2, 1), 0.5), numbers, None))[0]
    assert torch.allclose(felt.abs(), torch.full((1, 2, 1), 0.5 / 3))


def test_a_head_of_many_locations_is_felt_as_much_as_one_of_few():
    few, many = gradients(*((torch.full((1, n, 1), 0.5), torch.zeros(1, n, 0), None) for n in (4, 400)))
    assert float(few[0].square().sum()) == pytest.approx(float(many[0].square().sum()), rel=1e-4)
