"""Every example runs to its end on little data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *options, folder):
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_example_is_read_in_one_go():
    lengths = {file.name: len(file.read_text().splitlines()) for file in EXAMPLES.glob("*.py")}
    assert {"torchvision_faster_rcnn.py", "timm_classifier.py", "mayaku_hook.py"} <= lengths.keys()
    del lengths["custom_detector.py"]  # it has its own network, loss and images
    assert max(lengths.values()) < 100


def test_faster_rcnn_of_torchvision_is_pruned_in_its_loop_and_comes_back(tmp_path):
    pytest.importorskip("torchvision")
    short = ["--epochs", "3", "--images", "4", "--side", "64", "--steps", "1"]
    printed = run("torchvision_faster_rcnn.py", *short, "--out", str(tmp_path / "run"), folder=tmp_path)
    aps = [line.rpartition(" ")[2] for line in printed.splitlines() if "COCO AP" in line]
    assert len(aps) == 4
    assert aps[-1] == aps[-2], "read back, it finds what it found after the last epoch"
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["kept_macs"] <= 0.5001
    assert plan["equivalence"]["max_difference"] < 1e-9 < plan["equivalence"]["scale"]


def test_a_classifier_of_timm_is_pruned_as_an_object(tmp_path):
    pytest.importorskip("timm")
    short = ["--epochs", "3", "--images", "16", "--no-bench"]
    printed = run("timm_classifier.py", *short, "--out", str(tmp_path / "out"), folder=tmp_path)
    rows = json.loads((tmp_path / "out" / "run" / "report.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["parent", "pruned", "retrained", "control"]
    assert rows[1]["gmacs"] <= 0.5 * rows[0]["gmacs"]
    assert "best.pt holds" in printed
    assert [file.suffix for file in (tmp_path / "out" / "given").iterdir()] == [".pt"]


def test_a_training_of_mayaku_is_pruned_by_a_hook(tmp_path):
    pytest.importorskip("mayaku")
    short = ["--iterations", "20", "--steps", "1"]
    printed = run("mayaku_hook.py", *short, "--out", str(tmp_path / "run"), folder=tmp_path)
    assert "cut after 14 iterations: 0." in printed
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["kept_macs"] <= 0.5001
    assert "came back: True" in printed


def test_a_custom_detector_goes_from_training_to_report(tmp_path):
    out = tmp_path / "run"
    printed = run("custom_detector.py", "--epochs", "3", "--images", "24", "--out", str(out), folder=tmp_path)
    assert "| pruned |" in printed
    rows = {row["model"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert rows["pruned"]["gmacs"] <= 0.5 * rows["parent"]["gmacs"]
    assert rows["pruned"]["fps"] > 0
    assert 0 <= rows["pruned"]["ap"] <= 1
    assert {path.name for path in out.iterdir()} >= {"plan.json", "pruned.pt", "report.html", "weights"}
