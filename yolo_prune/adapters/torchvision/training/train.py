"""Train a named network or a file's, and prune it on the way where there is a budget: the command ``train``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.accuracy.classes import read_class_folders
from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.adapters.torchvision import files
from yolo_prune.adapters.torchvision.anatomy import example_of
from yolo_prune.adapters.torchvision.described import CLASSIFY, Described, describe_, described
from yolo_prune.adapters.torchvision.names import names_architecture
from yolo_prune.adapters.torchvision.tasks import open_task
from yolo_prune.adapters.torchvision.training.loop import STATE_KEY, Progress, Training
from yolo_prune.adapters.torchvision.training.recipe import TrainRecipe, make_recipe
from yolo_prune.adapters.torchvision.training.setup import check_trainable, go_on_, training_of
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.restore import restore
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import read_size
from yolo_prune.options import TrainConfig
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.options.places import has_place
from yolo_prune.progress import LOGGER
from yolo_prune.recover.aim import target_sentence
from yolo_prune.recover.effort import images_for
from yolo_prune.run_log import keep_log_in
from yolo_prune.train.plain import PruningSession
from yolo_prune.train.timing import Timekeeper

_TIMED_IMAGES = 16


def train_from_config(config: TrainConfig) -> list[str]:
    """Run ``yolo-prune train``: with a budget the network is pruned on the way.

    Returns:
        What to print.

    Raises:
        ConfigError: An option is missing, or is not for this host.
    """
    _refuse_idle(config)
    with _threads(config.threads):
        training = _resumed(config) if config.resume else _begun(config)
        if training.session is not None:
            training.session.before_train()
        progress = training.run()
    return [*_closing(training), *_summary(training, progress)]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Train with so many threads of the CPU; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_idle(config: TrainConfig) -> None:
    if config.teacher is not None:
        raise ConfigError("teacher= is for a model that the first host has pruned: leave it out.")
    given = [
        field.name
        for field in fields(InRunSettings)
        if field.name != "threads" and getattr(config, field.name) != field.default
    ]
    if config.resume:
        given += [*config.train_args, *(["weights"] if config.weights else [])]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: a training that goes on does so as it began. Leave that out, or train anew."
            )
    if given and config.budget is None:
        raise ConfigError(
            f"{', '.join(given)}: for pruning in the training, and no budget is given: keep_macs=..."
        )


def _begun(config: TrainConfig) -> Training:
    """Set up a new training."""
    from yolo_prune.runs.workspace import open_workspace

    values = dict(config.train_args)
    if config.data is None:
        raise ConfigError("'data' is missing: the data set to train on. Give data=...")
    module = _network(config, int(values.get("seed") or 0))
    check_trainable(module, config.data)
    what = described(module)
    values.setdefault("epochs", 26 if what.task != CLASSIFY else 90)
    values["imgsz"] = read_size(values.get("imgsz") or what.imgsz)
    recipe = make_recipe(what.task, values, of_cut_model=what.plan is not None)
    space = open_workspace(
        str(values.get("project") or "runs/train"),
        values.get("name"),
        "train",
        exist_ok=bool(values.get("exist_ok")),
        resume=None,
    )
    keep_log_in(space.root)
    module.to(recipe.device).requires_grad_(True)
    meta = {"role": "trained", "data": str(config.data), "imgsz": recipe.to_dict()["imgsz"]}
    training = training_of(module, recipe, config.data, space.root, meta)
    training.began = described(module).plan
    if config.budget is not None:
        settings = {field.name: getattr(config, field.name) for field in fields(InRunSettings)}
        training.session = _session(training, settings)
    return training


def _network(config: TrainConfig, seed: int) -> nn.Module:
    """Return the network to train: a file's, or a named one with random weights or those of a state dict."""
    if not names_architecture(config.model):
        return files.load(config.model, weights=config.weights).module
    library, name = building.split_name(config.model)
    architecture, task = f"{library}:{name}", building.task_of(config.model)
    if task == CLASSIFY:
        classes = len(read_class_folders(str(config.data), "train").names)
    else:
        classes = len(read_boxes(str(config.data), "train").names) + 1
    module = building.build(architecture, classes, seed=seed)
    describe_(module, Described(architecture, task, classes, building.own_size(architecture, module)))
    if config.weights is not None:
        _transfer_(module, architecture, Path(config.weights))
    return module


def _transfer_(module: nn.Module, architecture: str, file: Path) -> None:
    """Load a state dict; where it tells other classes apart, the layers that make the scores stay random."""
    state, own = files.read_weights(file), module.state_dict()
    of_classes = building.per_class_tensors(architecture)
    if any(name in state and state[name].shape != own[name].shape for name in of_classes):
        LOGGER.info(
            "the weights tell other classes apart: %s begin anew.", building.listed(sorted(of_classes))
        )
        state = {**state, **{name: own[name] for name in of_classes if name in own}}
    files.load_state_(module, state, architecture, file)


def _session(training: Training, settings: Mapping[str, Any]) -> PruningSession:
    """Make the session that prunes in the loop."""
    module, recipe = training.module, training.recipe
    options, task = InRunSettings(**settings), _task(training)
    images = images_for(options.calibration_images, classifier=described(module).task == CLASSIFY)
    training.uncut = copy.deepcopy(module) if options.at_end else None
    return PruningSession(
        module,
        training.optimizer,
        example_of(module, recipe.imgsz),
        total=recipe.epochs,
        calibration=task.calibration_batches(recipe.imgsz, images, recipe.seed),
        labels=lambda batches: task.calibration_labels(recipe.imgsz, images, recipe.seed),
        average=training.uncut,
        seed=recipe.seed,
        timekeeper=_timekeeper(training, options) if has_place(options) else None,
        **{**settings, "calibration_images": images},
    )


def _timekeeper(training: Training, settings: InRunSettings) -> Timekeeper:
    """Return what times the models of a training on a runtime."""
    from yolo_prune.runs.latency import Deployment
    from yolo_prune.runs.timekeeper import RunTimekeeper

    recipe, meta = training.recipe, {**training.record, "role": "timed"}

    def write(module: nn.Module, file: Path, plan: PrunePlan | None) -> Path:
        return files.save(file, module, train_args=recipe.to_dict(), meta=meta, plan=plan)

    images = _task(training).image_files(_TIMED_IMAGES)
    deployment = Deployment(write, recipe.imgsz, images or None)
    return RunTimekeeper.of(settings, deployment, training.folder, writes_parent=True)


def _task(training: Training) -> Task:
    recipe, data = training.recipe, str(training.record["data"])
    return open_task(training.module, data, split="val", batch=recipe.batch, device=recipe.device)


def _resumed(config: TrainConfig) -> Training:
    """Set up the training that wrote a last.pt, where it was."""
    last = Path(config.model)
    stored = files.read(last)
    if STATE_KEY not in stored:
        raise CheckpointError(
            f"'{last}' is no checkpoint of an interrupted training: give its weights/last.pt."
        )
    keep_log_in(last.parent.parent)
    state = dict(stored[STATE_KEY])
    recipe = TrainRecipe.from_dict(state["recipe"])
    loaded = files.load(last)
    what, module = described(loaded.module), loaded.module
    if state["session"] is not None:  # the network as that training began
        module = building.build(what.architecture, what.outputs)
        if state["began"] is not None:
            restore(module, PrunePlan.from_json(state["began"]))
        describe_(module, Described(**{**vars(what), "plan": state["began"]}))
    module.to(recipe.device).requires_grad_(True)
    meta = dict(loaded.meta or {})
    training = training_of(module, recipe, str(config.data or meta["data"]), last.parent.parent, meta)
    training.began = state["began"]
    if state["session"] is not None:
        training.session = _session(training, {**state["session"]["settings"]})
        training.session.load_state_dict(state["session"])
        module.load_state_dict(loaded.module.state_dict())
        if training.uncut is not None and training.session.plan is None:
            best = training.parent if training.parent.is_file() else last
            training.uncut.load_state_dict(files.load(best).module.state_dict())
    go_on_(training, state)
    return training


def _closing(training: Training) -> list[str]:
    if training.session is None:
        return []
    plan = training.session.plan
    if plan is None:
        return ["nothing was cut"]
    met = target_sentence(plan.settings.get("latency"))
    return [
        f"kept: {100 * plan.kept_macs:.1f} % of the MACs, {100 * plan.kept_params:.1f} % of the parameters",
        *([met] if met else []),
    ]


def _summary(training: Training, progress: Progress) -> list[str]:
    best = f"{progress.best:.4f}" if progress.best is not None else "none"
    return [
        f"epochs: {progress.epoch}, best {training.metric}: {best} (epoch {progress.best_epoch})",
        f"run folder: {training.folder}\nbest: {training.best}\nlast: {training.last}",
    ]
