"""Boxes beside scores are known by their numbers, and then count by their overlap as well."""

import pytest
import torch

from yolo_prune.criteria.corners import corner_reader
from yolo_prune.criteria.distance import output_distance

CORNERS = torch.tensor([[[0.0, 10, 40, 60], [50, 80, 90, 100], [30, 0, 90, 20]]])
CENTRES = torch.cat([(CORNERS[..., :2] + CORNERS[..., 2:]) / 2, CORNERS[..., 2:] - CORNERS[..., :2]], -1)
SURE = torch.tensor([[[0.9], [0.8], [0.7]]])


def outputs(boxes):
    """Four numbers and a score at every location, most of them background, shape (1, 5, 10)."""
    found = torch.cat([boxes, SURE], -1).transpose(1, 2)
    return torch.cat([found, torch.zeros(1, 5, 7)], -1)


@pytest.mark.parametrize("numbers", [CORNERS, CENTRES])
def test_corners_and_centres_with_sizes_are_told_apart(numbers):
    assert torch.allclose(corner_reader(numbers, SURE)(numbers), CORNERS)


def test_what_no_score_stands_for_says_nothing():
    zeros = torch.zeros(1, 4, 4)
    numbers, best = torch.cat([CORNERS, zeros], 1), torch.cat([SURE, torch.full((1, 4, 1), 0.01)], 1)
    assert torch.equal(corner_reader(numbers, best)(numbers), numbers)


@pytest.mark.parametrize("numbers", [CORNERS, CENTRES])
def test_one_box_in_many_may_be_another(numbers):
    """It reaches far over the border, or is turned inside out."""
    many, odd = numbers.repeat(1, 10, 1), torch.tensor([[[5.0, 5, -90, 90]]])
    best = torch.ones(1, 31, 1)
    read = corner_reader(torch.cat([many, odd], 1), best)
    assert torch.allclose(read(numbers), CORNERS)


@pytest.mark.parametrize(
    "numbers",
    [
        torch.tensor([[[50.0, 50, 90, 90]]]),  # a large object, or a small one on the right
        torch.tensor([[[5.0, 30, 40, 8]]]),  # sides from a point: neither
        torch.tensor([[[0.3, -0.2, -0.5, 0.1]]]),  # offsets of an anchor
        torch.zeros(1, 1, 4),
        torch.zeros(1, 1, 5),
        torch.zeros(1, 0, 4),
    ],
)
def test_what_may_be_either_or_neither_is_not_known(numbers):
    assert corner_reader(numbers, torch.ones(*numbers.shape[:2], 1)) is None


@pytest.mark.parametrize("numbers", [CORNERS, CENTRES])
def test_what_is_missed_of_the_overlap_counts_whatever_says_where_a_box_is(numbers):
    shift = torch.tensor([8.0, 0, 0, 0]) if numbers is CENTRES else torch.tensor([8.0, 0, 8, 0])
    ours = outputs(numbers + shift).requires_grad_()
    moved = output_distance(ours, outputs(numbers))
    assert output_distance(outputs(numbers), outputs(numbers)) == pytest.approx(0, abs=1e-3)
    widths = torch.tensor([40.0, 40, 60])
    missed = 1 - (widths - 8) / (widths + 8)
    mean = float((SURE[0, :, 0] * missed).sum() / SURE.sum())
    moved.backward()
    assert ours.grad.isfinite().all()
    assert moved.item() == pytest.approx(4 * mean + float(smooth(shift, numbers)), rel=0.05)


def smooth(shift, numbers):
    """The mean smooth L1 distance in spreads, by the scores."""
    weights = SURE / SURE.sum()
    mean = (weights * numbers).sum(1, keepdim=True)
    spread = (weights * (numbers - mean).square()).sum(1).sqrt()
    each = (shift / spread).abs()
    return torch.where(each < 0.1, each.square() / 0.2, each - 0.05).sum()
