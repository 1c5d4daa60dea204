"""Torch-Pruning's own pruners: its groups, its ranking and its slicing, in a process of their own with a time limit."""

from __future__ import annotations

import copy
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.cost import count_macs
from yolo_prune.criteria.backward import run_with_gradients
from yolo_prune.criteria.calibration import Calibration, images_in, part_of

PRUNERS = ("BNScale", "GroupNorm", "Taylor", "Hessian")
LOCAL, GLOBAL = "local", "global"
TIME_LIMIT_S = 300
STEPS = 60  # to a pruning ratio of 0.9: it stops at the first whose MACs are within the budget
GRADIENT_IMAGES = 16  # that every step of the pruners by gradient runs again

Opened = Callable[[], tuple[nn.Module, torch.Tensor, Calibration]]


def open_checkpoint(file: Path, imgsz: int) -> tuple[nn.Module, torch.Tensor, Calibration]:
    """Open a detector for the pruners by weights, which measure on nothing."""
    return load_detector(file).module, torch.zeros(1, 3, imgsz, imgsz), Calibration()


def pruned(opened: Opened, keep: float, kind: str, ranking: str) -> nn.Module:
    """Prune a model with Torch-Pruning until its MACs reach the budget.

    Args:
        opened: Returns the model, its input and what gradients are taken on.
        keep: Share of the MACs that stays.
        kind: One of :data:`PRUNERS`.
        ranking: ``local`` or ``global``.
    """
    import torch_pruning as tp

    module, image, calibration = opened()
    module = copy.deepcopy(module).eval().requires_grad_(True)
    pruner_class, importance = {
        "BNScale": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance),
        "GroupNorm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance),
        "Taylor": (tp.pruner.BasePruner, tp.importance.GroupTaylorImportance),
        "Hessian": (tp.pruner.BasePruner, tp.importance.GroupHessianImportance),
    }[kind]
    estimator = importance()
    pruner = pruner_class(
        module,
        image,
        importance=estimator,
        iterative_steps=STEPS,
        pruning_ratio=0.9,
        global_pruning=ranking == GLOBAL,
        ignored_layers=last_layers(module),
        round_to=None,
    )
    full = count_macs(module, image)
    for _ in range(STEPS):
        if kind in ("Taylor", "Hessian"):
            take_gradients(module, calibration, estimator)
        pruner.step()
        if count_macs(module, image) <= keep * full:
            break
    module.zero_grad(set_to_none=True)
    return module


def last_layers(module: nn.Module) -> list[nn.Module]:
    """Return what makes the outputs, as its examples leave it out: biased convolutions and linear layers of the head."""
    head = module.model[-1]
    ignored = [
        layer
        for layer in head.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.bias is not None)
    ]
    return [*ignored, head.dfl] if hasattr(head, "dfl") else ignored


def take_gradients(module: nn.Module, calibration: Calibration, estimator: Any) -> None:
    """Let weights hold gradients of the task's projection: no loss, since nothing here gets labels."""
    module.zero_grad()
    if hasattr(estimator, "zero_grad"):
        estimator.zero_grad()
    singles = [
        part_of(batch, slice(number, number + 1))
        for batch in calibration.batches
        for number in range(images_in(batch))
    ][:GRADIENT_IMAGES]

    def add() -> None:
        if hasattr(estimator, "accumulate_grad"):
            estimator.accumulate_grad(module)

    few = Calibration(singles, calibration.projection, calibration.forward, calibration.seed)
    run_with_gradients(module, few, "gradients", after=add)
    module.requires_grad_(True)


def _worker(out: str, opened: Opened, keep: float, kind: str, ranking: str) -> None:
    torch.set_num_threads(1)
    try:
        torch.save(pruned(opened, keep, kind, ranking), out)
    except Exception as error:  # noqa: BLE001  whatever it raises is the result that is reported
        said = (str(error).strip() or "no words").splitlines()[0]
        torch.save(f"{type(error).__name__}: {said[:120]}", out)


def pruned_in_time(opened: Opened, keep: float, kind: str, ranking: str) -> nn.Module | str:
    """Prune in a process of its own; return the model, or in words why there is none.

    Args:
        opened: As for :func:`pruned`; can be pickled.
        keep: As for :func:`pruned`.
        kind: As for :func:`pruned`.
        ranking: As for :func:`pruned`.
    """
    with tempfile.TemporaryDirectory(prefix="torch-pruning-") as folder:
        out = Path(folder, "pruned.pt")
        process = multiprocessing.get_context("spawn").Process(
            target=_worker, args=(str(out), opened, keep, kind, ranking)
        )
        process.start()
        process.join(TIME_LIMIT_S)
        if process.is_alive():
            process.kill()
            return f"no answer in {TIME_LIMIT_S} s"
        if not out.is_file():
            return f"its process ended with code {process.exitcode}"
        value: nn.Module | str = torch.load(out, weights_only=False)  # our own file of a moment ago
        return value
