"""A large model on a CPU is measured on less, a GPU and a user's word are not bent."""

import pytest

from yolo_prune.recover.effort import Effort, effort_for, images_for


@pytest.mark.parametrize(
    ("gmacs", "images", "steps"),
    [(0.95, 96, 12), (8.6, 96, 12), (11, 96, 6), (34, 48, 6), (54, 48, 2), (97, 48, 2)],
)
def test_a_cpu_does_less_the_larger_the_model(gmacs, images, steps):
    assert effort_for(gmacs * 1e9, "cpu")[:2] == (images, steps)


def test_it_is_said_when_it_is_less():
    assert not effort_for(1e9, "cpu").reduced
    assert effort_for(50e9, "cpu").reduced
    assert effort_for(1e15, "cpu") == Effort(12, 1, reduced=True), "there is a least"


def test_a_gpu_takes_all():
    assert effort_for(1e15, "cuda:0") == Effort(96, 12)


def test_what_a_user_says_stays_and_the_rest_gives_way():
    assert effort_for(97e9, "cpu", images=96, steps=12) == Effort(96, 12)
    assert effort_for(97e9, "cpu", steps=2) == Effort(48, 2, reduced=True)
    assert effort_for(97e9, "cpu", images=24) == Effort(24, 4, reduced=True)
    assert effort_for(1e9, "cpu", images=8) == Effort(8, 12)


def test_a_classifier_is_measured_on_more_images_where_they_are_cheap():
    assert effort_for(1e8, "cpu", classifier=True) == Effort(512, 12, False)
    assert effort_for(3e9, "cpu", classifier=True) == Effort(96, 12, True)
    assert effort_for(1e11, "cuda", classifier=True) == Effort(512, 12, False)
    assert effort_for(1e8, "cpu", classifier=True, images=40) == Effort(40, 12, False)
    assert (images_for(None), images_for(None, classifier=True), images_for(7, classifier=True)) == (
        96,
        512,
        7,
    )
