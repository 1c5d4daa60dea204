"""Where the real data is, and what every test shares."""

import contextlib
import fcntl
import gc
import importlib
import io
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads starve a busy machine
# Before the host: each process has settings of its own, and the user's stay as they are.
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="yolo-prune-tests-"))
# What runs keep for the next one; fonts stay where they are, as looking for them takes seconds.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="yolo-prune-tests-")

with contextlib.redirect_stdout(io.StringIO()):
    importlib.import_module(
        "ultralytics.utils"
    )  # it says so where it makes its settings, which is no test's business
# A shell that starts the tests in the background ignores Ctrl-C for them, and tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Let what a module draws as it is imported be the same, whatever was imported before it."""
    if isinstance(collector, pytest.Module):
        importlib.import_module("torch").manual_seed(1)


def pytest_collection_finish() -> None:
    """Leave what was imported out of every collection of garbage: the host asks for one each epoch."""
    gc.collect()
    gc.freeze()


SHARED = Path(os.environ.get("YOLO_PRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and trained detectors; tests that need it skip where it is missing."""
    if not (SHARED / "data" / "bccd" / "data.yaml").is_file():
        pytest.skip(f"real data not found under {SHARED} (set YOLO_PRUNE_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once for all processes of the tests: ``made_once(name, fill)``; whoever comes second waits."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a process that failed has left
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make
