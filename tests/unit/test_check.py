"""The command that checks a file: exit codes, what it writes, every kind of input, and what it does not import."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from yolo_prune.bench.clock import FIELDS
from yolo_prune.cli import main
from yolo_prune.errors import ConfigError
from yolo_prune.options import CheckConfig
from yolo_prune.report.checks import CheckReport, Finding, check_junit, check_markdown
from yolo_prune.runtimes.tracing import trace_to_onnx

QUICK = ("seconds=0.3", "threads=1")


class Net(nn.Module):
    """One convolution: raw boxes of three classes, or with ``classes`` their scores."""

    def __init__(self, channels=3, classes=0, stride=8):
        super().__init__()
        self.conv = nn.Conv2d(channels, classes or 7, stride, stride)
        self.classes = classes

    def forward(self, x):
        x = self.conv(x)
        return x.mean((2, 3)).softmax(1) if self.classes else x.flatten(2)


def export(file, net, shape, metadata=None, dynamic=None):
    trace_to_onnx(net.eval(), torch.zeros(shape), file, what="the net", dynamic_axes=dynamic)
    model = onnx.load(file)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, file)
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A detector of three classes at 64 px, with what its host would have written into it."""
    torch.manual_seed(0)
    facts = {"task": "detect", "names": "{0: 'a', 1: 'b', 2: 'c'}", "imgsz": "[64, 64]"}
    return export(tmp_path_factory.mktemp("check") / "best.onnx", Net(), (1, 3, 64, 64), facts)


def check(*words):
    return main(["check", *QUICK, *map(str, words)])


def findings(path):
    return {one["key"]: one for one in json.loads(Path(path).read_text())["findings"]}


def test_a_limit_that_is_met_exits_with_zero_and_says_on_what(file, capsys, tmp_path):
    report = tmp_path / "check.json"
    assert check(f"model={file}", "min_fps=1", "max_size_mb=1", "max_memory_mb=4000", f"json={report}") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"MET: 3 of 3 met by {file}, onnxruntime ")
    assert ", 1 thread, batch 1, 64 px, float32\n" in out
    assert len(out.splitlines()) < 24, "one screen"
    assert max(map(len, out.splitlines())) < 240
    found = findings(report)
    assert found["min_fps"]["low"] <= found["min_fps"]["value"] <= found["min_fps"]["high"]
    assert found["max_size_mb"]["value"] == pytest.approx(file.stat().st_size / 1e6)
    assert 10 < found["max_memory_mb"]["value"] < 2000
    values = json.loads(report.read_text())
    assert (values["verdict"], values["exit_code"], values["imgsz"]) == ("met", 0, 64)
    assert set(values["machine"]) == {"before", "after"}


def test_a_limit_that_is_missed_exits_with_one_and_says_by_how_much(file, capsys, tmp_path):
    junit, md = tmp_path / "check.xml", tmp_path / "check.md"
    # of few steps, none bound a higher percentile
    limits = ("min_fps=1e9", "max_latency_ms=1e4", "percentile=p50")
    assert check(f"model={file}", *limits, f"junit={junit}", f"md={md}") == 1
    out = capsys.readouterr().out
    assert out.startswith("MISSED: 1 of 2 met by ")
    assert "missed by " in out
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["FPS >= 1e+09"]
    assert "| FPS >= 1e+09 |" in md.read_text()


def test_what_could_not_be_measured_exits_with_two_and_is_written_down(tmp_path, capsys):
    junit, report = tmp_path / "check.xml", tmp_path / "check.json"
    words = [f"model={tmp_path / 'none.onnx'}", "min_fps=1", f"junit={junit}", f"json={report}"]
    assert check(*words) == 2
    assert capsys.readouterr().err.endswith(f"error: there is no file '{tmp_path / 'none.onnx'}'.\n")
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert suite.find("testcase/error").get("message").startswith("there is no file")
    values = json.loads(report.read_text())
    assert (values["verdict"], values["exit_code"], values["findings"]) == (None, 2, [])


def test_a_file_that_is_no_model_exits_with_two(tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert check(f"model={tmp_path / 'broken.onnx'}", "min_fps=1") == 2
    assert "is not an ONNX model that onnxruntime can load" in capsys.readouterr().err


def test_all_of_the_time_is_measured_where_that_is_asked_for(file, tmp_path):
    steps = []
    for early in ("true", "false"):
        report = tmp_path / f"{early}.json"
        words = ["seconds=1", "threads=1", "min_fps=0.1", f"early={early}", f"json={report}"]
        assert main(["check", f"model={file}", *words]) == 0
        steps.append(json.loads(report.read_text())["samples"])
    assert steps[0] < 0.8 * steps[1]


def test_a_speedup_is_measured_in_turns(file, tmp_path):
    slow = export(tmp_path / "slow.onnx", Net(stride=2), (1, 3, 256, 256))
    report = tmp_path / "check.json"
    words = [f"against={slow}", "min_speedup=1.2", f"json={report}"]
    assert check(f"model={file}", *words) == 0
    assert findings(report)["min_speedup"]["value"] > 1.2
    assert "paired_latency_ms" in json.loads(report.read_text())


@pytest.mark.parametrize(
    ("shape", "dynamic", "words", "imgsz", "batch"),
    [
        ((1, 3, 32, 96), None, [], [32, 96], 1),
        ((1, 1, 64, 64), None, [], 64, 1),
        ((4, 3, 64, 64), None, [], 64, 4),
        ((1, 3, 64, 64), {0: "n", 2: "h", 3: "w"}, ["imgsz=40,72", "batch=3"], [40, 72], 3),
    ],
    ids=["not square", "one channel", "a batch of four", "any size"],
)
def test_a_file_is_checked_at_the_size_that_it_takes(shape, dynamic, words, imgsz, batch, tmp_path):
    axes = {"images": dynamic, "output": {0: "n", 2: "anchors"}} if dynamic else None
    out = export(tmp_path / "own.onnx", Net(shape[1]), shape, dynamic=axes)
    report = tmp_path / "check.json"
    assert check(f"model={out}", "min_fps=0.1", f"json={report}", *words) == 0
    values = json.loads(report.read_text())
    assert (values["imgsz"], values["conditions"]["batch"]) == (imgsz, f"batch {batch}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["imgsz=96"], r"takes images of 64 px and imgsz=96 was asked for\. Leave imgsz= out"),
        (["batch=2"], r"takes 1 images at once and batch=2 was asked for\. Leave batch= out"),
        (["runtime=torch"], r"the 'torch' runtime does not run '.*best\.onnx', expected \*\.pt, \*\.pth\."),
        (["device=7"], r"not measured: this build of onnxruntime has no CUDAExecutionProvider"),
        (["source=/nowhere.mp4"], r"source='/nowhere\.mp4' is no folder, no video and no number of a camera"),
    ],
)
def test_what_a_file_does_not_take_is_said(file, words, sentence, capsys):
    assert check(f"model={file}", "min_fps=1", *words) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_a_file_of_any_size_needs_one(tmp_path, capsys):
    axes = {"images": {2: "h", 3: "w"}, "output": {2: "anchors"}}
    out = export(tmp_path / "own.onnx", Net(), (1, 3, 64, 64), dynamic=axes)
    assert check(f"model={out}", "min_fps=1") == 2
    assert f"'{out}' takes images of any size: give imgsz=." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "shape"), [("UINT8", [1, 3, 8, 8]), ("FLOAT", [1, 3])], ids=["bytes", "no images"]
)
def test_a_file_that_takes_no_images_is_refused_before_it_runs(kind, shape, tmp_path, capsys):
    values = [
        onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape) for name in "xy"
    ]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "own.onnx")
    assert check(f"model={tmp_path / 'own.onnx'}", "min_fps=1") == 2
    expected = (
        rf"takes 1 input\(s\), the first a tensor\({kind.lower()}\) of shape .*: expected one batch of images"
    )
    assert re.search(expected, capsys.readouterr().err)


def test_bench_takes_a_file_at_its_own_size_too(file, capsys):
    assert main(["bench", f"model={file}", "runtimes=onnxruntime", "rounds=2", "threads=1"]) == 0
    assert re.search(r"\| 64 \|", capsys.readouterr().out)


@pytest.fixture
def made_up(monkeypatch):
    """A worker whose steps are made up, on a machine that gets hot."""
    calm = {"load1": 7.0, "governor": "performance", "mhz": 2400.0, "celsius": 50.0}
    calm |= {"throttle_events": None, "firmware": None}

    def answer(request, threads):
        names = list(request["candidates"])
        latency = 20 * np.exp(0.1 * np.random.default_rng(0).normal(size=(100, 3)))
        steps = np.zeros((100, 3, len(FIELDS)))
        steps[..., FIELDS.index("latency_ms")] = latency
        facts = {"runtime": "onnxruntime", "runtime_version": "1", "device": "cpu", "device_name": "a CPU"}
        facts |= {"threads": threads, "batch": 1, "imgsz": 64}
        samples = {name: (steps * (1 + 0.001 * index)).tolist() for index, name in enumerate(names)}
        measured = {"load1": 7.0, "rounds": 100, "seconds": 9.0, "phases": "all of it"}
        measured |= {"refused": {}, "parities": {}}
        machine = [calm, {**calm, "mhz": 1200.0}]
        memory = {"before": 50.0, "peak": 99.0}
        return {
            "result": {
                **measured,
                "facts": dict.fromkeys(names, facts),
                "samples": samples,
                "machine": machine,
                "memory_mb": memory,
            }
        }

    monkeypatch.setattr("yolo_prune.bench.watched.ask_worker", answer)


@pytest.mark.usefixtures("made_up")
def test_what_is_too_close_to_call_exits_with_one_and_says_what_the_machine_did(file, tmp_path, capsys):
    report = tmp_path / "check.json"
    words = ["min_fps=50", "max_latency_ms=40", f"against={file}", "min_speedup=1", f"json={report}"]
    assert check(f"model={file}", *words) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        f"UNDECIDED: 2 of 3 met by {file}, onnxruntime 1, cpu (a CPU), 1 thread, batch 1, 64 px"
    )
    assert re.search(r"^FPS >= 50 .* too close to call$", out, re.M)
    assert re.search(r"^p95 latency <= 40 ms .* met by 1\d\.\d\d ms", out, re.M)
    assert "clock 2400 MHz -> 1200 MHz, heat 50 C -> 50 C" in out
    assert "warning: The machine was busy before it began: load 7.0" in out
    assert "warning: The clock fell from 2400 to 1200 MHz while measuring" in out
    verdicts = {key: one["verdict"] for key, one in findings(report).items()}
    assert verdicts == {"min_fps": "undecided", "max_latency_ms": "met", "min_speedup": "met"}


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(("limit", "code"), [(98.9, 1), (99.0, 0)])
def test_memory_is_judged_by_the_number(file, limit, code):
    assert check(f"model={file}", f"max_memory_mb={limit}") == code


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    facts = {"task": "classify", "names": "{0: 'a', 1: 'b'}", "imgsz": "[32, 32]"}
    return export(tmp_path_factory.mktemp("classes") / "own.onnx", Net(classes=2), (1, 3, 32, 32), facts)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    for split in ("train", "val"):
        for index, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                image = np.full((40, 50, 3), 200 * index + number, np.uint8)
                cv2.imwrite(str(root / split / name / f"{number}.png"), image)
    return root


def test_a_classifier_is_judged_by_top1(classifier, folders, tmp_path, capsys):
    report = tmp_path / "check.json"
    assert check(f"model={classifier}", f"data={folders}", "min_top1=0", f"json={report}") == 0
    session = pytest.importorskip("onnxruntime").InferenceSession(str(classifier))
    right = 0
    for index, name in enumerate("ab"):
        for number in range(3):
            image = cv2.imread(str(folders / "val" / name / f"{number}.png"))[:32, :32, ::-1]
            batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None] / np.float32(255), dtype=np.float32)
            right += session.run(None, {"images": batch})[0].argmax() == index
    assert findings(report)["min_top1"]["value"] == pytest.approx(right / 6)
    assert check(f"model={classifier}", f"data={folders}", "min_ap=0.5") == 2
    assert "is a classifier: give min_top1= in place of min_ap=." in capsys.readouterr().err


def test_a_file_that_does_not_say_its_classes_has_no_accuracy(tmp_path, folders, capsys):
    out = export(tmp_path / "own.onnx", Net(), (1, 3, 64, 64))
    assert check(f"model={out}", f"data={folders}", "min_ap=0.5") == 2
    assert "does not say its task, classes and image size, which accuracy needs" in capsys.readouterr().err


def test_a_stream_is_measured_with_its_reading(file, folders, tmp_path, capsys):
    video = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for number in range(4):
        writer.write(np.full((64, 96, 3), 60 * number, np.uint8))
    writer.release()
    for source in (video, folders):
        report = tmp_path / f"{source.name}.json"
        assert check(f"model={file}", "min_fps=0.1", f"source={source}", f"json={report}") == 0
        assert json.loads(report.read_text())["phases_ms"]["read"] > 0
        assert "reading and decoding, letterbox" in capsys.readouterr().out
    (tmp_path / "no.avi").write_bytes(b"no video")
    assert check(f"model={file}", "min_fps=1", f"source={tmp_path / 'no.avi'}") == 2
    assert f"the video {tmp_path / 'no.avi'} cannot be opened." in capsys.readouterr().err


_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocker())
"""
HEAVY = ("torch", "ultralytics", "torchvision", "timm", "scipy", "matplotlib", "jinja2")
LIBRARIES = ("cv2", "PIL", "pycocotools")


def bare(folder, blocked, *words):
    """Run the command where packages are missing, in its worker, too."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_BLOCKER.format(blocked=set(blocked)))
    path = os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[2])])
    command = [sys.executable, "-m", "yolo_prune", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("which", ["file", "classifier"])
def test_an_exported_file_is_checked_without_torch_and_without_an_image_library(which, request, tmp_path):
    model = request.getfixturevalue(which)
    words = ["check", f"model={model}", *QUICK, "max_size_mb=1"]
    met = bare(tmp_path / "bare", (*HEAVY, *LIBRARIES), *words, "min_fps=0.1")
    assert (met.returncode, met.stderr.count("rror")) == (0, 0), met.stderr
    assert "resized by NumPy " in met.stdout


def test_accuracy_is_measured_without_torch(file, classifier, folders, tmp_path):
    words = [f"model={classifier}", f"data={folders}", "min_top1=0", *QUICK]
    done = bare(tmp_path / "bare", HEAVY, "check", *words)
    assert done.returncode == 0, done.stderr
    done = bare(tmp_path / "none", (*HEAVY, *LIBRARIES), "check", *words)
    assert done.returncode == 2
    assert 'reading images needs OpenCV or Pillow: pip install "yolo-prune[accuracy]".' in done.stderr
    data = [f"model={file}", "data=none.yaml", "min_ap=0.5", *QUICK]
    done = bare(tmp_path / "nothing", (*HEAVY, "pycocotools"), "check", *data)
    assert done.returncode == 2
    assert 'AP needs pycocotools, which is not installed: pip install "yolo-prune[accuracy]".' in done.stderr


def test_a_missing_runtime_is_named_with_what_installs_it(file, tmp_path):
    done = bare(tmp_path / "bare", ("onnxruntime", *HEAVY), "check", f"model={file}", "min_fps=1")
    assert done.returncode == 2
    assert "the 'onnxruntime' runtime is not installed: pip install \"yolo-prune[onnx]\"." in done.stderr


@pytest.mark.slow
def test_the_base_install_and_one_runtime_are_enough(file, tmp_path):
    """An environment of its own, made by pip from its index: nothing but the base install and ONNX Runtime."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin" / "python"
    root = Path(__file__).resolve().parents[2]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", root, "onnxruntime"]
    subprocess.run(list(map(str, install)), check=True)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def ran(*words):
        command = [str(home / "bin" / "yolo-prune"), *map(str, words)]
        return subprocess.run(command, env=clean, cwd=tmp_path, capture_output=True, text=True, check=False)

    listed = subprocess.run(
        [str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "ultralytics", "opencv-python", "pillow", "scipy"} & set(listed.lower().split())
    codes = [ran("check", f"model={file}", *QUICK, f"min_fps={fps}").returncode for fps in (0.1, 1e9)]
    assert codes == [0, 1]
    assert ran("check", "model=none.onnx", "min_fps=1").returncode == 2
    assert ran("-h").returncode == 0
    needed = ran("prune", "model=a.pt", "data=b.yaml", "keep_macs=0.5")
    assert 'pip install "yolo-prune[ultralytics]"' in needed.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"^nothing to check: give at least one of min_fps=, max_latency_ms=, .*max_memory_mb=\.$"),
        ({"min_speedup": 2}, r"^min_speedup= and against= belong together"),
        ({"against": "b.onnx", "min_fps": 1}, r"^min_speedup= and against= belong together"),
        ({"min_ap": 0.5}, r"^data= and min_ap= \(of a classifier min_top1=\) belong together"),
        ({"data": "a.yaml", "min_fps": 1}, r"^data= and min_ap="),
        (
            {"data": "a", "min_ap": 0.5, "min_top1": 0.5},
            r"^min_ap= is of a detector and min_top1= of a classifier",
        ),
        ({"min_speedup": 2, "against": "b.onnx", "source": "0"}, r"^a camera feeds one model at a time"),
        ({"max_memory_mb": 9, "device": "0"}, r"^max_memory_mb= is of the memory of the CPU"),
        (
            {"max_latency_ms": 9, "percentile": "p96"},
            r"^percentile must be one of 'p50', 'p90', 'p95', 'p99', got 'p96'",
        ),
        ({"min_fps": 0}, r"^min_fps must be at least 0\.001, got 0\."),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_measured(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        CheckConfig(model="a.onnx", **options)


def finding(verdict, **changes):
    values = {"key": "min_fps", "name": "FPS", "limit": 30.0, "value": 27.0, "low": 26.0, "high": 28.0}
    return Finding(**{**values, "unit": "", "digits": 1, "verdict": verdict, **changes})


def test_a_report_is_missed_before_it_is_undecided_before_it_is_met():
    for verdicts, whole, code in (
        (["met"], "met", 0),
        (["met", "undecided"], "undecided", 1),
        (["undecided", "missed", "met"], "missed", 1),
    ):
        report = CheckReport("a.onnx", tuple(finding(verdict) for verdict in verdicts))
        assert (report.verdict, report.exit_code) == (whole, code)
    assert CheckReport("a.onnx", error="no.").exit_code == 2


def test_a_verdict_says_by_how_much():
    assert finding("missed").sentence == "missed by 3.0 (10.0 %)"
    assert finding("undecided").sentence == "too close to call"
    assert finding("missed").measured == "27.0 [26.0, 28.0]"
    assert finding("missed", high=float("inf")).measured == "27.0 [26.0, ?]"
    latency = finding("met", key="max_latency_ms", name="p95 latency", limit=30, value=20, unit=" ms")
    assert (latency.requirement, latency.sentence) == ("p95 latency <= 30 ms", "met by 10.0 ms (33.3 %)")


def test_what_ci_systems_read_names_the_undecided_and_escapes_names():
    report = CheckReport("a&<b>|.onnx", (finding("met"), finding("undecided")), warnings=("It was busy.",))
    suite = ElementTree.fromstring(check_junit(report))[0]
    assert suite.get("name") == "a&<b>|.onnx"
    (failure,) = suite.iter("failure")
    assert (failure.get("type"), failure.get("message")) == (
        "undecided",
        "too close to call: measured 27.0 [26.0, 28.0], wanted FPS >= 30",
    )
    assert "It was busy." in failure.text
    lines = check_markdown(report).splitlines()
    assert lines[0] == "### UNDECIDED: 1 of 2 met by a&<b>|.onnx, "
    assert "* **It was busy.**" in lines
    assert check_markdown(CheckReport("a", error="no.")).splitlines() == ["### NOT MEASURED: a", "", "no."]
