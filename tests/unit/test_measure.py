"""What a report says of a run beside accuracy and speed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from yolo_prune.bench import Comparison
from yolo_prune.errors import BenchmarkError, ConfigError
from yolo_prune.options import PruneConfig
from yolo_prune.report import Row, RunReport, render_table
from yolo_prune.report.html import render_html
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.measure import speed
from yolo_prune.runs.measure.changes import layer_widths


def test_layers_of_a_block_that_was_dropped_keep_no_channels():
    parent = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1)))
    pruned = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity())
    found = layer_widths(parent, pruned, SimpleNamespace(groups=()))
    assert [(layer.name, layer.parent, layer.kept) for layer in found] == [("0", 8, 4), ("1.0", 8, 0)]


@pytest.mark.parametrize("error", [ConfigError("no."), BenchmarkError("no."), OSError("no.")])
def test_a_benchmark_that_fails_is_why_its_rows_are_empty(monkeypatch, tmp_path, error):
    asked = []

    def compare(candidates, *, runtime, device, imgsz, **_):
        asked.append((runtime, sorted(candidates), imgsz))
        if runtime == "onnxruntime":
            raise error
        return Comparison("parent", dict.fromkeys(candidates), {}, {}, not_measured="the device is gone")

    monkeypatch.setattr(speed, "compare", compare)
    monkeypatch.setattr(speed.torch.cuda, "is_available", lambda: False)
    config = make_config(PruneConfig, {"model": "a.pt", "data": "d", "keep_macs": 0.5, "threads": 2})
    models = [
        speed.Timed(Row("parent", ap=0.5, imgsz=64), Path("parent.pt")),
        speed.Timed(Row("control", ap=0.3, imgsz=(32, 64)), Path("parent.pt")),
        speed.Timed(Row("int8", imgsz=64, not_measured="there is no INT8 model: no."), None),
    ]
    found = speed.bench_models(config, models, [], "cpu")
    sizes = {"parent": 64, "control at 32x64 px": (32, 64)}
    assert asked == [(runtime, sorted(sizes), sizes) for runtime in ("torch", "onnxruntime")]
    rows = speed.model_rows(models, found)
    assert [(row.model, row.runtime, row.device, row.threads, row.fps, row.not_measured) for row in rows] == [
        ("parent", "torch", "cpu", 2, None, "the device is gone"),
        ("control", "torch", "cpu", 2, None, "the device is gone"),
        ("parent", "onnxruntime", "cpu", 2, None, "no."),
        ("control", "onnxruntime", "cpu", 2, None, "no."),
        ("int8", "onnxruntime", "cpu", 2, None, "there is no INT8 model: no."),
    ]
    assert speed.model_speedups(models, found) == []
    warnings = speed.speed_warnings(found, tmp_path)
    assert f"yolo-prune report run={tmp_path} bench=true" in warnings[-1]
    assert all(speed.is_speed_warning(text) for text in warnings)
    report = RunReport(rows=tuple(rows))
    assert RunReport.from_dict(report.to_dict()) == report
    for text in (render_table(report), render_html(report)):
        assert "(1) torch 2 thr: not measured: the device is gone" in text
        assert "(2) onnxruntime 2 thr: not measured: no." in text
        assert "(3) onnxruntime 2 thr: not measured: there is no INT8 model: no." in text
        assert text.count("not measured (2)") == 2


def test_without_a_benchmark_there_is_one_row_a_model():
    models = [speed.Timed(Row("parent"), Path("a.pt")), speed.Timed(Row("int8", not_measured="no."), None)]
    assert speed.model_rows(models, []) == [Row("parent"), Row("int8", not_measured="no.")]


@pytest.mark.parametrize(
    ("loads", "said"), [((2.4, 8.5), "load 8.5 on 2 CPUs"), ((2.5, 1.0), None), ((None,), None)]
)
def test_a_machine_that_was_busy_while_speed_was_measured_is_named_in_the_report(loads, said, tmp_path):
    timings = {f"model {at}": SimpleNamespace(load1=load) for at, load in enumerate(loads)}
    found = Comparison("model 0", {**timings, "failed": None}, {}, {"cpus": 2, "device": "cuda:0"})
    warnings = speed.speed_warnings([found], tmp_path)
    assert all(speed.is_speed_warning(text) for text in warnings)
    assert warnings == (
        []
        if said is None
        else [
            f"The machine was busy when speed was measured: {said}. Times and ratios between models are disturbed, the "
            f"intervals say how far. To measure it again: yolo-prune report run={tmp_path} bench=true"
        ]
    )
