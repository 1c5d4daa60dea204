"""Tasks beside detection go through the whole run, each judged by the metric of its own."""

import html
import importlib.util
import json
from pathlib import Path

import pytest

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector, save_detector

METRICS = {
    "segment": ("mask_ap", "mask AP", "box AP", "COCO AP of masks"),
    "pose": ("keypoint_ap", "keypoint AP", "box AP", "COCO AP of key points"),
    "obb": ("oriented_ap", "oriented AP", "upright box AP", "the host's own mAP50-95 of oriented boxes"),
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


@pytest.mark.parametrize("task", METRICS)
def test_the_whole_run_is_judged_by_the_metric_of_its_task(host, tmp_path, task, capsys):
    """But for retraining, which the trainer's own tests do for every task."""
    metric, short, second, definition = METRICS[task]
    assert run(host, tmp_path, task) == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["parent", "pruned", "int8", "control"]
    assert report["rows"][1]["gmacs"] <= 0.7 * report["rows"][0]["gmacs"]
    for row in report["rows"]:
        assert None not in (row[metric], row[f"{metric}50"], row["ap"]), row["model"]
    assert not report["warnings"], "nothing is left out of the accuracy"
    boxes = "upright boxes" if task == "obb" else "boxes"
    assert report["conditions"]["ap_of"] == boxes
    assert all(stage[metric] is not None and stage["ap"] is None for stage in report["stages"])
    assert len(report["resamples"]) == 4
    assert json.loads((tmp_path / "a" / "examples" / "examples.json").read_text())["images"] is not None
    for name in ("report.md", "report.html"):
        text = html.unescape((tmp_path / "a" / name).read_text())
        assert definition in text
        assert f"{short} 0." in text, "the sentences"
        assert second in text
    file, out = tmp_path / "a" / "weights" / "pruned.pt", tmp_path / "eval.json"
    capsys.readouterr()
    words = [f"model={file}", f"data={tmp_path / 'data' / 'data.yaml'}", "workers=0", f"json={out}"]
    assert cli.main(["eval", *words]) == 0
    said = capsys.readouterr().out
    assert f"{metric} of kind0" in said
    assert ("host map of " in said) == (task != "obb")
    assert f"interval of {metric}: " in said
    found = json.loads(out.read_text())
    assert (found["ap_of"], found["notes"]) == (boxes, [])
    assert found["own"]["ap"] == pytest.approx(report["rows"][1][metric])
    assert load_detector(tmp_path / "a" / "weights" / "pruned.pt").task == task
