"""Every example runs to its end on little data."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *options, folder):
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_custom_detector_goes_from_training_to_report(tmp_path):
    out = tmp_path / "run"
    printed = run("custom_detector.py", "--epochs", "3", "--images", "24", "--out", str(out), folder=tmp_path)
    assert "| pruned |" in printed
    rows = {row["model"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert rows["pruned"]["gmacs"] <= 0.5 * rows["parent"]["gmacs"]
    assert rows["pruned"]["fps"] > 0
    assert 0 <= rows["pruned"]["ap"] <= 1
    assert {path.name for path in out.iterdir()} >= {"plan.json", "pruned.pt", "report.html", "weights"}
