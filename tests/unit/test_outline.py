"""What a run says of itself before it begins, and what it remembers of the last time."""

import re

import pytest

from yolo_prune.errors import ConfigError
from yolo_prune.options import PruneConfig, TrainConfig
from yolo_prune.recover.effort import Effort
from yolo_prune.runs import training
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.outline import Before, Memory, Stage, outline, stages_of
from yolo_prune.words import as_last_drawn, counted, duration

STAGES = [
    Stage("evaluate parent", "on the val split"),
    Stage("cut", "to keep_macs=0.5"),
    Stage("bench", "speed"),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def names(*words):
    config = make_config(PruneConfig, ["model=m.pt", "data=d.yaml", "keep_macs=0.5", *words])
    return [stage.name for stage in stages_of(config, "keep_macs=0.5", "l1", Effort(96, 12))]


def test_only_what_is_asked_for_is_announced():
    every = names("epochs=3", "quantize=8")
    assert every[:4] == ["evaluate parent", "cut", "recover", "imitate"]
    assert set(every) - set(names()) == {"retrain", "evaluate retrained", "quantise"}
    left_out = set(names()) - set(names("recover_seconds=0", "bench=false", "pictures=false"))
    assert left_out == {"imitate", "bench", "examples"}


def test_nothing_is_said_of_a_time_that_was_never_measured():
    text = outline("pruning m.pt:", STAGES, {})
    assert text.splitlines() == [
        "pruning m.pt:",
        "  evaluate parent  on the val split",
        "  cut              to keep_macs=0.5",
        "  bench            speed",
    ]
    some = outline("pruning m.pt:", STAGES, {"cut": Before(75, "to keep_macs=0.5")}, "2026-01-02")
    assert some.splitlines() == [
        "pruning m.pt:",
        "                                     last time here (2026-01-02)",
        "  evaluate parent  on the val split",
        "  cut              to keep_macs=0.5  1 min 15 s",
        "  bench            speed",
    ], "a part has no sum"


def test_the_whole_is_summed_and_what_was_another_work_is_said():
    before = {
        "evaluate parent": Before(2, "on the val split"),
        "cut": Before(60, "to keep_macs=0.7"),
        "bench": Before(8, "speed"),
    }
    lines = outline("title", STAGES, before).splitlines()
    assert lines[3].endswith("to keep_macs=0.5  1 min (to keep_macs=0.7)")
    assert lines[-1].split() == ["all", "1", "min", "10", "s"]


def test_times_come_back_for_the_same_model_data_size_and_machine_alone(tmp_path):
    memory = Memory("prune", "m.pt", "d.yaml", 320, "cpu", 1)
    assert memory.recall() == ({}, "")
    memory.keep(STAGES, {"cut": 3.0, "bench": 4.0, "elsewhere": 5.0})
    found, day = Memory("prune", "m.pt", "d.yaml", 320, "cpu", 1).recall()
    assert found == {"cut": Before(3.0, "to keep_macs=0.5"), "bench": Before(4.0, "speed")}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    others = [
        Memory("train", "m.pt", "d.yaml", 320, "cpu", 1),
        Memory("prune", "n.pt", "d.yaml", 320, "cpu", 1),
        Memory("prune", "m.pt", "e.yaml", 320, "cpu", 1),
        Memory("prune", "m.pt", "d.yaml", 640, "cpu", 1),
        Memory("prune", "m.pt", "d.yaml", 320, "cpu", 2),
    ]
    assert all(other.recall() == ({}, "") for other in others)
    assert memory.file.is_relative_to(tmp_path / "cache" / "yolo_prune" / "stages")


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": {"cut": {}}, "date": ""}'])
def test_a_file_that_cannot_be_read_is_said_and_means_nothing(content, caplog):
    memory = Memory("prune", "m.pt", "d.yaml", 320, "cpu", 1)
    memory.file.parent.mkdir(parents=True)
    memory.file.write_text(content)
    assert memory.recall() == ({}, "")
    assert "how long stages took is not known" in caplog.text


def test_times_that_cannot_be_kept_end_no_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Memory("prune", "m.pt", "d.yaml", 320, "cpu", 1).keep(STAGES, {"cut": 3.0})
    assert "times of stages cannot be kept" in caplog.text


class Host:
    packages = ("a_host",)

    def __init__(self):
        self.trained = []

    def check_training(self, train_args):
        pass

    def train(self, config):
        self.trained.append(config)
        return ["done"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs=1"], "1 epoch, no budget: nothing is cut"),
        (
            ["epochs=100", "keep_macs=0.5"],
            "100 epochs, then cut to keep_macs=0.5 and imitating the uncut model without labels",
        ),
        (
            ["epochs=100", "keep_macs=0.5", "prune_at=late"],
            "100 epochs, cut to keep_macs=0.5 after epoch 70, then retraining",
        ),
        (
            ["epochs=100", "keep_macs=0.5", "cuts=3"],
            "100 epochs, cut to keep_macs=0.5 after epochs 40, 55, 70, then retraining",
        ),
        (
            ["epochs=100", "keep_macs=0.5", "prune_at=auto"],
            "100 epochs, cut to keep_macs=0.5 after epoch 60 at the latest, then retraining",
        ),
        (
            ["keep_macs=0.5", "cuts=2"],
            "as many epochs as the host takes, cut to keep_macs=0.5 on the way",
        ),
        (["resume=true"], "what is left of it, as it was begun"),
    ],
)
def test_a_training_says_when_it_cuts(words, said, monkeypatch, caplog):
    host = Host()
    monkeypatch.setattr(training, "find_host", lambda _: host)
    config = make_config(TrainConfig, ["model=m.pt", "data=d.yaml", *words])
    with caplog.at_level("INFO", logger="yolo_prune"):
        assert training.train_from_config(config) == ["done"]
        training.train_from_config(config)
    first, second = (record.getMessage() for record in caplog.records)
    assert said in first
    assert "last time here" not in first
    assert ("last time here" in second) == (words != ["resume=true"]), "what was left of one is no measure"


def test_a_cut_that_leaves_no_epoch_is_refused_before_anything_is_done(monkeypatch):
    host = Host()
    monkeypatch.setattr(training, "find_host", lambda _: host)
    config = make_config(
        TrainConfig, ["model=m.pt", "data=d.yaml", "epochs=10", "keep_macs=0.5", "prune_at=10"]
    )
    with pytest.raises(ConfigError, match=r"^prune_at=10\.0 leaves no epoch after the cut: the run has 10\."):
        training.train_from_config(config)
    assert not host.trained


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.3 s"), (3, "3 s"), (59.6, "1 min"), (119.7, "2 min"), (3600, "1 h"), (7260, "2 h 1 min")],
)
def test_spans_of_time_are_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_texts_are_plain():
    assert counted(1, "epoch") == "1 epoch"
    assert as_last_drawn("\x1b]0;title\x07a\x08b\x1b[2K") == "ab"
