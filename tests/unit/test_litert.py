"""A .tflite file, written here from the schema that LiteRT ships: run as it is, in either order of its sides."""

import importlib
import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from yolo_prune.cli import main
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    Settings,
    no_checkpoint,
    open_runtime,
    read_file,
    runtime_for,
)

pytest.importorskip("ai_edge_litert")
SIDE, OUTPUTS = 32, 7


def tensor(schema, name, shape, buffer, kind=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, list(shape), kind, buffer
    return made


def write(path, kind=0, channels=3):
    """One convolution of stride 8 over [1, H, W, C], then [1, OUTPUTS, anchors] by a transpose; return its weights."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers = importlib.import_module("flatbuffers")
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.1, (OUTPUTS, 8, 8, channels)).astype(np.float32)
    bias = rng.normal(0, 0.1, OUTPUTS).astype(np.float32)
    cells = (SIDE // 8) ** 2
    constants = [weight, bias, np.array([1, cells, OUTPUTS], np.int32), np.array([0, 2, 1], np.int32)]
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    for values in constants:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        model.buffers.append(buffer)
    graph.tensors = [
        tensor(schema, "images", (1, SIDE, SIDE, channels), 0, kind),
        tensor(schema, "weight", weight.shape, 1),
        tensor(schema, "bias", bias.shape, 2),
        tensor(schema, "maps", (1, SIDE // 8, SIDE // 8, OUTPUTS), 0),
        tensor(schema, "shape", (3,), 3, 2),
        tensor(schema, "rows", (1, cells, OUTPUTS), 0),
        tensor(schema, "order", (3,), 4, 2),
        tensor(schema, "output", (1, OUTPUTS, cells), 0),
    ]
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = 1, 8, 8
    options.dilationHFactor = options.dilationWFactor = 1
    graph.operators, model.operatorCodes = [], []
    steps = [(3, [0, 1, 2], [3], options), (22, [3, 4], [5], None), (39, [5, 6], [7], None)]
    for number, (code, reads, makes, given) in enumerate(steps):
        kind_of, step = schema.OperatorCodeT(), schema.OperatorT()
        kind_of.builtinCode = kind_of.deprecatedBuiltinCode = code
        kind_of.version = 1
        step.opcodeIndex, step.inputs, step.outputs = number, reads, makes
        if given is not None:
            step.builtinOptionsType, step.builtinOptions = schema.BuiltinOptions.Conv2DOptions, given
        model.operatorCodes.append(kind_of)
        graph.operators.append(step)
    graph.inputs, graph.outputs = [0], [7]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()), torch.from_numpy(bias)


def opened(path, imgsz=SIDE, **settings):
    given = Settings(**{"device": "cpu", "threads": 1, "batch": 1, **settings})
    return open_runtime("litert", path, imgsz, given, no_checkpoint)


def test_a_file_computes_what_pytorch_computes_and_keeps_no_output_of_before(tmp_path):
    path = tmp_path / "a.tflite"
    weight, bias = write(path)
    model = opened(path)
    images = [np.random.default_rng(seed).random((1, 3, SIDE, SIDE), dtype=np.float32) for seed in (0, 1)]
    found = [model.infer(one)[0] for one in images]
    for one, output in zip(images, found, strict=True):
        expected = functional.conv2d(torch.from_numpy(one), weight, bias, stride=8).flatten(2)
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-2, "the control: another image, another output"
    assert (model.facts["runtime"], model.channels) == ("litert", 3)


def test_a_file_says_its_size_and_is_found_by_its_name(tmp_path):
    write(tmp_path / "a.tflite", channels=1)
    facts = read_file("litert", tmp_path / "a.tflite")
    assert (facts.batch, facts.channels, facts.imgsz, facts.precision) == (1, 1, SIDE, "float32")
    assert runtime_for("a.tflite") == "litert"


def test_bench_and_check_run_it(tmp_path, capsys):
    path, table = tmp_path / "a.tflite", tmp_path / "bench.json"
    write(path)
    assert main(["bench", f"model={path}", "runtimes=litert", "rounds=2", "threads=1", f"json={table}"]) == 0
    timing = json.loads(table.read_text())[0]["timings"]["a"]
    assert (timing["runtime"], timing["precision"]) == ("litert", "float32")
    assert main(["check", f"model={path}", "threads=1", "seconds=0.1", "min_fps=0.1"]) == 0
    assert f"by {path}, litert " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"imgsz": 64}, ConfigError, r"takes inputs of shape \[1, 3, 32, 32\], expected \[1, 3, 64, 64\]"),
        ({"half": True}, ConfigError, r"^half=true applies to torch, openvino and ncnn; litert runs a file"),
        ({"device": "cuda:0"}, DeviceUnavailableError, r"^the litert runtime is measured on the CPU alone$"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, settings, error, sentence):
    write(tmp_path / "a.tflite")
    with pytest.raises(error, match=sentence):
        opened(tmp_path / "a.tflite", **settings)


def test_damaged_files_and_checkpoints_are_named(tmp_path, capsys):
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"bad\.tflite' is not a model that litert can load: "):
        read_file("litert", tmp_path / "bad.tflite")
    assert main(["bench", "model=torchvision:resnet18", "runtimes=litert", "imgsz=64"]) == 2
    sentence = "the 'litert' runtime runs *.tflite alone, which are not made here: "
    assert re.search(re.escape(sentence), capsys.readouterr().err)
