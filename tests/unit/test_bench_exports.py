"""Exported files are shared between comparisons: each checkpoint, size and batch is exported once."""

from pathlib import Path

import numpy as np
import pytest

from yolo_prune.adapters import hosts
from yolo_prune.bench import compare, comparison
from yolo_prune.bench.exports import Exports, shared_exports
from yolo_prune.bench.parity import Reference
from yolo_prune.errors import BenchmarkError

REFERENCE = Reference(np.zeros((1, 3, 8, 8), np.float32), (np.ones((1, 4), np.float32),), 4)


class Exporter:
    """A host that writes down what it exports."""

    def __init__(self) -> None:
        self.made = []

    def load(self, checkpoint, *, trust):
        return checkpoint

    def export(self, checkpoint, out, *, imgsz, batch, trust):
        if "broken" in str(checkpoint):
            raise BenchmarkError("it cannot be exported.")
        self.made.append((checkpoint.name, imgsz, batch))
        out.write_text("onnx")
        return out


@pytest.fixture
def host(monkeypatch):
    exporter = Exporter()
    monkeypatch.setattr(hosts, "find_host", lambda _: exporter)
    monkeypatch.setattr("yolo_prune.bench.exports.reference_of", lambda *_: REFERENCE)
    return exporter


FILES = {"parent": Path("a.pt"), "control": Path("a.pt"), "pruned": Path("b.pt"), "file": Path("c.onnx")}
SIZES = {"parent": 64, "control": 32, "pruned": 64, "file": 64}


def test_each_file_and_size_is_exported_once(host, tmp_path):
    exports = Exports(tmp_path)
    first = exports.of(FILES, SIZES)
    assert exports.of(FILES, SIZES) == first
    assert host.made == [("a.pt", 64, 1), ("a.pt", 32, 1), ("b.pt", 64, 1)]
    assert first["file"] == Path("c.onnx")
    assert len(set(first.values())) == 4
    exports.of(FILES, SIZES, batch=2)
    assert host.made[3:] == [("a.pt", 64, 2), ("a.pt", 32, 2), ("b.pt", 64, 2)]


def test_each_checkpoint_is_run_once_in_pytorch_and_files_have_nothing_to_agree_with(host, tmp_path):
    exports = Exports(tmp_path)
    first = exports.references(FILES, SIZES)
    assert exports.references(FILES, SIZES) == first
    assert first.keys() == {"parent", "control", "pruned"}
    assert len(set(first.values())) == 3
    held = Reference.read(first["parent"])
    assert (held.pixels.shape, held.classes) == ((1, 3, 8, 8), 4)
    assert np.array_equal(held.outputs[0], REFERENCE.outputs[0])


def test_a_failed_export_is_tried_again_and_the_others_are_not(host, tmp_path):
    exports = Exports(tmp_path)
    for _ in range(2):
        with pytest.raises(BenchmarkError, match="cannot be exported"):
            exports.of({**FILES, "bad": Path("broken.pt")}, {**SIZES, "bad": 64})
    assert len(host.made) == 3


@pytest.mark.parametrize("shared", [True, False])
def test_comparisons_export_once_together_and_each_for_itself_alone(host, monkeypatch, tmp_path, shared):
    seen = []

    def answer(request, threads):
        paths = [one["path"] for one in request["candidates"].values()]
        assert all(Path(path).is_file() for path in paths)
        seen.extend(paths)
        return {"not_measured": "no such device"}

    monkeypatch.setattr(comparison, "ask_worker", answer)
    candidates = {"parent": tmp_path / "a.pt", "pruned": tmp_path / "b.pt"}
    options = {"runtime": "onnxruntime", "imgsz": 64, "threads": 1}
    with shared_exports() as exports:
        for device in ("cpu", "cuda:0"):
            compare(candidates, device=device, exports=exports if shared else None, **options)
    assert len(host.made) == (2 if shared else 4)
    assert not any(Path(path).exists() for path in seen)
