"""The parent's lower resolutions against the closed form: MACs grow with the pixels."""

import re

import pytest

from yolo_prune.bench import lower_resolutions
from yolo_prune.errors import BudgetError


@pytest.mark.parametrize(
    ("imgsz", "keep", "expected"),
    [
        (640, 0.5, [448, 480]),
        (640, 0.25, [320]),
        (320, 0.5, [224, 256]),
        (320, 0.9, [288]),
        (320, 0.81, [288]),
        (320, 0.003, [32]),
        (416, 0.7, [320, 352]),
        (640, 1 - 1e-12, [608]),
        (64, 0.5, [32]),
    ],
)
def test_the_resolutions_enclose_the_target(imgsz, keep, expected):
    found = lower_resolutions(8.0, imgsz, 8.0 * keep, 32)
    assert [resolution.imgsz for resolution in found] == expected
    for resolution in found:
        assert resolution.macs_fraction == pytest.approx((resolution.imgsz / imgsz) ** 2)
        assert resolution.macs == pytest.approx(8.0 * resolution.macs_fraction)


@pytest.mark.parametrize("keep", [0.1, 0.33, 0.5, 0.62, 0.77])
def test_two_resolutions_are_neighbours_one_on_each_side_of_the_target(keep):
    below, above = lower_resolutions(1.0, 1280, keep, 32)
    assert below.macs <= keep < above.macs
    assert above.imgsz - below.imgsz == 32


@pytest.mark.parametrize("target", [0.0, 4.0, 5.0])
def test_a_target_that_is_no_reduction_is_refused(target):
    sentence = f"a control at lower resolution needs fewer MACs than the parent's 4, got {target:g}."
    with pytest.raises(BudgetError, match=re.escape(sentence)):
        lower_resolutions(4.0, 320, target, 32)


def test_a_parent_at_the_smallest_resolution_has_no_lower_one():
    with pytest.raises(BudgetError, match="no input resolution below 32 px is a multiple of the stride 32"):
        lower_resolutions(4.0, 32, 2.0, 32)
