"""A comparison end to end on tiny models: its structure, its errors, what it imports; never its times."""

import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from tiny_host import tiny

from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.bench import compare, comparison
from yolo_prune.bench.exports import Exports
from yolo_prune.errors import BenchmarkError, CheckpointError, ConfigError, DataError, MissingRuntimeError
from yolo_prune.report.timings import markdown_table
from yolo_prune.runtimes.runtime import Settings, open_runtime

IMGSZ = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_detector(folder / "tiny.pt", tiny(), task="detect", train_args={}, meta={})
    export_onnx(folder / "tiny.pt", folder / "tiny.onnx", imgsz=IMGSZ)
    return folder


def check(result, runtime, sizes):
    assert result.not_measured is None
    assert result.base == next(iter(sizes))
    for name, imgsz in sizes.items():
        timing = result.timings[name]
        assert (timing.runtime, timing.device, timing.threads, timing.batch) == (runtime, "cpu", 1, 1)
        assert timing.imgsz == imgsz
        assert timing.samples == 2 * result.conditions["timed_steps"]
        assert list(timing.latency_ms) == ["p10", "p50", "p90", "p99"]
        assert 0 < timing.latency_ms["p10"] <= timing.latency_ms["p99"]
        assert timing.fps == pytest.approx(1e3 / timing.latency_ms["p50"])
        assert min(timing.pre_ms, timing.net_ms, timing.post_ms, timing.cpu_ms) > 0
        assert set(result.ratios[name]) == {"latency", "net", "cpu"}
        for ratio in result.ratios[name].values():
            assert ratio.low <= ratio.value <= ratio.high
            assert ratio.rounds == 2
    assert result.ratios[result.base]["latency"].value == 1.0
    json.dumps(result.to_dict(), allow_nan=False)


def test_checkpoints_and_files_are_compared_in_onnxruntime_each_at_its_own_resolution(
    weights, tmp_path, monkeypatch
):
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), np.full((48, 80, 3), 90, np.uint8))
    candidates = {
        "file": weights / "tiny.onnx",
        "checkpoint": weights / "tiny.pt",
        "low": weights / "tiny.pt",
    }
    sizes = {"file": IMGSZ, "checkpoint": IMGSZ, "low": 32}
    kept = tmp_path / "kept"
    kept.mkdir()
    result = compare(
        candidates,
        runtime="onnxruntime",
        imgsz=sizes,
        threads=1,
        rounds=2,
        images=[image],
        exports=Exports(kept),
    )
    check(result, "onnxruntime", sizes)
    assert sorted(path.name for path in kept.glob("*.onnx")) == ["0-tiny-64.onnx", "1-tiny-32.onnx"]
    assert result.parities.keys() == {"checkpoint", "low"}, "nobody says what a file was made from"
    assert all(parity.relative < 1e-4 for parity in result.parities.values())
    assert (result.conditions["images"], result.conditions["image_count"]) == ("files", 1)
    assert sorted(path.name for path in weights.iterdir()) == ["tiny.onnx", "tiny.pt"]
    table = markdown_table([result])
    assert table.count("| onnxruntime | FP32 | cpu | 1 | 1 |") == 3
    assert "2 alternating rounds" in table


def test_checkpoints_are_compared_in_torch(weights):
    sizes = {"a": IMGSZ, "b": IMGSZ}
    result = compare(
        dict.fromkeys(sizes, weights / "tiny.pt"), runtime="torch", imgsz=IMGSZ, threads=1, rounds=2
    )
    check(result, "torch", sizes)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_device_that_is_not_there_is_not_measured(weights, runtime, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    suffix = "pt" if runtime == "torch" else "onnx"
    result = compare({"a": weights / f"tiny.{suffix}"}, runtime=runtime, imgsz=IMGSZ, device="cuda")
    assert result.timings == {"a": None}
    assert result.ratios == {}
    assert result.not_measured
    assert "not measured" in markdown_table([result])


HEAVY = "[name for name in ('torch', 'torchvision', 'ultralytics') if name in sys.modules]"
PARENT = f"""
import sys
from yolo_prune.bench import compare
from yolo_prune.report.timings import markdown_table
markdown_table([compare({{"a": sys.argv[1]}}, runtime="onnxruntime", imgsz={IMGSZ}, threads=1, rounds=1)])
sys.exit(str({HEAVY}) if {HEAVY} else 0)
"""
WORKER = f"""
import json, sys
from yolo_prune.bench import worker
request = {{"runtime": "onnxruntime", "images": None, "seconds": 1, "rounds": 1}}
request["settings"] = {{"device": "cpu", "threads": 1, "batch": 1}}
request["candidates"] = {{"a": {{"path": sys.argv[1], "imgsz": {IMGSZ}}}}}
worker.run(request, sys.stdout)
sys.exit(str({HEAVY}) if {HEAVY} else 0)
"""


@pytest.mark.parametrize("code", [PARENT, WORKER], ids=["parent", "worker"])
def test_measuring_an_exported_file_imports_neither_torch_nor_the_host(weights, code):
    command = [sys.executable, "-c", code, str(weights / "tiny.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_control_measuring_a_checkpoint_imports_torch(weights):
    code = WORKER.replace('"onnxruntime"', '"torch"', 1)
    command = [sys.executable, "-c", code, str(weights / "tiny.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'torch'" in done.stderr


@pytest.mark.parametrize("compiled", [True, False])
def test_a_compiled_network_is_what_runs(weights, monkeypatch, compiled):
    ran = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *args: (ran.append(args), call(*args))[1])
    runtime = open_runtime(
        "torch", weights / "tiny.pt", IMGSZ, Settings("cpu", 1, 1, compile=compiled), load_detector
    )
    output, _ = runtime.infer(torch.zeros(1, 3, IMGSZ, IMGSZ))
    assert (len(ran), output.shape[0]) == (int(compiled), 1)


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        ({"runtime": "onnxruntim"}, ConfigError, "Did you mean 'onnxruntime'"),
        ({"candidates": {}}, ConfigError, "nothing to measure"),
        ({"threads": 0}, ConfigError, "threads must be at least 1, got 0"),
        ({"batch": 0}, ConfigError, "batch, rounds and seconds must be positive"),
        ({"device": "gpu"}, ConfigError, "cannot measure on device 'gpu', expected cpu, cuda or cuda:N"),
        ({"imgsz": {"b": 64}}, ConfigError, "imgsz of candidate 'a' is missing"),
        ({"candidates": {"a": "none.onnx"}}, CheckpointError, "there is no file 'none.onnx'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_starts(monkeypatch, overrides, error, sentence):
    monkeypatch.setattr(comparison, "ask_worker", lambda *_: pytest.fail("the worker was started"))
    arguments = {"candidates": {"a": "yolov5n.yaml"}, "runtime": "torch", "imgsz": 64, **overrides}
    with pytest.raises(error, match=sentence):
        compare(arguments.pop("candidates"), **arguments)


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        ({"imgsz": 96}, ConfigError, r"expected \[1, 3, 96, 96\]. Export it again with imgsz=96 and batch=1"),
        ({"half": True}, ConfigError, "half=true applies to torch, openvino and ncnn"),
        ({"compile": True}, ConfigError, "compile=true applies to the torch runtime"),
        ({"runtime": "torch"}, ConfigError, "the 'torch' runtime cannot run"),
        ({"images": ["none.jpg"]}, DataError, "cannot read the image 'none.jpg'"),
    ],
)
def test_an_error_in_the_worker_arrives_as_the_same_class(weights, overrides, error, sentence):
    arguments = {"runtime": "onnxruntime", "imgsz": IMGSZ, "threads": 1, "rounds": 1, **overrides}
    with pytest.raises(error, match=sentence):
        compare({"a": weights / "tiny.onnx"}, **arguments)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match=r"bad\.onnx' is not an ONNX model that onnxruntime can load"):
        compare({"a": tmp_path / "bad.onnx"}, runtime="onnxruntime", imgsz=IMGSZ, rounds=1)


def test_a_missing_runtime_says_what_to_install(weights, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('hidden')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingRuntimeError, match=r"pip install \"yolo-prune\[onnx\]\""):
        compare({"a": weights / "tiny.onnx"}, runtime="onnxruntime", imgsz=IMGSZ, rounds=1)


def run_instead(monkeypatch, code):
    """Let the worker be a Python one-liner."""
    real = subprocess.Popen
    started = []

    def popen(command, **options):
        started.append(real([sys.executable, "-c", code], **options))
        return started[-1]

    monkeypatch.setattr(comparison.subprocess, "Popen", popen)
    return started


REQUEST = {"candidates": {}}
READY = "import sys, os, time; sys.stdin.read(); print('{\"rounds\": 5}', flush=True); "


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "raise SystemExit('out of handles')",
            "stopped with exit code 1 before it had measured: out of handles",
        ),
        (READY + "os.abort()", "was killed by signal 6. Nothing was measured"),
        (
            READY + "os.kill(os.getpid(), 9)",
            "was killed by signal 9. It was probably stopped for using too much",
        ),
        (
            READY + "print('{\"round\"', end='')",
            "stopped with exit code 0 before it had measured: it said nothing",
        ),
    ],
    ids=["crash before reading", "abort", "kill", "half a message"],
)
def test_a_worker_that_dies_gives_a_clear_error(monkeypatch, code, sentence):
    run_instead(monkeypatch, code)
    with pytest.raises(BenchmarkError, match=sentence):
        comparison.ask_worker(REQUEST, threads=1)


@pytest.mark.skipif(os.name != "posix", reason="a killed process is told by its signal")
def test_ctrl_c_kills_the_worker(monkeypatch):
    """The interrupt is raised where a real one surfaces: a library may have made the signal wake no blocking read."""
    started = run_instead(monkeypatch, "import time; time.sleep(600)")

    def interrupted(worker, request):
        assert worker.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comparison.ask_worker(REQUEST, threads=1)
    assert started[0].poll() == -signal.SIGKILL
