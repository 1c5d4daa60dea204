"""What a running trainer of the host needs after its model was cut: a new average, gentle rates, a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.ultralytics.closeness import DistillationWeights
from yolo_prune.adapters.ultralytics.load import load_detector
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.adapters.ultralytics.save import save_detector
from yolo_prune.adapters.ultralytics.training.distill import DistilledCriterion, distil_
from yolo_prune.adapters.ultralytics.training.midrun import size_of
from yolo_prune.adapters.ultralytics.training.trainer import unwrap
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import plain_size, size_text
from yolo_prune.progress import LOGGER

_AVERAGED_SHARE = 0.2
_TEACHER_COLUMN = "distill_loss"


def is_first_process() -> bool:
    """Tell whether this process writes files: the only one, or the first of a distributed run."""
    from ultralytics.utils import RANK

    return RANK in (-1, 0)


def start_afresh(trainer: Any, teacher: nn.Module | None) -> None:
    """Make the trainer forget what belongs to the model before the cut.

    Args:
        trainer: A trainer whose model and optimizer are cut.
        teacher: The uncut model; None leaves the present teacher.
    """
    from ultralytics.utils.torch_utils import EarlyStopping, ModelEMA

    trainer.optimizer.zero_grad()
    trainer.model = wrapped_again(trainer.model, trainer.args, trainer.device)
    trainer.ema = ModelEMA(trainer.model)
    set_average(trainer)
    trainer.best_fitness = trainer.fitness = None
    trainer.stopper = EarlyStopping(patience=trainer.args.patience)
    if len(trainer.state.cuts) < trainer.pruning.cuts:
        trainer.stopper.patience = float("inf")
    if teacher is not None:
        attach_teacher(trainer, teacher)


def wrapped_again(model: nn.Module, args: Any, device: torch.device) -> nn.Module:
    """Return the model in new wrappers of the kinds it had: they remember parameters that are gone.

    Args:
        model: As the trainer holds it.
        args: The host's options.
        device: Where it is trained.
    """
    from ultralytics.utils.torch_utils import attempt_compile

    inner = unwrap(model)
    if args.compile:
        torch._dynamo.reset()
        inner = attempt_compile(inner, device=device, mode=args.compile)
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return inner
    options: dict[str, Any] = {"find_unused_parameters": model.find_unused_parameters}
    for name in ("forward_sync_buffers", "broadcast_buffers"):  # the first since PyTorch 2.13
        if hasattr(model, name):
            options[name] = False
            break
    return nn.parallel.DistributedDataParallel(inner, device_ids=model.device_ids, **options)


def set_average(trainer: Any) -> None:
    """Give the new average a horizon that fits what is left of the run: the host's never fills in a short one."""
    steps = len(trainer.train_loader) / trainer.batches_per_step * max(trainer.epochs - trainer.epoch, 1)
    horizon = max(_AVERAGED_SHARE * steps, 10.0)
    decay, tau = min(0.9999, 1 - 1 / horizon), min(2000.0, horizon)
    trainer.ema.decay = lambda updates: decay * (1 - math.exp(-updates / tau))


def resume_average(trainer: Any) -> None:
    """Set the horizon of an average that the host has made anew, as it was after the last cut."""
    epoch = getattr(trainer, "epoch", None)
    trainer.epoch = trainer.state.cuts[-1].epoch
    try:
        set_average(trainer)
    finally:
        trainer.epoch = epoch


def soften_rates(trainer: Any) -> None:
    """Let the learning rates rise from a tenth over the first epoch after a cut, so that it does not undo it."""
    gentle = trainer.session.gentle(len(trainer.train_loader))
    if gentle is None:
        return
    factor = trainer.lf(trainer.epoch) * gentle
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def write_model(trainer: Any, module: nn.Module, file: Path, meta: Mapping[str, Any]) -> Path:
    """Write a model of a training as it would be deployed."""
    options = {key: value for key, value in vars(trainer.args).items() if key != "augmentations"}
    return save_detector(
        file,
        module,
        task=trainer.args.task,
        train_args=options,
        meta={**meta, "imgsz": plain_size(size_of(trainer))},
        trust=True,  # it is being trained, so its classes are here
    )


def save_parent(trainer: Any, parent: nn.Module) -> None:
    """Write the model before the first cut, with which the teacher of a resumed run is made."""
    if not is_first_process():
        return
    meta = {"role": "parent", "cut": trainer.began_cut or None}
    try:
        write_model(trainer, parent, Path(trainer.wdir, "parent.pt"), meta)
    except CheckpointError as error:
        LOGGER.warning("the uncut model is not kept: %s", error)


def attach_teacher(trainer: Any, teacher: nn.Module | None) -> None:
    """Let the cut model learn from the uncut one.

    Args:
        trainer: A trainer whose model is cut.
        teacher: The uncut model; None reads it from ``weights/parent.pt``.
    """
    if not trainer.pruning.learns_from_parent:
        return
    if teacher is None:
        try:
            own = bool(own_classes(unwrap(trainer.model)))
            teacher = load_detector(Path(trainer.wdir, "parent.pt"), trust=own).module
        except CheckpointError as error:
            LOGGER.warning("going on without a teacher: %s", error)
            return
    try:
        distil_(unwrap(trainer.model), deepcopy(teacher).to(trainer.device), DistillationWeights())
    except ConfigError as error:
        LOGGER.warning("%s", error)
        return
    if trainer.loss_names and _TEACHER_COLUMN not in trainer.loss_names:
        trainer.loss_names = (*trainer.loss_names, _TEACHER_COLUMN)


def fade_teacher(trainer: Any) -> None:
    """Let the teacher count less with every epoch: it was cut out of an unfinished training."""
    criterion = getattr(unwrap(trainer.model), "criterion", None)
    if not isinstance(criterion, DistilledCriterion):
        return
    share = trainer.session.teacher_share()
    whole = DistillationWeights()
    criterion.weights = replace(whole, scores=whole.scores * share, boxes=whole.boxes * share)


def detach_teacher(trainer: Any) -> None:
    """Give the model the host's own criterion back."""
    model: Any = unwrap(trainer.model)
    if isinstance(getattr(model, "criterion", None), DistilledCriterion):
        model.criterion = model.criterion.criterion


def with_teacher_column(trainer: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of results.csv with the teacher's column, which holds 0 before there is one.

    The teacher takes no part in validation: what the host prepares for it there is left out.
    """
    name = f"train/{_TEACHER_COLUMN}"
    metrics = {key: value for key, value in metrics.items() if key != f"val/{_TEACHER_COLUMN}"}
    named = isinstance(trainer.tloss, dict)  # before 8.4.0 of the host had names, its columns were fixed
    if not (trainer.pruning.learns_from_parent and named) or name in metrics:
        return dict(metrics)
    line: dict[str, Any] = {}
    train = [key for key in metrics if key.startswith("train/")]
    for key, value in metrics.items():
        line[key] = value
        if train and key == train[-1]:
            line[name] = 0.0
    return line


def _recovery_line(plan: PrunePlan) -> list[str]:
    """Say what the host's fitness was before a cut at the end, and after every step of recovery."""
    steps = {name: value for name, value in plan.settings.get("recovery", {}).items() if value is not None}
    return [f"fitness: {', '.join(f'{name} {value:.3f}' for name, value in steps.items())}"] if steps else []


def closing_lines(trainer: Any) -> list[str]:
    """Return what a person should know at the end of a run."""
    state, cuts = trainer.state, trainer.state.cuts
    if not cuts:
        return ["the run ended before its first cut: nothing was pruned. Set prune_at= earlier."]
    best = trainer.best if trainer.best.is_file() else trainer.last
    after = count_parameters(torch.load(best, map_location="cpu", weights_only=False)["model"])
    lines = []
    if len(cuts) < trainer.pruning.cuts:
        lines.append(
            f"the run ended after {len(cuts)} of {trainer.pruning.cuts} cuts: the budget is not met."
        )
    return [
        *lines,
        *_recovery_line(PrunePlan.from_json(state.plan)),
        f"parameters: {state.params:,} before, {after:,} after ({state.gmacs:.3g} -> {cuts[-1].gmacs:.3g} GMACs)",
        f"plan: {Path(trainer.save_dir, 'plan.json')}; before the cut: {Path(trainer.wdir, 'parent.pt')}; "
        f"pruned: {best}",
        "plain 'yolo train' on the pruned model grows it back. To go on: "
        f"yolo-prune train model={best} data={trainer.args.data}",
        f"to measure: yolo-prune eval model={best} data={trainer.args.data}; "
        f"yolo-prune bench model={Path(trainer.wdir, 'parent.pt')},{best} imgsz={size_text(size_of(trainer))}",
    ]
