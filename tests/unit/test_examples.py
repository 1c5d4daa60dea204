"""Every example runs to its end on little data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = """
nc: 4
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, Conv, [48, 3, 2]]
head:
  - [-1, 1, Conv, [64, 3, 1]]
  - [[4], 1, Detect, [nc]]
"""


def run(name, *options, folder):
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_example_is_read_in_one_go():
    lengths = {file.name: len(file.read_text().splitlines()) for file in EXAMPLES.iterdir() if file.is_file()}
    notebook = json.loads((EXAMPLES / "first_pruning.ipynb").read_text())
    lengths["first_pruning.ipynb"] = sum(len(cell["source"]) for cell in notebook["cells"])
    detectors = {"one_flag.py", "custom_detector.py", "torchvision_faster_rcnn.py", "mayaku_hook.py"}
    assert detectors | {"timm_classifier.py", "edge_check.yml", "first_pruning.ipynb"} == lengths.keys()
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
    assert "cut after 20 iterations: 0." in printed
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


def test_one_flag_prunes_a_training_of_yolo(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    short = ["--model", "small.yaml", "--epochs", "3", "--imgsz", "64", "--images", "8", "--seconds", "0.2"]
    printed = run("one_flag.py", *short, "--out", str(tmp_path / "run"), folder=tmp_path)
    sizes = [int(number.replace(",", "")) for number in re.findall(r": ([\d,]+) parameters", printed)]
    assert len(sizes) == 2
    assert sizes[1] < 0.8 * sizes[0]
    assert re.search(r"kept 0\.\d+ of the MACs, \d+\.\d+x \[", printed)


SHOWN = """
class Shown:
    def __init__(self, text):
        self.text = text

Markdown = HTML = Shown

def display(shown):
    print(shown.text)
"""


def test_the_notebook_runs_cell_by_cell(tmp_path):
    """As a script, with little data: what installs the package is left out, and what notebooks show is printed."""
    cells = json.loads((EXAMPLES / "first_pruning.ipynb").read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), (
        "outputs are not kept in git"
    )
    short = 'MODEL, IMAGES, SIDE = "small.yaml", 8, 64\nTRAIN_EPOCHS, EPOCHS, RECOVER_SECONDS, BENCH = 1, 1, 0, False\n'
    script = []
    for cell in cells:
        tags = cell.get("metadata", {}).get("tags", [])
        if cell["cell_type"] == "code" and "install" not in tags:
            script.append(short if "parameters" in tags else "".join(cell["source"]))
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "IPython").mkdir()
    (tmp_path / "IPython" / "display.py").write_text(SHOWN)
    (tmp_path / "IPython" / "__init__.py").touch()
    (tmp_path / "cells.py").write_text("\n".join(script))
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\|\W*retrained\W", done.stdout, flags=re.MULTILINE), done.stdout[-3000:]
    assert "exit code 0" in done.stdout
    assert "largest difference between zeroed and cut model" in done.stdout
