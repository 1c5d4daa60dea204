"""Set a training up: its data, its optimizer, and where an interrupted one was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.accuracy.annotations import without_shape
from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.accuracy.classes import read_class_folders
from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.torchvision import files
from yolo_prune.adapters.torchvision.described import CLASSIFY, described
from yolo_prune.adapters.torchvision.detector import is_stretched, learn_from_
from yolo_prune.adapters.torchvision.found import shape_found
from yolo_prune.adapters.torchvision.tasks import BoxTask, open_task
from yolo_prune.adapters.torchvision.training.loop import STATE_KEY, Progress, Training, make_optimizer
from yolo_prune.adapters.torchvision.training.recipe import TrainRecipe
from yolo_prune.adapters.torchvision.training.samples import BoxSamples, ClassSamples, Loader, check_targets
from yolo_prune.errors import ConfigError, DataError
from yolo_prune.imgsz import ImageSize


def check_trainable(module: nn.Module, data: str) -> None:
    """Refuse a detector that learns from what the training data has not.

    Args:
        module: The network.
        data: The data set.

    Raises:
        DataError: It needs masks or key points of every object.
    """
    shape = shape_found(module)
    if shape == "detect":
        return
    train = read_boxes(data, "train", shape)
    lacking = without_shape([one for each in train.objects for one in each], shape)
    if lacking:
        raise DataError(
            f"{described(module).architecture} learns from more than boxes, and {lacking} in the training data {data}. "
            "Give data that has them, or use epochs=0."
        )


def training_of(
    module: nn.Module, recipe: TrainRecipe, data: str, folder: Path, meta: Mapping[str, Any]
) -> Training:
    """Return a training that has not begun.

    Args:
        module: The network, where it is trained.
        recipe: How.
        data: The data set.
        folder: Run folder.
        meta: What the checkpoints say of themselves.

    Raises:
        DataError: The data is missing or broken, or has other classes than the network.
    """
    task = open_task(module, data, split="val", batch=recipe.batch, device=recipe.device)
    learn_from_(module, recipe.rois)
    return Training(
        module=module,
        optimizer=make_optimizer(module, recipe),
        recipe=recipe,
        loader=Loader(_samples(module, recipe, data), recipe),
        score=_score(task, recipe.imgsz),
        metric=task.metric,
        folder=folder,
        record=meta,
    )


def _samples(module: nn.Module, recipe: TrainRecipe, data: str) -> BoxSamples | ClassSamples:
    what = described(module)
    if what.task == CLASSIFY:
        folders = read_class_folders(data, "train")
        return ClassSamples(folders, [what.labels[index] for index in folders.labels], recipe)
    shape = shape_found(module)
    samples = BoxSamples(read_boxes(data, "train", shape), what.labels, recipe, is_stretched(module), shape)
    check_targets(samples)
    return samples


def _score(task: Task, imgsz: ImageSize) -> Callable[[nn.Module], float]:
    """Return accuracy on all validation images, which are loaded once."""
    if isinstance(task, BoxTask):
        return task.scorer_on(task.split, imgsz)
    task.quick_images = 10**9  # type: ignore[attr-defined]
    return task.scorer(imgsz)


def state_of(last: Path) -> dict[str, Any] | None:
    """Return what a last.pt holds of its training, None where there is none yet."""
    return dict(files.read(last)[STATE_KEY]) if last.is_file() else None


def go_on_(training: Training, state: Mapping[str, Any] | None) -> None:
    """Put a training where an interrupted one was.

    Raises:
        ConfigError: That one was started with other options.
    """
    if state is None:
        return
    before, now = dict(state["recipe"]), training.recipe.to_dict()
    for key in ("device", "workers"):
        before.pop(key), now.pop(key)
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        said = ", ".join(f"{key}={before.get(key)}" for key in changed)
        raise ConfigError(f"the training was started with {said}: give the same, or choose another name=.")
    training.optimizer.load_state_dict(state["optimizer"])
    training.progress = Progress(
        epoch=int(state["epoch"]),
        start=state["start"],
        best=state["best"],
        best_epoch=int(state["best_epoch"]),
        rows=[dict(row) for row in state["rows"]],
    )
