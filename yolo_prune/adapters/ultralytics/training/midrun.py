"""The cut in the middle of a training: plan it on the averaged weights, then put it under the running trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.rules import block_rules
from yolo_prune.adapters.ultralytics.saliency import detection_projection
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.optimizer import follow_cut
from yolo_prune.cut.proven import Anatomy, Traced
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Lineage, Widths
from yolo_prune.device import release_memory
from yolo_prune.errors import YoloPruneError
from yolo_prune.imgsz import ImageSize, is_square, with_longer_side
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.recover.steps import Recipe, cut_in_steps
from yolo_prune.train import RunState

_Value = TypeVar("_Value")
_BATCH = 16  # images that are measured together, where memory allows


@dataclass(frozen=True)
class Recovered:
    """A cut model: everything that another process needs to have the same one.

    Attributes:
        plan: From the model before this cut.
        weights: State of the cut and folded model, on the CPU.
    """

    plan: PrunePlan
    weights: dict[str, Tensor]


def average_as_saved(average: nn.Module) -> nn.Module:
    """Return a float32 copy of the averaged weights, rounded as the host's checkpoints are.

    A run that is killed while it is cut starts the cut again from its last checkpoint; rounded, both see the same
    model and make the same plan.
    """
    copy: Any = deepcopy(average).float().eval()
    if hasattr(copy, "criterion"):
        copy.criterion = None
    with torch.no_grad():
        for tensor in copy.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.nan_to_num(tensor.half()).to(tensor.dtype))
    return copy  # type: ignore[no-any-return]


def frozen_modules(
    frozen_prefixes: Sequence[str], keep_layers: Sequence[str], module: nn.Module
) -> tuple[str, ...]:
    """Return the modules whose channels stay: the user's, and those that the host was told not to train.

    Args:
        frozen_prefixes: The host's own list, such as ``model.0.`` and ``.dfl``.
        keep_layers: Names and patterns by the user.
        module: The model.
    """
    names = {name for name, _ in module.named_modules()}
    held = [prefix.rstrip(".") for prefix in frozen_prefixes if prefix.startswith("model.")]
    return (*keep_layers, *(name for name in held if name in names))


def share_of_parent(settings: InRunSettings, state: RunState) -> float:
    """Return what the budget leaves of the model that the run began with, as a share of its MACs or parameters."""
    kind, value = settings.budget or ("keep_macs", 1.0)
    return value / state.gmacs if kind == "gmacs" else value


def allowed_widths(settings: InRunSettings, state: RunState) -> tuple[Widths, Lineage | None]:
    """Return which widths are allowed, and after a cut how wide layers were when the run began."""
    widths = Widths(settings.round_to, settings.min_width, settings.min_keep)
    lineage = Lineage(state.widths, PrunePlan.from_json(state.plan)) if state.plan and state.widths else None
    return widths.for_budget(share_of_parent(settings, state)), lineage


def recover(
    parent: nn.Module,
    anatomy: Anatomy,
    budget: Budget,
    settings: InRunSettings,
    criterion: str,
    batches: Sequence[Tensor],
    *,
    imgsz: ImageSize,
    classes: int,
    seed: int,
    widths: Widths | None = None,
    lineage: Lineage | None = None,
) -> Recovered:
    """Cut a copy of the parent to a budget and fold.

    Args:
        parent: The model to cut; untouched.
        anatomy: How to run it.
        budget: How much may stay.
        settings: How.
        criterion: What a channel is worth, no longer "auto".
        batches: Calibration images.
        imgsz: Size of the images, pixels.
        classes: Number of classes.
        seed: Of pixels and projections.
        widths: Allowed widths; None: those of the settings.
        lineage: Earlier cuts of the run; None: there are none.

    Raises:
        BudgetError: The budget cannot be met.
        EquivalenceError: No exact cut was found.
    """
    recipe = Recipe(
        criterion=criterion,
        steps=max(settings.steps // settings.cuts, 1),
        widths=widths or Widths(settings.round_to, settings.min_width, settings.min_keep),
        fold=settings.fold,
        seed=seed,
    )
    release_memory()  # what the training keeps for its next batch
    projection = detection_projection(imgsz, seed, classes=classes)
    calibration = Calibration(batches, projection, seed=seed)
    cut = cut_in_steps(Traced.of(parent, anatomy), budget, recipe, calibration, lineage=lineage)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in cut.module.state_dict().items()}
    return Recovered(cut.plan, weights)


def from_first_process(make: Callable[[], _Value]) -> _Value:
    """Make a value in the first process of a distributed run and hand it to all; alone, just make it.

    Args:
        make: Called in the first process only; what it returns must pickle.

    Raises:
        YoloPruneError: In the other processes, when ``make`` raised in the first.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return make()
    box: list[Any] = [None, ""]
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = make()
        except BaseException as error:
            box[1] = str(error) or type(error).__name__
            torch.distributed.broadcast_object_list(box, 0)
            raise
    torch.distributed.broadcast_object_list(box, 0)
    if box[1]:
        raise YoloPruneError(f"the first process failed: {box[1]}")
    value: _Value = box[0]
    return value


def swap_(module: nn.Module, optimizer: torch.optim.Optimizer, recovered: Recovered) -> None:
    """Cut the model that is trained, in place, and give its optimizer the new parameters.

    Args:
        module: The model without wrappers.
        optimizer: Trains it.
        recovered: The plan and the weights to go on from.
    """
    cut_(module, recovered.plan, rules=block_rules())
    module.load_state_dict(recovered.weights)
    follow_cut(optimizer, module)


def size_of(trainer: Any) -> ImageSize:
    """Return the image size that MACs count at and that the cut is made for, pixels: a square unless one was asked for.

    The side is the host's, which rounds it; it trains on squares of the longer one.
    """
    asked: ImageSize = trainer.asked_size
    side = int(trainer.args.imgsz)
    return side if is_square(asked) else with_longer_side(asked, side, trainer.stride)


def calibration_images(trainer: Any, count: int, seed: int) -> list[Tensor]:
    """Return batches of the images that are trained on as validation would see them, on the CPU.

    A batch holds no more images than the training's own, beside whose memory it is measured.

    Args:
        trainer: A trainer of the host with its data.
        count: How many images.
        seed: Of the choice.
    """
    size, loader = size_of(trainer), trainer.train_loader
    batch = min(_BATCH, int(getattr(loader, "batch_size", None) or trainer.batch_size))
    options: dict[str, Any] = {
        "images": count,
        "batch": batch,
        "seed": seed,
        "files": files_of(loader.dataset),
    }
    if trainer.args.task != "classify":
        from yolo_prune.adapters.ultralytics.data import calibration_batches

        return calibration_batches(trainer.data.get("yaml_file") or trainer.args.data, size, **options)
    from yolo_prune.adapters.ultralytics.classify import class_calibration_batches, resolve_classes

    folders = resolve_classes(Path(trainer.data["train"]).parent, "train")
    return class_calibration_batches(folders, size, **options)


def files_of(dataset: Any) -> list[Path] | None:
    """Return the images that a data set of the host has kept, in the order of our lists; None when it is none."""
    if files := getattr(dataset, "im_files", None):
        return [Path(file) for file in sorted(files)]  # with rect=True they are sorted by shape
    samples = getattr(dataset, "samples", None)
    return sorted(Path(sample[0]) for sample in samples) if isinstance(samples, list) and samples else None
