"""Tasks beside detection go through the whole run, and the report says what its AP leaves out."""

import importlib.util
import json
from pathlib import Path

import pytest

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector, save_detector

LEFT_OUT = {
    "segment": "AP is that of the boxes: masks were not scored.",
    "pose": "AP is that of the boxes: key points were not scored.",
    "obb": "AP is that of upright boxes: each oriented box, found or labelled, counts as the upright box around it.",
}


@pytest.fixture(scope="module")
def host():
    """The drawn images and tiny models that the adapters' tests use."""
    file = Path(__file__).parents[1] / "adapters" / "tiny_host.py"
    spec = importlib.util.spec_from_file_location("tiny_host_of_tasks", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(host, folder: Path, task: str) -> int:
    data, module = host.draw(folder / "data", task), host.tiny(task).eval()
    module.names = {0: "kind0", 1: "kind1"}
    save_detector(folder / "model.pt", module, task=task, train_args={"imgsz": 64}, meta={})
    words = [
        "steps=1",
        "calibration_images=8",
        "batch=4",
        "workers=0",
        "bench=false",
        "quantize=8",
    ]
    return cli.main(
        [
            "prune",
            f"model={folder / 'model.pt'}",
            f"data={data}",
            "keep_macs=0.7",
            f"project={folder}",
            "name=a",
            *words,
        ]
    )


@pytest.mark.parametrize("task", LEFT_OUT)
def test_the_whole_run_says_what_ap_is_of(host, tmp_path, task, capsys):
    """But for retraining, which the trainer's own tests do for every task."""
    assert run(host, tmp_path, task) == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["parent", "pruned", "int8", "control"]
    assert report["rows"][1]["gmacs"] <= 0.7 * report["rows"][0]["gmacs"]
    assert LEFT_OUT[task] in report["warnings"]
    boxes = "upright boxes" if task == "obb" else "boxes"
    assert report["conditions"]["ap_of"] == boxes
    for name in ("report.md", "report.html"):
        text = (tmp_path / "a" / name).read_text()
        assert f"COCO AP of {boxes}" in text
        assert LEFT_OUT[task] in text
    file, out = tmp_path / "a" / "weights" / "pruned.pt", tmp_path / "eval.json"
    capsys.readouterr()
    words = [f"model={file}", f"data={tmp_path / 'data' / 'data.yaml'}", "workers=0", f"json={out}"]
    assert cli.main(["eval", *words]) == 0
    assert LEFT_OUT[task] in capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    assert (found["ap_of"], found["notes"]) == (boxes, [LEFT_OUT[task]])
    assert load_detector(tmp_path / "a" / "weights" / "pruned.pt").task == task
