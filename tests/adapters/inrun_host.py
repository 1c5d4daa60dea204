"""A training that prunes, small enough to run in a second."""

import csv
import shutil
from pathlib import Path

import torch
from tiny_host import tiny
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_prune.adapters.ultralytics.training.inrun import inrun_trainer

HOST = {"imgsz": 64, "batch": 4, "nbs": 4, "epochs": 4, "device": "cpu", "mosaic": 0.0, "amp": False}
HOST |= {"plots": False, "verbose": False, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0, "seed": 1}
PRUNING = {
    "keep_macs": 0.6,
    "prune_at": 2,
    "round_to": 4,
    "min_width": 4,
    "steps": 1,
    "calibration_images": 4,
}


def make(
    data, folder, base=DetectionTrainer, *, task="detect", pruning=(), resume=None, callbacks=(), **host
):
    """A trainer that prunes, on a tiny model; or one that goes on from a checkpoint."""
    overrides = {**HOST, "data": str(data), "model": "x.pt", "project": str(folder), "name": "run", **host}
    wide = (
        {"round_to": 32} if task == "classify" else {}
    )  # the host's head has 1280 channels, chosen one by one
    cls = inrun_trainer(base, **{**PRUNING, **wide, **dict(pruning)})
    if resume is not None:
        overrides["resume"] = str(resume)
    made = cls(overrides=overrides)
    if resume is None:
        made.model = made.get_model(weights=tiny(task), cfg=tiny(task).yaml)
    for event, callback in dict(callbacks).items():
        made.add_callback(event, callback)
    return made


def run(*args, **options):
    made = make(*args, **options)
    made.train()
    return made


def table(trainer) -> list[dict[str, str]]:
    with Path(trainer.csv).open(newline="") as file:
        return list(csv.DictReader(file))


def saved(path: Path) -> nn.Module:
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    return checkpoint.get("ema") or checkpoint["model"]


def stop_in(epoch: int):
    def interrupt(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    return interrupt


def again(folder: Path, tmp_path: Path) -> Path:
    """Copy a run folder and return the copy's last.pt."""
    shutil.copytree(folder, tmp_path / "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    checkpoint = torch.load(last, map_location="cpu", weights_only=False)
    checkpoint["train_args"].update(project=str(tmp_path), save_dir=str(tmp_path / "run"))
    torch.save(checkpoint, last)
    return last
