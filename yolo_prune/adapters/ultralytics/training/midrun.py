"""What a cut in the middle of a training takes from the running trainer: average, frozen layers, size and images."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.ultralytics.load import load_detector
from yolo_prune.criteria.calibration import Labels
from yolo_prune.imgsz import ImageSize, is_square, with_longer_side

_BATCH = 16  # images that are measured together, where memory allows


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


def best_as_saved(best: Path, trust: bool) -> nn.Module:
    """Return a float32 copy of the model that a training would have as its result, in evaluation mode.

    Args:
        best: Its file.
        trust: Load classes of the user's own.
    """
    return average_as_saved(load_detector(best, trust=trust).module)


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
    loader = trainer.train_loader
    batch = min(_BATCH, int(getattr(loader, "batch_size", None) or trainer.batch_size))
    options = _drawn_from(trainer, count, seed) | {"batch": batch}
    if trainer.args.task != "classify":
        from yolo_prune.adapters.ultralytics.data import calibration_batches

        return calibration_batches(_yaml_of(trainer), size_of(trainer), **options)
    from yolo_prune.adapters.ultralytics.classify import class_calibration_batches

    return class_calibration_batches(_folders_of(trainer), size_of(trainer), **options)


def labels_in(trainer: Any, count: int, seed: int) -> list[Labels]:
    """Return what is in the images that :func:`calibration_images` loads; arguments as there."""
    from yolo_prune.adapters.ultralytics.data import read_data_yaml
    from yolo_prune.adapters.ultralytics.labels import calibration_labels

    task, options = trainer.args.task, _drawn_from(trainer, count, seed)
    source = _folders_of(trainer) if task == "classify" else read_data_yaml(_yaml_of(trainer))
    return calibration_labels(source, size_of(trainer), task=task, **options)


def _drawn_from(trainer: Any, count: int, seed: int) -> dict[str, Any]:
    return {"images": count, "seed": seed, "files": files_of(trainer.train_loader.dataset)}


def _yaml_of(trainer: Any) -> Any:
    return trainer.data.get("yaml_file") or trainer.args.data


def _folders_of(trainer: Any) -> Any:
    from yolo_prune.adapters.ultralytics.classify import resolve_classes

    return resolve_classes(Path(trainer.data["train"]).parent, "train")


def files_of(dataset: Any) -> list[Path] | None:
    """Return the images that a data set of the host has kept, in the order of our lists; None when it is none."""
    if files := getattr(dataset, "im_files", None):
        return [Path(file) for file in sorted(files)]  # with rect=True they are sorted by shape
    samples = getattr(dataset, "samples", None)
    return sorted(Path(sample[0]) for sample in samples) if isinstance(samples, list) and samples else None
