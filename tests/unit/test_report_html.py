"""report.html: one valid page, everything inside, nothing loaded, names escaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from yolo_prune.report import ClassAp, Histogram, RunReport, report_from_json, write_report
from yolo_prune.report.html import losers_sentence, render_html
from yolo_prune.report.plots import COLOURS, accuracy_against_fps, bn_histogram
from yolo_prune.report.select import settings

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


def test_the_page_loads_nothing_and_runs_nothing():
    text = render_html(report(), ["plan.json"])
    assert external(Page(text)) == []
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
    assert "0.600 [0.552, 0.628]" in words
    assert "-0.050 against the parent's 0.600, 95 % interval -0.050 to -0.050" in words
    assert "Upright bars: 95 % intervals." in words
    assert "no interval" in " ".join(Page(render_html(without)).words)
    charts = [accuracy_against_fps(one, settings(one)[0]) for one in (with_intervals, without)]
    assert charts[0].count("LineCollection") > charts[1].count("LineCollection")


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
    assert "<script" not in text
    assert external(Page(text)) == []


def test_links_go_to_files_that_exist_in_the_run_folder(tmp_path: Path):
    (tmp_path / "plan.json").write_text("{}")
    page = Page(write_report(report(), tmp_path).read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["plan.json", "report.json", "report.md", "report.csv"]


def test_the_page_is_the_same_when_made_again_from_the_json(tmp_path: Path):
    first = write_report(report(), tmp_path / "a").read_bytes()
    again = write_report(report_from_json(tmp_path / "a"), tmp_path / "b").read_bytes()
    assert first == again


def test_charts_take_their_colours_from_the_page():
    svg = accuracy_against_fps(report(), settings(report())[0])
    assert svg is not None
    assert "var(--retrained)" not in svg
    assert "var(--control)" in svg
    assert not any(colour in svg for colour in COLOURS.values())


def test_a_chart_needs_two_points():
    made = report(rows=[{"model": "parent", "ap": 0.5, "fps": 10.0}])
    assert accuracy_against_fps(made, settings(made)[0]) is None


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
