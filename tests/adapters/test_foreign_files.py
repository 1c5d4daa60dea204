"""Every file that the host would unpickle goes through the allow-list first: a test a door, each with a planted pickle."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_host import cut, draw, tiny

import yolo_prune
from yolo_prune import cli
from yolo_prune.adapters.checkpoint import read_metadata, save_detector
from yolo_prune.adapters.ultralytics.guard import guarded, read_label_cache
from yolo_prune.adapters.ultralytics.training.attach import read_result, train_from_config
from yolo_prune.adapters.ultralytics.training.train import retrain, train_pruned
from yolo_prune.errors import CheckpointError
from yolo_prune.options import TrainConfig

REFUSED = rf"wants to load '{os.mkdir.__module__}\.mkdir', which is not a stock class and could run any code"
TRAIN = {"imgsz": 64, "batch": 4, "epochs": 1, "device": "cpu", "plots": False, "amp": False}


class RunsAProgram:
    """A pickle that makes a folder when it is loaded in full."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def made(tmp_path):
    return tmp_path / "made"


@pytest.fixture
def plant(made):
    """Write a checkpoint that looks like one of an interrupted training, and makes a folder when it is unpickled."""

    def plant(file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        args = {"task": "detect", "imgsz": 64, "epochs": 3}
        torch.save({"epoch": 0, "model": tiny(), "train_args": args, "x": RunsAProgram(made)}, file)
        return file

    return plant


@pytest.fixture
def stock(tmp_path):
    file = tmp_path / "stock" / "stock.pt"
    return save_detector(file, tiny(), task="detect", train_args={"imgsz": 64}, meta={})


def interrupted(file: Path, **train_args) -> Path:
    """A harmless last.pt of a run that can be resumed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    args = {"task": "detect", "imgsz": 64, "epochs": 3, **train_args}
    torch.save({"epoch": 0, "model": cut(tiny()), "optimizer": {}, "train_args": args}, file)
    return file


def test_the_planted_file_would_make_the_folder(plant, made, tmp_path):
    torch.load(plant(tmp_path / "x.pt"), weights_only=False)
    assert made.is_dir()


@pytest.mark.parametrize("name", ["train/weights/last.pt", "train/weights/best.pt", "weights/best.pt"])
def test_a_resumed_retraining_unpickles_nothing_unsafe(plant, made, data, tmp_path, name):
    if name == "weights/best.pt":  # a finished run, as far as its files tell
        interrupted(tmp_path / "weights" / "last.pt")
    elif name == "train/weights/best.pt":
        interrupted(tmp_path / "train" / "weights" / "last.pt")
    file = plant(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"^'{re.escape(str(file))}' {REFUSED}"):
        retrain(cut(tiny()), data=data, epochs=3, imgsz=64, batch=4, run_dir=tmp_path, resume=True)
    assert not made.exists()


@pytest.mark.parametrize("budget", [{}, {"keep_macs": 0.7}])
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_resumed_training_unpickles_nothing_unsafe(plant, made, data, tmp_path, name, budget):
    last = interrupted(tmp_path / "weights" / "last.pt")
    file = plant(tmp_path / "weights" / name)
    with pytest.raises(CheckpointError, match=f"^'{re.escape(str(file))}' {REFUSED}"):
        train_from_config(TrainConfig(model=str(last), data=str(data), resume=True, **budget))
    assert not made.exists()


def test_a_teacher_that_an_interrupted_run_names_is_not_unpickled(plant, made, data, tmp_path):
    file = plant(tmp_path / "teacher.pt")
    last = interrupted(tmp_path / "weights" / "last.pt", distill_model=str(file))
    with pytest.raises(CheckpointError, match=REFUSED):
        train_pruned(last, data=data, resume=True)
    assert not made.exists()


@pytest.mark.parametrize("key", ["pretrained", "distill_model"])
def test_checkpoints_that_host_arguments_name_are_not_unpickled(plant, made, data, stock, tmp_path, key):
    options = {**TRAIN, key: str(plant(tmp_path / "x.pt")), "project": str(tmp_path)}
    with pytest.raises(CheckpointError, match=REFUSED):
        train_from_config(TrainConfig(model=str(stock), data=str(data), train_args=options))
    assert not made.exists()


@pytest.mark.parametrize("read", [read_result, lambda folder: read_metadata(folder / "weights" / "best.pt")])
def test_readers_of_finished_runs_unpickle_nothing_unsafe(plant, made, tmp_path, read):
    plant(tmp_path / "weights" / "best.pt")
    with pytest.raises(CheckpointError, match=REFUSED):
        read(tmp_path)
    assert not made.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "data={data}"],
        ["inspect"],
        ["export"],
        ["bench", "imgsz=64", "runtimes=torch"],
        ["prune", "data={data}", "keep_macs=0.5"],
        ["train", "data={data}"],
        ["sweep", "data={data}"],
    ],
    ids=lambda words: words[0],
)
def test_no_command_unpickles_an_unsafe_model(plant, made, data, tmp_path, capsys, words):
    file, project = plant(tmp_path / "x.pt"), tmp_path / "runs"
    given = [word.format(data=data) for word in words[1:]]
    given += [f"project={project}"] if words[0] in ("prune", "train", "sweep") else []
    assert cli.main([words[0], f"model={file}", *given]) == 2
    assert re.search(REFUSED, capsys.readouterr().err)
    assert not made.exists()


def test_a_cache_of_labels_that_runs_a_program_is_made_again(made, tmp_path, caplog):
    """The host reads it with ``allow_pickle``."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import load_dataset_cache_file

    yaml, cache = draw(tmp_path / "data"), tmp_path / "data" / "labels" / "train.cache"

    def plant():
        with cache.open("wb") as file:
            np.save(file, np.array({"x": RunsAProgram(made)}, dtype=object), allow_pickle=True)

    def labels():
        images = str(yaml.parent / "images" / "train")
        return YOLODataset(img_path=images, data={"names": {0: "a", 1: "b"}, "channels": 3}, imgsz=64).labels

    plant()
    with guarded(trust=False):
        assert len(labels()) == 8
        assert not made.exists()
        assert f"'{cache}' wants to load" in caplog.text
        assert len(labels()) == 8  # now from the host's own cache, which is read as it is
    assert read_label_cache(cache).keys() == load_dataset_cache_file(cache).keys()
    plant()
    labels()  # the control: the host by itself
    assert made.is_dir()


def test_the_host_is_as_it_was_after_a_command(stock):
    from ultralytics.data import dataset
    from ultralytics.nn import tasks

    before = dict(vars(tasks)), dict(vars(dataset))
    with guarded(trust=False):
        assert vars(tasks)["torch_load"] is not before[0]["torch_load"]
    with pytest.raises(RuntimeError, match=r"^stop$"), guarded(trust=True):
        raise RuntimeError("stop")
    assert (vars(tasks), vars(dataset)) == before


def test_full_unpickling_stays_where_a_process_reads_what_it_wrote_or_checked():
    package = Path(yolo_prune.__file__).parent
    found = {
        file.relative_to(package).as_posix(): file.read_text().count("weights_only=False")
        for file in package.rglob("*.py")
    }
    assert (
        {name: count for name, count in found.items() if count}
        == {
            "adapters/ultralytics/load.py": 1,  # trusted
            "adapters/ultralytics/training/aftercut.py": 1,  # best.pt at the end of the run that wrote it
            "adapters/ultralytics/training/trainer.py": 1,  # best.pt and last.pt at the end of the run that wrote them
        }
    )
    assert not [name for name in found if "allow_pickle=True" in (package / name).read_text()]


@pytest.mark.parametrize("trust", ["false", "true"])
def test_a_checkpoint_of_the_old_repository_is_named_as_one(tmp_path, capsys, monkeypatch, trust):
    import sys
    import types

    for name in ("models", "models.yolo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    old = sys.modules["models.yolo"]
    old.Model = type("Model", (torch.nn.Module,), {"__module__": "models.yolo"})
    torch.save({"model": old.Model(), "epoch": -1}, tmp_path / "yolov5n.pt")
    for name in ("models", "models.yolo"):
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["inspect", f"model={tmp_path / 'yolov5n.pt'}", f"trust={trust}"]) == 2
    assert capsys.readouterr().err.strip() == (
        f"yolo-prune: error: '{tmp_path / 'yolov5n.pt'}' is of the old YOLOv5 repository (or one made from it): it "
        "wants 'models.yolo.Model', which this host does not have. Start from the host's own variant, such as "
        "yolov5nu.pt, or train it anew."
    )
