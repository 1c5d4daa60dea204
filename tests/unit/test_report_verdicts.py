"""The sentences: won, lost, draw, no speed gained, noise; each from the numbers alone."""

import pytest

from yolo_prune.report import RunReport
from yolo_prune.report.verdicts import verdicts


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
            "The parent at 224 px reaches the same MACs with AP 0.510: pruning won by 0.030.",
        ),
        (
            {"ap": 0.48},
            {"ap": 0.51},
            "The parent at 224 px reaches the same MACs with AP 0.510: pruning lost by 0.030.",
        ),
        (
            {"ap": 0.515},
            {"ap": 0.51},
            "The parent at 224 px reaches the same MACs with AP 0.510: "
            "a draw, the difference of +0.005 is within noise.",
        ),
        (
            {"ap": 0.5},
            {"ap": 0.4, "gmacs": 0.6},
            "The parent at 224 px needs 1.20x the MACs with AP 0.400: pruning won by 0.100.",
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
            "AP 0.550 (interpolated): pruning won by 0.020.",
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
    ("conditions", "expected"),
    [
        (
            {"images": 87},
            "An AP difference below 0.011 on 87 images is noise (rule of thumb, 0.1 / sqrt(images)).",
        ),
        ({"images": 87, "ap_noise": 0.02}, "An AP difference below 0.020 on 87 images is noise."),
    ],
)
def test_noise_is_stated_with_its_source(conditions: dict, expected: str):
    assert expected in sentences({"ap": 0.5}, conditions=conditions)


def test_retraining_that_hurt_is_called_a_loss():
    rows = [{"model": name, "ap": ap} for name, ap in (("parent", 0.6), ("pruned", 0.55), ("retrained", 0.5))]
    texts = [one.text for one in verdicts(RunReport.from_dict({"rows": rows}))]
    assert "Retraining lost 0.050 AP: use weights/pruned.pt, which had 0.550 before it." in texts


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
        == "The pruned model reaches top-1 0.480 with 50 % of the MACs; the parent has 0.500 (-0.020)."
    )
    assert "The parent at 32 px reaches the same MACs with top-1 0.300: pruning won by 0.180." in texts
    noise = "A top-1 difference below 0.010 on 2,500 images is noise (one standard error, sqrt(p (1 - p) / images))."
    assert noise in texts
    assert not any("AP" in text.split() for text in texts)
