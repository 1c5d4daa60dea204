"""Folders of folders of images: one folder a class, and how a classifier did on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.accuracy.bootstrap import ImageHits
from yolo_prune.accuracy.number import Accuracy
from yolo_prune.errors import DataError
from yolo_prune.runtimes.images import IMAGE_ENDINGS


@dataclass(frozen=True)
class ClassifierResult:
    """What one evaluation of a classifier found.

    Attributes:
        top1: Share of the images whose best class is the right one, in [0, 1].
        top5: Share of the images whose best five classes hold the right one, in [0, 1].
        images: Number of images.
        per_class: Top-1 accuracy on the images of each class that has any, in [0, 1].
        evaluator: What computed it.
        sample: Whether it was right on each image.
    """

    top1: float
    top5: float
    images: int
    per_class: dict[str, float]
    evaluator: str
    sample: ImageHits | None = field(default=None, repr=False, compare=False)

    @property
    def scores(self) -> dict[str, float | None]:
        """Accuracy by the names that a row of the report has for it."""
        return {"top1": self.top1, "top5": self.top5}

    @property
    def host_scores(self) -> dict[str, float]:
        """Nothing: the host's own numbers are these."""
        return {}

    @property
    def of_files(self) -> Accuracy:
        """Top-1."""
        return Accuracy("top1", self.top1, self.images, self.evaluator, self.sample)

    @property
    def ap_of(self) -> None:
        """A classifier has no AP."""
        return

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing is left out."""
        return ()

    @property
    def boxes(self) -> None:
        """A classifier's images have none."""
        return


@dataclass(frozen=True)
class ClassificationData:
    """One split of a folder of folders of images.

    Attributes:
        folder: The data set.
        split: Name of the split: ``train``, ``val`` or ``test``.
        root: The split's own folder.
        image_files: Its images, sorted.
        names: Class index -> name of its folder, in the host's order.
    """

    folder: Path
    split: str
    root: Path
    image_files: tuple[Path, ...] = field(repr=False)
    names: dict[int, str]

    @property
    def labels(self) -> list[int]:
        """Index of the class of every image.

        Raises:
            DataError: An image lies in the folder of a class that there are no training images of.
        """
        index = {name: number for number, name in self.names.items()}
        found = [file.relative_to(self.root).parts[0] for file in self.image_files]
        unknown = sorted(set(found) - set(index))
        if unknown:
            raise DataError(f"{self.root} has the class '{unknown[0]}', and {self.folder / 'train'} has not.")
        return [index[name] for name in found]

    def class_sizes(self) -> dict[str, int]:
        """Return the number of images in each class's folder."""
        sizes: dict[str, int] = {}
        for file in self.image_files:
            name = file.relative_to(self.root).parts[0]
            sizes[name] = sizes.get(name, 0) + 1
        return sizes

    def part(self, count: int) -> ClassificationData:
        """Return at most ``count`` images, spread over the classes."""
        return replace(self, image_files=tuple(self.spread(count)))

    def spread(self, count: int) -> list[Path]:
        """Return at most ``count`` images, spread over the classes."""
        return list(self.image_files[:: max(len(self.image_files) // count, 1)][:count])


def read_class_folders(data: str | Path, split: str = "val") -> ClassificationData:
    """Find the images of one split of a folder; nothing is decoded, downloaded or left out.

    Args:
        data: A folder with ``train`` and the split, each with one folder of images per class.
        split: ``train``, ``val`` (``test`` where there is none) or ``test``.

    Raises:
        DataError: The folder, ``train``, the split or its images are missing.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise DataError(
            f"the folder {folder} does not exist; a classifier's data is a folder of folders of images."
        )
    root = class_split(folder, split)
    files = sorted(path for path in root.glob("*/**/*.*") if path.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise DataError(f"no images in {root}.")
    names = dict(enumerate(sorted(each.name for each in (folder / "train").iterdir() if each.is_dir())))
    return ClassificationData(folder.resolve(), split, root, tuple(files), names)


def score_classes(
    scores: NDArray[Any], truth: NDArray[Any], names: Mapping[int, str], evaluator: str
) -> ClassifierResult:
    """Return top-1 and top-5 accuracy.

    Args:
        scores: Score of every class, larger is likelier, shape (images, classes).
        truth: Index of the right class of every image, shape (images,).
        names: Class index -> name.
        evaluator: What computed the scores, in words.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    right = best[:, 0] == truth
    per_class = {name: right[truth == index] for index, name in names.items()}
    return ClassifierResult(
        top1=float(right.mean()),
        top5=float((best == truth[:, None]).any(axis=1).mean()),
        images=len(truth),
        per_class={name: float(hits.mean()) for name, hits in per_class.items() if len(hits)},
        evaluator=evaluator,
        sample=ImageHits(right),
    )


def class_split(folder: Path, split: str) -> Path:
    """Return the folder that the host takes for a split of a classification set.

    Like the host's, validation is on ``test`` where there is no ``val``, as in CIFAR and MNIST.

    Raises:
        DataError: There is none, or no ``train`` beside it.
    """
    aliases = ("val", "validation", "valid", "test") if split == "val" else (split,)
    root = next((folder / name for name in aliases if (folder / name).is_dir()), None)
    if root is None or not (folder / "train").is_dir():
        raise DataError(
            f"{folder} needs the folders 'train' and '{split}', with one folder of images per class."
        )
    return root
