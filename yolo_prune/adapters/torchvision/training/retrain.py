"""Retrain a cut network with the loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.adapters.torchvision import files
from yolo_prune.adapters.torchvision.described import CLASSIFY, described
from yolo_prune.adapters.torchvision.detector import learn_from_
from yolo_prune.adapters.torchvision.training.recipe import make_recipe
from yolo_prune.adapters.torchvision.training.setup import check_trainable, go_on_, state_of, training_of
from yolo_prune.cost import count_parameters
from yolo_prune.criteria.calibration import call
from yolo_prune.criteria.heads import known_heads
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.train.imitate import WITH_LABELS, HeadTeacher, OutputTeacher
from yolo_prune.train.retrained import RetrainResult, check_still_cut


def retrain(
    module: nn.Module,
    *,
    data: str | Path,
    epochs: int,
    imgsz: ImageSize,
    batch: int,
    device: str,
    seed: int,
    run_dir: Path,
    teacher: nn.Module | None,
    workers: int,
    lr0: float | None,
    extra: Mapping[str, Any],
    resume: bool,
    meta: Mapping[str, Any],
    **_: Any,
) -> RetrainResult:
    """Train a cut network of this host; see :meth:`yolo_prune.adapters.host.Host.retrain`.

    It learns from its parent, too: a classifier's outputs are compared, of a detector what its heads make.

    Raises:
        ConfigError: The network needs labels that are not read, or the training diverged.
        DataError: The training data is missing or broken.
    """
    check_trainable(module, str(data))
    given = {**extra, "epochs": epochs, "imgsz": imgsz, "batch": batch, "device": device, "seed": seed}
    recipe = make_recipe(described(module).task, {**given, "workers": workers, "lr0": lr0}, of_cut_model=True)
    before, last = count_parameters(module), Path(run_dir) / "weights" / "last.pt"
    state = state_of(last) if resume else None
    if state is not None:
        module = files.load(last).module
    module.to(recipe.device).requires_grad_(True)
    training = training_of(module, recipe, str(data), Path(run_dir), meta)
    training.teacher = _teacher(copy.deepcopy(teacher), recipe.rois) if teacher is not None else None
    go_on_(training, state)
    progress = training.run(judge_start=True)
    after = count_parameters(files.load(training.best).module)
    check_still_cut(before, after)
    return RetrainResult(
        best=training.best,
        last=training.last,
        results_csv=training.results,
        params_before=before,
        params_after=after,
        epochs_run=len(progress.rows),
        start_fitness=progress.start,
        best_fitness=progress.best,
    )


def _teacher(parent: nn.Module, regions: int) -> OutputTeacher | HeadTeacher:
    if described(parent).task == CLASSIFY:
        return OutputTeacher(parent, call)
    learn_from_(parent, regions)
    heads = known_heads(parent, call, overlap=WITH_LABELS)
    if heads is None:
        raise ConfigError(f"the heads of {type(parent).__name__} are not known: train with distill=false.")
    return HeadTeacher(parent, heads)
