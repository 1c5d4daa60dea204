"""Where accuracy falls off, found with few evaluations: every fall that stays is seen, in as few as it takes."""

import itertools
import random

import pytest

from yolo_prune.recover.cliff import STEEP, first_cliff, is_cliff, score_around_cliffs


def searched(scores):
    """Return the scores that are asked for, by place."""
    found = score_around_cliffs(list(range(len(scores))), lambda index: scores[index])
    assert all(value in (None, scores[index]) for index, value in enumerate(found))
    return {index: value for index, value in enumerate(found) if value is not None}


def test_a_gentle_slope_takes_two_scores():
    assert list(searched([0.60, 0.59, 0.58, 0.56, 0.55, 0.52, 0.50, 0.48])) == [0, 7]


def test_one_model_and_none_are_scored_and_not():
    assert searched([0.6]) == {0: 0.6}
    assert searched([]) == {}


def test_a_cliff_is_found_by_halves_and_not_step_by_step():
    scores = [0.6] * 9 + [0.2] * 3
    found = searched(scores)
    assert len(found) <= 6
    assert first_cliff(sorted((-index, value) for index, value in found.items())[::-1]) == (
        (-8, 0.6),
        (-9, 0.2),
    )


@pytest.mark.parametrize("seed", range(20))
def test_where_scores_only_fall_the_cliff_is_that_of_all_scores(seed):
    numbers = random.Random(seed)
    scores = sorted((numbers.random() ** 2 for _ in range(12)), reverse=True)
    every = [(float(-index), score) for index, score in enumerate(scores)]
    few = [every[index] for index in sorted(searched(scores))]
    assert first_cliff(few) == first_cliff(every)


def test_the_random_falls_hold_cliffs_and_slopes():
    """The control of the test above: among its curves are some of each."""
    kinds = set()
    for seed in range(20):
        numbers = random.Random(seed)
        scores = sorted((numbers.random() ** 2 for _ in range(12)), reverse=True)
        kinds.add(any(is_cliff(a, b, scores[0]) for a, b in itertools.pairwise(scores)))
    assert kinds == {True, False}


def test_a_fall_counts_beside_the_best_score_and_nothing_is_steep_beside_zero():
    assert is_cliff(0.8, 0.8 - 1.01 * STEEP, 1.0)
    assert not is_cliff(0.8, 0.8 - 0.99 * STEEP, 1.0)
    assert not is_cliff(0.0, -1.0, 0.0)
    assert first_cliff([]) is None
