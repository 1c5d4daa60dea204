"""The whole ``prune`` command for four channels and for a shape that is no square, and where benchmarks fail."""

import contextlib
import functools
import io
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from torch import nn

from yolo_prune import bench, cli
from yolo_prune.adapters.checkpoint import load_detector, read_metadata, save_detector
from yolo_prune.adapters.ultralytics import int8
from yolo_prune.adapters.ultralytics.evaluate import evaluate_detector
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.errors import BenchmarkError, ConfigError
from yolo_prune.runs.measure import speed

SHAPE = (64, 96)


@pytest.fixture(scope="module")
def bands(tmp_path_factory, parent, data):
    """The trained detector and its images with a fourth channel, which it ignores: data yaml and checkpoint."""
    folder, random = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for file in data.parent.glob("images/*/*.png"):
        colours, target = cv2.imread(str(file)), folder / file.relative_to(data.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        noise = random.integers(0, 256, (*colours.shape[:2], 1), dtype=np.uint8)
        cv2.imwrite(str(target), np.concatenate([colours, noise], axis=2))
    for file in data.parent.glob("labels/*/*.txt"):
        target = folder / file.relative_to(data.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    yaml = folder / "data.yaml"
    yaml.write_text(data.read_text() + f"channels: 4\npath: {folder}\n")
    module = load_detector(parent).module
    first = module.model[0].conv
    wide = nn.Conv2d(4, first.out_channels, 3, 2, 1, bias=False)
    wide.weight.data[:] = 0
    wide.weight.data[:, :3] = first.weight.data.flip(
        1
    )  # of four channels the host does not turn BGR into RGB
    module.model[0].conv, module.yaml["channels"] = wide, 4
    checkpoint = save_detector(folder / "four.pt", module, task="detect", train_args={"imgsz": 64}, meta={})
    return yaml, checkpoint


def prune(project: Path, name: str, *words: str) -> tuple[int, str, dict]:
    out = io.StringIO()
    short = [
        "keep_macs=0.6",
        "steps=2",
        "calibration_images=16",
        "batch=8",
        "workers=0",
        "quantize=8",
        "recover_seconds=0",
    ]
    with contextlib.redirect_stdout(out):
        code = cli.main(["prune", *words, *short, "threads=1", f"project={project}", f"name={name}"])
    file = project / name / "report.json"
    return code, out.getvalue(), json.loads(file.read_text()) if file.is_file() else {}


def quick(monkeypatch) -> None:
    monkeypatch.setattr(speed, "compare", functools.partial(bench.compare, rounds=2))


@pytest.fixture(scope="module")
def wide(tmp_path_factory, bands):
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        project, (yaml, checkpoint) = tmp_path_factory.mktemp("runs"), bands
        done = prune(
            project, "wide", f"model={checkpoint}", f"data={yaml}", "imgsz=64,96", "epochs=1", "plots=false"
        )
    return project / "wide", *done


def test_a_run_of_four_channels_at_a_shape_measures_everything(wide):
    _, code, out, report = wide
    assert code == 0
    names = ["parent", "pruned", "retrained", "int8", "control"]
    found = [(row["runtime"], row["model"]) for row in report["rows"]]
    assert found == [
        (kind, name)
        for kind in ("torch", "onnxruntime")
        for name in names
        if (kind, name) != ("torch", "int8")
    ]
    assert {str(row["imgsz"]) for row in report["rows"] if row["model"] != "control"} == {"[64, 96]"}
    assert [row["imgsz"] for row in report["rows"] if row["model"] == "control"] == [[32, 64]] * 2
    assert all(row["fps"] > 0 and row["not_measured"] is None for row in report["rows"])
    assert "input 64x96, 32x64 px" in out
    assert "Retraining was at 96 x 96 px, because the host trains on squares" in out


def test_its_parent_is_as_accurate_as_without_the_fourth_channel(wide, parent, data):
    rows = {row["model"]: row for row in wide[3]["rows"]}
    twin = evaluate_detector(load_detector(parent).module, data, imgsz=SHAPE)
    assert rows["parent"]["ap"] == pytest.approx(twin.coco.ap, abs=0.02)
    assert rows["parent"]["ap"] > 0.2
    assert rows["pruned"]["gmacs"] <= 0.6 * rows["parent"]["gmacs"] * 1.0001
    assert rows["control"]["gmacs"] == pytest.approx(rows["parent"]["gmacs"] / 3, rel=0.02)


def test_its_files_know_their_channels_and_their_shape(wide):
    weights = wide[0] / "weights"
    for name in ("parent.pt", "pruned.pt", "best.pt"):
        loaded = load_detector(weights / name)
        assert (loaded.channels, loaded.imgsz) == (4, SHAPE)
        assert read_metadata(weights / name)["imgsz"] == [64, 96]
    session = onnxruntime.InferenceSession(str(weights / "best_int8.onnx"))
    assert session.get_inputs()[0].shape == [1, 4, 64, 96]


def test_a_shape_is_evaluated_as_the_host_evaluates_a_file_of_that_shape(parent, data, tmp_path):
    """With a control: at a square AP is another number."""
    module = load_detector(parent).module
    file = export_onnx(parent, tmp_path / "a.onnx", imgsz=SHAPE)
    ours = evaluate_detector(module, data, imgsz=SHAPE)
    theirs = evaluate_detector(module, data, imgsz=SHAPE, exported=file)
    assert ours.coco.ap == pytest.approx(theirs.coco.ap, abs=0.01)
    assert ours.coco.ap > 0.2
    assert abs(ours.coco.ap - evaluate_detector(module, data, imgsz=32).coco.ap) > 0.02


def test_a_benchmark_and_an_export_that_fail_cost_their_rows_alone_and_can_be_measured_again(
    parent, data, tmp_path, monkeypatch, capsys
):
    def compare(candidates, *, runtime, **options):
        if runtime == "onnxruntime":
            raise ConfigError("the exporter knows no such layer.")
        return bench.compare(candidates, runtime=runtime, **{**options, "rounds": 2})

    def export(*_, **__):
        raise BenchmarkError("no image has the right shape.")

    monkeypatch.setattr(speed, "compare", compare)
    monkeypatch.setattr(int8, "export_measured_int8", export)
    code, out, report = prune(tmp_path, "a", f"model={parent}", f"data={data}")
    folder = tmp_path / "a"
    assert code == 0
    rows = {(row["runtime"], row["model"]): row for row in report["rows"]}
    assert rows["torch", "pruned"]["fps"] > 0
    assert rows["onnxruntime", "pruned"]["fps"] is None
    assert rows["onnxruntime", "pruned"]["ap"] == rows["torch", "pruned"]["ap"]
    assert rows["onnxruntime", "pruned"]["not_measured"] == "the exporter knows no such layer."
    assert (
        rows["onnxruntime", "int8"]["not_measured"] == "there is no INT8 model: no image has the right shape."
    )
    again = f"yolo-prune report run={folder} bench=true"
    missing = "Speed was not measured everywhere (the table says where and why)"
    for text in (out, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert "not measured (1)" in text
        assert "(1) onnxruntime 1 thr: not measured: the exporter knows no such layer." in text
        assert "not measured: there is no INT8 model: no image has the right shape." in text
        assert f"{missing}. To measure it again: {again}" in text
    quick(monkeypatch)
    capsys.readouterr()
    before = (folder / "weights" / "pruned.pt").read_bytes()
    assert cli.main(["report", f"run={folder}", "bench=true"]) == 0
    assert missing not in capsys.readouterr().out  # a busy machine names the command, too
    found = json.loads((folder / "report.json").read_text())
    assert [row["model"] for row in found["rows"] if row["fps"] is None] == ["int8"]
    for row in found["rows"]:
        old = rows[row["runtime"], row["model"]]
        assert all(row[key] == old[key] for key in ("ap", "gmacs", "params_m", "size_mb", "imgsz"))
    assert [(one["runtime"], one["model"]) for one in found["speedups"]].count(("onnxruntime", "pruned")) == 1
    assert (found["stages"], found["resamples"]) == (report["stages"], report["resamples"])
    assert (folder / "weights" / "pruned.pt").read_bytes() == before
