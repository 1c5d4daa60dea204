"""report.json: exact keys, both ways, None for what nobody measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from yolo_prune.errors import ConfigError
from yolo_prune.report import Latency, Row, RunReport, report_from_json, write_report

ROW_KEYS = {
    *("model", "gmacs", "params_m", "size_mb", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *(
        "top1",
        "top5",
        "mask_ap",
        "mask_ap50",
        "keypoint_ap",
        "keypoint_ap50",
        "oriented_ap",
        "oriented_ap50",
        "precision",
        "latency_ms",
        "fps",
        "pre_ms",
        "net_ms",
        "post_ms",
        "runtime",
        "device",
        "threads",
        "batch",
        "imgsz",
        "not_measured",
        "deployed",
    ),
}


def full_report() -> RunReport:
    return RunReport.from_dict(
        {
            "rows": [{"model": "parent", "ap": 0.5, "latency_ms": {"p50": 10}, "fps": 100, "threads": 2}],
            "name": "x",
            "seed": 3,
            "equivalence": {"difference": 1e-5, "scale": 480, "verdict": "exact"},
            "stages": [{"name": "cut", "ap": 0.0}, {"name": "fold", "ap": None}],
            "timing_s": {"load": 1.5},
            "versions": {"torch": "2.14.1"},
            "conditions": {"images": 87},
            "plan": {"budget": "keep_macs=0.5", "criterion": "reconstruction"},
            "layers": [{"name": "model.0.conv", "parent": 16, "kept": 8}],
            "bn_scales": {"edges": [0, 1, 2], "before": [3, 4], "after": [1, 4]},
            "per_class": [{"name": "RBC", "parent": 0.6}],
            "host_map": [{"model": "parent", "map": 0.51, "map50": None}],
            "speedups": [{"model": "pruned", "ratio": 1.4, "low": 1.3, "high": 1.5}],
            "warnings": ["careful"],
        }
    )


def test_a_row_has_exactly_the_promised_keys():
    assert set(Row("parent").to_dict()) == ROW_KEYS


def test_what_was_not_measured_is_null_and_not_zero():
    assert {value for key, value in Row("parent").to_dict().items() if key != "model"} == {None}


def test_a_number_that_is_not_finite_was_not_measured():
    row = Row.from_dict({"model": "parent", "ap": float("nan"), "fps": np.float32("inf")})
    assert row.ap is None
    assert row.fps is None
    assert json.loads(RunReport(rows=(Row("parent", ap=float("nan")),)).to_json())["rows"][0]["ap"] is None


def test_numpy_numbers_become_plain_ones():
    row = Row.from_dict({"model": "parent", "ap": np.float32(0.5), "threads": np.int64(2)})
    assert (type(row.ap), type(row.threads)) == (float, int)


def test_a_report_survives_json(tmp_path: Path):
    report = full_report()
    write_report(report, tmp_path)
    assert report_from_json(tmp_path) == report
    assert report_from_json(tmp_path / "report.json") == report
    assert report.rows[0].latency_ms == Latency(p50=10.0)


def test_the_other_files_are_made_from_the_json_alone(tmp_path: Path):
    write_report(full_report(), tmp_path / "a")
    write_report(report_from_json(tmp_path / "a"), tmp_path / "b")
    for name in ("report.json", "report.md", "report.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "parent", "app": 1.0}, "unknown key 'app' in a report row. Did you mean 'ap'?"),
        ({"ap": 1.0}, "key 'model' is missing in a report row."),
        ({"model": "parent", "ap": "high"}, "expected float in a report row ap, got 'high'."),
        ({"model": "parent", "threads": True}, "expected int in a report row threads, got True."),
        (
            {"model": "parent", "latency_ms": 3},
            "expected a table of keys in a report row latency_ms, got int.",
        ),
        (
            {"model": "parent", "latency_ms": {"p5": 3}},
            "unknown key 'p5' in a report row latency_ms. Did you mean 'p50'?",
        ),
    ],
)
def test_a_bad_row_is_named(values: dict, message: str):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Row.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no report found at .*report.json: expected the report.json of a run folder."),
        ("{", "report.json is not valid JSON"),
        ('{"rowz": []}', "unknown key 'rowz' in .*report.json. Did you mean 'rows'?"),
        ('{"rows": [{}]}', r"key 'model' is missing in .*report.json rows\[0\]."),
        ('{"schema_version": 99}', "has schema version 99, this release reads up to 1: upgrade yolo-prune."),
        ("[]", "expected a table of keys in .*report.json, got list."),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        report_from_json(tmp_path)


def test_what_older_releases_wrote_and_nothing_reads_is_passed_over(tmp_path: Path):
    values = full_report().to_dict()
    values["curve"], values["conditions"]["ap_noise"] = [], 0.02
    (tmp_path / "report.json").write_text(json.dumps(values))
    assert report_from_json(tmp_path) == full_report()
    values["curves"] = []
    with pytest.raises(ConfigError, match="unknown key 'curves'"):
        RunReport.from_dict(values)
