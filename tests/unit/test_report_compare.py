"""Several runs beside each other: nothing is merged that was not measured alike, and what may not be compared is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from yolo_prune import cli
from yolo_prune.cli.entry import _run_words
from yolo_prune.errors import ConfigError
from yolo_prune.report import RunReport, write_json
from yolo_prune.report.compare import Run, compare_runs, read_runs, render_comparison
from yolo_prune.report.html import render_comparison_html

SETTING = {"runtime": "ncnn", "device": "cpu", "threads": 4, "batch": 1, "imgsz": 320, "precision": "float32"}
CONDITIONS = {
    **{"data": "d.yaml", "split": "val", "images": 50, "boxes": 90, "machine": "board", "load1": 0.25},
    **{"evaluator": "pycocotools 2", "timed": "network"},
}


def made(ap: float = 0.5, fps: float = 40.0, spread: float = 0.0, **conditions) -> RunReport:
    drawn = [0.4 + 0.001 * step for step in range(100)]
    values = {"parent": drawn, "pruned": [one - 0.1 + spread * (-1) ** at for at, one in enumerate(drawn)]}
    return RunReport.from_dict(
        {
            "rows": [
                {"model": "parent", "gmacs": 2.0, "ap": 0.6, "fps": 20.0, **SETTING},
                {"model": "pruned", "gmacs": 1.0, "ap": ap, "fps": fps, **SETTING},
                {"model": "control", "gmacs": 1.0, "ap": 0.4, "fps": 41.0, **{**SETTING, "imgsz": 224}},
            ],
            "conditions": {**CONDITIONS, **conditions},
            "versions": {"ncnn": "1.0"},
            "resamples": [
                {
                    "model": name,
                    "imgsz": 320,
                    "precision": "float32",
                    "values": " ".join(f"{one:.4f}" for one in found),
                }
                for name, found in values.items()
            ],
        }
    )


def lines(*runs: Run) -> list[dict[str, str]]:
    table = compare_runs(runs).table
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_runs_on_the_same_data_and_machine_share_their_columns():
    runs = Run("a", made()), Run("b", made(ap=0.45, fps=60.0, spread=0.01))
    found = lines(*runs)
    assert [(line["run"], line["model"]) for line in found] == [
        *(("a", "parent"), ("a", "pruned"), ("b", "parent"), ("b", "pruned"))
    ], "a control is no result"
    assert [line["FPS ncnn, cpu, 4 threads, batch 1"] for line in found] == ["20.0", "40.0", "20.0", "60.0"]
    assert found[1]["COCO AP"] == "0.500 [0.302, 0.397]"
    assert found[1]["against its parent"] == "-0.100 [-0.100, -0.100]"
    assert found[3]["against a"] == "-0.050 [-0.010, +0.010]", "its own draws, on the same images"
    assert (found[0]["against a"], found[0]["against its parent"]) == ("", "")
    notes = compare_runs(runs).notes
    assert "Accuracy: COCO AP on d.yaml val (50 images, 90 boxes); all runs may be compared." in notes
    assert "FPS: timed on board." in notes
    assert any("(load average: a 0.2, b 0.2)" in note for note in notes)
    ((title, chart),) = compare_runs(runs).charts
    assert (title, chart.titles, chart.front) == (
        "COCO AP on d.yaml val (50 images, 90 boxes)",
        ("a, ncnn, cpu, 4 threads, batch 1, FP32", "b, ncnn, cpu, 4 threads, batch 1, FP32"),
        True,
    )


@pytest.mark.parametrize("change", [{"split": "test"}, {"data": "e.yaml"}, {"images": 49}, {"boxes": 91}])
def test_accuracy_on_other_data_is_told_apart(change):
    runs = Run("a", made()), Run("b", made(ap=0.45, **change))
    found, notes = lines(*runs), compare_runs(runs).notes
    assert [line["COCO AP"][-3:] for line in found] == ["(1)", "(1)", "(2)", "(2)"]
    assert "against a" not in found[3] or found[3]["against a"] == ""
    assert (
        "Accuracy is of different data (by its path): only runs with the same number may be compared."
        in notes
    )
    assert len(compare_runs(runs).charts) == 2


def test_another_metric_has_a_column_of_its_own():
    other = made()
    rows = tuple(replace(row, top1=row.ap, ap=None) for row in other.rows)
    found = lines(Run("a", made()), Run("b", replace(other, rows=rows)))
    assert (found[1]["top-1"], found[3]["COCO AP"]) == ("not measured", "not measured")
    assert found[3]["top-1"].startswith("0.500")


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"threads": 1}, ["FPS ncnn, 4 threads", "FPS ncnn, 1 thread"]),
        ({"runtime": "torch"}, ["FPS ncnn", "FPS torch"]),
    ],
)
def test_other_threads_and_runtimes_are_other_columns(change, columns):
    other = made(fps=70.0)
    rows = tuple(replace(row, **change) for row in other.rows)
    found = lines(Run("a", made()), Run("b", replace(other, rows=rows)))
    assert [line[name] for line in found for name in columns] == [
        "20.0",
        "-",
        "40.0",
        "-",
        "-",
        "20.0",
        "-",
        "70.0",
    ]


def test_other_machines_are_other_columns_and_no_front_joins_them():
    runs = Run("a", made()), Run("b", made(machine="server"))
    found, compared = lines(*runs), compare_runs(runs)
    assert (found[1]["FPS ncnn (A)"], found[1]["FPS ncnn (B)"]) == ("40.0", "-")
    assert (
        "FPS on cpu, 4 threads, batch 1; different machines may not be compared: (A) board: a; (B) server: b."
        in compared.notes
    )
    assert not compared.charts[0][1].front
    assert compared.charts[0][1].titles[1].endswith(", server")


def test_what_else_differs_is_said():
    other = replace(made(evaluator="mine", timed="everything"), versions={"ncnn": "2.0"})
    notes = compare_runs([Run("a", made()), Run("b", other)]).notes
    assert "Accuracy was not computed by the same in all runs: a: pycocotools 2; b: mine." in notes
    assert "Not the same was timed, and FPS may not be compared: a: network; b: everything." in notes
    assert "ncnn is not of the same version: a 1.0, b 2.0." in notes
    same = compare_runs([Run("a", made()), Run("b", made())]).notes
    assert not [note for note in same if "not" in note.split(" FPS of one")[0] and "may be" not in note], (
        "the control"
    )


def test_precisions_are_lines_of_their_own():
    report = made()
    small = replace(report.rows[1], precision="int8", ap=0.49, fps=80.0)
    found = lines(Run("a", replace(report, rows=(*report.rows, small))))
    assert [
        (line["model"], line["precision"], line["FPS ncnn, cpu, 4 threads, batch 1"]) for line in found
    ] == [*(("parent", "FP32", "20.0"), ("pruned", "FP32", "40.0"), ("pruned", "INT8", "80.0"))]
    assert found[2]["COCO AP"] == "0.490", "the interval is of the other precision"


def test_a_folder_without_a_report_gets_a_sentence_and_the_others_a_table(tmp_path: Path, capsys):
    for name in ("x/a", "y/a"):
        (tmp_path / name).mkdir(parents=True)
        write_json(made(), tmp_path / name)
    (tmp_path / "z").mkdir()
    page = tmp_path / "page.html"
    words = [str(tmp_path / name) for name in ("x/a", "y/a", "z")]
    assert cli.main(["report", *words, f"html={page}"]) == 0
    out = capsys.readouterr().out
    assert f"* {tmp_path / 'z'} has no report.json: it is left out." in out
    assert "| x/a | pruned |" in out
    assert "<h1>Runs compared</h1>" in page.read_text()
    assert "x/a, ncnn" in page.read_text()
    assert not list(tmp_path.rglob("report.html")), "comparing writes nothing into a run"
    assert cli.main(["report", str(tmp_path / "z"), str(tmp_path / "no")]) == 2
    assert "no report.json in" in capsys.readouterr().err


def test_a_run_named_twice_is_no_comparison(tmp_path: Path):
    write_json(made(), tmp_path)
    with pytest.raises(ConfigError, match="is named twice: a comparison needs different runs"):
        read_runs([str(tmp_path), f"{tmp_path}/."])


def test_names_from_outside_are_escaped():
    evil = "<script>alert(1)</script>"
    page = render_comparison_html(compare_runs([Run(evil, made()), Run("b", made(machine=evil))]))
    assert evil not in page
    assert page.count("<script") == 1, "our own"


def test_runs_without_any_number_are_compared_too():
    text = render_comparison(compare_runs([Run("a", RunReport.from_dict({"rows": [{"model": "parent"}]}))]))
    assert "Speed was not measured." in text
    assert "COCO AP" in text.split("Not measured: ")[1]


@pytest.mark.parametrize(
    ("words", "spoken"),
    [
        (["a", "b/c", "html=x"], ["html=x", "run=a,b/c"]),
        (["a,b", "c"], ['run="a,b",c']),
        (["--html", "x", "a"], ["--html", "x", "run=a"]),
        (["run=a", "bench=true"], ["run=a", "bench=true"]),
        (["--bench=true", "a"], ["--bench=true", "run=a"]),
    ],
)
def test_bare_words_are_run_folders(words, spoken):
    assert _run_words(words) == spoken


def test_speed_is_measured_again_of_one_run_only(capsys):
    assert cli.main(["report", "a", "b", "bench=true"]) == 2
    assert "bench=true measures one run again, and 2 are named." in capsys.readouterr().err
