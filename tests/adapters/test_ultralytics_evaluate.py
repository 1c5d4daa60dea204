"""Evaluation gives the host's own numbers, and leaves the module, the data and the process as they were."""

import logging
import os
import random
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_host import tiny
from torch import nn

from yolo_prune.adapters.ultralytics import verify
from yolo_prune.adapters.ultralytics.evaluate import Evaluator, evaluate_detector
from yolo_prune.errors import DataError

NAMES = {0: "ant", 1: "bee"}


@pytest.fixture
def data(tmp_path):
    """Six random images of two shapes, with one box each."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    for index in range(6):
        shape = (48, 64, 3) if index % 2 else (64, 40, 3)
        image = Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))
        image.save(tmp_path / "images" / "val" / f"{index}.png")
        label = tmp_path / "labels" / "val" / f"{index}.txt"
        label.write_text(f"{index % 2} 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    file = tmp_path / "data.yaml"
    file.write_text("train: images/val\nval: images/val\nnames: [ant, bee]\n", encoding="utf-8")
    return file


def build(config: str = "yolov8n.yaml", classes: int = 2) -> nn.Module:
    """Build a random detector whose scores are high enough to give detections."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    module = DetectionModel(config, nc=classes, verbose=False)
    for sequence in module.model[-1].cv3:
        sequence[-1].bias.data.fill_(-2.0)
    module.names = dict(list({**NAMES, 2: "cat"}.items())[:classes])
    return module


def test_the_module_is_untouched(data):
    module = build().train()
    module.model[0].eval()
    calls = []
    handle = module.model[1].register_forward_hook(lambda *_: calls.append(1))
    before = deepcopy(module.state_dict())
    modes = [each.training for each in module.modules()]
    layers = [type(each) for each in module.modules()]
    result = evaluate_detector(module, data, imgsz=64)
    assert Evaluator(data, imgsz=64)(module) == result.coco
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [each.training for each in module.modules()] == modes
    assert [type(each) for each in module.modules()] == layers, "BatchNorm is still there"
    assert all(each.requires_grad for name, each in module.named_parameters() if "dfl" not in name)
    assert handle.id in module.model[1]._forward_hooks


def test_the_process_is_as_it_was(data, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    host = logging.getLogger("ultralytics")
    before = host.level, torch.get_num_threads(), random.getstate()
    evaluate_detector(build(), data, imgsz=64)
    assert (host.level, torch.get_num_threads(), random.getstate()) == before
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert capsys.readouterr() == ("", "")


def test_the_fast_evaluator_writes_nothing_into_the_data(data):
    before = sorted(data.parent.rglob("*"))
    Evaluator(data, imgsz=64)(build())
    assert sorted(data.parent.rglob("*")) == before


def test_a_slice_is_spread_over_the_images_and_has_only_their_ground_truth(data):
    evaluate = Evaluator(data, imgsz=64, max_images=3)
    assert [path.name for path in evaluate.data.image_files] == ["0.png", "2.png", "5.png"]
    result = evaluate(build())
    assert (result.images, result.boxes) == (3, 3)
    assert evaluate(build()) == result


def test_both_means_are_reported_apart(data):
    result = evaluate_detector(build(), data, imgsz=64)
    assert result.images == result.coco.images == 6
    assert result.source == "YOLO labels"
    assert 0 <= result.host_map <= result.host_map50 <= 1


@pytest.mark.parametrize(
    "run", [evaluate_detector, lambda module, data, imgsz: Evaluator(data, imgsz=imgsz)(module)]
)
def test_another_number_of_classes_is_an_error(data, run):
    with pytest.raises(DataError) as error:
        run(build(classes=3), data, imgsz=64)
    assert str(error.value) == (
        f"the model has 3 classes and {data} has 2. Evaluate it on data with the classes it was trained for."
    )


def test_a_module_without_names_needs_them(data):
    module = build()
    del module.names
    message = r"^the model does not say which classes it finds: pass names=\{0: \.\.\.\}\.$"
    with pytest.raises(DataError, match=message):
        evaluate_detector(module, data, imgsz=64)
    assert evaluate_detector(module, data, imgsz=64, names=NAMES).images == 6
    assert not hasattr(module, "names")


def test_an_image_that_the_host_skips_is_named_and_counts_for_nobody(data, caplog, monkeypatch):
    small = data.parent / "images" / "val" / "3.png"
    Image.new("RGB", (8, 8)).save(small)  # under the host's 10 pixels
    result = evaluate_detector(build(), data, imgsz=64)
    assert (result.images, result.coco.images) == (5, 5)
    assert f"{small}: 8 x 8 pixels are too few" in caplog.text
    monkeypatch.setattr(verify, "image_problem", lambda _: "")
    Image.new("RGB", (8, 9)).save(small)
    with pytest.raises(
        DataError, match=r"^the host skipped 1 of 6 images as corrupt, for example .*3\.png\.$"
    ):
        evaluate_detector(build(), data, imgsz=64)


def test_a_model_that_finds_no_boxes_is_an_error(data):
    from ultralytics.nn.tasks import ClassificationModel

    module = ClassificationModel("yolov8n-cls.yaml", nc=2, verbose=False)
    message = r"^a 'classify' model finds no boxes: COCO AP is for detect, segment, pose, obb models\.$"
    with pytest.raises(DataError, match=message):
        evaluate_detector(module, data, imgsz=64, names=NAMES)


def test_oriented_boxes_are_scored_by_the_upright_box_around_them():
    from yolo_prune.adapters.ultralytics.validator import Collecting

    validator = Collecting.__new__(Collecting)
    validator.files, validator.found = [], []
    boxes = torch.tensor([[50.0, 40.0, 20.0, 10.0, torch.pi / 2]])
    prediction = {"bboxes": boxes, "cls": torch.zeros(1), "conf": torch.full((1,), 0.5)}
    ratio_pad = ((0.5, 0.5), (0, 0))
    batch = {"img": torch.zeros(1, 3, 96, 96), "ori_shape": [(192, 192)], "ratio_pad": [ratio_pad]}
    validator._keep(prediction, {**batch, "im_file": ["a.jpg"]}, 0)
    (found,) = validator.found
    assert (found.path, found.kind, found.score, found.shape) == ("a.jpg", 0, 0.5, None)
    assert found.box == pytest.approx([90, 60, 20, 40], abs=1e-3)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_nms_is_not_cut_short_by_the_clock_and_the_hosts_own_stays_as_it_is(task, monkeypatch):
    """The host gives up after 2 s + 0.05 s an image; on a busy machine that would look like a bad model."""
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.utils import nms

    from yolo_prune.adapters.ultralytics.validator import collecting_validator

    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(nms.time, "time", lambda: float(next(clock)))
    predictions = torch.rand(3, 5, 20)
    predictions[:, :4] *= 50
    before, method = nms.non_max_suppression, DetectionValidator.postprocess
    found = []
    for cls in (collecting_validator(tiny(task)), DetectionValidator):
        validator = cls(args={"task": task, "conf": 0.1}, save_dir=Path())
        validator.nc, validator.end2end = 1, False
        found.append(method_of_boxes(validator)(predictions.clone()))
    patient, hasty = found
    assert all(len(each["conf"]) for each in patient)
    assert not len(hasty[-1]["conf"]), "the control: the host's own limit loses the last image"
    assert (nms.non_max_suppression, DetectionValidator.postprocess) == (before, method)


def method_of_boxes(validator):
    """The step of a validator that a segmenter's adds its masks to."""
    owner = next(
        cls for cls in type(validator).__mro__ if cls.__name__ in ("_PatientNms", "DetectionValidator")
    )
    return owner.postprocess.__get__(validator)
