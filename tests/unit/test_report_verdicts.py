"""The sentences: won, lost, draw, no speed gained; each from the numbers and their intervals alone."""

import numpy as np
import pytest

from yolo_prune.report import RunReport
from yolo_prune.report.verdicts import verdicts


def resamples(own: float, **accuracies: float) -> list[dict]:
    """Resamples of models: what an easy or hard draw does to all of them (0.02), and what is each one's own."""
    random = np.random.default_rng(0)
    shared = random.normal(0, 0.02, 500)
    found = []
    for model, accuracy in accuracies.items():
        values = accuracy + shared + random.normal(0, own, 500)
        size = 224 if model == "control" else 320
        text = " ".join(f"{value:.6f}" for value in values)
        found.append({"model": model, "imgsz": size, "values": text})
    return found


def sentences(pruned: dict, control: dict | None = None, **more) -> list[str]:
    parent = {"model": "parent", "gmacs": 1.0, "ap": 0.6, "fps": 50.0, "imgsz": 320, "runtime": "ort"}
    rows = [parent, {**parent, "gmacs": 0.5, "model": "pruned", **pruned}]
    if control is not None:
        rows.append({**parent, "gmacs": 0.5, "imgsz": 224, "model": "control", **control})
    return [one.text for one in verdicts(RunReport.from_dict({"rows": rows, **more}))]


@pytest.mark.parametrize(
    ("pruned", "control", "expected"),
    [
        (
            {"ap": 0.54},
            {"ap": 0.51},
            "The parent at 224 px reaches the same MACs with AP 0.510: pruning won by 0.030 (no interval).",
        ),
        (
            {"ap": 0.48},
            {"ap": 0.51},
            "The parent at 224 px reaches the same MACs with AP 0.510: pruning lost by 0.030 (no interval).",
        ),
        (
            {"ap": 0.515},
            {"ap": 0.51},
            "The parent at 224 px reaches the same MACs with AP 0.510: pruning won by 0.005 (no interval).",
        ),
        (
            {"ap": 0.5},
            {"ap": 0.4, "gmacs": 0.6},
            "The parent at 224 px needs 1.20x the MACs with AP 0.400: pruning won by 0.100 (no interval).",
        ),
        ({"ap": 0.5}, None, "No control was measured: the parent at a lower resolution might do as well."),
        (
            {"ap": 0.5, "fps": 60.0},
            {"ap": 0.58, "fps": 80.0},
            "The parent at 224 px is both more accurate (0.580 against 0.500) and "
            "faster (80 against 60 FPS on ort): prefer it.",
        ),
        (
            {"ap": 0.57, "fps": 60.0},
            {"ap": 0.5, "fps": 70.0},
            "At the speed of the pruned model (60 FPS on ort) the parent at a lower resolution has "
            "AP 0.550 (interpolated): pruning won by 0.020 (no interval).",
        ),
    ],
)
def test_the_control_decides_who_won(pruned: dict, control: dict | None, expected: str):
    assert expected in sentences(pruned, control, conditions={"images": 100})


@pytest.mark.parametrize(
    ("fps", "bounds", "expected"),
    [
        (52.5, None, "MACs fell by 50 % but FPS rose only 1.05x on ort: no speed gained there."),
        (45.0, None, "MACs fell by 50 % but FPS fell to 0.90x on ort: slower than the parent."),
        (75.0, None, "MACs fell by 50 % and FPS rose 1.50x on ort, where MACs alone would promise 2.00x."),
        (
            55.0,
            (0.98, 1.3),
            "MACs fell by 50 % but FPS rose only 1.10x (95 % interval 0.98 to 1.30) on ort: "
            "no speed gained there.",
        ),
        (None, None, "Speed was not measured: fewer MACs alone promise nothing."),
    ],
)
def test_fewer_macs_are_not_called_speed(fps: float | None, bounds: tuple | None, expected: str):
    more = {}
    if bounds and fps:
        more = {"speedups": [{"model": "pruned", "ratio": fps / 50, "low": bounds[0], "high": bounds[1]}]}
    assert expected in sentences({"ap": 0.5, "fps": fps}, **more)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (0.001, "pruning won by 0.010 (95 % interval +0.007 to +0.013)."),
        (0.01, "a draw, the difference is +0.010 (95 % interval -0.018 to +0.036)."),
    ],
)
def test_the_interval_of_the_difference_decides_what_a_draw_is(own: float, expected: str):
    """Not the intervals of the two models: both are 0.08 wide here."""
    drawn = resamples(own, pruned=0.52, control=0.51)
    found = sentences({"ap": 0.52}, {"ap": 0.51}, resamples=drawn)
    assert f"The parent at 224 px reaches the same MACs with AP 0.510: {expected}" in found


def test_a_change_that_the_images_cannot_tell_is_said_to_be_one():
    found = sentences({"ap": 0.595}, resamples=resamples(0.01, parent=0.6, pruned=0.595))
    assert found[0] == (
        "The pruned model reaches AP 0.595 with 50 % of the MACs; the parent has 0.600 "
        "(-0.005, 95 % interval -0.031 to +0.023). These images do not tell the two apart."
    )
    sure = sentences({"ap": 0.55}, resamples=resamples(0.001, parent=0.6, pruned=0.55))
    assert not any("tell the two apart" in text for text in sure)


def test_the_parent_at_equal_speed_has_an_interval_between_those_of_its_neighbours():
    drawn = resamples(0.001, parent=0.6, control=0.5, pruned=0.57)
    fast = {"ap": 0.57, "fps": 60.0}
    found = sentences(fast, {"ap": 0.5, "fps": 70.0}, resamples=drawn)
    start = "At the speed of the pruned model (60 FPS on ort) the parent at a lower resolution has AP 0.550"
    (sentence,) = (text for text in found if text.startswith(start))
    assert sentence.endswith("(interpolated): pruning won by 0.020 (95 % interval +0.018 to +0.022).")


def test_a_rival_is_preferred_only_where_the_images_can_tell():
    slow, rival = {"ap": 0.5, "fps": 60.0}, {"ap": 0.51, "fps": 80.0}
    told = [
        sentences(slow, rival, resamples=resamples(own, pruned=0.5, control=0.51)) for own in (0.001, 0.02)
    ]
    assert [any("prefer it" in text for text in found) for found in told] == [True, False]


def test_where_intervals_come_from_is_stated_and_so_is_that_there_are_none():
    expected = (
        "95 % intervals of AP: percentile bootstrap over the images (87 images, 500 resamples), of a difference on the "
        "same images for both models. What another seed of the training would change is not in them."
    )
    drawn = resamples(0.01, parent=0.6, pruned=0.5)
    assert expected in sentences({"ap": 0.5}, conditions={"images": 87}, resamples=drawn)
    old = sentences({"ap": 0.5}, conditions={"images": 87, "ap_noise": 0.02})
    assert "This report has no intervals: whether a small AP difference is chance it cannot say." in old


def test_models_on_other_numbers_of_resamples_are_no_pair():
    drawn = resamples(0.01, parent=0.6, pruned=0.5)
    drawn[0]["values"] = drawn[0]["values"][:-9]
    assert "(-0.100, no interval)." in sentences({"ap": 0.5}, resamples=drawn)[0]


def test_retraining_that_hurt_is_called_a_loss():
    rows = [{"model": name, "ap": ap} for name, ap in (("parent", 0.6), ("pruned", 0.55), ("retrained", 0.5))]
    texts = [one.text for one in verdicts(RunReport.from_dict({"rows": rows}))]
    assert (
        "Retraining lost 0.050 AP (no interval): use weights/pruned.pt, which had 0.550 before it." in texts
    )


def test_retraining_that_kept_the_pruned_model_is_said_to_have():
    aps = {"parent": 0.6, "pruned": 0.55, "retrained": 0.55}
    rows = [{"model": name, "ap": ap, "imgsz": 320} for name, ap in aps.items()]
    drawn = resamples(0.01, parent=0.6, pruned=0.55)
    drawn.append({**drawn[1], "model": "retrained"})
    texts = [one.text for one in verdicts(RunReport.from_dict({"rows": rows, "resamples": drawn}))]
    expected = (
        "No epoch of the retraining validated better than the pruned model (AP 0.550), which was kept. "
    )
    assert f"{expected}More epochs= or a lower lr0= may change that." in texts
    assert not any("retraining changed it" in text for text in texts)


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        (None, "The cut was not checked against the zeroed model."),
        (
            {"difference": 6.1e-5, "scale": 480, "verdict": "exact"},
            "The cut is exact: zeroed and cut model agree, "
            "largest difference 6.1e-05 on outputs of scale 480.",
        ),
        (
            {"difference": 2.0, "scale": 480, "verdict": "model.9 differs"},
            "The cut is not exact (model.9 differs): largest difference 2.0e+00 on outputs of scale 480.",
        ),
    ],
)
def test_the_proof_is_repeated(proof: dict | None, expected: str):
    assert expected in sentences({"ap": 0.5}, equivalence=proof)


def test_a_report_without_a_pruned_model_has_no_verdict():
    assert verdicts(RunReport.from_dict({"rows": [{"model": "parent", "ap": 0.5}]})) == ()


def test_unmeasured_accuracy_is_said():
    assert "Accuracy: AP of the pruned model was not measured." in sentences({"ap": None})


def test_a_classifier_is_judged_by_top1():
    rows = [
        {"model": "parent", "top1": 0.5, "gmacs": 1.0},
        {"model": "pruned", "top1": 0.48, "gmacs": 0.5},
        {"model": "control", "top1": 0.3, "gmacs": 0.5, "imgsz": 32},
    ]
    texts = [
        one.text for one in verdicts(RunReport.from_dict({"rows": rows, "conditions": {"images": 2500}}))
    ]
    assert (
        texts[0]
        == "The pruned model reaches top-1 0.480 with 50 % of the MACs; the parent has 0.500 (-0.020, no interval)."
    )
    assert (
        "The parent at 32 px reaches the same MACs with top-1 0.300: pruning won by 0.180 (no interval)."
        in texts
    )
    assert "This report has no intervals: whether a small top-1 difference is chance it cannot say." in texts
    assert not any("AP" in text.split() for text in texts)
