"""Detectors of masks and of key points by their library's name: judged by them, trained on them, pruned, retrained."""

import json

import cv2
import numpy as np
import pytest
from test_prune_named_detector import backbone, one_anchor

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.cost import count_parameters

detection = pytest.importorskip("torchvision.models.detection")

TRAIN = ["imgsz=64", "batch=4", "workers=0", "device=cpu", "optimizer=AdamW", "lr0=0.003", "scale=0.1"]
PRUNE = ["keep_macs=0.7", "steps=1", "calibration_images=8", "batch=4", "workers=0", "bench=false"]


def parts(num_classes):
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    return {
        "rpn_anchor_generator": one_anchor(),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 3, 2),
        "box_head": TwoMLPHead(32 * 9, 64),
        "box_predictor": FastRCNNPredictor(64, num_classes),
        "rpn_post_nms_top_n_test": 16,
        "rpn_post_nms_top_n_train": 64,
        "box_detections_per_img": 4,
        **{"min_size": 64, "max_size": 64},
    }


def tiny_masks(*, weights=None, weights_backbone=None, num_classes=91):
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    head, predictor = MaskRCNNHeads(32, (32,), 1), MaskRCNNPredictor(32, 32, num_classes)
    made = parts(num_classes)
    return detection.MaskRCNN(backbone(), mask_head=head, mask_predictor=predictor, **made)


def tiny_points(*, weights=None, weights_backbone=None, num_classes=91):
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

    head, predictor = KeypointRCNNHeads(32, (32,)), KeypointRCNNPredictor(32, 2)
    made = parts(num_classes)
    return detection.KeypointRCNN(backbone(), keypoint_head=head, keypoint_predictor=predictor, **made)


KINDS = {"segment": tiny_masks, "pose": tiny_points}


@pytest.fixture(autouse=True, scope="module")
def _names():
    """Both stand among the library's own detectors for as long as these tests run."""
    from torchvision.models._api import BUILTIN_MODELS, register_model

    for build in KINDS.values():
        build.__module__ = "torchvision.models.detection.tiny"
        register_model()(build)
    building._names.cache_clear()
    yield
    for build in KINDS.values():
        del BUILTIN_MODELS[build.__name__]
    building._names.cache_clear()


def draw(folder, kind):
    """Draw a diamond an image, with its outline, or with its left and right corners."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for index in range(count):
            image = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            (x, y), (w, h) = random.uniform(26, 38, 2), random.uniform(12, 20, 2)
            corners = np.array([[x - w, y], [x, y - h], [x + w, y], [x, y + h]])
            cv2.fillPoly(image, [corners.round().astype(np.int32)], (40, 230, 230))
            outline = " ".join(f"{value / 64:.5f}" for value in corners.ravel())
            box = f"{x / 64:.5f} {y / 64:.5f} {2 * w / 64:.5f} {2 * h / 64:.5f}"
            ends = f"{(x - w) / 64:.5f} {y / 64:.5f} 2 {(x + w) / 64:.5f} {y / 64:.5f} 2"
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            row = f"0 {outline}" if kind == "segment" else f"0 {box} {ends}"
            (folder / "labels" / split / f"{index}.txt").write_text(f"{row}\n")
    points = "kpt_shape: [2, 3]\nflip_idx: [1, 0]\n" if kind == "pose" else ""
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [diamond]\n{points}")
    return folder / "data.yaml"


@pytest.fixture(scope="module", params=["segment", "pose"])
def finished(request, tmp_path_factory, _names):
    """One training and one whole run."""
    folder = tmp_path_factory.mktemp(request.param)
    data, name = draw(folder / "data", request.param), f"torchvision:{KINDS[request.param].__name__}"
    where = [f"data={data}", f"project={folder}"]
    assert cli.main(["train", f"model={name}", *TRAIN, "rois=32", "epochs=14", *where, "name=parent"]) == 0
    best = folder / "parent" / "weights" / "best.pt"
    words = [f"model={best}", "imgsz=64", *PRUNE, *where, "optimizer=AdamW", "rois=32"]
    assert cli.main(["prune", *words, "epochs=1", "name=run"]) == 0
    return request.param, folder / "run", data


METRIC = {"segment": "mask_ap", "pose": "keypoint_ap"}


def test_they_are_trained_judged_pruned_and_retrained_by_what_they_find(finished):
    kind, folder, _ = finished
    report = json.loads((folder / "report.json").read_text())
    rows = {row["model"]: row for row in report["rows"]}
    assert list(rows) == ["parent", "pruned", "retrained", "control"]
    assert rows["parent"][METRIC[kind]] > 0.3, "the control: it has learnt what it is judged by"
    assert rows["retrained"][METRIC[kind]] > 0.2
    assert all(row["ap"] is not None for row in rows.values())
    assert report["equivalence"]["verdict"] == "exact"
    shape = "masks at the size" if kind == "segment" else "sigmas 0.5, an object's area 0.53 of its box"
    assert shape in report["conditions"]["evaluator"]
    header = (folder / "results.csv").read_text().splitlines()[0]
    assert header.endswith(METRIC[kind])
    counts = [
        count_parameters(load_detector(folder / "weights" / f"{n}.pt").module) for n in ("parent", "best")
    ]
    assert counts[1] < counts[0]


def test_data_without_masks_or_points_is_judged_by_boxes_and_not_trained_on(finished, tmp_path, capsys):
    kind, folder, _ = finished
    plain = draw(tmp_path / "plain", "segment" if kind == "pose" else "pose")
    words = [f"model={folder}/weights/best.pt", f"data={plain}", "workers=0"]
    out = tmp_path / "eval.json"
    assert cli.main(["eval", *words, f"json={out}"]) == 0
    assert "mask_ap" not in out.read_text()
    assert "keypoint_ap" not in out.read_text()
    words += ["keep_macs=0.5", "epochs=1", f"project={tmp_path}"]
    assert cli.main(["prune", *words]) == 2
    what = "mask" if kind == "segment" else "key points"
    assert f"learns from more than boxes, and 24 of the 24 objects have no {what}" in capsys.readouterr().err
    if kind == "pose":
        for file in (tmp_path / "plain" / "labels" / "val").iterdir():
            file.write_text("0 0.5 0.5 0.4 0.4 0.3 0.5 2 0.7 0.5 2 0.5 0.5 2\n")
        plain.write_text(plain.read_text() + "kpt_shape: [3, 3]\n")
        assert cli.main(["eval", f"model={folder}/weights/best.pt", f"data={plain}", "workers=0"]) == 2
        assert "the model finds 2 key points, and objects of" in capsys.readouterr().err
