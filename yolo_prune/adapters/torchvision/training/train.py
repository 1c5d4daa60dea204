"""Retrain a cut network, train a named one, or prune while it trains: what the commands call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from yolo_prune.accuracy.box_data import read_boxes
from yolo_prune.accuracy.classes import read_class_folders
from yolo_prune.accuracy.task import Task
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.adapters.torchvision import files
from yolo_prune.adapters.torchvision.anatomy import example_of
from yolo_prune.adapters.torchvision.described import CLASSIFY, Described, describe_, described
from yolo_prune.adapters.torchvision.detector import is_stretched, learn_from_
from yolo_prune.adapters.torchvision.names import names_architecture
from yolo_prune.adapters.torchvision.tasks import BoxTask, open_task
from yolo_prune.adapters.torchvision.training.loop import STATE_KEY, Progress, Training, make_optimizer
from yolo_prune.adapters.torchvision.training.recipe import TrainRecipe, make_recipe
from yolo_prune.adapters.torchvision.training.samples import BoxSamples, ClassSamples, Loader, check_targets
from yolo_prune.cost import count_parameters
from yolo_prune.criteria.calibration import call
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.restore import restore
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize, read_size
from yolo_prune.options import TrainConfig
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.progress import LOGGER
from yolo_prune.train.imitate import OutputTeacher
from yolo_prune.train.plain import PruningSession
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

    A classifier learns from its parent, too. Detectors learn from the labels alone: in training they return losses.

    Raises:
        ConfigError: The network needs labels that are not read, or the training diverged.
        DataError: The training data is missing or broken.
    """
    check_trainable(module)
    given = {**extra, "epochs": epochs, "imgsz": imgsz, "batch": batch, "device": device, "seed": seed}
    recipe = make_recipe(described(module).task, {**given, "workers": workers, "lr0": lr0}, of_cut_model=True)
    before, last = count_parameters(module), Path(run_dir) / "weights" / "last.pt"
    state = _state_of(last) if resume else None
    if state is not None:
        module = files.load(last).module
    module.to(recipe.device).requires_grad_(True)
    learns = teacher is not None and described(module).task == CLASSIFY
    if teacher is not None and not learns:
        LOGGER.info("detectors of this host learn from the labels alone: there is no teacher.")
    training = _training(module, recipe, str(data), Path(run_dir), meta)
    training.teacher = OutputTeacher(copy.deepcopy(teacher), call) if learns and teacher else None
    _go_on_(training, state)
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


def train_from_config(config: TrainConfig) -> list[str]:
    """Run ``yolo-prune train``: with a budget the network is pruned on the way.

    Returns:
        What to print.

    Raises:
        ConfigError: An option is missing, or is not for this host.
    """
    _refuse_idle(config)
    training = _resumed(config) if config.resume else _begun(config)
    if training.session is not None:
        training.session.before_train()
    progress = training.run()
    return [*_closing(training), *_summary(training, progress)]


def check_trainable(module: nn.Module) -> None:
    """Refuse detectors that learn from more than boxes.

    Raises:
        ConfigError: It needs masks or key points.
    """
    heads: Any = getattr(module, "roi_heads", None)
    for part, what in (("mask_predictor", "masks"), ("keypoint_predictor", "key points")):
        if heads is not None and getattr(heads, part, None) is not None:
            raise ConfigError(
                f"{described(module).architecture} learns from {what}, which this loop does not read. Use epochs=0, "
                "and retrain it in your own loop (yolo_prune.restore, or PruningSession)."
            )


def _refuse_idle(config: TrainConfig) -> None:
    if config.teacher is not None:
        raise ConfigError("teacher= is for a model that the first host has pruned: leave it out.")
    given = [
        field.name
        for field in fields(InRunSettings)
        if field.name != "threads" and getattr(config, field.name) != field.default
    ]
    if given and config.budget is None and not config.resume:
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
    check_trainable(module)
    what = described(module)
    values.setdefault("epochs", 26 if what.task != CLASSIFY else 90)
    values["imgsz"] = read_size(values.get("imgsz") or what.imgsz)
    recipe = make_recipe(what.task, values, of_cut_model=what.plan is not None)
    space = open_workspace(
        str(values.get("project") or "runs/train"),
        values.get("name"),
        "train",
        exist_ok=bool(values.get("exist_ok")),
        resume=False,
    )
    module.to(recipe.device).requires_grad_(True)
    meta = {"role": "trained", "data": str(config.data), "imgsz": recipe.to_dict()["imgsz"]}
    training = _training(module, recipe, config.data, space.root, meta)
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


def _training(
    module: nn.Module, recipe: TrainRecipe, data: str, folder: Path, meta: Mapping[str, Any]
) -> Training:
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
    samples = BoxSamples(read_boxes(data, "train"), what.labels, recipe, is_stretched(module))
    check_targets(samples)
    return samples


def _score(task: Task, imgsz: ImageSize) -> Callable[[nn.Module], float]:
    """Return accuracy on all validation images, which are loaded once."""
    if isinstance(task, BoxTask):
        return task.scorer_on(task.split, imgsz)
    task.quick_images = 10**9  # type: ignore[attr-defined]
    return task.scorer(imgsz)


def _session(training: Training, settings: Mapping[str, Any]) -> PruningSession:
    """Make the session that prunes in the loop."""
    module, recipe = training.module, training.recipe
    options = dict(settings)
    if described(module).task != CLASSIFY and options["distill"]:
        options["distill"] = False
        LOGGER.info("detectors of this host learn from the labels alone: there is no teacher.")
    return PruningSession(
        module,
        training.optimizer,
        example_of(module, recipe.imgsz),
        total=recipe.epochs,
        calibration=_calibration(training, int(options["calibration_images"])),
        seed=recipe.seed,
        **options,
    )


def _calibration(training: Training, images: int) -> list[Tensor]:
    task = open_task(
        training.module,
        str(training.record["data"]),
        split="val",
        batch=training.recipe.batch,
        device=training.recipe.device,
    )
    return task.calibration_batches(training.recipe.imgsz, images, training.recipe.seed)


def _state_of(last: Path) -> dict[str, Any] | None:
    """Return what a last.pt holds of its training, None where there is none yet."""
    return dict(files.read(last)[STATE_KEY]) if last.is_file() else None


def _go_on_(training: Training, state: Mapping[str, Any] | None) -> None:
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


def _resumed(config: TrainConfig) -> Training:
    """Set up the training that wrote a last.pt, where it was."""
    last = Path(config.model)
    stored = files.read(last)
    if STATE_KEY not in stored:
        raise CheckpointError(
            f"'{last}' is no checkpoint of an interrupted training: give its weights/last.pt."
        )
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
    training = _training(module, recipe, str(config.data or meta["data"]), last.parent.parent, meta)
    training.began = state["began"]
    if state["session"] is not None:
        training.session = _session(training, {**state["session"]["settings"]})
        training.session.load_state_dict(state["session"])
        module.load_state_dict(loaded.module.state_dict())
    _go_on_(training, state)
    return training


def _closing(training: Training) -> list[str]:
    if training.session is None:
        return []
    plan = training.session.finish()
    if plan is None:
        return ["nothing was cut"]
    return [
        f"kept: {100 * plan.kept_macs:.1f} % of the MACs, {100 * plan.kept_params:.1f} % of the parameters"
    ]


def _summary(training: Training, progress: Progress) -> list[str]:
    best = f"{progress.best:.4f}" if progress.best is not None else "none"
    return [
        f"epochs: {progress.epoch}, best {training.metric}: {best} (epoch {progress.best_epoch})",
        f"run folder: {training.folder}\nbest: {training.best}\nlast: {training.last}",
    ]
