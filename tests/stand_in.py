"""A host, a task and results that are made up: a run on them takes a second, and says what it asked for and when."""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolo_prune.adapters.stored import LoadedModel
from yolo_prune.criteria.calibration import Calibration, Labels
from yolo_prune.cut.proven import Anatomy
from yolo_prune.errors import CheckpointError
from yolo_prune.files import replacing, write_text
from yolo_prune.imgsz import height_width
from yolo_prune.options.host_keys import NO_HOST
from yolo_prune.train.retrained import RetrainResult

SCORES = {"parent": 0.5, "pruned": 0.25, "retrained": 0.4375, "int8": 0.375}
ONE_PIXEL_LESS = 1 / 1024  # what a pixel of the longer side is worth
CLASSES = {0: "cat", 1: "dog", 2: "ox"}


class Tiny(nn.Module):
    """Three convolutions, and the role that its file gave it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = nn.Conv2d(width, 4, 1)
        self.role = "parent"

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


@dataclass(frozen=True)
class Weighted:
    """A sample of images: the accuracy of a weighting is the mean of what was right."""

    right: tuple[float, ...]

    @property
    def images(self) -> int:
        return len(self.right)

    def accuracy(self, weights):
        return weights @ np.array(self.right) / np.maximum(weights.sum(1), 1)


@dataclass(frozen=True)
class MadeUp:
    """The result of an evaluation."""

    scores: dict[str, float | None]
    per_class: dict[str, float]
    images: int = 8
    host_scores: dict[str, float] = field(default_factory=dict)
    boxes: int | None = 21
    ap_of: str | None = "boxes"
    notes: tuple[str, ...] = ()
    sample: Any = None
    evaluator: str = "an evaluator that makes numbers up"


class Diary:
    """What was asked for, in order, with the files of the run folder at that time; it can fail at any entry."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.files: dict[str, set[str]] = {}
        self.root: Path | None = None
        self.failing: dict[str, BaseException] = {}

    def note(self, entry: str) -> None:
        self.entries.append(entry)
        if self.root is not None and self.root.is_dir():
            found = (path for path in self.root.rglob("*") if path.is_file())
            self.files.setdefault(entry, {path.relative_to(self.root).as_posix() for path in found})
        if entry in self.failing:
            raise self.failing.pop(entry)

    def count(self, *beginnings: str) -> int:
        return sum(entry.startswith(beginnings) for entry in self.entries)


class StandInSplit:
    """Images that are there in name alone."""

    def part(self, count):
        return f"{count} images"


class StandInTask:
    """A task of made-up scores."""

    metric, counted, device = "ap", "boxes", "cpu"
    split = StandInSplit()

    def __init__(self, diary: Diary) -> None:
        self.diary = diary
        self.changes: dict[str, dict[str, Any]] = {}
        self.scores = dict(SCORES)

    def check_training_images(self) -> None:
        self.diary.note("check the training images")

    def evaluate(self, module, imgsz, exported=None):
        role = "int8" if exported else module.role
        self.diary.note(f"evaluate {role} at {imgsz}")
        missing = 64 - max(height_width(imgsz))
        score = self.scores[role] - missing * ONE_PIXEL_LESS
        values = {self.metric: score} if self.metric == "top1" else {"ap": score, "ap50": score + 0.25}
        per_class = {name: score - index / 64 for index, name in CLASSES.items()}
        return replace(MadeUp(values, per_class), **self.changes.get(role, {}))

    def scorer(self, imgsz):
        self.diary.note("open the scorer")

        def score(module):
            self.diary.note("score")
            return 0.5 + module.body[0].out_channels / 64

        return score

    def calibration_batches(self, imgsz, images, seed):
        self.diary.note("read calibration images")
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(min(images, 16), 3, *height_width(imgsz), generator=generator)]

    def calibration_labels(self, imgsz, images, seed):
        self.diary.note("read labels")
        return [Labels([0], [[0.1, 0.1, 0.6, 0.6]]) for _ in range(min(images, 16))]

    def image_files(self, count):
        self.diary.note("find images to time")
        return [Path("a.jpg")]

    def class_sizes(self):
        return {"cat": 11, "dog": 7}


class StandIn:
    """A host whose checkpoints are pickles of :class:`Tiny`; ``failing`` says what goes wrong, and where."""

    packages = ("pytest", "a-package-that-is-not-there")
    objects = "a stand-in"
    demo_model = "tiny"
    keys = NO_HOST

    def __init__(self) -> None:
        self.diary = Diary()
        self.task = StandInTask(self.diary)
        self.retrained_with: list[dict[str, Any]] = []
        self.quantised_with: list[dict[str, Any]] = []
        self.opened_with: list[dict[str, Any]] = []

    def takes(self, model) -> bool:
        return isinstance(model, (str, Path))

    def file_of(self, model):
        return model

    def write_object(self, model, folder):
        return None

    @contextlib.contextmanager
    def guarded(self, *, trust, imports=()):
        self.diary.note("guard")
        yield

    def load(self, path, *, weights=None, trust=False, device="cpu", seed=0):
        self.diary.note(f"load {Path(path).name}")
        if not Path(path).is_file():
            raise CheckpointError(f"checkpoint '{path}' does not exist.")
        held = torch.load(path, weights_only=False)
        return LoadedModel(
            held["module"].eval(), "detect", CLASSES, 64, 3, Path(path), held["meta"], {"lr0": 0.1}
        )

    def save(self, path, module, *, task, train_args, meta, trust=False, plan=None):
        self.diary.note(f"save {path.name}")
        role, module.role = module.role, meta.get("role", "parent")
        with replacing(path) as temporary:
            torch.save({"module": module, "meta": dict(meta)}, temporary)
        module.role = role
        return path

    def anatomy(self, module, imgsz, keep_layers=()):
        return Anatomy(
            torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, *height_width(imgsz)), keep_layers=keep_layers
        )

    def stride(self, module) -> int:
        return 16

    def calibration(self, module, batches, *, imgsz, classes, seed):
        return Calibration(batches, lambda outputs: outputs.square().sum(), seed=seed)

    def open_task(self, loaded, source, **options):
        self.diary.note("open the task")
        self.opened_with.append({"source": source, **options})
        return self.task

    def check_training(self, train_args, *, of_cut_model=False) -> None:
        self.diary.note("check the training")

    def check_trainable(self, module, data) -> None:
        self.diary.note("check that it can be trained")

    def retrain(self, module, **options):
        self.retrained_with.append({"module": module, **options})
        self.diary.note("retrain")
        folder = options["run_dir"]
        for name in ("last", "best"):
            self.save(
                folder / "weights" / f"{name}.pt", module, task="detect", train_args={}, meta=options["meta"]
            )
        results = write_text(folder / "results.csv", "epoch,ap\n1,0.4\n")
        size = sum(p.numel() for p in module.parameters())
        weights = {name: folder / "weights" / f"{name}.pt" for name in ("best", "last")}
        counts = {"params_before": size, "params_after": size, "epochs_run": options["epochs"]}
        return RetrainResult(**weights, **counts, results_csv=results, start_fitness=0.2, best_fitness=0.4)

    def export_int8(self, checkpoint, module, out, task, **options):
        self.quantised_with.append({"checkpoint": checkpoint, "out": out, **options})
        self.diary.note("export int8")
        write_text(out, "8 bits")
        return task.evaluate(module, options["imgsz"], exported=out)
