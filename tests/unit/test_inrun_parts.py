"""Pruning inside a training, the parts that need no host: schedule, lambda, scales, options."""

import json

import pytest
import torch

from yolo_prune.cut.budget import BUDGETS, TARGETS, Budget
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.options.inrun import InRunSettings, make_settings
from yolo_prune.train import (
    CutRecord,
    RunState,
    ScaleWatch,
    StrengthSearch,
    check_schedule,
    cut_budget,
    cut_is_due,
    cut_shares,
    draw_scales,
    first_strength,
    is_separated,
    most_strength,
)
from yolo_prune.train.sparsify import ScaleSummary

KINDS = ", ".join((*BUDGETS, *TARGETS))


@pytest.mark.parametrize(
    ("prune_at", "cuts", "epochs", "expected"),
    [
        (0.4, 1, 30, [12]),
        (5, 1, 30, [5]),
        ("auto", 1, 10, [6]),
        (0.4, 3, 100, [40, 55, 70]),
        (0, 1, 3, [0]),
        ("late", 1, 60, [42]),
        ("late", 3, 100, [40, 55, 70]),
        ("late", 1, 1, [0]),
        ("late", 1, 2, [1]),
    ],
)
def test_the_epochs_of_the_cuts(prune_at, cuts, epochs, expected):
    assert check_schedule(prune_at, cuts, epochs) == expected
    due = [
        next(e for e in range(epochs) if cut_is_due(prune_at, cuts, done, e, epochs)) for done in range(cuts)
    ]
    assert due == expected
    assert not cut_is_due(prune_at, cuts, cuts, epochs - 1, epochs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (30, 1, 30),
            "prune_at=30 leaves no epoch after the cut: the run has 30. Cut earlier or train longer.",
        ),
        (
            (0.4, 3, 4),
            "cuts=3 do not fit between the first cut (after epoch 2) and the end of 4 epochs. Use fewer cuts, "
            "cut earlier or train longer.",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        check_schedule(*arguments)
    assert str(caught.value) == message


def test_a_run_limited_by_time_is_cut_by_time():
    assert cut_shares(0.4, 1, 100) == [0.4]
    assert not cut_is_due(0.4, 1, 0, 99, 100, elapsed=0.39)
    assert cut_is_due(0.4, 1, 0, 1, 100, elapsed=0.4)


def test_auto_cuts_when_the_scales_have_separated_but_not_before_a_fifth():
    assert not cut_is_due("auto", 1, 0, 1, 10, separated=True)
    assert cut_is_due("auto", 1, 0, 2, 10, separated=True)
    assert not cut_is_due("auto", 1, 0, 5, 10, separated=False)
    assert not cut_is_due(0.6, 1, 0, 5, 10, separated=True)


@pytest.mark.parametrize(
    ("budget", "number", "expected"),
    [
        (Budget("keep_macs", 0.5), 2, Budget("gmacs", 1.0)),
        (Budget("keep_macs", 0.5), 1, Budget("gmacs", 1.5)),
        (Budget("gmacs", 1.0), 1, Budget("gmacs", 1.5)),
        (Budget("keep_params", 0.5), 1, Budget("params", 750.0)),
        (Budget("target_speedup", 2.0), 1, Budget("latency_ms", 30.0)),
        (Budget("target_fps", 50.0), 2, Budget("latency_ms", 20.0)),
    ],
)
def test_budgets_of_two_rounds(budget, number, expected):
    whole = {"macs": 2e9, "params": 1000.0, "latency": 40.0}[budget.gradient]
    assert cut_budget(budget, whole, number, 2) == expected


def search(**changes):
    return StrengthSearch(**{"strength": 1.0, "limit": 0.02, "wanted": 0.4, **changes})


def test_the_search_finds_the_strength_that_costs_as_much_as_is_allowed():
    """A fake training in which scales follow lambda and accuracy breaks above lambda 5."""
    found, below, fitness = search(), 0.0, 0.5
    for epoch in range(20):
        below = min(below + 0.004 * found.strength, 1.0)
        fitness = 0.5 if found.strength < 5 else 0.4
        found.update(fitness, below, (epoch + 1) / 20)
    assert 1.0 < found.strength < 8.0
    assert below > 0.2


def test_the_search_lets_go_when_accuracy_falls_and_says_why():
    found = search(best=0.5)
    assert found.update(0.45, 0.0, 0.5) == "lambda 1 -> 0.25: the fitness fell by 0.050, more than 0.02"
    assert found.update(0.5, 0.1, 0.5) == ""  # it rests
    raised = "lambda 0.25 -> 0.375: 10.0 % of the scales are near zero, 20.0 % are due"
    assert found.update(0.5, 0.1, 0.5) == raised
    assert found.update(0.485, 0.1, 0.5) == ""  # near the limit
    assert found.update(0.5, 0.3, 0.5) == ""  # enough are near zero


@pytest.mark.parametrize(("fitness", "below", "end"), [(0.0, 0.0, 1 / 64), (0.9, 0.0, 64.0)])
def test_the_search_stays_within_bounds(fitness, below, end):
    found = search(best=0.9)
    for _ in range(40):
        found.update(fitness, below, 1.0)
    assert found.strength == end


@pytest.mark.parametrize("fitness", [None, float("nan")])
def test_an_unknown_fitness_is_no_fall(fitness):
    found = search(best=0.5)
    found.update(fitness, 0.4, 1.0)
    assert (found.strength, found.best) == (1.0, 0.5)


def test_the_first_strength_shrinks_the_median_by_a_quarter_but_gently():
    assert first_strength(median=0.8, reach=0.1, epochs=100) == pytest.approx(2.0)
    assert first_strength(median=0.8, reach=0.1, epochs=10) == pytest.approx(0.4)
    assert first_strength(median=0.8, reach=0.0, epochs=10) == 0.0


def test_the_largest_strength_shrinks_the_median_by_a_fiftieth_in_an_epoch():
    assert most_strength(0.8, 0.1, 10, normalised=False) == pytest.approx(1.6)
    assert most_strength(0.8, 0.1, 10, normalised=True) == 0.5
    assert search(most=2.0, strength=1.9).update(0.5, 0.0, 1.0).startswith("lambda 1.9 -> 2:")
    assert search(most=2.0, strength=3.0).update(0.5, 0.0, 1.0) == ""  # given by the user, or from before


def watch(mean: float, below: float = 0.0, epochs: int = 2) -> ScaleWatch:
    return ScaleWatch(ScaleSummary(100, 0.0, below, mean, mean), 1.0, 0.01, epochs)


def test_scales_that_do_not_move_are_named_in_the_second_sparse_epoch_only():
    text = watch(0.999).complaint()
    assert text.startswith(
        "the scales do not move: their mean changed by -0.1 % in two sparse epochs at lambda 0.01."
    )
    assert [
        watch(0.999, epochs=1).complaint(),
        watch(0.95).complaint(),
        watch(0.999, below=0.1).complaint(),
    ] == [""] * 3


def test_the_line_of_an_epoch():
    assert watch(0.95, below=0.25).line() == (
        "scales: 25.0 % of 100 below 0.01 (0.0 % zero), median 0.950, mean -5.0 % since the start, lambda 0.01"
    )


def test_scales_are_separated_when_nearly_as_many_are_near_zero_as_shall_go():
    scales = {"a": torch.tensor([0.0, 0.001, 1.0, 1.0])}
    assert is_separated(scales, 0.6)
    assert not is_separated(scales, 0.7)
    assert not is_separated({}, 0.1)


def test_the_picture_of_the_scales(tmp_path):
    path = draw_scales(tmp_path / "s.png", {"a": torch.rand(8)}, {"a": torch.rand(8) / 2})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_survives_json():
    state = RunState(
        gmacs=1.5, params=100, cuts=[CutRecord(3, "l1", 0.7, 50, 0.4)], plan="{}", sparse_steps=7
    )
    assert RunState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert (state.current_params, state.current_gmacs) == (50, 0.7)
    with pytest.raises(CheckpointError, match=r"^the run was saved by another version of yolo_prune"):
        RunState.from_dict({"cuts": [], "future": 1})


@pytest.mark.parametrize(
    ("given", "strength"),
    [("auto", None), ("off", 0.0), (True, None), (False, 0.0), ("0.01", 0.01), (1, 1.0)],
)
def test_what_sparsify_means(given, strength):
    assert make_settings({"keep_macs": 0.5, "sparsify": given, "prune_at": "late"}).strength == strength


@pytest.mark.parametrize(
    ("options", "moment", "strength"),
    [
        ({}, "end", 0.0),
        ({"criterion": "l1"}, "end", 0.0),
        ({"sparsify": "off"}, "end", 0.0),
        ({"criterion": "bn_scale"}, "late", None),
        ({"sparsify": 0.01}, "late", 0.01),
        ({"sparsify": True}, "late", None),
        ({"cuts": 2}, "late", None),
        ({"prune_at": 0.5, "criterion": "bn_scale"}, 0.5, None),
        ({"prune_at": "end", "criterion": "bn_scale"}, "end", None),
        ({"prune_at": "end", "sparsify": 0.01}, "end", 0.01),
    ],
)
def test_it_is_cut_at_the_end_unless_scales_or_several_cuts_want_epochs_behind_them(
    options, moment, strength
):
    settings = make_settings({"keep_macs": 0.5, **options})
    assert (settings.moment, settings.strength) == (moment, strength)
    assert settings.steps_of_imitation == (240 if moment == "end" else 0)
    assert settings.learns_from_parent == (moment != "end")


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, ()),
        ({"distill": False, "exact_resume": False, "max_drop": 0.1}, ("distill", "exact_resume", "max_drop")),
        ({"distill": False, "prune_at": "late"}, ()),
        ({"max_drop": 0.1, "prune_at": "late"}, ()),
        ({"max_drop": 0.1, "sparsify": 0.01}, ("max_drop",)),
    ],
)
def test_it_is_known_which_options_change_nothing(options, idle):
    settings = make_settings({"keep_macs": 0.5, **options})
    assert settings.without_effect == tuple(f"{name}={str(options[name]).lower()}" for name in idle)


def test_several_cuts_are_not_at_the_end():
    with pytest.raises(ConfigError, match=r"prune_at=end is one cut, after the last epoch, and cuts=3"):
        make_settings({"keep_macs": 0.5, "prune_at": "end", "cuts": 3})
    assert check_schedule("end", 1, 7) == [7]
    assert not any(cut_is_due("end", 1, 0, epoch, 7) for epoch in range(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, f"give exactly one budget of {KINDS}; got none."),
        (
            {"keep_macs": 0.5, "gmacs": 1},
            f"give exactly one budget of {KINDS}; got keep_macs and gmacs.",
        ),
        ({"keep_mac": 0.5}, "unknown key 'keep_mac'. Did you mean 'keep_macs'?"),
        ({"keep_macs": 0.5, "sparsify": "maybe"}, "sparsify must be auto, off or a number, got 'maybe'."),
        ({"keep_macs": 0.5, "sparsify": -1}, "sparsify must be at least 0, got -1."),
        (
            {"keep_macs": 0.5, "prune_at": "soon"},
            "prune_at must be a share below 1, a number of epochs, end, late or auto, got 'soon'.",
        ),
        ({"keep_macs": 0.5, "prune_at": -0.1}, "prune_at must be at least 0, got -0.1."),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        make_settings(options)
    assert str(caught.value) == message


def test_settings_are_plain_values_that_make_the_same_settings():
    settings = InRunSettings(keep_params=0.5, keep_layers=("model.0",), sparsify=0.1)
    assert make_settings(json.loads(json.dumps(settings.to_dict()))) == settings
