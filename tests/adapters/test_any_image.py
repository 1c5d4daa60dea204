"""Images of any number of channels and any shape: the model says how many, the user which shape."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from inrun_host import run as train
from tiny_host import draw, tiny

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics import export
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of, input_channels
from yolo_prune.adapters.ultralytics.classify import check_colour, class_calibration_batches, resolve_classes
from yolo_prune.adapters.ultralytics.closeness import DistillationWeights
from yolo_prune.adapters.ultralytics.data import calibration_batches
from yolo_prune.adapters.ultralytics.evaluate import Evaluator, evaluate_detector
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.adapters.ultralytics.training.distill import distil_
from yolo_prune.bench.parity import file_parity
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BenchmarkError, ConfigError, DataError
from yolo_prune.runtimes.images import centre_crop, to_input

SHAPE = (32, 64)


@pytest.fixture(scope="module", params=[1, 6])
def few(request, tmp_path_factory):
    """A detector of so many channels that has seen a batch, its file and its images."""
    folder, channels = tmp_path_factory.mktemp("channels"), request.param
    module = tiny("detect", channels).train()
    with torch.no_grad():
        module(torch.rand(4, channels, 64, 64))
    module.names = {0: "kind0", 1: "kind1"}
    file = save_detector(folder / "a.pt", module.eval(), task="detect", train_args={"imgsz": 64}, meta={})
    return channels, file, draw(folder / "data", channels=channels)


def every(cost):
    return np.ones(cost.graph.channel_count, dtype=bool)


def test_channels_come_from_the_model(few):
    channels, file, data = few
    loaded = load_detector(file)
    assert (loaded.channels, input_channels(loaded.module)) == (channels, channels)
    assert calibration_batches(data, SHAPE, images=2)[0].shape == (2, channels, *SHAPE)
    distil_(
        tiny("detect", channels), loaded.module, DistillationWeights()
    )  # looks at what the teacher returns


def test_a_model_without_a_description_is_known_by_its_first_layer():
    module = tiny("detect", 4)
    del module.yaml
    assert input_channels(module) == 4


def test_export_eval_inspect_and_bench_take_any_channels_and_a_shape(few, tmp_path, capsys):
    channels, file, data = few
    out, found = tmp_path / "a.onnx", tmp_path / "eval.json"
    assert cli.main(["export", f"model={file}", f"out={out}", "imgsz=32x64"]) == 0
    assert "MB, 32x64 px)" in capsys.readouterr().out
    assert onnxruntime.InferenceSession(str(out)).get_inputs()[0].shape == [1, channels, *SHAPE]
    assert file_parity(load_detector(file), out, SHAPE).relative < 1e-4
    words = [f"model={file}", f"data={data}", "imgsz=32,64", "workers=0", f"json={found}"]
    assert cli.main(["eval", *words]) == 0
    assert "8 boxes, 32x64 px" in capsys.readouterr().out
    assert json.loads(found.read_text())["imgsz"] == [32, 64]
    assert cli.main(["inspect", f"model={file}", "imgsz=32,64"]) == 0
    capsys.readouterr()
    words = [f"model={file},{out}", "imgsz=32,64", "runtimes=onnxruntime", "rounds=2", "threads=1"]
    assert cli.main(["bench", *words]) == 0
    assert capsys.readouterr().out.count("| onnxruntime | FP32 | cpu | 1 | 1 | 32x64 |") == 2


def test_data_of_other_channels_is_refused_before_anything_runs(few, data):
    channels, file, _ = few
    module = load_detector(file).module
    sentence = f"takes images of {channels} channels? and .* says 3. Write 'channels: {channels}' into it"
    with pytest.raises(DataError, match=sentence):
        evaluate_detector(module, data, imgsz=64, names={0: "kind0", 1: "kind1"})
    with pytest.raises(DataError, match=sentence):
        Evaluator(data, imgsz=64)(module, {0: "kind0", 1: "kind1"})


def test_a_grey_classifier_is_told_that_the_host_reads_colours(tmp_path, capsys):
    module = tiny("classify", 1)
    module.names = {0: "0", 1: "1"}
    file = save_detector(tmp_path / "a.pt", module, task="classify", train_args={"imgsz": 64}, meta={})
    with pytest.raises(
        DataError, match="takes images of 1 channel, and the host reads a classifier's images in colour"
    ):
        check_colour(module)
    data = draw(tmp_path / "data", "classify")
    words = [f"model={file}", f"data={data}", "keep_macs=0.5", f"project={tmp_path / 'runs'}"]
    assert cli.main(["prune", *words]) != 0
    assert "in colour, with 3" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert cli.main(["export", f"model={file}", f"out={tmp_path / 'a.onnx'}"]) == 0


@pytest.mark.parametrize("size", [64, SHAPE])
def test_a_classifier_sees_what_the_host_shows_it(tmp_path, size):
    import cv2

    data = resolve_classes(draw(tmp_path, "classify"), "val")
    theirs = class_calibration_batches(data, size, images=8, batch=8)[0].numpy()
    files = sorted((tmp_path / "train").rglob("*.jpg"))
    ours = to_input([cv2.imread(str(file)) for file in files], size, centre_crop)
    assert np.abs(ours - theirs).max() < 1e-6


def test_macs_of_a_shape_are_those_of_its_pixels():
    module = tiny()
    square, half = (anatomy_of(module, size).cost_of(module) for size in (64, SHAPE))
    assert half.macs(every(half)) == pytest.approx(square.macs(every(square)) / 2)


@pytest.mark.parametrize(
    ("recorded", "meta", "expected"),
    [
        (64, {}, 64),
        ([32, 64], {}, (32, 64)),
        (64, {"imgsz": [32, 64]}, (32, 64)),  # the host trains on squares and records their side
        (128, {"imgsz": [32, 64]}, 128),  # it was trained at another size since
        (64, {"imgsz": 64}, 64),
        (None, {}, 640),
    ],
)
def test_a_checkpoint_knows_its_shape(tmp_path, recorded, meta, expected):
    file = save_detector(tmp_path / "a.pt", tiny(), task="detect", train_args={"imgsz": recorded}, meta=meta)
    assert load_detector(file).imgsz == expected


def test_an_exporter_that_fails_is_one_sentence(few, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator\nNote that it is new")

    monkeypatch.setattr(export, "_run_exporter", fail)
    with pytest.raises(BenchmarkError, match=r"cannot export '.*a\.pt' to onnx: no such operator\.$"):
        export_onnx(few[1], tmp_path / "a.onnx", imgsz=64)


def test_a_side_off_the_stride_is_named(few, tmp_path):
    with pytest.raises(ConfigError, match="multiple of the model's stride 8, got 32x44"):
        export_onnx(few[1], tmp_path / "a.onnx", imgsz=(32, 44))


def test_a_cut_in_a_run_counts_at_the_shape_that_was_asked_for(data, tmp_path):
    made = train(data, tmp_path, imgsz=list(SHAPE), epochs=3)
    assert made.args.imgsz == 64  # the host trains on squares
    square = anatomy_of(tiny(), 64).cost_of(tiny())
    whole = square.macs(every(square)) / 2e9
    assert made.state.gmacs == pytest.approx(whole)
    plan = PrunePlan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.gmacs <= 0.6 * whole * 1e9 * 1.0001
    assert load_detector(made.best).imgsz == load_detector(made.wdir / "parent.pt").imgsz == SHAPE
