"""Train a stock detector from random weights: the parent of the demonstration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from yolo_prune.adapters.ultralytics.undisturbed import no_installs

# One optimizer step a batch (nbs = batch): on a few hundred images the host's default of 64 takes too few.
_RECIPE: dict[str, Any] = {
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "lrf": 0.02,
    "cos_lr": True,
    "warmup_epochs": 1,
    "val": False,
    "amp": False,
    "workers": 0,
    "cache": "ram",
    "plots": False,
    "verbose": False,
}


@no_installs()
def train_from_scratch(
    architecture: str, data: Path, folder: Path, *, epochs: int, imgsz: int, device: str, seed: int
) -> Path:
    """Train an architecture of the host with its own trainer, unchanged.

    Args:
        architecture: Name of a yaml that the host ships.
        data: Data yaml.
        folder: Where the host's files go.
        epochs: How long.
        imgsz: Side of the images, pixels.
        device: As the host spells it.
        seed: Of weights and augmentation.

    Returns:
        Path of the last checkpoint.
    """
    from ultralytics import YOLO

    def use_all_cores(_: Any) -> None:
        torch.set_num_threads(os.cpu_count() or 1)  # the host leaves one core idle, half of a small machine

    model = YOLO(architecture, task="detect")
    model.add_callback("on_train_start", use_all_cores)
    model.train(
        data=str(data),
        epochs=epochs,
        imgsz=imgsz,
        device=device,
        seed=seed,
        close_mosaic=max(epochs // 4, 1),
        project=str(folder.parent.absolute()),
        name=folder.name,
        exist_ok=True,
        **_RECIPE,
    )
    trainer: Any = model.trainer
    return Path(trainer.last)
