"""The whole flow on data that the package draws itself: nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from yolo_prune.adapters.hosts import PLAIN_CHECKPOINT, find_host
from yolo_prune.device import resolve_device
from yolo_prune.errors import ConfigError
from yolo_prune.options import PruneConfig
from yolo_prune.progress import LOGGER
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.demo_data import make_demo_detection
from yolo_prune.runs.prune import PruneResult, prune_from_config
from yolo_prune.runs.workspace import open_workspace
from yolo_prune.words import counted

_IMGSZ = 192
_TRAIN_IMAGES, _VAL_IMAGES = 280, 60
_TRAIN_EPOCHS, _EPOCHS, _STEPS = 16, 6, 5
_RECOVER_SECONDS = 45.0  # the whole is to take less than ten minutes


def run_demo(
    project: str = "runs/demo",
    name: str | None = None,
    exist_ok: bool = False,
    model: str | None = None,
    data: str | None = None,
    keep_macs: float = 0.5,
    train_epochs: int | None = None,
    epochs: int | None = None,
    device: str | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: tuple[str, ...] = (),
    verbose: bool = True,
) -> PruneResult:
    """Draw a data set, train a nano detector on it, prune it, retrain it and report.

    Args:
        project: Folder of the run folders.
        name: Run folder; None: ``demo``, numbered.
        exist_ok: Write into a folder that exists.
        model: A detector of your own instead of the one trained here; then ``data`` is needed.
        data: A data set of your own instead of the drawn one.
        keep_macs: Budget.
        train_epochs: Epochs of the first training.
        epochs: Epochs of retraining.
        device: As everywhere.
        seed: Of data, weights and training.
        trust: Load classes that are not stock with a model of your own.
        imports: Python files or modules that hold them.
        verbose: Show progress.

    Returns:
        The run's result.

    Raises:
        ConfigError: A model was given without the data that it finds its classes in.
    """
    if model is not None and data is None:
        raise ConfigError("a model of your own needs data of your own: give data= too.")
    space = open_workspace(project, name, "demo", exist_ok=exist_ok, resume=None)
    if data is None:
        with space.stage("draw", f"drawing {_TRAIN_IMAGES + _VAL_IMAGES} images of parts on a bench"):
            data = str(
                make_demo_detection(Path(project) / "data", train=_TRAIN_IMAGES, val=_VAL_IMAGES, seed=seed)
            )
    if model is None:
        host = find_host(PLAIN_CHECKPOINT)
        length = train_epochs or _TRAIN_EPOCHS
        with space.stage(
            "train", f"training {host.demo_model} from random weights for {counted(length, 'epoch')}"
        ):
            model = str(
                host.train_demo(
                    Path(data),
                    space.root / "parent",
                    epochs=length,
                    imgsz=_IMGSZ,
                    device=resolve_device(device),
                    seed=seed,
                )
            )
        LOGGER.info("the parent took %.0f s to train", space.timing_s["train"])
    options = {
        "model": model,
        "data": data,
        "keep_macs": keep_macs,
        "epochs": _EPOCHS if epochs is None else epochs,
        "steps": _STEPS,
        "recover_seconds": _RECOVER_SECONDS,
        "batch": 8,
        "threads": os.cpu_count(),
        "project": project,
        "name": space.root.name,
        "exist_ok": True,
        "device": device,
        "seed": seed,
        "trust": trust,
        "imports": imports,
        "verbose": verbose,
    }
    return prune_from_config(make_config(PruneConfig, options))
