"""report.html: one valid page, everything inside, nothing loaded, names escaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from yolo_prune.report import ClassAp, Histogram, RunReport, report_from_json, write_report
from yolo_prune.report.html import losers_sentence, render_html
from yolo_prune.report.pareto import Point, chart_of_report, front, ticks
from yolo_prune.report.phases import phase_bars
from yolo_prune.report.plots import bn_histogram
from yolo_prune.report.table import make_table

VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}
LOADING = {"src", "srcset", "data", "poster", "background", "action", "ping"}


class Page(HTMLParser):
    """Collects tags and attributes, and insists that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def report(**more) -> RunReport:
    setting = {"runtime": "onnxruntime", "device": "cpu", "threads": 2, "batch": 1}
    rows = [
        {"model": "parent", "gmacs": 1.0, "params_m": 2.5, "ap": 0.6, "fps": 50.0, "imgsz": 320, **setting},
        {"model": "pruned", "gmacs": 0.5, "params_m": 1.0, "ap": 0.55, "fps": 75.0, "imgsz": 320, **setting},
        {"model": "control", "gmacs": 0.5, "params_m": 2.5, "ap": 0.5, "fps": 90.0, "imgsz": 224, **setting},
    ]
    values = {
        "rows": rows,
        "name": "a run",
        "stages": [{"name": "cut", "ap": 0.0}, {"name": "fold", "ap": 0.55}, {"name": "odd", "ap": None}],
        "timing_s": {"trace": 1.0, "plan": 2.0},
        "versions": {"torch": "2.14.1"},
        "conditions": {"images": 100},
        "plan": {"budget": "keep_macs=0.5", "criterion": "reconstruction"},
        "layers": [
            {"name": "model.0", "parent": 32, "kept": 16},
            {"name": "m.1", "parent": 8, "kept": 8, "frozen": "output"},
        ],
        "bn_scales": {"edges": [0, 1, 2], "before": [3, 4], "after": [1, 4]},
        "per_class": [
            {"name": f"c{i}", "parent": 0.5, "pruned": 0.5 - i / 100, "boxes": i} for i in range(20)
        ],
        "warnings": ["the machine was busy"],
    }
    return RunReport.from_dict({**values, **more})


def external(page: Page) -> list[str]:
    found = []
    for tag, attributes in page.tags:
        if tag in ("script", "link", "iframe", "object", "embed", "base", "img", "video", "audio", "source"):
            found.append(tag)
        for name, value in attributes.items():
            if name in LOADING or name.startswith("on"):
                found.append(f"{tag} {name}")
            if name in ("href", "xlink:href", "style") and re.search(r"(https?:)?//|url\((?!#)", value or ""):
                found.append(f"{tag} {name}={value}")
    return found


def test_the_page_loads_nothing_and_runs_its_own_script_alone():
    text = render_html(report(), ["plan.json"])
    assert external(Page(text)) == ["script"]
    assert text.count("<script>") == 1
    assert "fetch" not in text
    assert external(Page(render_html(RunReport()))) == [], "nothing to show and hide"
    assert "http" not in text
    assert "@import" not in text


def test_the_check_for_external_resources_can_fail():
    page = Page('<p><a href="https://example.com/x">x</a><img src="x.png"><script></script></p>')
    assert external(page) == ["a href=https://example.com/x", "img", "img src", "script"]


def test_every_section_is_there():
    words = " ".join(Page(render_html(report())).words)
    for title in (
        "What the numbers say",
        "Warnings",
        "Accuracy and speed",
        "AP against FPS",
        "AP after each recovery step",
        "Where the time went",
        "AP per class",
        "BatchNorm scales before and after",
        "Kept channels per layer",
        "Plan and proof",
        "Conditions",
    ):
        assert title in words


def test_intervals_are_in_the_table_the_tiles_the_sentences_and_the_chart():
    values = [0.5 + i / 1000 for i in range(81)]
    drawn = [
        {"model": name, "imgsz": 320, "values": " ".join(f"{one + shift:.6f}" for one in values)}
        for name, shift in (("parent", 0.05), ("pruned", 0.0))
    ]
    with_intervals, without = report(resamples=drawn), report()
    words = " ".join(Page(render_html(with_intervals)).words).replace("\xa0", " ")
    assert "0.600  [0.552, 0.628]" in words
    assert "-0.050 against the parent's 0.600, 95 % interval -0.050 to -0.050" in words
    assert "Upright bars: 95 % intervals." in words
    assert "no interval" in " ".join(Page(render_html(without)).words)
    charts = [chart_of_report(one).svg.count('class="reach"') for one in (with_intervals, without)]
    assert charts == [2, 0]


def test_an_empty_report_is_a_page_too():
    page = Page(render_html(RunReport()))
    assert "No model was measured." in " ".join(page.words)


def test_names_from_outside_are_escaped():
    evil = '<script>alert("x")</script>$^{x}$'
    made = report(
        name=evil,
        warnings=[evil],
        per_class=[{"name": evil, "parent": 0.5, "pruned": 0.4}],
        layers=[{"name": evil, "parent": 4, "kept": 2, "frozen": evil}],
        versions={evil: evil},
    )
    text = render_html(made, [evil])
    assert text.count("<script") == 1, "our own"
    assert evil not in text
    assert external(Page(text)) == ["script"]


def test_links_go_to_files_that_exist_in_the_run_folder(tmp_path: Path):
    (tmp_path / "plan.json").write_text("{}")
    page = Page(write_report(report(), tmp_path).read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["plan.json", "report.json", "report.md", "report.csv"]


def test_the_page_is_the_same_when_made_again_from_the_json(tmp_path: Path):
    first = write_report(report(), tmp_path / "a").read_bytes()
    again = write_report(report_from_json(tmp_path / "a"), tmp_path / "b").read_bytes()
    assert first == again


def on(runtime: str, precision: str, *rows: tuple[str, float, float]) -> list[dict]:
    more = {
        "runtime": runtime,
        "precision": precision,
        "imgsz": 320,
        "device": "cpu",
        "threads": 2,
        "batch": 1,
    }
    return [{"model": model, "ap": ap, "fps": fps, **more} for model, ap, fps in rows]


def test_one_chart_holds_all_runtimes_and_precisions_and_its_legend_tells_them_apart():
    rows = on("torch", "float32", ("parent", 0.6, 20.0), ("pruned", 0.55, 30.0))
    rows += on("ncnn", "float32", ("parent", 0.6, 40.0), ("pruned", 0.55, 60.0))
    rows += on("ncnn", "int8", ("pruned", 0.5, 90.0))
    chart = chart_of_report(report(rows=rows))
    assert (chart.titles, chart.shared) == (
        ("torch, FP32", "ncnn, FP32", "ncnn, INT8"),
        "cpu, 2 threads, batch 1",
    )
    assert [chart.svg.count(f'class="s{number} series-{number}"') for number in range(4)] == [1, 1, 1, 0]
    assert chart.svg.count("<title>") == 5
    assert "ncnn, INT8: pruned 0.500 at 90.0 FPS" in chart.svg
    page = Page(render_html(report(rows=rows)))
    buttons = [found for tag, found in page.tags if tag == "button"]
    assert [each["data-series"] for each in buttons] == ["series-0", "series-1", "series-2"]
    assert all("disabled" in each for each in buttons), "without the script they do nothing, and say so"


def test_accuracy_of_one_precision_is_never_that_of_another():
    rows = on("ncnn", "float32", ("parent", 0.6, 40.0), ("pruned", 0.55, 60.0))
    rows += on("ncnn", "int8", ("pruned", None, 90.0))
    chart = chart_of_report(report(rows=rows))
    assert chart.titles == ("ncnn, cpu, 2 threads, batch 1, FP32",), "the row of 8 bits has no accuracy"
    assert make_table(report(rows=rows)).rows[2][:2] == ("pruned", "INT8")
    assert "not measured" in make_table(report(rows=rows)).rows[2]


def test_the_front_leaves_out_what_another_beats_in_both():
    points = [
        Point(str(fps), "parent", fps, ap)
        for fps, ap in ((10, 0.6), (20, 0.5), (15, 0.5), (30, 0.55), (40, 0.2))
    ]
    assert [point.fps for point in front(points, lambda one: (one.fps, one.accuracy))] == [10, 30, 40]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.48, 0.64, [0.5, 0.55, 0.6]),
        (12.0, 97.0, [20, 40, 60, 80]),
        (0.0, 1e-3, [0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3]),
    ],
)
def test_an_axis_names_round_numbers(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


def test_a_chart_needs_two_points():
    assert chart_of_report(report(rows=[{"model": "parent", "ap": 0.5, "fps": 10.0}])) is None
    same = [{"model": name, "ap": 0.5, "fps": 10.0, "imgsz": 32} for name in ("parent", "pruned")]
    assert chart_of_report(report(rows=same)) is not None, "of no extent"


def test_phases_are_parts_of_one_bar_to_one_scale():
    times = {"pre_ms": 1.0, "net_ms": 8.0, "post_ms": 1.0}
    rows = [
        {"model": "parent", "fps": 90.0, **times},
        {"model": "pruned", "fps": 180.0, **times, "net_ms": 3.0},
    ]
    parent, pruned = phase_bars(report(rows=[*rows, {"model": "int8", "fps": 9.0, "net_ms": 1.0}]))
    assert (parent.text, parent.note) == ("10.0 ms", "1.00 + 8.00 + 1.00")
    assert 'class="net" x="10.00" width="80.00"' in parent.svg
    assert 'class="post" x="40.00" width="10.00"' in pruned.svg, "half as long"
    assert "pruned: preparing the image 1.00, network 3.00, after the network 1.00 ms" in pruned.svg
    assert "Where a step's time goes" in " ".join(Page(render_html(report(rows=rows))).words)
    assert phase_bars(report()) == [], "nobody timed them"


def test_a_histogram_whose_counts_do_not_fit_its_edges_is_not_drawn():
    assert bn_histogram(Histogram((0.0, 1.0), (1, 2), (1, 2))) is None


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ((), ""),
        ((ClassAp("a", 0.5, 0.6),), "No class lost AP."),
        ((ClassAp("a", 0.5, None),), ""),
        (
            (ClassAp("a", 0.5, 0.49), ClassAp("b", 0.5, 0.3, 0.4, boxes=7), ClassAp("c", 0.5, 0.5)),
            "Largest losers: b (-0.100 on 7 boxes), a (-0.010). "
            "A class with few boxes is noisier than the mean.",
        ),
    ],
)
def test_the_largest_losers_are_named(classes: tuple[ClassAp, ...], expected: str):
    assert losers_sentence(replace(report(), per_class=classes)) == expected
