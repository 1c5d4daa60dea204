"""Classification through the host: its folders of classes, its centre crop, its top-1 and top-5 accuracy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_prune.accuracy.bootstrap import ImageHits
from yolo_prune.accuracy.classes import ClassificationData, ClassifierResult, class_split
from yolo_prune.accuracy.looks import Look, Thing
from yolo_prune.adapters.ultralytics.anatomy import input_channels
from yolo_prune.adapters.ultralytics.class_folders import find_class_folders
from yolo_prune.adapters.ultralytics.evaluate import class_names
from yolo_prune.adapters.ultralytics.exported import ExportedModel
from yolo_prune.adapters.ultralytics.verify import load_drawn, usable_images
from yolo_prune.errors import DataError
from yolo_prune.graph.modes import evaluating
from yolo_prune.imgsz import ImageSize, longer_side, plain_size
from yolo_prune.progress import track


def resolve_classes(data: str | Path, split: str = "val") -> ClassificationData:
    """Find the images of one split, where the host looks for them; one warning lists those that it would leave out.

    Args:
        data: A folder with ``train`` and the split, each with one folder of images per class, or the name of one in
            the host's ``datasets_dir``.
        split: ``train``, ``val`` (``test`` where there is none) or ``test``.

    Raises:
        DataError: The folder, the split or its images are missing, or none of them can be used.
    """
    folder = find_class_folders(data, split)
    root = class_split(folder, split)
    names = dict(enumerate(sorted(each.name for each in (folder / "train").iterdir() if each.is_dir())))
    return ClassificationData(
        folder, split, root, usable_images(class_images(root), None, f"'{root}'").images, names
    )


def class_images(root: Path) -> list[Path]:
    """Return the images below the folders of a split's classes, sorted."""
    from ultralytics.data.utils import IMG_FORMATS

    return sorted(path for path in root.glob("*/**/*.*") if path.suffix[1:].lower() in IMG_FORMATS)


def check_class_count(names: Mapping[int, str], data: ClassificationData) -> None:
    """Check that a classifier has as many classes as there are folders.

    Raises:
        DataError: It has not.
    """
    if len(names) != len(data.names):
        raise DataError(f"the model has {len(names)} classes and {data.folder} has {len(data.names)}.")


def check_colour(module: nn.Module) -> None:
    """Check that a classifier takes colour images: the host reads no others for this task.

    Raises:
        DataError: It takes other images.
    """
    channels = input_channels(module)
    if channels != 3:
        raise DataError(
            f"the classifier takes images of {channels} channel{'s' * (channels != 1)}, and the host reads a "
            "classifier's images in colour, with 3. Prune it with prune_module and your own loop."
        )


def evaluate_classifier(
    module: nn.Module | ExportedModel,
    data: str | Path | ClassificationData,
    *,
    imgsz: ImageSize,
    batch: int = 16,
    device: str = "cpu",
    split: str = "val",
    workers: int = 0,
    names: Mapping[int, str] | None = None,
    exported: Path | None = None,
) -> ClassifierResult:
    """Evaluate a classifier of the host through its own validator: the top-1 of the host's ``val``.

    Args:
        module: A classifier of the host, of which a copy is run, or a file that it exported.
        data: A folder with ``train`` and the split, each with one folder of images per class.
        imgsz: Size of the input, in pixels.
        batch: Images per batch.
        device: The host's ``device``.
        split: ``train``, ``val`` or ``test``.
        workers: Loader processes (the host uses none on a CPU).
        names: Class index -> name, where the module has none or others.
        exported: An .onnx file made from the module, to evaluate in its place.

    Raises:
        DataError: The folder, the split or its images are missing, the classes differ in number, or the host left
            images out.
    """
    from ultralytics import __version__ as host_version

    from yolo_prune.adapters.ultralytics.validator import classification_validator, task_of, validate

    if task_of(module) != "classify":
        raise DataError(f"a '{task_of(module)}' model is not a classifier.")
    resolved = data if isinstance(data, ClassificationData) else resolve_classes(data, split)
    names = class_names(module, names)
    check_class_count(names, resolved)
    if isinstance(module, ExportedModel):
        module.check_input(imgsz)
    else:
        check_colour(module)
    options = {"task": "classify", "data": os.fspath(resolved.folder), "batch": batch}
    options |= {"device": str(device), "split": resolved.split, "workers": workers}
    validator = validate(
        classification_validator(), module, imgsz, names=names, options=options, exported=exported
    )
    best, truth = torch.cat([each[:, 0] for each in validator.pred]), torch.cat(validator.targets)
    if len(truth) < len(resolved.image_files):
        raise DataError(
            f"the host left out {len(resolved.image_files) - len(truth)} of the {len(resolved.image_files)} images "
            f"in {resolved.root}: they are corrupt, or of classes that the model does not know."
        )
    right = {name: (best == index)[truth == index] for index, name in names.items()}
    return ClassifierResult(
        top1=float(validator.metrics.top1),
        top5=float(validator.metrics.top5),
        images=len(truth),
        per_class={name: float(hits.float().mean()) for name, hits in right.items() if len(hits)},
        evaluator=f"the validation of Ultralytics {host_version}",
        sample=ImageHits((best == truth).cpu().numpy()),
    )


def quick_top1(
    data: ClassificationData,
    names: Mapping[int, str],
    *,
    imgsz: ImageSize,
    max_images: int,
    batch: int,
    device: str,
) -> Callable[[nn.Module], float]:
    """Return a function that gives the top-1 accuracy of many modules on the same images, which are loaded once.

    Memory: 12 bytes a pixel, 0.3 GB for 512 images of 224 pixels.

    Args:
        data: A split.
        names: Class index -> name, of the modules.
        imgsz: Size of the input, in pixels.
        max_images: At most so many images, spread evenly over the classes.
        batch: Images per batch.
        device: Where the modules are.
    """
    loaded: list[tuple[Tensor, Tensor]] = []

    def score(module: nn.Module) -> float:
        if not loaded:
            loaded.extend(_labelled(data, names, imgsz, max_images, batch))
        with evaluating(module), torch.inference_mode():
            right = sum(
                int((_probabilities(module(images.to(device))).argmax(1).cpu() == labels).sum())
                for images, labels in loaded
            )
        return right / sum(len(labels) for _, labels in loaded)

    return score


def _probabilities(outputs: Any) -> Tensor:
    """Return the class probabilities among what a classifier returns."""
    found: Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    return found


def look(
    module: nn.Module,
    data: ClassificationData,
    names: Mapping[int, str],
    *,
    imgsz: ImageSize,
    chosen: Sequence[int],
    device: str,
) -> list[Look]:
    """Return the best class of some images beside the right one.

    Args:
        module: A classifier of the host.
        data: A split.
        names: Class index -> name.
        imgsz: Size of the input, in pixels.
        chosen: Places of the images in the host's order.
        device: Where the module is.
    """
    found = []
    with evaluating(module), torch.inference_mode():
        for file, sample in _samples(data, names, imgsz, lambda count: chosen):
            likely = _probabilities(module(sample["img"][None].to(device)))[0].float().cpu()
            best = int(likely.argmax())
            there = Thing(names[int(sample["cls"])])
            found.append(Look(file, (there,), (Thing(names[best], float(likely[best])),)))
    return found


def _labelled(
    data: ClassificationData, names: Mapping[int, str], imgsz: ImageSize, max_images: int, batch: int
) -> list[tuple[Tensor, Tensor]]:
    """Load evenly spread images of a split with the class indices that the host gives them."""

    def spread(count: int) -> list[int]:
        chosen: list[int] = np.linspace(0, count - 1, min(count, max_images)).round().astype(int).tolist()
        return chosen

    samples = [sample for _, sample in _samples(data, names, imgsz, spread)]
    images = torch.stack([sample["img"] for sample in samples])
    labels = torch.tensor([sample["cls"] for sample in samples])
    return list(zip(torch.split(images, batch), torch.split(labels, batch), strict=True))


def _samples(
    data: ClassificationData,
    names: Mapping[int, str],
    imgsz: ImageSize,
    choose: Callable[[int], Sequence[int]],
) -> list[tuple[Path, dict[str, Any]]]:
    """Load images of a split as the host's validation does.

    Args:
        data: A split.
        names: Class index -> name.
        imgsz: Size of the input, in pixels.
        choose: Given the number of images, returns the places of those to load.
    """
    from yolo_prune.adapters.ultralytics.undisturbed import undisturbed
    from yolo_prune.adapters.ultralytics.validator import classification_validator, fix_shape_

    options = {"task": "classify", "imgsz": longer_side(imgsz), "split": data.split, "mode": "val"}
    with undisturbed(), tempfile.TemporaryDirectory() as folder:
        validator = classification_validator()(save_dir=Path(folder), args=options)
        validator.names = dict(names)
        fix_shape_(validator, imgsz)
        dataset = validator.build_dataset(os.fspath(data.root))
        chosen = track(choose(len(dataset)), "Loading images")
        return [(Path(dataset.samples[index][0]), dataset[index]) for index in chosen]


def class_calibration_batches(
    data: ClassificationData,
    imgsz: ImageSize,
    *,
    images: int,
    batch: int = 16,
    seed: int = 0,
    files: Sequence[Path] | None = None,
) -> list[Tensor]:
    """Load training images for recovery, cropped as the host's validation does, never augmented.

    Args:
        data: A split of the data set; the training images are taken.
        imgsz: Size of the input, in pixels.
        images: How many images, drawn at random without repetition; all of them where there are fewer.
        batch: Images per tensor; the last may hold fewer.
        seed: Seed of the draw.
        files: The images to draw from, where the host has chosen them already.

    Returns:
        float32 tensors (batch, 3, height, width) in [0, 1], RGB, on the CPU.

    Raises:
        DataError: The images are missing, or none can be read.
    """
    from ultralytics.data.augment import classify_transforms

    prepare = classify_transforms(size=plain_size(imgsz))
    given = resolve_classes(data.folder, "train").image_files if files is None else files
    loaded = load_drawn(given, images, seed, lambda file: cropped(file, prepare))
    return list(torch.split(torch.stack(loaded), batch))


def cropped(file: Path, prepare: Callable[[Any], Tensor]) -> Tensor | None:
    """Return one image as the host's validation sees it, None when it cannot be decoded."""
    from PIL import Image, UnidentifiedImageError
    from ultralytics.utils.patches import imread

    try:
        pixels = imread(os.fspath(file))
    except (OSError, UnidentifiedImageError):
        return None
    return None if pixels is None else prepare(Image.fromarray(np.ascontiguousarray(pixels[..., ::-1])))
