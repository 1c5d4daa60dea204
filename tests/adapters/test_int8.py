"""INT8 after pruning: a smaller file that finds nearly the same, also by its own command."""

import importlib.util
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_host
import torch

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics import int8
from yolo_prune.adapters.ultralytics.int8 import export_int8
from yolo_prune.errors import BenchmarkError, ConfigError, MissingRuntimeError
from yolo_prune.runtimes import EXPORTS
from yolo_prune.runtimes.files import class_count
from yolo_prune.runtimes.runtime import Settings, no_checkpoint, open_runtime, read_file

IMGSZ = 64


@pytest.fixture(scope="module")
def images():
    return [torch.rand(4, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(1))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, images):
    """Random weights whose signal reaches the output, with two classes."""
    module = tiny_host.tiny("detect").train()
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module(images[0])
    module.names = {0: "kind0", 1: "kind1"}
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    return save_detector(path, module.eval(), task="detect", train_args={"imgsz": IMGSZ}, meta={})


@pytest.fixture(scope="module")
def quantised(checkpoint, images, tmp_path_factory):
    return export_int8(checkpoint, tmp_path_factory.mktemp("int8") / "new" / "tiny.onnx", images, imgsz=IMGSZ)


def test_openvino_gets_8_bits_of_its_own_that_compute_nearly_the_same(checkpoint, images, tmp_path):
    pytest.importorskip("nncf")
    module, out = load_detector(checkpoint).module, tmp_path / "tiny_int8_openvino_model"
    asked = []

    class Task:
        metric = "ap"

        def evaluate(self, module, imgsz, exported):
            asked.append(read_file("openvino", exported))
            return "what it found"

    options = {"imgsz": IMGSZ, "batches": images}
    assert int8.export_measured_int8(checkpoint, module, out, Task(), **options) == "what it found"
    assert (asked[0].imgsz, asked[0].precision) == (None, "int8"), "accuracy is that of a twin of open size"
    facts = read_file("openvino", out)
    assert (facts.imgsz, facts.precision, class_count(facts.metadata)) == (IMGSZ, "int8", 2)
    settings = Settings("cpu", 1, 1)
    pixels = images[0][:1]
    with torch.inference_mode():
        whole = module(pixels)[0].numpy()
    found = open_runtime("openvino", out, IMGSZ, settings, no_checkpoint).infer(pixels.numpy())[0]
    error = np.abs(found - whole).mean() / np.abs(whole - whole.mean(axis=2, keepdims=True)).mean()
    assert 0 < error < 0.2
    assert sorted(path.name for path in out.iterdir()) == ["metadata.yaml", "network.bin", "network.xml"]


def output(path, pixels):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def test_it_computes_nearly_what_the_checkpoint_computes(checkpoint, quantised, images):
    pixels = images[0][:1]
    with torch.inference_mode():
        whole = load_detector(checkpoint).module(pixels)[0].numpy()
    found = output(quantised, pixels.numpy())
    assert found.shape == whole.shape
    error = np.abs(found - whole).mean() / np.abs(whole - whole.mean(axis=2, keepdims=True)).mean()
    assert 0 < error < 0.2


def test_weights_are_bytes_and_activations_are_the_kind_that_cpus_multiply_fast(quantised):
    graph = onnx.load(quantised).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kinds]
    assert onnx.TensorProto.INT8 in {kinds[node.input[0]] for node in weights}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    largest = [
        np.abs(arrays[node.input[0]].astype(int)).max() for node in weights if arrays[node.input[0]].ndim > 1
    ]
    # 255 * 64 * 2 fits into 16 bits, which is where CPUs without VNNI add two products
    assert largest
    assert 60 < max(largest) <= 64
    zeros = {kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT8}


def test_the_file_still_names_its_classes_and_is_alone_in_its_folder(quantised):
    session = onnxruntime.InferenceSession(str(quantised), providers=["CPUExecutionProvider"])
    assert class_count(session.get_modelmeta().custom_metadata_map) == 2
    assert [path.name for path in quantised.parent.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize(
    ("name", "batches", "words"), [("a.onnx", [], "images"), ("a.bin", None, "ends in .onnx")]
)
def test_what_cannot_work_is_refused(checkpoint, images, tmp_path, name, batches, words):
    with pytest.raises(ConfigError, match=words):
        export_int8(checkpoint, tmp_path / name, images if batches is None else batches, imgsz=IMGSZ)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(checkpoint, images, tmp_path, monkeypatch):
    monkeypatch.setattr(int8.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRuntimeError, match="onnxruntime"):
        export_int8(checkpoint, tmp_path / "a.onnx", images, imgsz=IMGSZ)


def test_a_network_that_the_library_refuses_leaves_the_old_file(checkpoint, images, tmp_path, monkeypatch):
    import onnxruntime.quantization.shape_inference as library

    def refuse(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(library, "quant_pre_process", refuse)
    out = tmp_path / "a.onnx"
    out.write_bytes(b"old")
    with pytest.raises(BenchmarkError, match="cannot quantise"):
        export_int8(checkpoint, out, images, imgsz=IMGSZ)
    assert out.read_bytes() == b"old"


def test_the_command_exports_and_says_what_it_cost(checkpoint, tmp_path, capsys):
    data = tiny_host.draw(tmp_path / "data", "detect")
    words = [f"model={checkpoint}", "calibration_images=4", "workers=0", f"out={tmp_path / 'b.onnx'}"]
    assert cli.main(["export", *words, f"data={data}", "quantize=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["checkpoint", "INT8", "export"]
    assert (tmp_path / "b.onnx").is_file()
    assert cli.main(["export", *words]) == 0
    assert "compared with the checkpoint in PyTorch: outputs differ by up to " in capsys.readouterr().out
    assert cli.main(["export", *words, "quantize=8"]) == 2
    assert "needs data=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "half"), [("openvino", False), ("openvino", True), ("ncnn", False), ("torchscript", False)]
)
def test_every_format_computes_what_the_checkpoint_computes_and_says_of_itself(
    kind, half, checkpoint, tmp_path, capsys
):
    for package in {"openvino": ("openvino",), "ncnn": ("ncnn", "pnnx")}.get(kind, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    out = tmp_path / f"tiny{EXPORTS[kind]}"
    words = [f"model={checkpoint}", f"format={kind}", f"out={out}", f"half={half}"]
    for _ in range(2):  # the second time the folder is there
        assert cli.main(["export", *words]) == 0
    said = capsys.readouterr().out
    pixels, scores = re.search(r"differ by up to (\S+) of \S+, scores by up to (\S+) \(", said).groups()
    assert float(pixels) < (2 if half else 0.02)
    assert float(scores) < (2e-2 if half else 1e-4)
    assert f"export: {out} (" in said
    facts = read_file(kind, out)
    assert (facts.imgsz, facts.channels, class_count(facts.metadata)) == (IMGSZ, 3, 2)
    assert facts.precision == ("float16" if half else "float32")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["format=ncnn", "quantize=8", "data=d"],
            "quantize=8 is for format=onnx and openvino, got format=ncnn.",
        ),
        (["half=true"], "half=true is for format=openvino and ncnn without quantize=, got format=onnx."),
        (["format=openvino", "out=a.onnx"], "writes a path that ends in _openvino_model, got out='a.onnx'."),
        (["out=a.torchscript"], "format=onnx writes a path that ends in .onnx, got out='a.torchscript'."),
    ],
)
def test_formats_that_do_not_go_together_are_refused(checkpoint, words, sentence, capsys):
    assert cli.main(["export", f"model={checkpoint}", *words]) == 2
    assert sentence in capsys.readouterr().err
