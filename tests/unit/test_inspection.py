"""Inspection lists every group with its members, its cost, its scales, and why it is frozen."""

import json

import pytest
import torch
from torch import nn

from yolo_prune import cli
from yolo_prune.cut.proven import Anatomy
from yolo_prune.runs.inspection import describe_groups, inspect_all

KEYS = ["group", "width", "members", "gmacs", "params", "bn_scale", "frozen"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    )
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-0.7, 0.0, 8))
    return net


def described(net: nn.Module, keep_layers: tuple[str, ...] = ()) -> dict[str, dict]:
    anatomy = Anatomy(torch.zeros(1, 3, 8, 8), keep_layers=keep_layers)
    return {row["group"]: row for row in describe_groups(net, anatomy.cost_of(net))}


def test_rows_and_columns(net):
    rows = described(net)
    assert list(rows) == ["0", "3", "5"]
    assert all(list(row) == KEYS for row in rows.values())
    assert [row["width"] for row in rows.values()] == [8, 6, 2]


def test_members_are_the_layers_that_make_or_read_the_channels(net):
    assert described(net)["0"]["members"] == ["0", "3"]
    assert described(net)["3"]["members"] == ["3", "5"]


def test_costs_are_what_goes_with_the_whole_group(net):
    row = described(net)["3"]
    assert row["gmacs"] == pytest.approx((8 * 8 * 8 * 6 + 8 * 8 * 6 * 2) / 1e9)
    assert row["params"] == 8 * 6 + 6 + 6 * 2
    assert described(net)["0"]["params"] == 3 * 8 * 9 + 2 * 8 + 8 * 6


def test_scales_are_percentiles_of_their_size(net):
    assert described(net)["0"]["bn_scale"] == pytest.approx([0.07, 0.35, 0.63], abs=1e-4)
    assert described(net)["3"]["bn_scale"] is None


def test_frozen_groups_say_why(net):
    rows = described(net, keep_layers=("0",))
    assert rows["0"]["frozen"] == "frozen by choice"
    assert rows["3"]["frozen"] == ""
    assert "output" in rows["5"]["frozen"]


def test_the_module_is_untouched(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    described(net.train())
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


ARCHITECTURE = """
nc: 3
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C2f, [16, True]]
head:
  - [-1, 1, Conv, [16, 3, 2]]
  - [[2, 3], 1, Detect, [nc]]
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(ARCHITECTURE)
    return str(file)


def test_a_detector_is_inspected_at_the_size_asked_for(file):
    small, large = (inspect_all(file, imgsz)[0] for imgsz in (64, 128))
    assert [row["group"] for row in small] == [row["group"] for row in large]
    for a, b in zip(small, large, strict=True):
        assert b["gmacs"] == pytest.approx(4 * a["gmacs"])
        assert b["params"] == a["params"]
    assert any(row["frozen"] for row in small)
    assert not all(row["frozen"] for row in small)


def test_the_command_prints_a_table_and_writes_json(file, tmp_path, capsys):
    out = tmp_path / "groups.json"
    assert cli.main(["inspect", f"model={file}", "imgsz=64", f"json={out}"]) == 0
    rows = json.loads(out.read_text())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == KEYS
    frozen = sum(bool(row["frozen"]) for row in rows)
    assert printed[1 + len(rows)] == f"{len(rows)} groups, {frozen} of them frozen"
    assert printed[-1] == f"json: {out}"
    assert list(rows[0]) == KEYS


def test_a_json_file_that_cannot_be_written_is_a_sentence(file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["inspect", f"model={file}", "imgsz=64", f"json={tmp_path / 'file' / 'x.json'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("yolo-prune: error: ")
    assert "unexpected" not in error


def test_blocks_that_may_go_are_listed_with_what_they_save():
    _, rows = inspect_all("yolov8n.yaml", 64)
    assert [row["block"] for row in rows][:3] == ["model.2.m.0", "model.4.m.0", "model.4.m.1"]
    taps, reader = 2 * 16 * 16 * 9, 16 * 32
    assert rows[0]["params"] == taps + 4 * 16 + reader
    assert rows[0]["gmacs"] == pytest.approx(16 * 16 * (taps + reader) / 1e9)
