"""Export through the host: the same numbers come out, and nothing else on the disk changes."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tiny_host import description

from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics import export
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.bench import compare, exports
from yolo_prune.bench.parity import Parity, compare_outputs, file_parity
from yolo_prune.cut.proven import drop_proven_, offered_blocks
from yolo_prune.errors import BenchmarkError, CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.options import ExportConfig
from yolo_prune.runs import exporting
from yolo_prune.runs.configure import make_config
from yolo_prune.runtimes import EXPORTS

IMGSZ = 64


def save_lively(path, architecture, seed, end2end=None):
    """Save random weights whose output depends on them; in fresh ones the signal dies before the head."""
    module = load_detector(architecture, seed=seed).module
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    module.train()
    with torch.no_grad():
        module(torch.rand(16, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(seed)))
        for layer in module.model[-1].modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
                layer.weight.mul_(0.2)
                layer.bias.zero_()
    for norm in norms:
        norm.momentum = 0.03
    if end2end is not None and type(module).end2end.fset is not None:
        module.end2end = end2end
    return save_detector(path, module.eval(), task="detect", train_args={"imgsz": IMGSZ}, meta={})


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """A tiny detector with two blocks in a row, so that one of them can go."""
    path, described = tmp_path_factory.mktemp("architecture") / "tiny.yaml", description()
    described["backbone"][2][1] = 2
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture(scope="module")
def checkpoint(architecture, tmp_path_factory):
    return save_lively(tmp_path_factory.mktemp("weights") / "tiny.pt", architecture, seed=0)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    return export_onnx(checkpoint, tmp_path_factory.mktemp("onnx") / "tiny.onnx", imgsz=IMGSZ)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_exported_file_computes_what_the_checkpoint_computes(checkpoint, exported, runtime):
    pytest.importorskip(runtime)
    parity = file_parity(load_detector(checkpoint), exported, IMGSZ, runtime)
    assert parity.scale > 1.0
    assert parity.relative < 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_control_another_model_has_no_parity(architecture, exported, tmp_path, runtime):
    pytest.importorskip(runtime)
    path = save_lively(tmp_path / "other.pt", architecture, seed=1)
    parity = file_parity(load_detector(path), exported, IMGSZ, runtime)
    assert parity.max_abs_diff > 1.0
    assert parity.score_diff > 0.05


def test_the_export_of_a_model_without_a_block_computes_the_same(checkpoint, exported, tmp_path):
    model = load_detector(checkpoint).module
    anatomy = anatomy_of(model, IMGSZ)
    block = offered_blocks(model, anatomy)[-2]  # others of its stage stay
    drop_proven_(model, anatomy.cost_of(model), block, anatomy)
    file = save_detector(tmp_path / "less.pt", model, task="detect", train_args={"imgsz": IMGSZ}, meta={})
    assert (
        file_parity(
            load_detector(file), export_onnx(file, tmp_path / "less.onnx", imgsz=IMGSZ), IMGSZ
        ).relative
        < 1e-4
    )
    assert (
        file_parity(load_detector(file), exported, IMGSZ).relative > 1e-3
    )  # the control: the export of the whole model


def test_only_the_output_appears_and_the_checkpoint_is_untouched(checkpoint, tmp_path):
    before = checkpoint.read_bytes()
    out = export_onnx(checkpoint, tmp_path / "new" / "a.onnx", imgsz=IMGSZ)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["tiny.pt"]
    assert checkpoint.read_bytes() == before
    assert list(tmp_path.rglob("*")) == [out.parent, out]


@pytest.mark.parametrize("end2end", [True, False])
def test_of_two_heads_the_selected_one_is_exported(tmp_path, end2end):
    architecture = tmp_path / "tiny.yaml"
    architecture.write_text(yaml.safe_dump({**description(), "end2end": True, "reg_max": 1}))
    path = save_lively(tmp_path / "e2e.pt", architecture, 0, end2end)
    if load_detector(path).module.end2end != end2end:
        pytest.skip("this version of the host has no choice of heads")
    out = export_onnx(path, tmp_path / "e2e.onnx", imgsz=IMGSZ)
    parity = file_parity(load_detector(path), out, IMGSZ)
    assert parity.relative < 1e-3
    (shape,) = [output.shape for output in onnxruntime.InferenceSession(out).get_outputs()]
    assert (shape[2] == 6) == end2end
    other = save_lively(tmp_path / "other.pt", architecture, 1, end2end)
    assert file_parity(load_detector(other), out, IMGSZ).relative > 1e-2


@pytest.mark.parametrize("package", ["onnx", "onnxslim"])
def test_a_missing_package_is_named_and_nothing_is_installed(monkeypatch, checkpoint, tmp_path, package):
    real = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    sentence = f"export to ONNX needs '{package}', which is not installed: pip install \"yolo-prune[onnx]\"."
    with pytest.raises(MissingRuntimeError, match=re.escape(sentence)):
        export_onnx(checkpoint, tmp_path / "a.onnx", imgsz=IMGSZ)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "imgsz", "sentence"),
    [
        ("a.onnx", 70, "imgsz must be a multiple of the model's stride 8, got 70."),
        ("a.onnx", 0, "imgsz must be a multiple of the model's stride 8, got 0."),
        ("a.engine", 64, "an export needs a path that ends in .onnx"),
    ],
)
def test_a_wrong_option_is_refused(checkpoint, tmp_path, name, imgsz, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        export_onnx(checkpoint, tmp_path / name, imgsz=imgsz)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        export_onnx(tmp_path / "none.pt", tmp_path / "a.onnx", imgsz=IMGSZ)


def test_a_failed_export_leaves_the_old_file(monkeypatch, checkpoint, tmp_path):
    out = tmp_path / "a.onnx"
    out.write_bytes(b"old")

    def fail(*_):
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(export, "_run_exporter", fail)
    with pytest.raises(RuntimeError, match="unsupported operator"):
        export_onnx(checkpoint, out, imgsz=IMGSZ)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_ranked_boxes_may_swap_places_but_not_change():
    ours = np.array([[[9, 9, 20, 20, 0.9, 0], [1, 1, 5, 5, 0.9, 1], [0, 0, 1, 1, 0.1, 0]]], np.float32)
    swapped = ours[:, [1, 0, 2]]
    assert compare_outputs(ours, swapped, 80).max_abs_diff == 0.0
    moved = swapped.copy()
    moved[0, 0, 0] += 0.5
    assert compare_outputs(ours, moved, 80).max_abs_diff == pytest.approx(0.5)
    assert compare_outputs(ours, ours[:, :2], 80) == Parity(float("inf"), 20.0, float("inf"))


def test_ranked_boxes_of_equal_scores_are_still_compared():
    ours = np.array([[[9, 9, 20, 20, 1, 0], [1, 1, 5, 5, 1, 1]]], np.float32)
    assert compare_outputs(ours, ours[:, ::-1], 80).max_abs_diff == 0.0
    moved = ours + np.array([2, 0, 0, 0, 0, 0], np.float32)
    assert compare_outputs(ours, moved, 80).max_abs_diff == 2.0


@pytest.mark.parametrize("shape", [(1, 84, 20), (1, 20, 6), (1, 10)])
def test_an_output_that_is_not_finite_has_no_parity(shape):
    ours = np.ones(shape, np.float32)
    theirs = ours.copy()
    theirs.flat[3] = np.nan
    assert compare_outputs(ours, theirs, 80).relative == float("inf")


def test_a_difference_in_a_score_is_not_hidden_by_boxes_in_pixels():
    ours = np.full((1, 7, 7), 640.0, np.float32)
    ours[:, 4:] = 0.5
    theirs = ours.copy()
    theirs[0, 5, 3] += 0.25
    theirs[0, 2, 6] += 0.5
    parity = compare_outputs(ours, theirs, 3)
    assert parity == Parity(0.5, 640.0, 0.25)
    assert parity.relative == 0.25


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_that_computes_something_else_is_an_error_and_is_removed(
    monkeypatch, architecture, checkpoint, tmp_path, format
):
    if format == "openvino":
        pytest.importorskip("openvino")
    other = save_lively(tmp_path / "other.pt", architecture, seed=1)
    real = exporting.write_export
    monkeypatch.setattr(exporting, "write_export", lambda model, out, **more: real(other, out, **more))
    out = tmp_path / f"out{EXPORTS[format]}"
    config = make_config(ExportConfig, {"model": str(checkpoint), "format": format, "out": str(out)})
    sentence = rf"^'{re.escape(str(out))}' was removed: the file does not compute what its checkpoint computes: outputs "
    with pytest.raises(BenchmarkError, match=sentence):
        exporting.export_float(config, load_detector(checkpoint), out, IMGSZ)
    assert not out.exists()
    monkeypatch.undo()
    assert exporting.export_float(config, load_detector(checkpoint), out, IMGSZ).agrees
    assert out.exists()


def test_a_file_of_another_model_is_not_timed_and_one_that_is_cut_short_ends_the_comparison(
    monkeypatch, architecture, checkpoint, tmp_path
):
    other = save_lively(tmp_path / "other.pt", architecture, seed=1)
    copy = Path(shutil.copy(checkpoint, tmp_path / "copy.pt"))
    files, options = (
        {"parent": checkpoint, "pruned": copy},
        {"runtime": "onnxruntime", "imgsz": IMGSZ, "threads": 1},
    )
    real = exports.write_export

    def of_another(path, out, **more):
        return real(other if path == copy else path, out, **more)

    def cut_short(path, out, **more):
        real(path, out, **more).write_bytes(out.read_bytes()[:-5000])
        return out

    monkeypatch.setattr(exports, "write_export", of_another)
    found = compare(files, **options, rounds=2, seconds=0.1)
    assert found.timings["parent"].fps > 0
    assert found.timings["pruned"] is None
    assert found.refused["pruned"].startswith(
        "the file does not compute what its checkpoint computes: outputs differ"
    )
    assert found.parities["parent"].relative < 1e-4
    monkeypatch.setattr(exports, "write_export", cut_short)
    with pytest.raises(CheckpointError, match="is not an ONNX model that onnxruntime can load"):
        compare(files, **options, rounds=2, seconds=0.1)
