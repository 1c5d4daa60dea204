"""What is installed and whether it works: a missing extra is no fault, a broken one is a line and not the end."""

import json
import sys

import pytest

from yolo_prune import __version__
from yolo_prune.cli.entry import main
from yolo_prune.runs import doctor
from yolo_prune.runs.doctor import BROKEN, MISSING, OK, diagnose
from yolo_prune.runtimes import RuntimeEntry


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Runtimes of the test's own, as modules on the path of every process."""

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        entries = {name: RuntimeEntry("none", (".x",), "onnx") for name in [*sources, "a_fourth_runtime"]}
        monkeypatch.setattr(doctor, "RUNTIMES", entries)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(tmp_path)

    return write


def states(diagnosis, kind):
    return {each.name: (each.state, each.text) for each in diagnosis.findings if each.kind == kind}


def test_what_is_there_works_is_missing_or_dies_each_has_its_line(packages, monkeypatch):
    packages(
        fine_runtime="print('first'); print('runs on a CPU')",
        torn_runtime="raise ImportError('libtorn.so: cannot open shared object file')",
        wrong_runtime="import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    )
    monkeypatch.setattr(doctor, "_CUT", "print('kept half')")
    found = diagnose()
    assert states(found, "runtimes") == {
        "fine_runtime": (OK, "runs on a CPU"),
        "torn_runtime": (BROKEN, "ImportError: libtorn.so: cannot open shared object file"),
        "wrong_runtime": (BROKEN, "died by SIGILL: built for another processor?"),
        "a_fourth_runtime": (MISSING, 'pip install "yolo-prune[onnx]"'),
    }
    assert not found.healthy
    assert states(found, "self-test")["cut"][1] == "kept half, 0 s"
    assert states(found, "packages")["torch"][1].startswith("torch ")
    assert found.system["yolo-prune"] == __version__
    assert sys.executable in found.system["python"]
    assert "torn_runtime      broken   ImportError" in "\n".join(found.lines())


def test_a_cut_that_is_wrong_or_does_not_end_is_broken(packages, monkeypatch):
    packages()
    monkeypatch.setattr(doctor, "_CUT", doctor._CUT.replace('plan.equivalence["exact"]', "False"))
    assert states(diagnose(), "self-test") == {"cut": (BROKEN, "the cut model computes something else")}
    monkeypatch.setattr(doctor, "_CUT", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_PATIENCE_S", 0.3)
    assert states(diagnose(), "self-test") == {"cut": (BROKEN, "did not end within 0.3 s")}


def test_without_torch_the_board_is_healthy_and_nothing_is_cut(packages, monkeypatch):
    packages()
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "torch" else real(name)
    )
    found = diagnose()
    assert found.healthy
    assert states(found, "self-test") == {
        "cut": (MISSING, 'pruning needs torch: pip install "yolo-prune[torch]"')
    }


def test_the_command_cuts_a_network_for_real_prints_it_and_ends_with_what_it_found(
    packages, tmp_path, capsys, monkeypatch
):
    packages()
    file = tmp_path / "doctor.json"
    assert main(["doctor", f"json={file}"]) == 0
    shown = capsys.readouterr().out
    assert "of the MACs of a small network kept, exact" in shown
    content = json.loads(file.read_text())
    assert content["healthy"]
    assert content["findings"][-1]["state"] == "ok"
    packages(torn_runtime="raise ImportError('torn')")
    monkeypatch.setattr(doctor, "_CUT", "print('kept half')")
    assert main(["doctor"]) == 1
    assert "torn_runtime" in capsys.readouterr().out
