"""What belongs to the whole process stays as it was: attaching, evaluating and training leave no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_host import tiny
from ultralytics.utils import checks

from yolo_prune.adapters.checkpoint import save_detector
from yolo_prune.adapters.ultralytics.undisturbed import no_installs, undisturbed


def test_no_call_leaves_a_trace_in_the_process(data, tmp_path):
    checkpoint = save_detector(tmp_path / "a.pt", tiny(), task="detect", train_args={"imgsz": 64}, meta={})
    script = Path(__file__).with_name("globals_of_a_process.py")
    words = [sys.executable, str(script), str(checkpoint), str(data), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "changes.json").read_text())
    control = found.pop("control")
    assert set(control) == {"environment A_NEW_ONE", "ultralytics.utils.checks.AUTOINSTALL"}
    assert found == {"import": [], "load": [], "evaluate": [], "attach": [], "train": []}


def test_the_host_may_not_install_packages_while_we_call_it(monkeypatch):
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.delenv("YOLO_AUTOINSTALL", raising=False)
    with pytest.raises(KeyError), no_installs():
        assert checks.AUTOINSTALL is False
        assert os.environ["YOLO_AUTOINSTALL"] == "false"  # processes that start meanwhile
        raise KeyError
    assert checks.AUTOINSTALL is True
    assert "YOLO_AUTOINSTALL" not in os.environ


def test_threads_variables_and_random_numbers_are_as_they_were(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with undisturbed():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["ANOTHER"] = "1"
        torch.set_num_threads(threads + 1)
        torch.rand(5)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "ANOTHER" not in os.environ
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)
