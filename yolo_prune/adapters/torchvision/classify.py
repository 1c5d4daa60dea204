"""How classifiers of this host are measured: top-1 and top-5 accuracy on folders of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolo_prune.accuracy.classes import (
    ClassificationData,
    ClassifierResult,
    read_class_folders,
    score_classes,
)
from yolo_prune.accuracy.looks import Look, Thing
from yolo_prune.adapters.torchvision.framing import drawn, load_cropped
from yolo_prune.criteria.calibration import Labels
from yolo_prune.graph.modes import evaluating
from yolo_prune.imgsz import ImageSize
from yolo_prune.progress import track


@dataclass
class ClassTask:
    """Classifiers, scored by top-1 accuracy."""

    split: ClassificationData
    batch: int
    device: str
    evaluator: str
    metric: str = "top1"
    counted: str = "images"
    quick_images: int = 512

    def check_training_images(self) -> None:
        """Raise DataError when there are no training images."""
        read_class_folders(self.split.folder, "train")

    def evaluate(self, module: nn.Module, imgsz: ImageSize, exported: Path | None = None) -> ClassifierResult:
        """Return top-1 and top-5 accuracy."""
        files = self.split.image_files
        starts = track(self._starts(len(files)), "Evaluating")
        batches = (load_cropped(files[at : at + self.batch], imgsz) for at in starts)
        scores = self._scores(module, batches)
        return score_classes(scores, np.array(self.split.labels), self.split.names, self.evaluator)

    def scorer(self, imgsz: ImageSize) -> Callable[[nn.Module], float]:
        """Return a function that gives top-1 accuracy on some images of ``val``, which are loaded once."""
        val = read_class_folders(self.split.folder, "val")
        count = min(len(val.image_files), self.quick_images)
        chosen = np.linspace(0, len(val.image_files) - 1, count).round().astype(int).tolist()
        truth, held = np.array(val.labels)[chosen], list[Tensor]()

        def score(module: nn.Module) -> float:
            if not held:
                files = [val.image_files[index] for index in chosen]
                held.extend(load_cropped(files[at : at + self.batch], imgsz) for at in self._starts(count))
            return float((self._scores(module, iter(held)).argmax(1) == truth).mean())

        return score

    def calibration_batches(self, imgsz: ImageSize, images: int, seed: int) -> list[Tensor]:
        """Load training images, cropped at the centre."""
        files = drawn(read_class_folders(self.split.folder, "train").image_files, images, seed)
        return list(torch.split(load_cropped(files, imgsz), self.batch))

    def calibration_labels(self, imgsz: ImageSize, images: int, seed: int) -> list[Labels]:
        """Return the class of each of these images."""
        train = read_class_folders(self.split.folder, "train")
        index = dict(zip(train.image_files, train.labels, strict=True))
        return [Labels([index[file]]) for file in drawn(train.image_files, images, seed)]

    def image_files(self, count: int) -> list[Path]:
        """Return images spread over the classes of the split."""
        return self.split.spread(count)

    def look(self, module: nn.Module, imgsz: ImageSize, chosen: Sequence[int]) -> list[Look]:
        """Return the best class of some images, by their places among the split's."""
        files, names = [self.split.image_files[place] for place in chosen], self.split.names
        scores = torch.from_numpy(self._scores(module, iter([load_cropped(files, imgsz)]))).softmax(1)
        labels = [self.split.labels[place] for place in chosen]
        best, likely = scores.argmax(1).tolist(), scores.amax(1).tolist()
        return [
            Look(file, (Thing(names[label]),), (Thing(names[found], score),))
            for file, label, found, score in zip(files, labels, best, likely, strict=True)
        ]

    def class_sizes(self) -> dict[str, int]:
        """Return the number of images in each class's folder."""
        return self.split.class_sizes()

    def _starts(self, count: int) -> Sequence[int]:
        return range(0, count, self.batch)

    def _scores(self, module: nn.Module, batches: Iterator[Tensor]) -> NDArray[np.float32]:
        with evaluating(module), torch.inference_mode():
            found = [module(images.to(self.device)).float().cpu() for images in batches]
        scores: NDArray[np.float32] = torch.cat(found).numpy()
        return scores
