"""A training that is cut to a time: measured first, met at the cut, and after a kill the same; no clock is asked."""

import json
from types import SimpleNamespace

import pytest
import torch
from inrun_host import again, make, run, saved
from tiny_host import tiny

import yolo_prune.runs.latency as timing
from tests.boards import Board, time_of
from yolo_prune.adapters.ultralytics.training.history import RUN_KEY, read_result
from yolo_prune.bench.layer_table import write_table
from yolo_prune.cost import count_parameters
from yolo_prune.errors import BudgetError
from yolo_prune.runs.timekeeper import MEASURED, TABLE

TARGET = {
    "keep_macs": None,
    "target_speedup": 1.4,
    "runtime": "torch",
    "target_threads": 1,
    "sparsify": "off",
}
TARGET |= {"round_to": 1, "min_width": 2, "steps": 2, "criterion": "l1", "fold": False, "prune_at": 1}
SHORT = {"epochs": 2}


def met(folder):
    return json.loads((folder / "plan.json").read_text())["settings"]["latency"]


def test_a_training_is_cut_to_the_time_that_was_asked_for(data, tmp_path, monkeypatch):
    board = Board(monkeypatch)
    trainer = run(data, tmp_path, pruning=TARGET, **SHORT)
    found = met(trainer.save_dir)
    assert (found["runtime"], found["device"], found["threads"], found["missed"]) == ("torch", "cpu", 1, "")
    assert found["speedup"] == pytest.approx(1.4, rel=0.03)
    assert [asked[:3] for asked in board.asked] == [("torch", 1, 64)]
    assert board.measured == len(found["looks"]) >= 2
    weights = trainer.wdir
    reached = time_of(weights / "parent.pt") / time_of(weights / "last.pt")
    assert reached == pytest.approx(1.4, rel=0.08)  # what is measured was off by up to 4 %
    assert json.loads((trainer.save_dir / "plan.json").read_text())["budget"] == {"target_speedup": 1.4}
    table = json.loads((trainer.save_dir / TABLE).read_text())
    assert table["fixed_ms"] == 0.5
    state = torch.load(weights / "last.pt", weights_only=False)["yolo_prune"][RUN_KEY]["state"]
    assert state["latency"] == ""  # nothing is cut any more
    assert state["cuts"][0]["ms"] == found["measured"]["ms"]


def test_a_run_killed_while_it_measures_goes_on_with_what_was_measured(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole", pruning=TARGET, **SHORT) if Board(monkeypatch) else None
    broken = make(data, tmp_path / "broken", pruning=TARGET, **SHORT)
    first = Board(monkeypatch, dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert len(json.loads((broken.save_dir / MEASURED).read_text())) == 1
    last = again(broken.save_dir, tmp_path / "again")
    second = Board(monkeypatch, measured=1)
    resumed = run(data, tmp_path / "again", resume=last, pruning=TARGET, **SHORT)
    assert len(first.asked) == 1
    assert second.asked == []  # the layers have the times that the run began with
    assert (resumed.save_dir / "plan.json").read_text() == (whole.save_dir / "plan.json").read_text()
    assert count_parameters(saved(resumed.last)) == count_parameters(saved(whole.last))


def test_of_several_cuts_the_last_is_measured_beside_the_model_before_the_first(data, tmp_path, monkeypatch):
    Board(monkeypatch)
    trainer = run(data, tmp_path, pruning={**TARGET, "cuts": 2}, epochs=3)
    found, cuts = met(trainer.save_dir), read_result(trainer.save_dir).cuts
    assert [len(cuts), found["missed"]] == [2, ""]
    assert found["speedup"] == pytest.approx(1.4, rel=0.03)
    whole = found["parent_ms"]
    assert whole > cuts[0].ms > cuts[1].ms == found["measured"]["ms"]
    assert cuts[0].ms == pytest.approx((whole + found["target_ms"]) / 2, rel=0.03)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"target_speedup": 90}, r"^cannot meet [\d.]+ ms: [\d.]+ ms remain of"),
        (
            {"target_speedup": None, "target_fps": 1},
            r"^target_fps=1 is met already: the model takes [\d.]+ ms an",
        ),
    ],
)
def test_what_cannot_be_or_is_already_is_said_before_the_first_epoch(
    data, tmp_path, monkeypatch, target, sentence
):
    Board(monkeypatch)
    trainer = make(data, tmp_path, pruning={**TARGET, **target})
    with pytest.raises(BudgetError, match=sentence):
        trainer.train()
    assert not trainer.last.exists()


def test_the_runtime_chooses_the_widths_of_a_training(data, tmp_path, monkeypatch):
    board = Board(monkeypatch)
    asked = {"round_to": "auto", "runtime": "torch", "target_threads": 1, "min_width": 4, "prune_at": 1}
    trainer = run(data, tmp_path, pruning=asked, **SHORT)
    assert [(count > 0, probes > 0) for *_, count, probes in board.asked] == [(False, True)]
    settings = json.loads((trainer.save_dir / "plan.json").read_text())["settings"]
    assert (settings["round_to"], settings["granularity"]["step"]) == (4, 4)
    assert settings["granularity"]["runtime"] == "torch"
    assert "latency" not in settings
    assert board.measured == 0
    assert not (trainer.save_dir / MEASURED).exists()


def test_a_table_of_a_board_is_met_by_what_is_predicted(data, tmp_path, monkeypatch):
    board = Board(monkeypatch)
    host = SimpleNamespace(file=tmp_path / "tiny.pt", imgsz=64)
    torch.save({"model": tiny().half(), "train_args": {}}, host.file)
    graph = timing.graph_at(timing.Traced.of(tiny(), anatomy(64)))
    settings = SimpleNamespace(threads=4)
    times = board.measure_layers(timing.layers_of(graph), host, runtime="ncnn", settings=settings)
    table = write_table(tmp_path / "table.json", times, 64)
    asked = {**TARGET, "runtime": None, "target_threads": None, "latency": str(table)}
    trainer = run(data, tmp_path, pruning=asked, **SHORT)
    found = met(trainer.save_dir)
    assert (found["runtime"], found["threads"], found["measured"]) == ("ncnn", 4, None)
    assert found["predicted_ms"] == pytest.approx(found["target_ms"], rel=0.03)
    assert board.measured == 0


def anatomy(imgsz):
    from yolo_prune.adapters.ultralytics.anatomy import anatomy_of

    return anatomy_of(tiny(), imgsz)
