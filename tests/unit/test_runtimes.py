"""What every runtime of exported files owes: PyTorch's numbers, what the file says of itself, and a sentence otherwise."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch import nn

from yolo_prune.cli import main
from yolo_prune.errors import CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.runs.subject import size_mb
from yolo_prune.runtimes import DEFAULT_RUNTIMES, PROVIDERS, RUNTIMES, ncnn
from yolo_prune.runtimes.onnx_facts import read_onnx
from yolo_prune.runtimes.pytorch import first_tensor
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    Settings,
    no_checkpoint,
    open_runtime,
    read_file,
    runtime_for,
)
from yolo_prune.runtimes.tracing import trace_to_onnx, trace_to_torchscript


def source(runtime):
    """Return the ending of what a host writes for a runtime itself; for ncnn that is converted."""
    return ".onnx" if runtime == "ncnn" else RUNTIMES[runtime].exported


FILE_RUNTIMES = [
    name
    for name, entry in RUNTIMES.items()
    if not entry.checkpoints and ":" not in name and entry.runs(f"a{source(name)}")
]
FACTS = {"task": "detect", "names": "{0: 'a', 1: 'b', 2: 'c'}", "imgsz": "[64, 32]"}
SIZE = (64, 32)


class Detector(nn.Module):
    """Raw boxes of three classes [B, 4 + 3, anchors], or with ``classify`` scores of seven."""

    def __init__(self, channels=3, classify=False):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 7, 8, 8))
        self.classify = classify

    def forward(self, x):
        x = self.features(x)
        return (
            x.mean((2, 3)).softmax(1)
            if self.classify
            else torch.cat([x[:, :4] * 64, x[:, 4:].sigmoid()], 1).flatten(2)
        )


def write(path, net, shape=(1, 3, *SIZE), facts=FACTS, dynamic=None):
    if path.suffix == ".torchscript":
        trace_to_torchscript(net.eval(), torch.zeros(shape), path, what="the net", facts=facts)
        return path
    trace_to_onnx(net.eval(), torch.zeros(shape), path, what="the net", dynamic_axes=dynamic)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Detector()


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtimes")
    return {ending: write(folder / f"net{ending}", net) for ending in (".onnx", ".torchscript")}


@pytest.fixture(scope="module")
def file(files):
    return files[".onnx"]


def needed(runtime):
    """Skip where a runtime is not installed, or what turns .onnx files into its own."""
    pytest.importorskip(RUNTIMES[runtime].package or runtime)
    if runtime == "ncnn" and importlib.util.find_spec("pnnx") is None:
        pytest.skip("pnnx is not installed")
    return runtime


@pytest.fixture(params=FILE_RUNTIMES)
def runtime(request):
    return needed(request.param)


@pytest.fixture
def own(runtime, files):
    """The network as a file that the runtime runs."""
    return files[source(runtime)]


@pytest.fixture(params=[name for name in FILE_RUNTIMES if RUNTIMES[name].runs("a.onnx")])
def on_onnx(request):
    return needed(request.param)


def opened(runtime, path, imgsz=SIZE, **settings):
    return open_runtime(
        runtime,
        path,
        imgsz,
        Settings(**{"device": "cpu", "threads": 1, "batch": 1, **settings}),
        no_checkpoint,
    )


def pixels(seed=0, shape=(1, 3, *SIZE)):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def output_of(net, images):
    with torch.inference_mode():
        return net(torch.from_numpy(images)).numpy()


def test_a_file_computes_what_pytorch_computes_and_keeps_no_output_of_before(runtime, own, net):
    model = opened(runtime, own)
    first, second = (model.infer(pixels(seed))[0] for seed in (0, 1))
    for seed, found in ((0, first), (1, second)):
        np.testing.assert_allclose(model.as_array(found), output_of(net, pixels(seed)), rtol=1e-4, atol=1e-4)
    assert np.abs(first - second).max() > 1e-2, "the control: another image, another output"
    assert (model.facts["runtime"], model.facts["threads"], model.channels) == (runtime, 1, 3)


def test_what_a_file_says_of_itself_is_read_without_running_it(runtime, own):
    facts = read_file(runtime, own)
    assert (facts.batch, facts.channels, facts.imgsz, facts.precision) == (1, 3, SIZE, "float32")
    assert {key: facts.metadata[key] for key in FACTS} == FACTS


def test_images_become_boxes_of_the_file_s_classes(runtime, own):
    model = opened(runtime, own)
    image = np.full((48, 80, 3), 200, np.uint8)
    (boxes,) = model.postprocess(model.infer(model.preprocess([image]))[0])
    assert len(boxes) > 0
    assert set(boxes[:, 5]) <= {0, 1, 2}
    assert "non-maximum suppression" in model.phases


def test_a_classifier_is_known_by_its_output(runtime, tmp_path):
    path = tmp_path / f"own{source(runtime)}"
    model = opened(runtime, write(path, Detector(classify=True)))
    assert model.phases.endswith("best five classes")


def test_a_file_of_open_size_and_of_one_channel_runs_at_any_size(on_onnx, tmp_path):
    runtime = on_onnx
    axes = {"images": {0: "batch", 2: "height", 3: "width"}}
    net = Detector(channels=1)
    path = write(tmp_path / "open.onnx", net, (1, 1, 64, 64), dynamic=axes)
    assert read_file(runtime, path).imgsz is None
    for size in ((32, 64), (64, 64)):
        batch = 1 if runtime == "ncnn" else 2
        images = pixels(shape=(batch, 1, *size))
        found = opened(runtime, path, size, batch=batch).infer(images)[0]
        np.testing.assert_allclose(found, output_of(net, images), rtol=1e-4, atol=1e-4)


def quantised(path):
    """A convolution whose weights are int8 in the file."""
    make = onnx.helper
    weights = np.arange(7 * 3 * 8 * 8, dtype=np.int8).reshape(7, 3, 8, 8)
    nodes = [
        make.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"]),
        make.make_node("Conv", ["images", "w"], ["output"], strides=[8, 8]),
    ]
    values = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in (("w8", weights), ("scale", np.float32(0.1)), ("zero", np.int8(0)))
    ]
    images, output = (
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 64, 64]), ("output", [1, 7, 8, 8]))
    )
    graph = make.make_graph(nodes, "g", [images], [output], values)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_weights_of_8_bits_are_called_so(on_onnx, tmp_path):
    assert read_file(on_onnx, quantised(tmp_path / "int8.onnx")).precision == "int8"


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (
            {"imgsz": 96},
            ConfigError,
            r"takes inputs of shape \[1, 3, 64, 32\], expected \[1, 3, 96, 96\]\. Export it again with",
        ),
        (
            {"batch": 2},
            ConfigError,
            r"expected \[2, 3, 64, 32\]\. Export it again with imgsz=64x32 and batch=2\.$|one image at a time, got batch=2\.$",
        ),
        (
            {"compile": True},
            ConfigError,
            r"^compile=true applies to the torch runtime; \w+ optimises every model itself\.$",
        ),
        ({"device": "cuda:7"}, DeviceUnavailableError, "CUDA|on the CPU alone"),
    ],
)
def test_what_does_not_fit_is_refused(runtime, own, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        opened(runtime, own, **settings)


@pytest.mark.parametrize("name", ["onnxruntime", "opencv", "torchscript"])
def test_16_bits_are_refused_where_the_file_says_the_precision(name, files):
    sentence = (
        f"^half=true applies to torch, openvino and ncnn; {name} runs a file in the precision that it has"
    )
    with pytest.raises(ConfigError, match=sentence):
        opened(needed(name), files[source(name)], half=True)


@pytest.mark.parametrize(("able", "sentence"), [(False, "ncnn computes in 16 bits on ARM"), (True, None)])
def test_ncnn_computes_in_16_bits_where_the_cpu_can(able, sentence, file, monkeypatch):
    library = pytest.importorskip(needed("ncnn"))
    monkeypatch.setattr(library, "cpu_support_arm_asimdhp", lambda: able)
    made = []

    class Net(library.Net):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(library, "Net", Net)
    if sentence:
        with pytest.raises(DeviceUnavailableError, match=sentence):
            opened("ncnn", file, half=True)
    else:
        opened("ncnn", file, half=True)
    assert not made[0].opt.use_fp16_storage, "the control: what is compared with the file is in float32"
    assert [net.opt.use_fp16_storage and net.opt.use_fp16_arithmetic for net in made[1:]] == [True] * able
    assert not any(net.opt.use_bf16_storage for net in made)


@pytest.mark.parametrize("able", [False, True])
def test_openvino_computes_in_16_bits_where_the_cpu_can(able, file, monkeypatch):
    library = pytest.importorskip("openvino")
    hints = []

    class Core(library.Core):
        def get_property(self, device, name):
            return ["FP32", *["FP16"] * able]

        def compile_model(self, model, device, options):
            hints.append(options["INFERENCE_PRECISION_HINT"])
            return super().compile_model(model, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(library, "Core", Core)
    if able:
        opened("openvino", file, half=True)
        opened("openvino", file)
        assert hints == ["f16", "f32"]
    else:
        with pytest.raises(
            DeviceUnavailableError, match=r"^openvino computes in FP32 on this CPU, not in FP16$"
        ):
            opened("openvino", file, half=True)


def test_a_damaged_file_is_named(runtime, tmp_path):
    bad = tmp_path / f"bad{source(runtime)}"
    bad.write_bytes(b"no model")
    sentence = rf"{re.escape(bad.name)}' is not an? ((ONNX )?model that \w+ can load|TorchScript file)"
    for read in (read_file, opened):
        with pytest.raises(CheckpointError, match=sentence):
            read(runtime, bad)


def test_a_file_with_two_inputs_is_refused(on_onnx, tmp_path):
    make = onnx.helper
    values = [
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("a", "b", "c")
    ]
    graph = make.make_graph([make.make_node("Add", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    onnx.save(
        make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), tmp_path / "two.onnx"
    )
    with pytest.raises(
        ConfigError, match=r"takes 2 input\(s\), the first a .* expected one batch of images \[B, C, H, W\]"
    ):
        read_file(on_onnx, tmp_path / "two.onnx")


@pytest.mark.parametrize("name", FILE_RUNTIMES)
def test_a_runtime_that_is_not_installed_names_its_extra(name, files, monkeypatch):
    monkeypatch.setitem(sys.modules, RUNTIMES[name].package or name, None)  # importing it fails
    sentence = f"the '{name}' runtime is not installed: pip install \"yolo-prune[{RUNTIMES[name].extra}]\"."
    for use in (opened, *([] if name == "torchscript" else [read_file])):
        with pytest.raises(MissingRuntimeError, match=f"^{re.escape(sentence)}$"):
            use(name, files[source(name)])


def test_the_first_runtime_of_a_file_runs_it_and_another_says_what_it_takes():
    names = ("a.onnx", "a.xml", "best_openvino_model/", "a.param", "a_ncnn_model", "a.torchscript")
    found = [runtime_for(name) for name in names]
    assert found == ["onnxruntime", "openvino", "openvino", "ncnn", "ncnn", "torchscript"]
    with pytest.raises(
        ConfigError, match=r"^the 'onnxruntime' runtime does not run 'a\.xml', expected \*\.onnx\.$"
    ):
        opened("onnxruntime", "a.xml")


def test_only_runtimes_that_are_asked_for_need_to_be_installed():
    assert DEFAULT_RUNTIMES == ("torch", "onnxruntime")
    code = f"import sys, yolo_prune.bench.worker, yolo_prune.options; sys.exit(str({set(RUNTIMES)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("runtime", [name for name in FILE_RUNTIMES if name not in DEFAULT_RUNTIMES])
def test_bench_and_check_run_on_every_other_runtime(runtime, files, tmp_path, capsys):
    file = files[source(needed(runtime))]
    table = tmp_path / "bench.json"
    assert (
        main(["bench", f"model={file}", f"runtimes={runtime}", "rounds=2", "threads=1", f"json={table}"]) == 0
    )
    assert json.loads(table.read_text())[0]["timings"]["net"]["runtime"] == runtime
    words = [f"model={file}", f"runtime={runtime}", "threads=1", "seconds=0.1"]
    assert [main(["check", *words, f"min_fps={fps}"]) for fps in (0.1, 1e9)] == [0, 1]
    assert f"by {file}, {runtime} " in capsys.readouterr().out


def test_an_onnx_file_is_read_from_its_bytes_as_onnxruntime_reads_it(file, tmp_path):
    pytest.importorskip("onnxruntime")
    axes = {"images": {0: "batch", 2: "height", 3: "width"}}
    dynamic = write(tmp_path / "open.onnx", Detector(channels=1), (1, 1, 64, 64), dynamic=axes)
    for path in (file, dynamic, quantised(tmp_path / "int8.onnx")):
        assert read_onnx(path) == read_file("onnxruntime", path)


@pytest.mark.parametrize("keep", [0, 1, 100, 4000])
def test_an_onnx_file_that_was_cut_off_is_no_model(file, tmp_path, keep):
    short = tmp_path / "short.onnx"
    short.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"ends too early|has no graph"):
        read_onnx(short)


def test_inputs_of_16_bits_are_refused_by_opencv(tmp_path):
    pytest.importorskip("cv2")
    make = onnx.helper
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [1, 3, 8, 8]) for name in "ab"]
    graph = make.make_graph([make.make_node("Relu", ["a"], ["b"])], "g", values[:1], values[1:])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)]), tmp_path / "half.onnx")
    with pytest.raises(ConfigError, match=r"takes inputs in 32 bits, and '.*half\.onnx' wants them in 16\.$"):
        opened("opencv", tmp_path / "half.onnx", 8)


def test_a_torchscript_of_another_exporter_needs_its_size(net, tmp_path):
    path = write(tmp_path / "bare.torchscript", net, facts={})
    assert read_file("torchscript", path).imgsz is None
    found = opened("torchscript", path).infer(pixels())[0]
    np.testing.assert_allclose(found, output_of(net, pixels()), rtol=1e-4, atol=1e-4)
    with pytest.raises(
        CheckpointError, match=r"^torchscript cannot run '.*' on images of shape \(1, 3, 8, 8\): "
    ):
        opened("torchscript", path, 8)


def test_of_named_outputs_the_first_is_read_and_none_is_a_sentence():
    assert first_tensor({"boxes": [torch.tensor([1.0])], "maps": torch.zeros(2)}).tolist() == [1.0]
    for nothing in ({}, [], None):
        with pytest.raises(CheckpointError, match=r"^the network must return a tensor first, got \w+\.$"):
            first_tensor(nothing)


def test_a_torchscript_in_16_bits_is_called_so(net, tmp_path):
    path = write(tmp_path / "half.torchscript", net)
    with pytest.warns(FutureWarning, match="deprecated"):  # 2026-11: of all TorchScript
        torch.jit.load(path).half().save(path)
    assert read_file("torchscript", path).precision == "float16"


def test_operators_of_a_host_s_library_are_imported_with_a_torchscript(tmp_path):
    """In a fresh process, which has not imported the library yet."""
    library = pytest.importorskip("torchvision")

    class Suppressed(nn.Module):
        def forward(self, x):
            return library.ops.nms(x[0, 0, :, :4], x[0, 0, :, 4], 0.5)[None].float()

    path = write(tmp_path / "nms.torchscript", Suppressed(), (1, 1, 16, 8), facts={})
    code = (
        "from pathlib import Path\n"
        "from yolo_prune.runtimes.runtime import Settings, no_checkpoint, open_runtime\n"
        f"path, size = Path({str(path)!r}), (16, 8)\n"
        "print(open_runtime('torchscript', path, size, Settings('cpu', 1, 1), no_checkpoint).facts['runtime'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("torchscript", 0), done.stderr


# What ONNX Runtime hands a network to


class Handing:
    """onnxruntime with more providers; what they run, the CPU runs, and a session says what it is told to say."""

    def __init__(self, monkeypatch, *available, says=None):
        self.library, self.says, self.asked = pytest.importorskip("onnxruntime"), says, []
        self.session = self.library.InferenceSession
        monkeypatch.setattr(
            self.library, "get_available_providers", lambda: [*available, "CPUExecutionProvider"]
        )
        monkeypatch.setattr(self.library, "InferenceSession", self.open)

    def open(self, path, options, providers):
        self.asked = providers
        session = self.session(path, options, providers=["CPUExecutionProvider"])
        names = [one if isinstance(one, str) else one[0] for one in providers]
        session.get_providers = lambda: self.says or names
        return session


PLACES = [("openvino", "cpu"), ("coreml", "cpu"), ("tensorrt", "cuda:1")]


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_a_provider_that_a_build_lacks_is_not_measured(name, device, file):
    pytest.importorskip("onnxruntime")
    sentence = f"^this build of onnxruntime has no {PROVIDERS[name]}, only .*CPUExecutionProvider"
    with pytest.raises(DeviceUnavailableError, match=sentence):
        opened(f"onnxruntime:{name}", file, device=device)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_a_provider_is_asked_first_and_named_in_the_facts(name, device, file, net, monkeypatch):
    handing = Handing(monkeypatch, PROVIDERS[name])
    model = opened(f"onnxruntime:{name}", file, device=device, threads=3)
    assert handing.asked[0][0] == PROVIDERS[name]
    assert handing.asked[0][1].get("num_of_threads") == (3 if name == "openvino" else None)
    assert handing.asked[0][1].get("device_id") == (1 if name == "tensorrt" else None)
    assert handing.asked[-1] == "CPUExecutionProvider"
    assert model.facts["runtime"] == f"onnxruntime:{name}"
    np.testing.assert_allclose(model.infer(pixels())[0], output_of(net, pixels()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_a_provider_that_did_not_start_is_no_measurement_of_the_cpu(name, device, file, monkeypatch):
    Handing(monkeypatch, PROVIDERS[name], says=["CPUExecutionProvider"])
    sentence = f"no usable (GPU|device) for {PROVIDERS[name]} and fell back to CPUExecutionProvider$"
    with pytest.raises(DeviceUnavailableError, match=sentence):
        opened(f"onnxruntime:{name}", file, device=device)


@pytest.mark.parametrize(
    ("name", "device"), [("openvino", "cuda:0"), ("coreml", "cuda:0"), ("tensorrt", "cpu")]
)
def test_a_provider_on_another_device_than_its_own_is_not_measured(name, device, file, monkeypatch):
    Handing(monkeypatch, PROVIDERS[name])
    with pytest.raises(DeviceUnavailableError, match=f"^{PROVIDERS[name]} is measured on (a GPU|the CPU)"):
        opened(f"onnxruntime:{name}", file, device=device)


def test_bench_says_which_provider_is_missing_and_check_cannot_tell(file, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["bench", f"model={file}", "runtimes=onnxruntime:coreml", "rounds=2", "threads=1"]) == 0
    assert "Not measured: this build of onnxruntime has no CoreMLExecutionProvider" in capsys.readouterr().out
    words = [f"model={file}", "runtime=onnxruntime:coreml", "min_fps=1"]
    assert main(["check", *words]) == 2
    assert "not measured: this build of onnxruntime has no CoreML" in capsys.readouterr().err


# OpenVINO's own files


@pytest.fixture(params=[".xml", "folder"])
def converted(request, file, tmp_path):
    """The file as OpenVINO keeps it, weights in 16 bits; the folder says of itself in a file beside the network."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(str(file))
    folder = tmp_path / "net_openvino_model"
    if request.param == "folder":
        del model.rt_info["framework"]
    openvino.save_model(model, str(folder / "net.xml"), compress_to_fp16=True)
    if request.param == ".xml":
        return folder / "net.xml"
    facts = {**FACTS, "names": {0: "a", 1: "b", 2: "c"}, "imgsz": [64, 32]}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(facts))
    return folder


def test_a_network_of_openvino_is_read_and_runs_in_float32(converted, net):
    facts = read_file("openvino", converted)
    assert (facts.imgsz, facts.precision) == (SIZE, "float16")
    assert {key: facts.metadata[key] for key in FACTS} == FACTS
    found = opened("openvino", converted).infer(pixels())[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, output_of(net, pixels()), rtol=1e-2, atol=2e-2)


def test_the_size_of_a_network_of_openvino_is_with_its_weights(converted):
    folder = converted if converted.is_dir() else converted.parent
    assert size_mb(converted) == sum(each.stat().st_size for each in folder.iterdir()) / 1e6
    assert size_mb(converted) > (folder / "net.bin").stat().st_size / 1e6 > 0


def test_openvino_is_asked_for_one_stream_of_so_many_threads_in_float32(file, monkeypatch):
    openvino = pytest.importorskip("openvino")
    compiled = []

    class Core(openvino.Core):
        def compile_model(self, *args):
            compiled.append(super().compile_model(*args))
            return compiled[-1]

    monkeypatch.setattr(openvino, "Core", Core)
    opened("openvino", file, threads=2)
    names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    assert [compiled[0].get_property(name) for name in names] == [2, 1, False]
    assert compiled[0].get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_a_folder_without_a_network_is_refused(tmp_path):
    pytest.importorskip("openvino")
    folder = tmp_path / "a_openvino_model"
    folder.mkdir()
    with pytest.raises(
        CheckpointError, match=r"a_openvino_model' holds 0 networks \(\*\.xml\), expected one\.$"
    ):
        read_file("openvino", folder)


# ncnn's own files


def ncnn_network(file, folder, shape=(1, 3, *SIZE)):
    """The file as ncnn keeps it."""
    needed("ncnn")
    folder.mkdir()
    return ncnn.converted(file, shape, folder)


def test_a_network_of_ncnn_runs_with_what_lies_beside_it(file, net, tmp_path):
    network = ncnn_network(file, tmp_path / "net_ncnn_model")
    folder = network.parent
    assert read_file("ncnn", network).imgsz is None, "the control: the network itself says nothing"
    for each in set(folder.iterdir()) - {network, network.with_suffix(".bin")}:
        each.unlink()
    facts = {**FACTS, "names": {0: "a", 1: "b", 2: "c"}, "imgsz": [64, 32], "channels": 3}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(facts))
    for path in (network, folder):
        found = read_file("ncnn", path)
        assert (found.batch, found.channels, found.imgsz, found.precision) == (1, 3, SIZE, "float32")
        result = opened("ncnn", path).infer(pixels())[0]
        np.testing.assert_allclose(result, output_of(net, pixels()), rtol=1e-4, atol=1e-4)
    assert size_mb(network) == (network.stat().st_size + network.with_suffix(".bin").stat().st_size) / 1e6


def test_planes_that_do_not_fill_whole_vectors_are_read_as_they_are(tmp_path):
    """33 x 31 values of 4 bytes are no multiple of the 16 bytes that ncnn aligns planes to."""
    needed("ncnn")
    shape = (1, 3, 33, 31)
    net = Detector()
    path = write(tmp_path / "odd.onnx", net, shape)
    found = opened("ncnn", path, shape[2:]).infer(pixels(shape=shape))[0]
    np.testing.assert_allclose(found, output_of(net, pixels(shape=shape)), rtol=1e-4, atol=1e-4)


def test_a_conversion_that_computes_something_else_is_refused(file, tmp_path, monkeypatch):
    torch.manual_seed(1)
    other = ncnn_network(write(tmp_path / "other.onnx", Detector()), tmp_path / "other")
    monkeypatch.setattr(ncnn, "converted", lambda *_: other)
    with pytest.raises(
        CheckpointError, match=r"^pnnx made another network of '.*net\.onnx': outputs differ by up to \d"
    ):
        opened("ncnn", file)


def test_a_missing_converter_is_named(file, monkeypatch):
    pytest.importorskip("ncnn")
    monkeypatch.setattr(ncnn.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        MissingRuntimeError, match=r"^running an \.onnx file on ncnn needs 'pnnx', .*: pip install pnnx, or"
    ):
        opened("ncnn", file)


def test_damaged_and_incomplete_networks_of_ncnn_are_named(tmp_path):
    pytest.importorskip("ncnn")
    (tmp_path / "bad.param").write_text("no network")
    with pytest.raises(
        CheckpointError, match=r"is no network of ncnn: expected 'bad\.param' and 'bad\.bin'\.$"
    ):
        read_file("ncnn", tmp_path / "bad.param")
    (tmp_path / "bad.bin").write_bytes(ncnn._FLOAT16)
    assert read_file("ncnn", tmp_path / "bad.param").precision == "float16"
    with pytest.raises(CheckpointError, match=r"bad\.param' is not a network that ncnn can load\.$"):
        opened("ncnn", tmp_path / "bad.param")
