"""A TensorRT engine, on a stand-in for the package and for the GPU: nothing here has either."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from yolo_prune.cli import main
from yolo_prune.errors import CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.runtimes import tensorrt
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    Settings,
    no_checkpoint,
    open_runtime,
    read_file,
    runtime_for,
)

FACTS = {
    "names": {"0": "a", "1": "b", "2": "c"},
    "imgsz": [8, 16],
    "batch": 1,
    "channels": 3,
    "args": {"half": True},
}


class Engine:
    """Doubles its input; it must be told where both lie."""

    def __init__(self, shapes):
        self.shapes, self.num_io_tensors, self.places = shapes, len(shapes), {}

    def get_tensor_name(self, index):
        return list(self.shapes)[index]

    def get_tensor_mode(self, name):
        return "in" if name.startswith("images") else "out"

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def get_tensor_dtype(self, name):
        return np.float32

    def create_execution_context(self):
        return self

    def set_tensor_address(self, name, address):
        self.places[name] = address

    def execute_async_v3(self, stream):
        size = int(np.prod(self.shapes["images"]))
        reads, makes = (
            np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * size).from_address(self.places[name]))
            for name in ("images", "output")
        )
        makes[:] = 2 * reads
        return stream == 5


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        self.recorded = stream.cuda_stream

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1.5 if self.recorded == other.recorded == 5 else float("nan")


@pytest.fixture
def gpu(monkeypatch):
    """A package whose engines are made of what ``shapes`` holds, and a GPU that is the CPU."""
    made = types.SimpleNamespace(shapes={"images": (1, 3, 8, 16), "output": (1, 3, 8, 16)}, contents=[])

    def deserialize(_, content):
        made.contents.append(content)
        return Engine(made.shapes) if content == b"engine" else None

    package = types.ModuleType("tensorrt")
    package.__version__ = "10.9"
    package.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    package.Runtime = type(
        "Runtime", (), {"__init__": lambda self, log: None, "deserialize_cuda_engine": deserialize}
    )
    package.TensorIOMode = types.SimpleNamespace(INPUT="in")
    package.nptype = lambda kind: kind
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    monkeypatch.setattr(tensorrt, "check_device", lambda torch, device: None)
    device = torch.device
    monkeypatch.setattr(torch, "device", lambda name: device("cpu"))
    stream = types.SimpleNamespace(cuda_stream=5)
    for name, value in {
        "set_device": lambda _: None,
        "get_device_name": lambda _: "a GPU",
        "synchronize": lambda _: None,
        "current_stream": lambda _: stream,
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def write(path, facts=FACTS, engine=b"engine"):
    stated = json.dumps(facts).encode() if facts else b""
    path.write_bytes((len(stated).to_bytes(4, "little") + stated if facts else b"") + engine)
    return path


def opened(path, imgsz=(8, 16), **settings):
    given = Settings(**{"device": "cuda:0", "threads": 1, "batch": 1, **settings})
    return open_runtime("tensorrt", path, imgsz, given, no_checkpoint)


@pytest.mark.parametrize("facts", [FACTS, None], ids=["with facts before it", "alone"])
def test_an_engine_runs_where_it_is_told_and_is_timed_between_events(facts, gpu, tmp_path):
    model = opened(write(tmp_path / "a.engine", facts))
    assert gpu.contents == [b"engine"]
    images = np.random.default_rng(0).random((1, 3, 8, 16), dtype=np.float32)
    output, net_ms = model.infer(images)
    np.testing.assert_array_equal(model.as_array(output), 2 * images)
    assert net_ms == 1.5
    pixels = model.preprocess([np.full((8, 16, 3), 51, np.uint8)])
    np.testing.assert_allclose(model.as_array(model.infer(pixels)[0]), 0.4, atol=1e-6)
    assert (model.facts["runtime"], model.facts["runtime_version"]) == ("tensorrt", "10.9")
    assert (model.facts["device_name"], model.channels) == ("a GPU", 3)


def test_what_stands_before_an_engine_is_read_without_a_gpu(tmp_path):
    facts = read_file("tensorrt", write(tmp_path / "a.engine"))
    assert (facts.batch, facts.channels, facts.imgsz, facts.precision) == (1, 3, (8, 16), "float16")
    assert read_file("tensorrt", write(tmp_path / "b.engine", None)).imgsz is None
    assert runtime_for("a.engine") == "tensorrt"


@pytest.mark.parametrize(
    ("shapes", "engine", "settings", "error", "sentence"),
    [
        (
            {},
            b"other",
            {},
            CheckpointError,
            r"not an engine that tensorrt 10\.9 can load on this GPU: build it here",
        ),
        (
            {},
            b"engine",
            {"imgsz": 32},
            ConfigError,
            r"takes inputs of shape \[1, 3, 8, 16\], expected \[1, 3, 32",
        ),
        (
            {"images": (-1, 3, 8, 16)},
            b"engine",
            {},
            ConfigError,
            r"has an input of open size \[None, 3, 8, 16\]",
        ),
        (
            {"images2": (1,)},
            b"engine",
            {},
            ConfigError,
            r"has 2 input\(s\) and 1 output\(s\): expected one batch",
        ),
        (
            {},
            b"engine",
            {"half": True},
            ConfigError,
            "^half=true applies to torch, openvino and ncnn; tensorrt",
        ),
        ({}, b"engine", {"device": "cpu"}, DeviceUnavailableError, "^tensorrt runs on a GPU: device=cuda:0$"),
    ],
)
def test_what_does_not_fit_is_refused(gpu, tmp_path, shapes, engine, settings, error, sentence):
    gpu.shapes = {**gpu.shapes, **shapes}
    with pytest.raises(error, match=sentence):
        opened(write(tmp_path / "a.engine", engine=engine), **settings)


def test_without_the_package_its_extra_is_named_and_on_a_cpu_nothing_is_measured(
    tmp_path, monkeypatch, capsys
):
    path = write(tmp_path / "a.engine")
    assert main(["bench", f"model={path}", "runtimes=tensorrt", "rounds=2", "threads=1"]) == 0
    assert "Not measured: tensorrt runs on a GPU: device=cuda:0." in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        MissingRuntimeError, match=r"'tensorrt' runtime is not installed: pip install \"yolo-prune\[ten"
    ):
        opened(path)
