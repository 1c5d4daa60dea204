"""Add pruning to a training that the user already has: to a ``YOLO`` object, or to a line of ``yolo train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.ultralytics.data import find_class_folders, read_data_yaml
from yolo_prune.adapters.ultralytics.load import check_named_files, check_run_files, read_checkpoint
from yolo_prune.adapters.ultralytics.options import check_pruned_training_args
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.adapters.ultralytics.training.inrun import RUN_KEY, inrun_trainer
from yolo_prune.adapters.ultralytics.training.midrun import is_cut
from yolo_prune.adapters.ultralytics.training.train import train_pruned
from yolo_prune.adapters.ultralytics.training.trainer import _StaysCut, prune_trainer
from yolo_prune.checkpoint import load_detector
from yolo_prune.config import TrainConfig
from yolo_prune.config.inrun import InRunSettings, make_settings
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.inrun import CutRecord, RunState
from yolo_prune.owncode import guarding_host
from yolo_prune.retrain import count_parameters
from yolo_prune.stored import METADATA_KEY

_LOADER = "_smart_load"


@dataclass(frozen=True)
class InRunResult:
    """What a training with pruning inside left behind.

    Attributes:
        folder: The host's run folder.
        best: The checkpoint to use.
        parent: The model right before the first cut, None when it could not be written.
        plan: What was cut, None when the run ended before.
        cuts: One entry a cut.
        params_before: Parameters of the model that the run began with.
        params_after: Parameters of ``best``, read back from the file.
    """

    folder: Path
    best: Path
    parent: Path | None
    plan: PrunePlan | None
    cuts: tuple[CutRecord, ...]
    params_before: int
    params_after: int


class Attachment:
    """Pruning attached to one ``YOLO`` object; made by :func:`attach`."""

    def __init__(self, model: Any, settings: InRunSettings | None) -> None:
        self._model = model
        load = getattr(model, _LOADER)

        def load_ours(key: str) -> Any:
            found = load(key)
            if key != "trainer":
                return found
            return prune_trainer(found) if settings is None else inrun_trainer(found, settings)

        model.__dict__[_LOADER] = load_ours  # on this object alone
        model.add_callback("on_pretrain_routine_start", _refuse_other_trainers)

    @property
    def active(self) -> bool:
        """Whether the object's next training is pruned."""
        return _LOADER in self._model.__dict__

    def remove(self) -> None:
        """Give the object its own trainer back. Calling it twice is harmless."""
        self._model.__dict__.pop(_LOADER, None)
        callbacks = self._model.callbacks["on_pretrain_routine_start"]
        if _refuse_other_trainers in callbacks:
            callbacks.remove(_refuse_other_trainers)

    @property
    def result(self) -> InRunResult:
        """What the last training left behind, read from its files.

        Raises:
            CheckpointError: Nothing was trained yet, or the training wrote no checkpoint.
        """
        trainer = getattr(self._model, "trainer", None)
        if trainer is None:
            raise CheckpointError("nothing was trained yet: call model.train(...) first.")
        own = own_classes(self._model.model) if isinstance(self._model.model, nn.Module) else []
        return read_result(Path(trainer.save_dir), trust=bool(own))


def attach(model: Any, **options: Any) -> Attachment:
    """Let every training of a ``YOLO`` object prune it on the way, until the handle is removed.

    The object's own ``model.train(...)`` line stays as it is. Nothing else is touched: other objects, and the host
    itself, know nothing of it.

    Args:
        model: An ``ultralytics.YOLO`` (or ``RTDETR``).
        **options: Fields of :class:`yolo_prune.config.inrun.InRunSettings`, such as ``keep_macs=0.5``. Without a
            budget the object must come from an interrupted run (it is resumed with the options that it began with)
            or be pruned already (it stays pruned).

    Returns:
        A handle with ``remove()`` and, after the training, ``result``.

    Raises:
        ConfigError: An option is wrong, there is no budget, or pruning is attached already.

    Example:
        >>> from ultralytics import YOLO  # doctest: +SKIP
        >>> model = YOLO("yolo11n.pt")  # doctest: +SKIP
        >>> handle = attach(model, keep_macs=0.5)  # doctest: +SKIP
        >>> model.train(data="coco8.yaml", epochs=100)  # doctest: +SKIP
        >>> handle.result.best  # doctest: +SKIP
    """
    if not hasattr(model, _LOADER) or not hasattr(model, "train"):
        raise ConfigError(f"expected a YOLO object, got {type(model).__name__}.")
    if _LOADER in model.__dict__:
        raise ConfigError("pruning is attached to this object already: call remove() on its handle first.")
    if any(options.get(key) is not None for key in ("keep_macs", "gmacs", "keep_params")):
        return Attachment(model, make_settings(options))
    meta = dict((getattr(model, "ckpt", None) or {}).get(METADATA_KEY) or {})
    if RUN_KEY in meta and (model.ckpt or {}).get("optimizer") is not None:
        return Attachment(model, make_settings({**meta[RUN_KEY]["settings"], **options}))
    if isinstance(model.model, nn.Module) and is_cut(model.model):
        return Attachment(model, None)
    return Attachment(model, make_settings(options))  # says which budgets there are


def _refuse_other_trainers(trainer: Any) -> None:
    """Refuse a training that would silently not be pruned."""
    if not isinstance(trainer, _StaysCut):
        raise ConfigError(
            "model.train(trainer=...) leaves out the attached pruning. Pass "
            "inrun_trainer(YourTrainer, keep_macs=...) as trainer=, or none at all."
        )


def read_result(folder: Path | str, *, trust: bool = False) -> InRunResult:
    """Read the outcome of a training with pruning inside back from its run folder.

    Args:
        folder: The host's run folder.
        trust: Read a checkpoint that holds classes that are not stock.

    Raises:
        CheckpointError: The folder holds no checkpoint of such a run.
    """
    folder = Path(folder)
    weights = folder / "weights"
    best = weights / "best.pt" if (weights / "best.pt").is_file() else weights / "last.pt"
    if not best.is_file():
        raise CheckpointError(f"'{folder}' holds no checkpoint: its training did not get so far.")
    checkpoint = read_checkpoint(best, trust=trust)
    meta = dict(checkpoint.get(METADATA_KEY) or {})
    if RUN_KEY not in meta:
        raise CheckpointError(f"'{best}' is not of a training that yolo_prune pruned.")
    state = RunState.from_dict(meta[RUN_KEY]["state"])
    parent = weights / "parent.pt"
    return InRunResult(
        folder=folder,
        best=best,
        parent=parent if parent.is_file() else None,
        plan=PrunePlan.from_json(state.plan) if state.plan else None,
        cuts=tuple(state.cuts),
        params_before=state.params,
        params_after=count_parameters(checkpoint.get("ema") or checkpoint["model"]),
    )


@guarding_host
def train_from_config(config: TrainConfig) -> list[str]:
    """Run ``yolo-prune train``.

    Args:
        config: With a budget (or a checkpoint of a run that had one) the training prunes; a model that is already
            pruned stays so; any other is trained by the host as it is.

    Returns:
        What to print.
    """
    loaded = load_detector(config.model, trust=config.trust)
    if config.data is not None:
        _check_data(config.data, loaded.task)
    check_named_files(config.train_args, trust=config.trust)
    options = {field.name: getattr(config, field.name) for field in fields(InRunSettings)}
    interrupted = config.resume and RUN_KEY in (loaded.meta or {})
    if config.resume and loaded.path.suffix == ".pt":
        check_run_files(loaded.path, {"train_args": loaded.train_args}, trust=config.trust)
    if config.budget is None and not interrupted and is_cut(loaded.module):
        return _train_pruned(config)
    if config.budget is None and not interrupted:
        return _train_plain(config)
    check_pruned_training_args(config.train_args)
    model = _host_object(config)
    handle = attach(model, **({"threads": config.threads} if config.budget is None else options))
    model.train(**_host_arguments(config))
    result = handle.result
    return [
        f"parameters: {result.params_before:,} before, {result.params_after:,} after training",
        f"run folder: {result.folder}\nbest: {result.best}",
    ]


def _check_data(data: str, task: str) -> None:
    """Raise DataError before the host's own error; a bare name of a classification set is left to the host."""
    if task != "classify":
        read_data_yaml(data)
    elif Path(data).parent != Path() or Path(data).is_dir():
        find_class_folders(data, "train")


def _host_object(config: TrainConfig) -> Any:
    from ultralytics import RTDETR, YOLO

    if "rtdetr" in Path(config.model).stem.lower():
        return RTDETR(config.model)
    return YOLO(config.model, task=config.train_args.get("task"))


def _host_arguments(config: TrainConfig) -> dict[str, Any]:
    """Return what ``yolo train`` would hand to the object's ``train``."""
    given: dict[str, Any] = {"model": config.model, **config.train_args}
    if config.data is not None:
        given["data"] = config.data
    if not config.verbose:
        given["verbose"] = False
    if config.resume:
        given["resume"] = True
    given.pop("task", None)
    return given


def _train_plain(config: TrainConfig) -> list[str]:
    """Let the host train, without a line of ours in between."""
    model = _host_object(config)
    if config.threads is not None:
        threads = config.threads
        model.add_callback("on_train_start", lambda _: torch.set_num_threads(threads))
    model.train(**_host_arguments(config))
    return [f"run folder: {model.trainer.save_dir}\nbest: {model.trainer.best}"]


def _train_pruned(config: TrainConfig) -> list[str]:
    """Go on training a model that is already pruned."""
    defaults: Mapping[str, Any] = {"epochs": 20, "project": "runs/train"}
    arguments: dict[str, Any] = {**defaults, **config.train_args, "verbose": config.verbose}
    arguments.pop("task", None)
    if arguments.get("optimizer") == "auto":
        del arguments["optimizer"]  # the recipe's
    check_pruned_training_args(config.train_args)
    if config.data is None:
        raise ConfigError("'data' is missing: the data set to train the pruned model on. Give data=...")
    result = train_pruned(
        config.model,
        data=config.data,
        teacher=config.teacher,
        recipe=config.recipe,
        resume=config.resume,
        trust=config.trust,
        **arguments,
    )
    return [
        f"parameters: {result.params_before:,} before, {result.params_after:,} after training",
        f"epochs: {result.epochs_run}\nbest: {result.best}\nlast: {result.last}",
    ]
