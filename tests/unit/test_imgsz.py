"""One value for an image size: read, printed, stored and scaled; squares stay the numbers that they were."""

import json

import pytest
import yaml

from yolo_prune.bench import lower_resolutions
from yolo_prune.errors import BudgetError, ConfigError
from yolo_prune.imgsz import (
    height_width,
    is_square,
    longer_side,
    pixels,
    plain_size,
    read_size,
    rounded_up,
    size_text,
    with_longer_side,
)
from yolo_prune.options import BenchConfig, ExportConfig, InspectConfig, PruneConfig, to_yaml
from yolo_prune.report import HostMap, PlanSummary, Row, RunReport, Speedup, render_table
from yolo_prune.report.csv import render_csv
from yolo_prune.report.html import render_html
from yolo_prune.runs.configure import make_config


@pytest.mark.parametrize(
    ("given", "size"),
    [
        *(
            (value, 640)
            for value in (640, "640", 640.0, [640], (640, 640), "640,640", "640x640", "[640, 640]")
        ),
        *(
            (value, (320, 640))
            for value in ((320, 640), [320, 640], "320,640", "320x640", "(320, 640)", "320X640")
        ),
    ],
)
def test_a_size_is_read_as_the_host_and_a_person_write_it(given, size):
    assert read_size(given) == size


@pytest.mark.parametrize(
    "given", ["", "big", "320,", "320,a", (1, 2, 3), [], True, None, 32.5, "-32", float("nan")]
)
def test_what_is_no_size_is_refused_with_what_one_looks_like(given):
    with pytest.raises(
        ConfigError, match="imgsz must be a number of pixels such as 640, or height and width"
    ):
        read_size(given)


@pytest.mark.parametrize(
    ("size", "sides", "square", "longer", "text", "plain"),
    [
        (64, (64, 64), True, 64, "64", 64),
        ((320, 640), (320, 640), False, 640, "320x640", [320, 640]),
        ((640, 320), (640, 320), False, 640, "640x320", [640, 320]),
    ],
)
def test_a_size_says_what_it_is(size, sides, square, longer, text, plain):
    assert (height_width(size), is_square(size), longer_side(size)) == (sides, square, longer)
    assert (pixels(size), size_text(size), plain_size(size)) == (sides[0] * sides[1], text, plain)
    assert read_size(text) == read_size(plain) == read_size(json.loads(json.dumps(size))) == size


def test_sides_are_rounded_up_each_by_itself():
    assert rounded_up((300, 640), 32) == (320, 640)
    assert rounded_up((100, 128), 32) == 128


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        (640, 448, 448),
        ((320, 640), 448, (224, 448)),
        ((640, 320), 448, (448, 224)),
        ((64, 640), 320, (32, 320)),
    ],
)
def test_a_smaller_size_keeps_the_shape(size, side, expected):
    assert with_longer_side(size, side, 32) == expected


@pytest.mark.parametrize("size", [(320, 640), (640, 384), (96, 672)])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_lower_resolutions_of_a_shape_enclose_the_target_and_fit_the_stride(size, keep):
    below, above = lower_resolutions(2.0, size, 2.0 * keep, 32)
    assert below.macs <= 2.0 * keep < above.macs < 2.0
    for found in (below, above):
        height, width = height_width(found.imgsz)
        assert height % 32 == width % 32 == 0
        assert (height < width) == (size[0] < size[1])
        assert abs(min(height, width) - min(size) * max(height, width) / max(size)) <= 16
        assert found.macs_fraction == height * width / (size[0] * size[1])


def test_a_shape_without_a_lower_resolution_is_named():
    with pytest.raises(BudgetError, match="no input resolution below 32 px"):
        lower_resolutions(1.0, (32, 32), 0.5, 32)


@pytest.mark.parametrize("written", ["64,128", "64x128", "[64, 128]", [64, 128], (64, 128)])
@pytest.mark.parametrize("kind", [PruneConfig, BenchConfig, ExportConfig, InspectConfig])
def test_every_command_takes_a_shape(kind, written):
    needed = {"data": "d.yaml", "keep_macs": 0.5} if kind is PruneConfig else {}
    config = make_config(kind, {"model": "a.pt", **needed, "imgsz": written})
    assert config.imgsz == (64, 128)
    assert yaml.safe_load(to_yaml(config))["imgsz"] == [64, 128]


def test_a_side_off_the_stride_is_named():
    with pytest.raises(ConfigError, match="imgsz must be a multiple of 32, got 330: try 352"):
        make_config(InspectConfig, ["model=a.pt", "imgsz=320,330"])


def test_args_yaml_gives_the_same_shape_back(tmp_path):
    config = make_config(PruneConfig, ["model=a.pt", "data=d.yaml", "keep_macs=0.5", "imgsz=64,128"])
    (tmp_path / "args.yaml").write_text(to_yaml(config))
    assert make_config(PruneConfig, {"cfg": str(tmp_path / "args.yaml")}) == config


@pytest.mark.parametrize(("size", "text", "plain"), [(640, "640", 640), ((320, 640), "320x640", [320, 640])])
def test_every_report_prints_a_shape_and_json_gives_it_back(size, text, plain):
    timed = {"runtime": "torch", "device": "cpu", "threads": 1, "batch": 1}
    rows = (
        Row("parent", gmacs=2.0, ap=0.5, fps=10.0, imgsz=size, **timed),
        Row("pruned", gmacs=1.0, ap=0.4, fps=20.0, imgsz=size, **timed),
        Row("control", gmacs=1.0, ap=0.3, fps=19.0, imgsz=(224, 448), **timed),
    )
    report = RunReport(
        rows=rows,
        plan=PlanSummary("keep_macs=0.5", "auto", imgsz=size),
        speedups=(Speedup("pruned", 2.0, 1.9, 2.1, imgsz=size),),
        host_map=(HostMap("control", 0.3, 0.4, imgsz=(224, 448)),),
    )
    back = RunReport.from_dict(json.loads(report.to_json()))
    assert back == report
    assert json.loads(report.to_json())["rows"][0]["imgsz"] == plain
    table, page = render_table(report), render_html(report)
    assert f"input {text}, 224x448 px" in table
    assert "parent at 224x448 px" in table
    assert "control at 224x448 px 0.300" in table
    assert f"keep_macs=0.5 at {text} px" in page
    assert f",{text}," in render_csv(report).splitlines()[1]
    assert "(224, 448)" not in table + page
    assert "(320, 640)" not in table + page


def test_a_shape_of_three_numbers_in_a_report_is_refused():
    with pytest.raises(ConfigError, match=r"expected 2 values in a report rows\[0\] imgsz, got 3"):
        RunReport.from_dict({"rows": [{"model": "parent", "imgsz": [1, 2, 3]}]})
