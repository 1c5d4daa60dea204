"""Add pruning to a training that the user already has: to a ``YOLO`` object, or to a line of ``yolo train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.hosts import guarding_host
from yolo_prune.adapters.ultralytics.class_folders import find_class_folders
from yolo_prune.adapters.ultralytics.data import read_data_yaml
from yolo_prune.adapters.ultralytics.load import check_named_files, load_detector
from yolo_prune.adapters.ultralytics.options import (
    check_pruned_training_args,
    check_pruning_options,
    check_retraining_args,
)
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.adapters.ultralytics.recognise import is_cut
from yolo_prune.adapters.ultralytics.training.final import accuracy_line
from yolo_prune.adapters.ultralytics.training.history import (
    RUN_KEY,
    InRunResult,
    carried,
    meta_of,
    read_result,
    run_state,
)
from yolo_prune.adapters.ultralytics.training.inrun import inrun_class
from yolo_prune.adapters.ultralytics.training.train import refuse_ended, train_pruned
from yolo_prune.adapters.ultralytics.training.trainer import TrainSettings, _StaysCut, prune_trainer
from yolo_prune.adapters.ultralytics.undisturbed import training_options
from yolo_prune.cost import count_parameters
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import plain_size, read_size
from yolo_prune.options import BUDGETS, TARGETS, TrainConfig
from yolo_prune.options.inrun import InRunSettings, make_settings, stored_settings
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import target_sentence
from yolo_prune.run_log import keep_log_in
from yolo_prune.train import RunState, what_is_left

_LOADER = "_smart_load"
_OURS = (_LOADER, "train", "tune")
_FIRST_EVENT = "on_pretrain_routine_start"
_OTHER_TRAINER = (
    "model.train(trainer=...) leaves out the attached pruning. Pass inrun_trainer(YourTrainer, keep_macs=...) as "
    "trainer=, or none at all."
)


class Attachment:
    """Pruning attached to one ``YOLO`` object; made by :func:`attach`.

    Bound methods of this handle stand on the object in the place of its own, so a deep copy or a pickle of the object
    carries a handle of its own.
    """

    def __init__(self, model: Any, settings: InRunSettings | None) -> None:
        self._model = model
        self._settings = settings
        self._began_with = getattr(model, "ckpt", None)
        ours = (self._load, self._train, self._tune)
        model.__dict__.update(zip(_OURS, ours, strict=True))  # on this object alone
        model.add_callback(_FIRST_EVENT, _refuse_other_trainers)

    @property
    def active(self) -> bool:
        """Whether the object's next training is pruned."""
        return _LOADER in self._model.__dict__

    def remove(self) -> None:
        """Give the object its own trainer back. Calling it twice is harmless."""
        for name in _OURS:
            self._model.__dict__.pop(name, None)
        callbacks = self._model.callbacks[_FIRST_EVENT]
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

    def _load(self, key: str) -> Any:
        """Return the host's class for ``key``; a trainer becomes one that prunes, or keeps what is cut."""
        found = type(self._model)._smart_load(self._model, key)
        if key != "trainer":
            return found
        meta = meta_of(getattr(self._model, "ckpt", None))
        if self._settings is None:
            return prune_trainer(found, TrainSettings(meta=carried(meta)))
        state = self._own_state()
        if state is None:
            return inrun_class(found, self._settings, meta)
        if len(state.cuts) < self._settings.cuts:
            return inrun_class(found, what_is_left(self._settings, state), meta)
        LOGGER.info(
            "the budget is met: training goes on with the %s parameters that are left. To cut further, call remove() "
            "on the handle and attach a budget of the present model.",
            f"{state.current_params:,}",
        )
        return prune_trainer(found, TrainSettings(meta=carried(meta)))

    def _own_state(self) -> RunState | None:
        """Return the state of the run through this handle that made the object's present model, None before one."""
        checkpoint = getattr(self._model, "ckpt", None)
        if checkpoint is self._began_with:
            return None
        state = run_state(meta_of(checkpoint))
        here = isinstance(self._model.model, nn.Module) and count_parameters(self._model.model)
        return state if state is not None and state.cuts and state.current_params == here else None

    def _train(self, trainer: Any = None, **arguments: Any) -> Any:
        """Train like the object, unless that would leave out the pruning."""
        if _refuse_other_trainers not in self._model.callbacks[_FIRST_EVENT]:  # cleared since
            self._model.add_callback(_FIRST_EVENT, _refuse_other_trainers)
        if trainer is not None and not issubclass(trainer, _StaysCut):
            raise ConfigError(_OTHER_TRAINER)
        if arguments.get("pretrained", True) not in (True, None) and self._own_state() is not None:
            raise ConfigError(
                f"pretrained={arguments['pretrained']} would replace the pruned model: call remove() on the handle, "
                "or attach to a new YOLO object."
            )
        return type(self._model).train(self._model, trainer, **arguments)

    def _tune(self, *_: Any, **__: Any) -> None:
        """Refuse: the host tunes in processes of its own, from files, and what is attached does not reach them."""
        raise ConfigError(
            "model.tune() trains in processes of its own, which the attached pruning does not reach. Tune before "
            "attach(...), or after remove() on the handle, and prune with what it found; yolo-prune sweep tries "
            "budgets."
        )


def attach(model: Any, **options: Any) -> Attachment:
    """See :func:`yolo_prune.attach`. ``model.tune()`` is refused: the host tunes in processes that nothing reaches.

    Args:
        model: An ``ultralytics.YOLO`` (or ``RTDETR``).
        **options: Fields of :class:`yolo_prune.options.inrun.InRunSettings`.

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
    if any(options.get(key) is not None for key in (*BUDGETS, *TARGETS)):
        return Attachment(model, make_settings(options))
    meta = meta_of(getattr(model, "ckpt", None))
    if RUN_KEY in meta and (model.ckpt or {}).get("optimizer") is not None:
        return Attachment(model, make_settings({**stored_settings(meta[RUN_KEY]["settings"]), **options}))
    if isinstance(model.model, nn.Module) and is_cut(model.model, meta):
        return Attachment(model, None)
    return Attachment(model, make_settings(options))  # says which budgets there are


def _refuse_other_trainers(trainer: Any) -> None:
    """Refuse a training that would silently not be pruned."""
    if not isinstance(trainer, _StaysCut):
        raise ConfigError(_OTHER_TRAINER)


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
        refuse_ended(loaded.path, config.trust)
    pruned = config.budget is None and not interrupted and is_cut(loaded.module, loaded.meta)
    started_with = stored_settings(loaded.meta[RUN_KEY]["settings"]) if interrupted and loaded.meta else None
    check_pruning_options(config, pruned=pruned, started_with=started_with)
    if pruned:
        return _train_pruned(config, loaded.train_args.get("data") if config.resume else None)
    if config.budget is None and not interrupted:
        return _train_plain(config)
    check_pruned_training_args(config.train_args)
    if config.data is None and not config.resume:
        # The host would take the data that the checkpoint was trained on, elsewhere, or a set that it downloads.
        raise ConfigError("'data' is missing: the data set to train and to prune on. Give data=...")
    model = _host_object(config)
    handle = attach(model, **({"threads": config.threads} if config.budget is None else options))
    model.train(**_host_arguments(config))
    result = handle.result
    met = target_sentence(result.plan.settings.get("latency") if result.plan else None)
    return [
        f"parameters: {result.params_before:,} before, {result.params_after:,} after training",
        *([met] if met else []),
        accuracy_line(result.best, _host_arguments(config), trust=config.trust),
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
        model = RTDETR(config.model)
    else:
        model = YOLO(config.model, task=config.train_args.get("task"))
    model.add_callback(_FIRST_EVENT, _keep_log)
    return model


def _keep_log(trainer: Any) -> None:
    keep_log_in(trainer.save_dir)


def _host_arguments(config: TrainConfig) -> dict[str, Any]:
    """Return what ``yolo train`` would hand to the object's ``train``."""
    given: dict[str, Any] = {"model": config.model, **config.train_args}
    if given.get("imgsz"):
        given["imgsz"] = plain_size(read_size(given["imgsz"]))
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
    with training_options(config.threads):
        model.train(**_host_arguments(config))
    return [f"run folder: {model.trainer.save_dir}\nbest: {model.trainer.best}"]


def _train_pruned(config: TrainConfig, begun_with: str | None) -> list[str]:
    """Go on training a model that is already pruned, on the data of an interrupted training where none is given."""
    defaults: Mapping[str, Any] = {"epochs": 20, "project": "runs/train"}
    arguments: dict[str, Any] = {**defaults, **config.train_args, "verbose": config.verbose}
    arguments.pop("task", None)
    if arguments.get("optimizer") == "auto":
        del arguments["optimizer"]  # the recipe's
    check_retraining_args(config.train_args)
    data = config.data or begun_with
    if data is None:
        raise ConfigError("'data' is missing: the data set to train the pruned model on. Give data=...")
    result = train_pruned(
        config.model,
        data=data,
        teacher=config.teacher,
        recipe=config.recipe,
        resume=config.resume,
        trust=config.trust,
        **arguments,
    )
    return [
        f"parameters: {result.params_before:,} before, {result.params_after:,} after training",
        accuracy_line(result.best, {**arguments, "data": data}, trust=config.trust),
        f"epochs: {result.epochs_run}\nbest: {result.best}\nlast: {result.last}",
    ]
