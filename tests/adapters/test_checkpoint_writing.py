"""A checkpoint of the host gets our metadata before it is written, and is written once."""

import io
import threading

import pytest
import torch
from torch import nn

from yolo_prune.adapters.ultralytics.training.trainer import TrainSettings, prune_trainer
from yolo_prune.adapters.ultralytics.training.writing import completed, on_cpu
from yolo_prune.errors import CheckpointError, RebuiltError


class Saving:
    """The part of a trainer that saves, as the host does it."""

    fitness = 0.5

    def __init__(self, folder):
        self.wdir, self.last, self.best = folder, folder / "last.pt", folder / "best.pt"
        self.epoch, self.params_before, self.start_fitness = 3, 12, 0.25

    def save_model(self):
        buffer = io.BytesIO()
        torch.save({"epoch": self.epoch, "model": None, "ema": nn.Linear(3, 3).half()}, buffer)
        self.last.write_bytes(buffer.getvalue())
        self.best.write_bytes(buffer.getvalue())
        (self.wdir / "epoch3.pt").write_bytes(buffer.getvalue())
        return True


class SavingOtherwise(Saving):
    """A trainer of the user's that does not save through PyTorch."""

    def save_model(self):
        self.last.write_text("weights")


def saver(base, folder):
    return prune_trainer(base, TrainSettings(meta={"parent": "parent.pt"}))(folder)


def test_every_file_of_an_epoch_holds_the_metadata_and_is_pickled_once(tmp_path, monkeypatch):
    saves, loads, save, load = [], [], torch.save, torch.load
    monkeypatch.setattr(torch, "save", lambda *a, **k: saves.append(1) or save(*a, **k))
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    assert saver(Saving, tmp_path).save_model() is True
    assert (len(saves), len(loads)) == (1, 0)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["best.pt", "epoch3.pt", "last.pt"]
    for name in files:
        found = load(tmp_path / name, weights_only=False)
        assert found["yolo_prune"] == {
            "parent": "parent.pt",
            "retrain": {"epoch": 4, "fitness": 0.5, "start_fitness": 0.25},
        }
        assert found["ema"].weight.dtype == torch.float16


def test_a_model_that_grew_back_is_not_written(tmp_path):
    grown = saver(Saving, tmp_path)
    grown.params_before = 5
    with pytest.raises(RebuiltError, match="5 parameters went into training, 12 came out"):
        grown.save_model()
    assert not list(tmp_path.iterdir())


def test_a_trainer_that_saves_by_other_means_is_an_error(tmp_path):
    made = saver(SavingOtherwise, tmp_path)
    last = made.last
    with pytest.raises(CheckpointError) as caught:
        made.save_model()
    assert str(caught.value) == (
        f"the host wrote '{last}' by other means than torch.save, so that it cannot say what was cut. "
        "Train without the class that overrides save_model."
    )
    assert not list(tmp_path.iterdir())
    assert made.last == last


def test_what_is_no_checkpoint_and_what_other_threads_save_stays_as_it_is():
    save, model = torch.save, {"ema": nn.Linear(3, 3)}

    def saved(value):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False).keys()

    with completed(lambda checkpoint: checkpoint.update(ours=1)) as found:
        assert saved({"weights": torch.ones(2)}) == {"weights"}
        assert saved(model) == {"ema", "ours"}
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(saved(model)))
        thread.start()
        thread.join()
    assert elsewhere == [{"ema"}]
    assert len(found) == 1
    assert torch.save is save
    assert model.keys() == {"ema"}, "the host's own dictionary is left alone"


def test_a_copy_of_what_is_on_another_device_is_saved_and_the_model_stays_there():
    module = nn.Linear(2, 2).to("meta")  # stands for a GPU, but cannot be read from
    state = {"ema": nn.Linear(2, 2), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "lr": 0.1}}
    moved = on_cpu(state)
    assert moved["ema"] is state["ema"]
    assert moved["optimizer"]["lr"] == 0.1
    with pytest.raises(NotImplementedError):
        on_cpu({"ema": module})
    assert next(module.parameters()).is_meta
