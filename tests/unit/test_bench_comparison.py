"""A comparison with a worker that makes its samples up: what it is asked, and what becomes of what it says."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_prune.adapters import hosts
from yolo_prune.bench import comparison, exports, worker
from yolo_prune.bench.clock import FIELDS
from yolo_prune.bench.parity import Reference
from yolo_prune.errors import BenchmarkError, ConfigError, YoloPruneError
from yolo_prune.report.timings import markdown_table
from yolo_prune.runtimes.runtime import DeviceUnavailableError, available_cpus

FACTS = {
    "runtime": "torch",
    "runtime_version": "1",
    "device": "cpu",
    "device_name": "a CPU",
    "threads": 1,
    "batch": 2,
}


def samples(latency, rounds=3, steps=2):
    """Samples of a candidate: ``latency`` ms a step, a quarter of it before, a half in and a quarter after the network."""
    step = {
        "latency_ms": latency,
        "pre_ms": latency / 4,
        "net_ms": latency / 2,
        "post_ms": latency / 4,
        "cpu_ms": 1.0,
    }
    return [[[step.get(field, 0.0) for field in FIELDS]] * steps] * rounds


ANSWER = {
    "result": {
        "facts": {"slow": {**FACTS, "imgsz": 64}, "fast": {**FACTS, "imgsz": [32, 64]}},
        "samples": {"slow": samples(8.0), "fast": samples(2.0)},
        **{"load1": 0.25, "images": 5, "phases": "all of it", "timed": 2, "untimed": 1, "rounds": 3},
        **{"refused": {}, "parities": {}, "accuracies": {}},
    }
}


@pytest.fixture
def asked(monkeypatch):
    """Requests in the place of a worker's answers."""
    requests = []

    def ask(request, threads):
        requests.append({**json.loads(json.dumps(request)), "started with": threads})
        known = request["candidates"].keys() == ANSWER["result"]["samples"].keys()
        return ANSWER if known else {"not_measured": "no samples were made up for these"}

    monkeypatch.setattr(comparison, "ask_worker", ask)
    return requests


def compare(files=("slow.pt", "fast.pt"), **options):
    names = [name.partition(".")[0] for name in files]
    values = {"runtime": "torch", "imgsz": {"slow": 64, "fast": (32, 64)}, **options}
    return comparison.compare(dict(zip(names, files, strict=True)), **values)


def test_the_numbers_are_those_of_the_samples(asked):
    found = compare()
    assert found.base == "slow"
    fast, slow = found.timings["fast"], found.timings["slow"]
    assert fast.latency_ms == dict.fromkeys(("p10", "p50", "p90", "p99"), 2.0)
    assert (fast.pre_ms, fast.net_ms, fast.post_ms, fast.cpu_ms, fast.fps) == (0.5, 1.0, 0.5, 1.0, 1000.0)
    assert (slow.fps, slow.imgsz, fast.imgsz, fast.samples, fast.load1) == (250.0, 64, (32, 64), 6, 0.25)
    ratios = {name: ratio.value for name, ratio in found.ratios["fast"].items()}
    assert ratios == pytest.approx({"latency": 4.0, "net": 4.0, "cpu": 1.0})
    assert found.ratios["slow"]["latency"].value == 1.0
    said = {
        key: found.conditions[key]
        for key in ("image_count", "timed", "rounds", "timed_steps", "untimed_steps")
    }
    assert said == {"image_count": 5, "timed": "all of it", "rounds": 3, "timed_steps": 2, "untimed_steps": 1}
    assert found.not_measured is None


def test_the_worker_is_asked_for_what_was_asked_for(asked):
    compare(
        device=1,
        threads=3,
        batch=2,
        rounds=7,
        seconds=1.5,
        half=True,
        compile=True,
        trust=True,
        imports=["a.py"],
    )
    compare(images=["b.png"])
    first, second = asked
    assert first["settings"] == {
        **{"device": "cuda:1", "threads": 3, "batch": 2, "half": True, "compile": True, "trust": True},
        "provider": "",
    }
    assert first["candidates"] == {
        "slow": {"path": "slow.pt", "imgsz": 64, "reference": None},
        "fast": {"path": "fast.pt", "imgsz": [32, 64], "reference": None},
    }
    assert (first["rounds"], first["seconds"], first["images"], first["imports"]) == (7, 1.5, None, ["a.py"])
    assert (first["started with"], second["started with"]) == (3, available_cpus())
    assert second["images"] == ["b.png"]


def test_what_could_not_be_measured_has_no_numbers(monkeypatch):
    monkeypatch.setattr(comparison, "ask_worker", lambda *_: {"not_measured": "the device is gone"})
    found = compare()
    assert (found.timings, found.ratios) == ({"slow": None, "fast": None}, {})
    assert (found.not_measured, found.conditions["images"]) == ("the device is gone", "drawn")


def test_a_checkpoint_is_exported_once_for_every_size_and_files_are_taken_as_they_are(
    asked, monkeypatch, tmp_path
):
    exported, run = [], []

    class Exporter:
        def takes(self, model):
            return True

        def export(self, checkpoint, out, **options):
            exported.append((checkpoint.name, out.name, options))
            return out

        def load(self, checkpoint, *, trust):
            run.append((checkpoint.name, trust))
            return checkpoint

    monkeypatch.setattr(hosts, "hosts", lambda: (Exporter(),))
    monkeypatch.setattr(exports, "reference_of", made_up_reference)
    file = tmp_path / "own.onnx"
    file.touch()
    files = {"own": file, "a": "a.pt", "again": "a.pt", "low": "a.pt"}
    sizes = {"own": 64, "a": 64, "again": 64, "low": (32, 64)}
    comparison.compare(files, runtime="onnxruntime", imgsz=sizes, batch=2, trust=True)
    same = {"batch": 2, "trust": True}
    assert exported == [
        ("a.pt", "0-a-64.onnx", {"imgsz": 64, **same}),
        ("a.pt", "1-a-32x64.onnx", {"imgsz": (32, 64), **same}),
    ]
    paths = {name: Path(one["path"]) for name, one in asked[0]["candidates"].items()}
    assert paths["own"] == file
    assert paths["again"] == paths["a"]
    assert (paths["a"].name, paths["low"].name) == ("0-a-64.onnx", "1-a-32x64.onnx")
    assert run == [("a.pt", True)] * 2, "in PyTorch, once for every size"
    references = {name: one["reference"] for name, one in asked[0]["candidates"].items()}
    assert references["own"] is None, "nobody says what it was made from"
    assert references["a"] == references["again"] != references["low"]


def made_up_reference(loaded, imgsz, images):
    return Reference(np.zeros((1, 3, 8, 8), np.float32), (np.ones((1, 4), np.float32),), 4)


class Talking:
    """A worker process that says some lines and ends."""

    def __init__(self, *messages, last=""):
        self.stdin = io.StringIO()
        self.stdout = io.StringIO("".join(json.dumps(message) + "\n" for message in messages) + last)
        self.returncode = 1


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (Talking({"rounds": 2}, {"round": 1}, {"round": 2}, ANSWER), ANSWER),
        (
            Talking({"error": {"type": "DataError", "text": "no."}}),
            {"error": {"type": "DataError", "text": "no."}},
        ),
        (Talking({"rounds": 2}, {"round": 1}, {"not_measured": "gone"}), {"not_measured": "gone"}),
        (Talking({"rounds": 2}, {"round": 1}), {}),
        (Talking({"rounds": 2}, {"round": 1}, {"rounds": 1, "what": "x"}, {"round": 1}, ANSWER), ANSWER),
        (Talking({"rounds": 1}, {"round": 1}, last='{"result": {"samp'), {}),
        (Talking(), {}),
    ],
    ids=["all", "an error", "gone", "died in between", "two bars", "died in a word", "died at once"],
)
def test_a_worker_is_followed_to_its_last_whole_word(said, answer):
    assert comparison.follow(said, {}) == answer


def test_a_worker_that_is_gone_before_it_is_asked_said_nothing():
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    said = Talking({"rounds": 1})
    said.stdin = Gone()
    assert comparison.follow(said, {"a": 1}) == {}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ConfigError", ConfigError), ("BenchmarkError", BenchmarkError), ("Other", YoloPruneError)],
)
def test_an_error_of_the_worker_is_raised_as_what_it_was(monkeypatch, kind, expected):
    monkeypatch.setattr(comparison, "follow", lambda *_: {"error": {"type": kind, "text": "no."}})
    monkeypatch.setattr(comparison, "started_worker", started)
    with pytest.raises(expected, match=r"^no\.$") as caught:
        comparison.ask_worker({}, 1)
    assert type(caught.value) is expected


class started:  # noqa: N801 - in the place of a function
    def __init__(self, *_):
        pass

    def __enter__(self):
        return Talking()

    def __exit__(self, *_):
        return None


class MadeUpRuntime:
    """A runtime that only counts."""

    opened: list[tuple] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, name, path, imgsz, settings, load):
        MadeUpRuntime.opened.append((name, path.name, imgsz))
        if path.name == "gone.pt":
            raise DeviceUnavailableError("the device is gone")
        if path.name == "wrong.pt":
            raise ConfigError("no.")
        self.facts = {**FACTS, "threads": settings.threads, "device": settings.device}
        self.phases, self.channels, self.steps = f"phases of {name}", 4 if path.name == "four.pt" else 3, 0
        self.file = SimpleNamespace(precision="int8") if path.name == "int8.onnx" else None
        self.scores = {"other": 1.25, "near": 1.005}.get(path.stem, 1.0)

    def preprocess(self, images):
        return images

    def infer(self, batch):
        self.steps += len(batch)
        return batch, 2.5

    def as_array(self, output):
        return np.full((len(output), 4), self.scores, np.float32)

    def postprocess(self, output):
        return []


@pytest.fixture
def measured(monkeypatch):
    """Run the worker in this process on made-up runtimes."""
    MadeUpRuntime.opened.clear()
    loaded = []
    monkeypatch.setattr(worker, "open_runtime", MadeUpRuntime)
    monkeypatch.setattr(
        worker, "load_images", lambda paths, channels: loaded.append((paths, channels)) or ["image"] * 3
    )
    monkeypatch.setattr("yolo_prune.bench.clock.WARM_UP_SECONDS", 0.0)

    def measured(*files, references=None, device="cpu"):
        out = io.StringIO()
        settings = {"device": device, "threads": 1, "batch": 2}
        request = {
            **{
                "runtime": "torch",
                "settings": settings,
                "seconds": 0.01,
                "rounds": 4,
                "images": None,
                "imports": [],
            },
            "candidates": {
                name: {"path": name, "imgsz": [32, 64], "reference": (references or {}).get(name)}
                for name in files
            },
        }
        answer = worker.run(request, out)
        return answer, [json.loads(line) for line in out.getvalue().splitlines()], loaded

    return measured


def test_the_worker_reports_every_round_and_hands_over_every_timed_step(measured):
    answer, said, loaded = measured("a.pt", "b.pt")
    assert said == [{"rounds": 4}, *({"round": index} for index in (1, 2, 3, 4))]
    assert MadeUpRuntime.opened == [("torch", "a.pt", (32, 64)), ("torch", "b.pt", (32, 64))]
    assert loaded == [(None, 3)], "images are loaded once for all"
    for name in ("a.pt", "b.pt"):
        rounds = answer["samples"][name]
        assert [len(steps) for steps in rounds] == [answer["timed"]] * 4
        assert {step[FIELDS.index("net_ms")] for steps in rounds for step in steps} == {2.5}
    assert answer["facts"]["a.pt"] == {**FACTS, "imgsz": [32, 64], "precision": "float32"}
    assert (answer["images"], answer["phases"]) == (3, "phases of torch")
    found = comparison.read_answer(["a.pt", "b.pt"], {"result": answer}, {"images": "drawn", "cpus": 1})
    assert found.timings["b.pt"].net_ms == 2.5
    assert found.ratios["b.pt"]["net"].value == 1.0


def test_the_precision_is_that_of_the_file(measured):
    answer, _, _ = measured("a.pt", "int8.onnx")
    found = comparison.read_answer(["a.pt", "int8.onnx"], {"result": answer}, {"images": "drawn", "cpus": 1})
    assert [each.precision for each in found.timings.values()] == ["float32", "int8"]
    table = [line.split(" | ") for line in markdown_table([found]).splitlines()]
    assert [line[2] for line in table[:1] + table[2:4]] == ["precision", "FP32", "INT8"]


def test_a_file_that_computes_something_else_is_not_timed_and_the_others_are(measured, tmp_path):
    reference = made_up_reference(None, 8, None).save(tmp_path / "a.npz")
    files = ("same.onnx", "other.onnx", "int8.onnx", "other.pt")
    references = dict.fromkeys(files[:3], str(reference))
    answer, _, _ = measured(*files, references=references)
    names = list(files)
    found = comparison.read_answer(
        names, {"result": answer}, {"images": "drawn", "cpus": 1, "runtime": "made up"}
    )
    sentence = (
        "the file does not compute what its checkpoint computes: outputs differ by up to 0.25 of 1, scores by up to "
        "0.25 (1 images; float32: 0.001 of each is allowed)"
    )
    assert found.refused == {"other.onnx": sentence}
    assert [name for name in names if found.timings[name] is None] == ["other.onnx"]
    assert found.ratios.keys() == {"same.onnx", "int8.onnx", "other.pt"}
    assert found.parities.keys() == {"same.onnx", "other.onnx"}, (
        "8 bits differ by intent, and a checkpoint is no file"
    )
    assert f"other.onnx: not measured: {sentence}." in markdown_table([found])
    assert "furthest, same.onnx: outputs differ by up to 0 of 1" in markdown_table([found])


@pytest.mark.parametrize(
    ("device", "refused"), [("cpu", {"near.onnx", "other.onnx"}), ("cuda:0", {"other.onnx"})]
)
def test_a_gpu_may_multiply_with_fewer_bits(measured, tmp_path, device, refused):
    reference = str(made_up_reference(None, 8, None).save(tmp_path / "a.npz"))
    files = ("same.onnx", "near.onnx", "other.onnx")
    answer, _, _ = measured(*files, references=dict.fromkeys(files, reference), device=device)
    assert answer["refused"].keys() == refused


def test_where_no_file_computes_what_it_should_nothing_is_timed(measured, tmp_path):
    reference = str(made_up_reference(None, 8, None).save(tmp_path / "a.npz"))
    with pytest.raises(
        BenchmarkError, match=r"^nothing was timed: the file does not compute .* is allowed\)\.$"
    ):
        measured("other.onnx", references={"other.onnx": reference})


def test_without_its_base_a_comparison_has_times_and_no_ratios(measured, tmp_path):
    reference = str(made_up_reference(None, 8, None).save(tmp_path / "a.npz"))
    answer, _, _ = measured("other.onnx", "b.onnx", references={"other.onnx": reference})
    found = comparison.read_answer(
        ["other.onnx", "b.onnx"], {"result": answer}, {"images": "drawn", "cpus": 1}
    )
    assert (found.ratios, found.timings["other.onnx"]) == ({}, None)
    assert found.timings["b.onnx"].fps > 0


def test_the_worker_loads_images_for_every_number_of_channels(measured):
    _, _, loaded = measured("a.pt", "four.pt")
    assert loaded == [(None, 3), (None, 4)]


@pytest.mark.parametrize(("file", "error"), [("gone.pt", DeviceUnavailableError), ("wrong.pt", ConfigError)])
def test_a_model_that_cannot_be_opened_ends_the_worker_before_it_measures(measured, file, error):
    with pytest.raises(error):
        measured("a.pt", file, "never.pt")
    assert [name for _, name, _ in MadeUpRuntime.opened] == ["a.pt", file]
