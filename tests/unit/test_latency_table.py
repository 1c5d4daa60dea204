"""Times of layers travel: as a table from a board, as a folder of layers to it, where there is no torch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.unit.test_check import HEAVY, bare
from yolo_prune.bench import layer_table
from yolo_prune.bench.layer_table import read_table, time_folder, write_folder, write_table
from yolo_prune.bench.layers import LayerTimes
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.layers import NOTHING, LayerShape, shapes_to_time
from yolo_prune.options import LatencyConfig
from yolo_prune.runs.configure import make_config
from yolo_prune.runtimes.runtime import Settings
from yolo_prune.runtimes.tracing import trace_to_onnx

LAYERS = [
    LayerShape(8, 3, (3, 3), (2, 2), (1, 1), height=64, width=64),
    LayerShape(16, 8, height=32, width=32),
]
FACTS = {
    **{"runtime": "ncnn", "runtime_version": "1", "device": "cpu", "device_name": "a board", "threads": 4},
    "imgsz": 64,
}
TIMES = LayerTimes({shape: shape.weights / 7 for shape in shapes_to_time(LAYERS)}, 12.5, 1.5, FACTS)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "table.json", TIMES, 64)


def test_a_table_is_read_as_it_was_measured(table):
    assert read_table(table, LAYERS, 64) == TIMES


def test_a_table_of_another_size_is_refused(table):
    with pytest.raises(
        ConfigError,
        match=r"was measured at 64 px and the model runs at 96x64 px: give imgsz=64, or measure it again\.$",
    ):
        read_table(table, LAYERS, (96, 64))


def test_a_table_of_another_model_is_refused(table):
    other = replace(LAYERS[1], height=16)
    with pytest.raises(
        ConfigError,
        match=r"was measured of another model: 1 of the 3 layers of this one are not in it, such as conv 16x8 k1x1 "
        r"s1x1 p0x0 d1x1 g1 @ 16x32\. Measure",
    ):
        read_table(table, [*LAYERS, other, other], 64)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2, "layers": []}', '{"version": 1}'])
def test_what_is_no_table_is_refused(tmp_path, text):
    file = tmp_path / "table.json"
    file.write_text(text)
    with pytest.raises(
        ConfigError, match=r"is no table of latency of this release: write it with 'yolo-prune latency"
    ):
        read_table(file, LAYERS, 64)


@pytest.fixture
def network(tmp_path):
    """A network of these layers as an .onnx file, in a folder of its own."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 1), nn.Flatten(2)).eval()
    (tmp_path / "made").mkdir()
    file = tmp_path / "made" / "parent.onnx"
    trace_to_onnx(net, torch.zeros(1, 3, 64, 64), file, what="the net")
    return file


def test_a_board_measures_a_folder_without_torch(network, tmp_path):
    """In a process in which torch and every host are missing, on ONNX Runtime alone."""
    folder = tmp_path / "layers"
    count = write_folder(folder, LAYERS, network, 64, "onnxruntime")
    assert count == 1 + len(shapes_to_time(LAYERS)) == len(list(folder.glob("0*.onnx")))
    out = tmp_path / "table.json"
    words = (f"model={folder}", "runtime=onnxruntime", "threads=1", f"out={out}")
    done = bare(tmp_path, HEAVY, "latency", *words)
    assert done.returncode == 0, done.stderr
    times = read_table(out, LAYERS, 64)
    assert set(times.ms) == set(shapes_to_time(LAYERS))
    assert min(times.ms.values()) > 0
    assert times.network_ms > 0
    assert f"{len(times.ms)} layers; the network " in done.stdout


def test_a_folder_of_another_runtime_is_refused(network, tmp_path):
    write_folder(tmp_path / "layers", LAYERS, network, 64, "onnxruntime")
    with pytest.raises(
        ConfigError, match=r"was written for onnxruntime, whose files ncnn does not run\. Give"
    ):
        time_folder(tmp_path / "layers", "ncnn", Settings("cpu", 1, 1))


def test_a_runtime_of_the_same_files_measures_a_folder_too(network, tmp_path, monkeypatch):
    write_folder(tmp_path / "layers", LAYERS, network, 64, "onnxruntime")
    asked = []
    monkeypatch.setattr(
        layer_table, "time_files", lambda files, *_, **how: asked.append((set(files), how)) or TIMES
    )
    assert time_folder(tmp_path / "layers", "openvino", Settings("cpu", 1, 1)) == (TIMES, 64)
    assert asked[0][0] == {NOTHING, *shapes_to_time(LAYERS)}
    assert asked[0][1]["runtime"] == "openvino"


def test_a_folder_that_was_not_copied_whole_is_refused(network, tmp_path):
    write_folder(tmp_path / "layers", LAYERS, network, 64, "onnxruntime")
    (tmp_path / "layers" / "0001.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"is not whole: '0001\.onnx' is missing\. Copy it again\."):
        time_folder(tmp_path / "layers", "onnxruntime", Settings("cpu", 1, 1))


def test_pytorch_has_no_files_of_layers(network, tmp_path):
    with pytest.raises(
        ConfigError, match=r"the 'torch' runtime runs layers without files: measure it where it runs"
    ):
        write_folder(tmp_path / "layers", LAYERS, network, 64, "torch")


def test_a_runtime_whose_files_are_made_elsewhere_times_no_layers(network, tmp_path):
    with pytest.raises(ConfigError, match=r"^no layers are timed on 'litert': expected one of torch, "):
        write_folder(tmp_path / "layers", LAYERS, network, 64, "litert")


@pytest.mark.parametrize("words", [[], ["out=a.json", "layers=b"]])
def test_a_table_or_a_folder_is_wanted(words):
    with pytest.raises(ConfigError, match=r"^give out=table\.json to measure here, or layers=FOLDER"):
        make_config(LatencyConfig, ["model=best.pt", *words])
