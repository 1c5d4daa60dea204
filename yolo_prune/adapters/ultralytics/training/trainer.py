"""A trainer class that trains the module it is handed, where the host's own would build another from yaml.

The host's training loop, seen from here (the places where we step in are starred)::

    Trainer(overrides)                     args, folders, data
    train()
        setup_model() -> get_model() *     the module itself instead of a copy built from yaml
        optimizer, EMA, loaders, resume
        "on_train_start" *                 count check, EMA horizon, distillation, epoch 0 becomes a candidate
        each epoch: batches, validate() *, save_model() *
        final_eval() *                     count check of what was saved
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.closeness import DistillationWeights
from yolo_prune.adapters.ultralytics.load import check_run_files
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.adapters.ultralytics.save import marked
from yolo_prune.adapters.ultralytics.training.distill import distil_
from yolo_prune.adapters.ultralytics.training.writing import completed
from yolo_prune.adapters.ultralytics.undisturbed import training_options
from yolo_prune.cost import count_parameters
from yolo_prune.errors import CheckpointError, ConfigError, DataError
from yolo_prune.imgsz import ImageSize, is_square, read_size, size_text
from yolo_prune.progress import LOGGER
from yolo_prune.train.midcut import is_distributed
from yolo_prune.train.retrained import check_still_cut


@dataclass(frozen=True)
class TrainSettings:
    """What our trainer needs beyond the host's own arguments.

    Attributes:
        meta: Plain dictionary stored under "yolo_prune" in every checkpoint.
        teacher: The module to imitate, or None.
        weights: How much the imitation counts.
        judge_start: Evaluate the module before the first step and keep it as best until something beats it.
        ema_steps: Optimizer steps after which the averaging of the weights comes near its full length (the
            host's constant is 2000, longer than many a retraining); None keeps the host's.
        ema_decay: The averaging's full length, as a decay per step.
        keep_statistics_from: From this fitness of the start on, BatchNorm keeps its running statistics and uses
            them while training, as a deployed model does (scales and biases are trained all the same), so a
            model that works is not disturbed; None never does that.
        threads: CPU threads of PyTorch while training; None leaves what the host chose.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    teacher: nn.Module | None = None
    weights: DistillationWeights = field(default_factory=DistillationWeights)
    judge_start: bool = True
    ema_steps: float | None = None
    ema_decay: float = 0.9999
    keep_statistics_from: float | None = None
    threads: int | None = None


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that is trained, without its wrappers: DDP, compiler, the host's distillation."""
    for name in ("_orig_mod", "module", "_orig_mod", "student_model"):
        module = getattr(module, name, module)
    return module


def adopt(module: nn.Module, classes: int) -> nn.Module:
    """Return a trainable float32 copy of ``module``.

    Args:
        module: A pruned or stock model of the host.
        classes: Number of classes of the data.

    Raises:
        DataError: The model tells another number of classes apart.
    """
    expected = class_count(module)
    if expected is not None and expected != classes:
        raise DataError(
            f"the model tells {expected} classes apart, the data has {classes}. "
            "Train on data with the model's own classes, or train the parent on the new data, then prune it."
        )
    copy = deepcopy(module).float().requires_grad_(True)
    if hasattr(copy, "criterion"):
        setattr(copy, "criterion", None)  # noqa: B010 - a plain attribute, no submodule
    return copy


def class_count(module: nn.Module) -> int | None:
    """Return how many classes the last layer of a host's model tells apart, or None when it does not say."""
    layers: Any = module.model
    head = layers[-1]
    linear = getattr(head, "linear", None)
    if isinstance(linear, nn.Linear):
        return linear.out_features
    classes = getattr(head, "nc", None)
    return classes if isinstance(classes, int) else None


def plain(number: Any) -> float | None:
    """Return a number of any library as a Python number that a restricted loader reads; None stays None."""
    if number is None or isinstance(number, int):
        return number
    return float(number)


@contextmanager
def as_saved(module: nn.Module) -> Iterator[None]:
    """Round the tensors of ``module`` to float16 for a while, for that is how the host writes checkpoints.

    A fitness measured inside belongs to the file, not to a more precise model that nobody gets.
    """
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    originals = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.copy_(torch.nan_to_num(tensor.half()).to(tensor.dtype))
        yield
    finally:
        with torch.no_grad():  # on a GPU, older hosts validate in 16 bits: then these are other tensors
            for name, tensor in module.state_dict().items():
                if name in originals:
                    tensor.copy_(originals[name])


class _StaysCut:
    """The overrides, mixed in before a trainer class of the host (which supplies everything else)."""

    settings = TrainSettings()
    params_before: int | None = None
    start_fitness: float | None = None
    resumed: Mapping[str, Any] = MappingProxyType({})
    asked_size: ImageSize | None = None

    def get_model(self: Any, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> Any:
        """Return a copy of ``weights`` itself; only without weights is a model built from ``cfg``."""
        if weights is None:
            return super().get_model(cfg=cfg, weights=None, verbose=verbose)  # type: ignore[misc]
        self.params_before = count_parameters(unwrap(weights))
        return adopt(weights, self.data["nc"])

    def setup_model(self: Any) -> Any:
        """Set up the model like the host; note how many parameters were handed over, and the size asked for."""
        if isinstance(self.model, nn.Module):
            self.params_before = count_parameters(unwrap(self.model))
        checkpoint = super().setup_model()  # type: ignore[misc]
        if self.resume and checkpoint:
            self.resumed = dict(checkpoint.get(METADATA_KEY) or {})
            self.start_fitness = (self.resumed.get("retrain") or {}).get("start_fitness")
            trust = bool(own_classes(unwrap(self.model)))
            check_run_files(self.last, checkpoint, trust=trust)  # the host reads them at the end
        if self.asked_size is None:  # the host is about to make a square of it
            self.asked_size = read_size(self.resumed.get("imgsz") or self.args.imgsz)
            if not is_square(self.asked_size):
                LOGGER.info(
                    "the host trains on squares of the longer side of %s px", size_text(self.asked_size)
                )
        return checkpoint

    def train(self: Any) -> Any:
        """Train like the host; what our options change in the process is put back."""
        with training_options(self.settings.threads):
            return super().train()  # type: ignore[misc]

    def run_callbacks(self: Any, event: str) -> None:
        """Run the host's callbacks of ``event``; our own part of the start of training comes first."""
        if event == "on_train_start":
            self.begin_retraining()
        super().run_callbacks(event)  # type: ignore[misc]

    def begin_retraining(self: Any) -> None:
        """Check the size, set the EMA's horizon, attach the teacher and judge the model as it is."""
        settings = self.settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.check_sizes()
        if settings.ema_steps is not None:
            decay, steps = settings.ema_decay, settings.ema_steps
            self.ema.decay = lambda updates: decay * (1 - math.exp(-updates / steps))
        if settings.judge_start and not self.resume:
            self.judge_start()
        if settings.teacher is not None:
            try:
                distil_(unwrap(self.model), settings.teacher.to(self.device), settings.weights)
            except ConfigError as error:
                LOGGER.warning("%s", error)

    def _model_train(self: Any) -> None:
        """Switch to training like the host; the statistics of BatchNorm may stay those of evaluation."""
        super()._model_train()  # type: ignore[misc]
        threshold, start = self.settings.keep_statistics_from, self.start_fitness
        if threshold is not None and start is not None and start >= threshold:
            for layer in unwrap(self.model).modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def judge_start(self: Any) -> None:
        """Make the module as handed over the first candidate for best.pt."""
        plots, self.epoch = self.validator.args.plots, -1
        self.loss_items, self.loss = self.name_losses(), torch.zeros((), device=self.device)
        self.metrics, self.fitness = self.validate()
        self.validator.args.plots = plots
        self.start_fitness = self.from_first_rank(self.fitness)
        if self.fitness is not None:  # None on the other ranks of a DDP run
            LOGGER.info("before retraining: fitness %.4f", self.fitness)
            self.save_model()
            self.last.unlink(missing_ok=True)  # nothing was trained: there is nothing to resume from

    def from_first_rank(self: Any, value: float | None) -> float | None:
        """Return the first process's ``value``; without DDP that is ``value`` itself."""
        values = [value]
        if is_distributed():
            torch.distributed.broadcast_object_list(values, 0)
        return values[0]

    def name_losses(self: Any) -> Any:
        """Return a zero for each loss of validation, which the host expects before it has seen a batch."""
        loader, model = self.test_loader, self.ema.ema
        batch = self.preprocess_batch(loader.collate_fn([loader.dataset[0]]))
        with torch.no_grad():
            _, items = model.loss(batch, model(batch["img"]))
        if not isinstance(items, dict):  # one tensor in 8.4.0
            return torch.zeros_like(items)
        return {name: torch.zeros_like(value) for name, value in items.items()}

    def validate(self: Any) -> Any:
        """Validate the weights as they will be saved."""
        with as_saved(self.ema.ema):
            return super().validate()  # type: ignore[misc]

    def save_model(self: Any) -> bool:
        """Write last.pt and best.pt like the host, but whole, with our metadata and only if still cut."""
        last, best = self.last, self.best
        with TemporaryDirectory(prefix=".save-", dir=self.wdir) as folder:
            self.last, self.best = Path(folder, last.name), Path(folder, best.name)
            try:
                with completed(self.stamp) as checkpoints:
                    saved = super().save_model()  # type: ignore[misc]
                written = {file: at for file, at in ((self.last, last), (self.best, best)) if file.is_file()}
                if written and not checkpoints:
                    raise CheckpointError(
                        f"the host wrote '{last}' by other means than torch.save, so that it cannot say what was cut. "
                        "Train without the class that overrides save_model."
                    )
                for file, target in written.items():
                    file.replace(target)
            finally:
                self.last, self.best = last, best
        return bool(saved)

    def stamp(self: Any, checkpoint: dict[str, Any]) -> None:
        """Put our metadata into a checkpoint that the host is about to write."""
        module = checkpoint.get("ema") or checkpoint["model"]
        self.check_size(module)
        history = {"epoch": self.epoch + 1, "fitness": self.fitness, "start_fitness": self.start_fitness}
        meta = self.settings.meta or self.resumed
        retrain = {key: plain(value) for key, value in history.items()}
        checkpoint[METADATA_KEY] = marked({**meta, "retrain": retrain}, module)

    def check_size(self: Any, module: nn.Module) -> None:
        """Compare ``module`` with what was handed over; raise RebuiltError when they differ."""
        if self.params_before is not None:
            check_still_cut(self.params_before, count_parameters(unwrap(module)))

    def check_sizes(self: Any) -> None:
        """Check the model that is trained and its average."""
        self.check_size(self.model)
        if self.ema is not None:
            self.check_size(self.ema.ema)

    def final_eval(self: Any) -> None:
        """Evaluate like the host; the model, its average and both files must still be cut."""
        self.check_sizes()
        super().final_eval()  # type: ignore[misc]
        for path in (self.best, self.last):
            if path.is_file():
                self.check_size(torch.load(path, map_location="cpu", weights_only=False)["model"])


def prune_trainer(base: type, settings: TrainSettings | None = None) -> type:
    """Return a subclass of the host's trainer ``base`` that keeps a pruned model pruned.

    Use it as ``YOLO("pruned.pt").train(trainer=prune_trainer(DetectionTrainer), data=...)``, or through
    ``retrain``. The class carries the settings itself, so the host's DDP (which pickles the class) hands them
    to its processes too.

    Args:
        base: A trainer class of the host: ``DetectionTrainer``, ``SegmentationTrainer``, ``PoseTrainer``, ...
        settings: Metadata, teacher and so on; None for the defaults.
    """
    # Loggers of the host attach only to classes with "Trainer" in their names.
    return type(f"Pruned{base.__name__}", (_StaysCut, base), {"settings": settings or TrainSettings()})
