"""What can spoil a run is said before its first epoch, and a cut that fails never costs the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from yolo_prune.adapters.ultralytics.classify import class_images
from yolo_prune.adapters.ultralytics.data import label_rules, list_images
from yolo_prune.adapters.ultralytics.training import aftercut
from yolo_prune.adapters.ultralytics.training.midrun import files_of
from yolo_prune.adapters.ultralytics.verify import warn_of_missing
from yolo_prune.errors import BudgetError, ConfigError, CutError, EquivalenceError, YoloPruneError, one_line

_WILL_COME_AGAIN = (BudgetError, ConfigError, EquivalenceError)


@contextmanager
def rescued(trainer: Any) -> Iterator[None]:
    """Cut inside; whatever goes wrong there, the error tells how the training goes on.

    Args:
        trainer: A trainer of the host at the beginning of an epoch.

    Raises:
        CutError: In the place of an error that is not ours, such as one of memory or of a full disk.
    """
    try:
        if trainer.epoch > 0 and not trainer.args.save and aftercut.is_first_process():
            with as_after_last_epoch(trainer):
                trainer.save_model()  # the host was told to write none
        yield
    except YoloPruneError as error:
        error.args = (f"{error} {_way_on(trainer, error)}", *error.args[1:])
        raise
    except Exception as error:
        what = f"the cut in epoch {trainer.epoch + 1} failed ({type(error).__name__}: {one_line(error)})."
        raise CutError(f"{what} {_way_on(trainer, error)}") from error


def _way_on(trainer: Any, error: Exception) -> str:
    """Return the sentences that say what is kept and how to go on with it."""
    if not trainer.last.is_file():
        return "Nothing was trained yet."
    ways = f"Nothing of the training is lost: 'yolo-prune train resume model={trainer.last}' goes on with the cut."
    if isinstance(error, _WILL_COME_AGAIN):
        cut = f"yolo-prune prune model={trainer.last} data={trainer.args.data}"
        ways += f" With other options cut this checkpoint by itself: '{cut} keep_macs=...'."
    return ways


@contextmanager
def as_after_last_epoch(trainer: Any) -> Iterator[None]:
    """Let the trainer validate and save as at the end of the epoch before this one."""
    epoch, plots, period = trainer.epoch, trainer.validator.args.plots, trainer.save_period
    trainer.epoch, trainer.save_period, trainer.busy = epoch - 1, -1, True
    try:
        if getattr(trainer, "loss_items", None) is None:
            trainer.loss_items, trainer.loss = trainer.name_losses(), torch.zeros((), device=trainer.device)
        yield
    finally:
        trainer.epoch, trainer.save_period, trainer.busy = epoch, period, False
        trainer.validator.args.plots = plots


def report_left_out(trainer: Any) -> None:
    """Warn of the images that the host has left out of its training and its validation, in one list each.

    Args:
        trainer: A trainer of the host whose data is loaded.
    """
    if not aftercut.is_first_process():
        return
    data, task = trainer.data, trainer.args.task
    for split, loader in (("train", trainer.train_loader), ("val", trainer.test_loader)):
        split = split if data.get(split) else "test"
        kept = files_of(loader.dataset)
        if kept and task == "classify":
            warn_of_missing(class_images(Path(data[split])), kept, None, f"'{data[split]}'")
        elif kept:
            what = f"'{split}' in {data.get('yaml_file') or trainer.args.data}"
            warn_of_missing(list_images(data, split), kept, label_rules(data, task), what)
