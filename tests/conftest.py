"""Where the real data is, and what every test shares."""

import contextlib
import importlib
import io
import os
import signal
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads starve a busy machine
# Before the host: each process has settings of its own, and the user's stay as they are.
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="yolo-prune-tests-"))

with contextlib.redirect_stdout(io.StringIO()):
    importlib.import_module(
        "ultralytics.utils"
    )  # it says so where it makes its settings, which is no test's business
# A shell that starts the tests in the background ignores Ctrl-C for them, and tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED = Path(os.environ.get("YOLO_PRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and trained detectors; tests that need it skip where it is missing."""
    if not (SHARED / "data" / "bccd" / "data.yaml").is_file():
        pytest.skip(f"real data not found under {SHARED} (set YOLO_PRUNE_SHARED)")
    return SHARED
