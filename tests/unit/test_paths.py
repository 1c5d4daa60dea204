"""A path may be a text wherever a user gives one."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import yolo_prune
from yolo_prune.accuracy.labels import coco_from_yolo
from yolo_prune.adapters.checkpoint import load_detector, read_metadata, save_detector, write_metadata
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.adapters.ultralytics.int8 import export_int8
from yolo_prune.adapters.ultralytics.training.history import read_result
from yolo_prune.bench.parity import file_parity
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.files import write_text
from yolo_prune.train import draw_scales


def test_files_are_written_under_a_text_path(tmp_path):
    plan = yolo_prune.PrunePlan(keep={"a[0]": [0]}, widths={"a[0]": 2})
    name = str(tmp_path / "new" / "plan.json")
    assert plan.save(name) == Path(name)
    assert yolo_prune.PrunePlan.from_json(Path(name).read_text()) == plan
    text = str(tmp_path / "text.txt")
    assert write_text(text, "one") == Path(text)
    scales = {"norm": torch.rand(8)}
    assert draw_scales(str(tmp_path / "scales.png"), scales, scales).is_file()


def test_a_checkpoint_is_written_changed_and_read_under_a_text_path(tmp_path):
    loaded = load_detector("yolov5n.yaml")
    name = str(tmp_path / "model.pt")
    assert save_detector(name, loaded.module, task="detect", train_args={}, meta={"a": 1}) == Path(name)
    assert write_metadata(name, {"a": 2}) == Path(name)
    assert read_metadata(name)["a"] == 2


def test_labels_and_images_are_read_from_text_paths(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    found = coco_from_yolo([str(tmp_path / "a.png")], [str(tmp_path / "a.txt")], {0: "a"})
    assert [entry["bbox"] for entry in found["annotations"]] == [[2.0, 1.5, 4.0, 3.0]]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: export_onnx("a.pt", "a.txt", imgsz=32), ConfigError, "ends in .onnx, got 'a.txt'"),
        (lambda: export_int8("a.pt", "a.txt", [], imgsz=32), ConfigError, "ends in .onnx, got 'a.txt'"),
        (
            lambda: file_parity(load_detector("yolov8n.yaml"), "missing.onnx", 32),
            CheckpointError,
            "missing.onnx",
        ),
        (lambda: read_result("nowhere"), CheckpointError, "'nowhere' holds no checkpoint"),
    ],
    ids=["onnx", "int8", "parity", "result"],
)
def test_what_is_wrong_with_a_text_path_is_a_sentence(call, error, text):
    with pytest.raises(error, match=text):
        call()
