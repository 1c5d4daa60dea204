"""The table: every cell from the rows, nothing invented, conditions beside it."""

import csv

import pytest

from yolo_prune.report import RunReport, render_table
from yolo_prune.report.csv import render_csv
from yolo_prune.report.table import make_table

SETTING = {"runtime": "onnxruntime", "device": "cpu", "threads": 2, "batch": 1}


def report(**more) -> RunReport:
    rows = [
        {"model": "parent", "gmacs": 1.0, "params_m": 2.5, "ap": 0.6, "fps": 50.0, "imgsz": 320, **SETTING},
        {"model": "pruned", "gmacs": 0.5, "params_m": 1.0, "ap": 0.55, "fps": 75.0, "imgsz": 320, **SETTING},
        {"model": "control", "gmacs": 0.5, "params_m": 2.5, "ap": 0.51, "imgsz": 224, **SETTING},
    ]
    return RunReport.from_dict({"rows": rows, **more})


def cells(table_of: RunReport) -> list[dict[str, str]]:
    table = make_table(table_of)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_changes_are_against_the_parent():
    parent, pruned, control = cells(report())
    assert (parent["MACs kept"], parent["AP change"], parent["speed-up"]) == ("100.0 %", "", "1.00x")
    assert (pruned["MACs kept"], pruned["AP change"], pruned["speed-up"]) == ("50.0 %", "-0.050", "1.50x")
    assert (control["model"], control["AP change"]) == ("parent at 224 px", "-0.090")


def test_intervals_stand_beside_what_they_are_of():
    near = [0.5 + i / 1000 for i in range(101)]
    values = {"parent": near, "pruned": [one - 0.05 for one in near]}
    drawn = [
        {"model": name, "imgsz": 320, "values": " ".join(f"{one:.6f}" for one in found)}
        for name, found in values.items()
    ]
    made = report(resamples=drawn)
    parent, pruned, control = cells(made)
    assert (parent["COCO AP"], parent["AP change"]) == ("0.600 [0.503, 0.597]", "")
    assert (pruned["COCO AP"], pruned["AP change"]) == ("0.550 [0.453, 0.548]", "-0.050 [-0.050, -0.050]")
    assert (control["COCO AP"], control["AP change"]) == ("0.510", "-0.090"), "it was not resampled"
    assert (
        "In brackets: 95 % intervals, percentile bootstrap over the images, 101 resamples."
        in render_table(made)
    )
    assert "No intervals." in render_table(report())
    lines = [dict(zip(*pair, strict=True)) for pair in _csv_pairs(made)]
    assert [float(lines[1][name]) for name in ("accuracy_low", "change_high")] == pytest.approx(
        [0.4525, -0.05]
    )
    assert lines[0]["change_low"] == lines[2]["accuracy_low"] == ""


def _csv_pairs(made: RunReport) -> list[tuple[list[str], list[str]]]:
    header, *lines = csv.reader(render_csv(made).splitlines())
    return [(header, line) for line in lines]


def test_ap_of_boxes_alone_is_called_so():
    for boxes in ("boxes", "upright boxes"):
        made = report(conditions={"ap_of": boxes})
        assert f"COCO AP of {boxes}" in make_table(made).columns
    assert "COCO AP" in make_table(report()).columns


@pytest.mark.parametrize(
    ("metric", "title", "second", "line"),
    [
        (
            "mask_ap",
            "mask AP",
            "box AP",
            "The host's own mAP of masks, another number than mask AP: parent 0.480 (mAP50 0.700).",
        ),
        (
            "keypoint_ap",
            "keypoint AP",
            "box AP",
            "The host's own mAP of key points, another number than keypoint AP: parent 0.480 (mAP50 0.700).",
        ),
        ("oriented_ap", "oriented AP (the host's)", "upright box AP", None),
    ],
)
def test_a_task_is_judged_by_its_own_metric_and_its_boxes_stand_beside_it(metric, title, second, line):
    short = title.removesuffix(" (the host's)")
    rows = [
        {"model": "parent", "gmacs": 1.0, "ap": 0.6, metric: 0.5},
        {"model": "pruned", "gmacs": 0.5, "ap": 0.61, metric: 0.42},
    ]
    own = [{"model": "parent", "map": 0.48, "map50": 0.7}] if line else []
    stages = [{"name": "cut", metric: 0.3}]
    made = RunReport.from_dict(
        {"rows": rows, "stages": stages, "host_map": own, "conditions": {"ap_of": "boxes"}}
    )
    parent, pruned = cells(made)
    assert (parent[title], parent[second]) == ("0.500", "0.600")
    assert (pruned[title], pruned[f"{short} change"], pruned[second]) == ("0.420", "-0.080", "0.610")
    text = render_table(made)
    assert f"The pruned model reaches {short} 0.420 with 50 % of the MACs; the parent has 0.500" in text
    assert made.stages[0].accuracy == 0.3
    assert ("The host's own mAP" in text) == bool(line)
    assert line is None or line in text.splitlines()


def test_what_was_judged_by_its_boxes_in_an_earlier_release_still_is():
    rows = [{"model": "parent", "ap": 0.6, "top1": None}, {"model": "pruned", "ap": 0.55}]
    old = {"rows": rows, "stages": [{"name": "cut", "ap": 0.2}], "conditions": {"ap_of": "upright boxes"}}
    made = RunReport.from_dict(old)
    assert cells(made)[1]["COCO AP of upright boxes"] == "0.550"
    assert "reaches AP 0.550" in render_table(made)
    assert made.stages[0].accuracy == 0.2


def test_a_missing_cell_says_so_and_a_missing_column_is_named_once():
    assert cells(report())[2]["FPS"] == "not measured"
    assert "Not measured: size MB, AP50, AP of the file, p50 ms." in render_table(report())


def test_the_alternating_measurement_beats_the_quotient_of_two_fps():
    made = report(speedups=[{"model": "pruned", "ratio": 1.44, "runtime": "onnxruntime", "threads": 2}])
    assert cells(made)[1]["speed-up"] == "1.44x"


def test_speed_is_compared_within_one_runtime_only():
    rows = [
        {"model": "parent", "fps": 10.0, "runtime": "torch"},
        {"model": "pruned", "fps": 90.0, "runtime": "ort"},
    ]
    made = cells(RunReport.from_dict({"rows": rows}))
    assert made[1]["speed-up"] == "not measured"
    assert [row["runtime"] for row in made] == ["torch", "ort"]


def test_a_second_runtime_borrows_accuracy_that_was_measured_once():
    rows = [
        {"model": "parent", "ap": 0.5, "runtime": "torch"},
        {"model": "parent", "fps": 9.0, "runtime": "ort"},
    ]
    assert cells(RunReport.from_dict({"rows": rows}))[1]["COCO AP"] == "0.500"


def test_every_line_of_the_grid_is_equally_wide():
    grid = [line for line in render_table(report()).splitlines() if line.startswith("|")]
    assert len({len(line) for line in grid}) == 1
    assert len(grid) == 5


def test_the_conditions_name_what_was_timed_and_what_was_evaluated():
    text = render_table(
        report(
            conditions={
                "timed": "network",
                "data": "bccd",
                "split": "val",
                "images": 87,
                "evaluator": "pycocotools",
            },
            versions={"onnxruntime": "1.32.0"},
            host_map=[{"model": "parent", "map": 0.61}],
        )
    )
    assert "Speed: network; onnxruntime 1.32.0 on cpu, 2 threads, batch 1; input 320 px." in text
    assert "COCO AP (IoU 0.50 to 0.95, 100 boxes an image): bccd val; 87 images; pycocotools." in text
    assert "The host's own mAP, another number than COCO AP: parent 0.610 (mAP50 not measured)." in text


def test_an_empty_report_says_so():
    assert render_table(RunReport()).startswith("No model was measured.")


def test_csv_leaves_unmeasured_cells_empty():
    header, line = render_csv(
        RunReport.from_dict({"rows": [{"model": "parent", "latency_ms": {"p50": 4.0}}]})
    ).splitlines()
    values = dict(zip(header.split(","), line.split(","), strict=True))
    assert (values["latency_ms_p50"], values["latency_ms_p10"], values["ap"]) == ("4.0", "", "")


def test_a_classifier_has_columns_of_its_own():
    rows = [{"model": "parent", "top1": 0.5, "top5": 0.9, "gmacs": 0.01593}, {"model": "pruned", "top1": 0.4}]
    parent, pruned = cells(RunReport.from_dict({"rows": rows}))
    assert (parent["top-1"], parent["top-5"], parent["GMACs"]) == ("0.500", "0.900", "0.0159")
    assert (pruned["top-1 change"], pruned["top-5"]) == ("-0.100", "not measured")
    assert "COCO AP" not in parent
    assert "AP" not in render_table(RunReport.from_dict({"rows": rows}))


FILES = {
    "parent": {"metric": "ap", "accuracy": 0.59, "low": 0.55, "high": 0.62, "images": 87},
    "pruned": {
        "metric": "ap",
        "accuracy": 0.54,
        "images": 87,
        "difference": 2e-5,
        "tolerance": 1e-3,
        "compared": 6,
    },
    "control": {"not_measured": "the file is of another task"},
}


def test_what_the_files_reach_stands_beside_what_the_model_reaches_and_says_whose_number_it_is():
    rows = [{**row.to_dict(), "deployed": FILES[row.model]} for row in report().rows]
    made = RunReport.from_dict({"rows": rows})
    assert RunReport.from_dict(made.to_dict()) == made
    found = cells(made)
    assert [one["AP of the file"] for one in found] == ["0.590 [0.550, 0.620]", "0.540", "not measured (1)"]
    assert [one["COCO AP"] for one in found] == ["0.600", "0.550", "0.510"]
    text = render_table(made)
    assert "(1) onnxruntime 2 thr: accuracy of the file not measured: the file is of another task" in text
    assert (
        "COCO AP is of the model, as its host evaluates it. AP of the file is of the very file that was timed"
        in text
    )
    assert "on 6 images: outputs are at most 2e-05 of their scale apart, 0.001 is allowed." in text
    assert "AP of the file, as the pruned model is deployed: 0.540 (the parent 0.590) on onnxruntime." in text
    header, *lines = csv.reader(render_csv(made).splitlines())
    assert [line[header.index("deployed_accuracy")] for line in lines] == ["0.59", "0.54", ""]
    assert [line[header.index("latency_ms_p50")] for line in lines] == ["", "", ""]


def test_a_report_that_measured_no_file_says_so():
    assert "AP of the file" in render_table(report()).split("Not measured: ")[1].splitlines()[0]
    assert "very file" not in render_table(report())


def test_of_a_model_that_finds_masks_the_file_is_judged_by_its_boxes():
    rows = [{**row.to_dict(), "mask_ap": 0.4, "deployed": FILES[row.model]} for row in report().rows]
    assert cells(RunReport.from_dict({"rows": rows}))[0]["box AP of the file"] == "0.590 [0.550, 0.620]"


@pytest.mark.parametrize(("reached", "said"), [(0.536, False), (0.534, True), (0.546, True)])
def test_a_file_that_does_not_reach_what_pytorch_does_is_named(reached, said):
    pruned = report().rows[1].to_dict()
    rows = [{**pruned, "runtime": "torch", "deployed": FILES["pruned"]}]
    rows.append({**pruned, "deployed": {**FILES["pruned"], "accuracy": reached}})
    text = render_table(RunReport.from_dict({"rows": rows}))
    sentence = f"On onnxruntime the file of the pruned model has {reached - 0.54:+.3f} of what PyTorch reaches on the same"
    assert (sentence in text) == said
