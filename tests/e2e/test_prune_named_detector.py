"""Detectors by their library's name: a two-stage one and a dense one, trained, pruned, retrained, reported, exported."""

import json
import re

import numpy as np
import pytest
import torch
from nets import conv
from torch import nn

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.adapters.torchvision.host import HOST
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.runtimes.runtime import read_file

detection = pytest.importorskip("torchvision.models.detection")

TRAIN = [
    "imgsz=64",
    "batch=4",
    "workers=0",
    "device=cpu",
    "optimizer=AdamW",
    "lr0=0.003",
    "scale=0.1",
    "rois=32",
]
PRUNE = [
    "keep_macs=0.6",
    "steps=2",
    "calibration_images=8",
    "batch=4",
    "workers=0",
    "bench=false",
    "device=cpu",
]


def backbone():
    net = nn.Sequential(conv(16, 3, stride=4), conv(32, 16, stride=2), conv(32, 32), conv(32, 32))
    net.out_channels = 32
    return net


def one_anchor():
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(((24,),), ((1.0,),))


def tiny_two_stage(*, weights=None, weights_backbone=None, num_classes=91):
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    return detection.FasterRCNN(
        backbone(),
        rpn_anchor_generator=one_anchor(),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(32 * 9, 64),
        box_predictor=FastRCNNPredictor(64, num_classes),
        rpn_post_nms_top_n_test=16,
        rpn_post_nms_top_n_train=64,
        min_size=64,
        max_size=64,
    )


def tiny_dense(*, weights=None, weights_backbone=None, num_classes=91):
    return detection.RetinaNet(
        backbone(), num_classes, anchor_generator=one_anchor(), min_size=64, max_size=64
    )


@pytest.fixture(autouse=True, scope="module")
def _names():
    """Both stand among the library's own detectors for as long as these tests run."""
    from torchvision.models._api import BUILTIN_MODELS, register_model

    for build in (tiny_two_stage, tiny_dense):
        build.__module__ = "torchvision.models.detection.tiny"
        register_model()(build)
    building._names.cache_clear()
    yield
    for build in (tiny_two_stage, tiny_dense):
        del BUILTIN_MODELS[build.__name__]
    building._names.cache_clear()


@pytest.fixture(scope="module", params=["tiny_two_stage", pytest.param("tiny_dense", marks=pytest.mark.slow)])
def finished(request, tmp_path_factory, data, _names):
    """One training and one whole run."""
    folder, name = tmp_path_factory.mktemp(request.param), f"torchvision:{request.param}"
    where = [f"data={data}", f"project={folder}"]
    assert cli.main(["train", f"model={name}", *TRAIN, "epochs=12", *where, "name=parent"]) == 0
    stored = torch.load(folder / "parent" / "weights" / "best.pt", weights_only=True)
    torch.save(stored["state_dict"], folder / "checkpoint.pth")
    words = [f"model={name}", f"weights={folder / 'checkpoint.pth'}", "imgsz=64", *PRUNE, *where]
    assert cli.main(["prune", *words, "epochs=1", "name=run"]) == 0
    return folder / "run"


def report_of(folder):
    report = json.loads((folder / "report.json").read_text())
    return report, {row["model"]: row for row in report["rows"]}


def test_the_parent_finds_the_squares_and_the_rows_say_so(finished):
    report, rows = report_of(finished)
    assert list(rows) == ["parent", "pruned", "retrained", "control"]
    assert rows["parent"]["ap50"] > 0.5, "the control: comparing nothing with nothing proves nothing"
    assert all(row["ap"] is not None and row["ap_large"] is None for row in rows.values())
    assert [entry["name"] for entry in report["per_class"]] == ["red", "blue"]
    assert report["conditions"]["boxes"] == 8


def test_the_cut_is_exact_and_in_the_budget(finished):
    report, rows = report_of(finished)
    assert report["equivalence"]["verdict"] == "exact"
    assert report["equivalence"]["scale"] > 0
    assert rows["pruned"]["gmacs"] <= 0.6 * rows["parent"]["gmacs"] * 1.0001
    plan = PrunePlan.from_json((finished / "plan.json").read_text())
    share = rows["pruned"]["gmacs"] / rows["parent"]["gmacs"]
    assert share == pytest.approx(plan.kept_macs), "both counted at the proposals of the parent"
    counts = {
        name: count_parameters(load_detector(finished / "weights" / f"{name}.pt").module)
        for name in ("parent", "pruned", "best")
    }
    assert counts["best"] == counts["pruned"] < counts["parent"]


def test_the_second_stage_is_cut_too(finished):
    module = load_detector(finished / "weights" / "pruned.pt").module
    if hasattr(module, "roi_heads"):
        assert module.roi_heads.box_head.fc6.out_features < 64
        assert module.rpn.head.conv[0][0].out_channels < 32
    else:
        for head in (module.head.classification_head, module.head.regression_head):
            assert min(layer[0].out_channels for layer in head.conv) < 32


def test_an_exported_file_finds_the_boxes_of_its_checkpoint(finished, data, tmp_path):
    import onnxruntime

    from yolo_prune.adapters.hosts import find_host
    from yolo_prune.adapters.torchvision.framing import load_framed

    checkpoint = finished / "weights" / "best.pt"
    file = find_host(checkpoint).export(checkpoint, tmp_path / "best.onnx", imgsz=64)
    image = load_framed([data.parent / "images" / "val" / "0.png"], 64, False)[0]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"images": image.numpy()})[0]
    with torch.inference_mode():
        ours = load_detector(checkpoint).module([image[0]])[0]
    assert theirs.shape == (1, len(ours["scores"]), 6)
    assert len(ours["scores"]) > 0
    assert np.allclose(theirs[0, :, :4], ours["boxes"], atol=1e-3)
    assert np.allclose(theirs[0, :, 4], ours["scores"], atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["red", "blue"]'
    out = tmp_path / "eval.json"
    assert cli.main(["eval", f"model={file}", f"data={data}", "workers=0", f"json={out}"]) == 0
    found = json.loads(out.read_text())["coco"]["ap"]
    assert found == pytest.approx(report_of(finished)[1]["retrained"]["ap"], abs=1e-3)
    assert found > 0.1, "the control: two models that find nothing agree"


def test_a_detector_in_8_bits_finds_nearly_what_it_finds_in_32(finished, data, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file, out = finished / "weights" / "parent.pt", tmp_path / "a.onnx"
    words = [f"model={file}", f"data={data}", "imgsz=64", "quantize=8", "calibration_images=8", "batch=4"]
    assert cli.main(["export", *words, f"out={out}"]) == 0
    before, after = map(float, re.findall(r"COCO AP ([\d.]+)", capsys.readouterr().out))
    assert after > 0.7 * before > 0.1
    facts = read_file("onnxruntime", out)
    assert facts.precision == "int8"
    assert HOST.read_export(facts.metadata).names == {0: "red", 1: "blue"}
    assert cli.main(["export", *words, "format=openvino", f"out={tmp_path / 'a_openvino_model'}"]) == 2
    assert "have INT8 for ONNX Runtime alone" in capsys.readouterr().err


def test_eval_and_inspect_take_the_file(finished, data, tmp_path, capsys):
    best, out = finished / "weights" / "best.pt", tmp_path / "eval.json"
    assert cli.main(["eval", f"model={best}", f"data={data}", "batch=4", "workers=0", f"json={out}"]) == 0
    assert json.loads(out.read_text())["coco"]["ap"] == report_of(finished)[1]["retrained"]["ap"]
    assert cli.main(["inspect", f"model={best}"]) == 0
    assert "groups" in capsys.readouterr().out


def test_a_detector_is_pruned_while_it_trains(data, tmp_path):
    words = [*TRAIN, "epochs=4", "keep_macs=0.6", "prune_at=0.5", "steps=2", "calibration_images=8"]
    where = [f"data={data}", f"project={tmp_path}", "name=run"]
    assert cli.main(["train", "model=torchvision:tiny_two_stage", *words, *where]) == 0
    best = tmp_path / "run" / "weights" / "best.pt"
    plan = PrunePlan.from_json(torch.load(best, weights_only=True)["plan"])
    assert plan.kept_macs <= 0.6001
    assert plan.params == count_parameters(load_detector(best).module) < count_parameters(tiny_two_stage())


def test_a_detector_that_learns_from_masks_is_not_trained_on_boxes_alone(data, tmp_path, capsys):
    words = ["imgsz=64", "epochs=1", f"data={data}", f"project={tmp_path}"]
    assert cli.main(["train", "model=torchvision:maskrcnn_resnet50_fpn", *words]) == 2
    said = "maskrcnn_resnet50_fpn learns from more than boxes, and 24 of the 24 objects have no mask"
    assert said in capsys.readouterr().err
