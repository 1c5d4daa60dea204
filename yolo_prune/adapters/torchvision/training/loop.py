"""The loop: SGD with a warm-up and a cosine, validation every epoch, the best and the last checkpoint, resume."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from yolo_prune.adapters.torchvision import files
from yolo_prune.adapters.torchvision.described import CLASSIFY, described
from yolo_prune.adapters.torchvision.training.recipe import TrainRecipe
from yolo_prune.adapters.torchvision.training.samples import Loader
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import ConfigError
from yolo_prune.files import replacing
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.progress import LOGGER, track
from yolo_prune.train.imitate import HeadTeacher, OutputTeacher
from yolo_prune.train.plain import PruningSession

STATE_KEY = "training"
_SMOOTHING = 0.1  # of a classifier's labels
_LARGEST_GRADIENT = 10.0  # norm over all parameters: a two-stage detector's first steps are wild


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: Epochs that are over.
        start: Score of the model before the first epoch, None where it was not asked for.
        best: Best score so far, of models that may be the result; None before one.
        best_epoch: Epochs that were over then.
        rows: One dict an epoch.
    """

    epoch: int = 0
    start: float | None = None
    best: float | None = None
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Training:
    """One training.

    Attributes:
        module: The network; it is trained in place.
        optimizer: What trains it.
        recipe: How.
        loader: Training batches.
        score: Accuracy of the network on the validation images, larger is better.
        metric: Its name.
        folder: Run folder; files go to ``weights`` in it, and ``results.csv``.
        record: What the checkpoints say of themselves, as ``meta``.
        session: Prunes on the way, None for a training that cuts nothing.
        teacher: Network to learn from, None where there is none.
        uncut: Holds the weights of the best epoch, which are cut after the last one; None where the cut comes earlier.
        began: Plan of the network that the training began with, as JSON.
        progress: Where it is.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: TrainRecipe
    loader: Loader
    score: Callable[[nn.Module], float]
    metric: str
    folder: Path
    record: Mapping[str, Any]
    session: PruningSession | None = None
    teacher: OutputTeacher | HeadTeacher | None = None
    uncut: nn.Module | None = None
    began: str | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def best(self) -> Path:
        """File of the best model."""
        return self.folder / "weights" / "best.pt"

    @property
    def parent(self) -> Path:
        """File of the best model before a cut at the end."""
        return self.folder / "weights" / "parent.pt"

    @property
    def last(self) -> Path:
        """File of the last model, with what it takes to go on."""
        return self.folder / "weights" / "last.pt"

    @property
    def results(self) -> Path:
        """One line an epoch."""
        return self.folder / "results.csv"

    def run(self, *, judge_start: bool = False) -> Progress:
        """Train from where it is to the end.

        Args:
            judge_start: The network as it comes may be the best one.
        """
        with untouched_randomness():
            if judge_start and self.progress.epoch == 0:
                self.progress.start = self.score(self.module)
                self._note_best(self.progress.start)
                LOGGER.info("before training: %s %.4f", self.metric, self.progress.start)
            while self.progress.epoch < self.recipe.epochs and not self._is_patient_no_more():
                self._train_epoch()
            self._end_session()
            if self.progress.best is None:  # a cut was the last that happened
                self._note_best(self.score(self.module))
        return self.progress

    def _end_session(self) -> None:
        """Let the session end, which cuts a training that stopped early."""
        if self.session is None:
            return
        cuts = self._cuts()
        self.session.finish()
        if self._cuts() != cuts:
            self.progress.best = None
            self._save(self.last, state=self._state())

    def _is_patient_no_more(self) -> bool:
        waited = self.progress.epoch - self.progress.best_epoch
        return bool(
            self.recipe.patience and self.progress.best is not None and waited >= self.recipe.patience
        )

    def _train_epoch(self) -> None:
        progress, recipe, began = self.progress, self.recipe, time.perf_counter()
        torch.manual_seed(recipe.seed + progress.epoch)
        self.module.train()
        total = 0.0
        steps = track(
            self.loader.epoch(progress.epoch),
            f"epoch {progress.epoch + 1}/{recipe.epochs}",
            self.loader.steps,
        )
        for step, (images, targets) in enumerate(steps):
            rate = recipe.rate(progress.epoch * self.loader.steps + step, self.loader.steps)
            total += self._step(images, targets, rate)
        score = self.score(self.module)
        cuts = self._cuts()
        self._note_uncut(score)
        if self.session is not None:
            self.session.after_epoch(score)
        progress.epoch += 1
        row = {"epoch": progress.epoch, "seconds": round(time.perf_counter() - began, 2), "rate": rate}
        row |= {"loss": round(total / self.loader.steps, 5), self.metric: round(score, 5)}
        progress.rows.append(row)
        LOGGER.info(
            "epoch %d/%d: loss %.4f, %s %.4f", progress.epoch, recipe.epochs, row["loss"], self.metric, score
        )
        if self._cuts() != cuts:  # what scored is gone
            progress.best = None
        elif self._may_be_result() and (progress.best is None or score > progress.best):
            self._note_best(score)
        self._save(self.last, state=self._state())
        self._write_results()

    def _step(self, images: Tensor, targets: Any, rate: float) -> float:
        """Take one step and return the loss.

        Raises:
            ConfigError: The loss is no number any more.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(images.to(self.recipe.device), targets)
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(
                f"the loss became {value} in epoch {self.progress.epoch + 1}: the training diverged. Give a lower "
                f"lr0 than {self.recipe.lr0:g}."
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), _LARGEST_GRADIENT)
        self.optimizer.step()
        return value

    def _loss(self, images: Tensor, targets: Any) -> Tensor:
        device = self.recipe.device
        if described(self.module).task != CLASSIFY:
            there = [{name: tensor.to(device) for name, tensor in each.items()} for each in targets]
            return self._losses(lambda network: network(list(images), there))
        outputs: Any = self.module(images)
        scores = getattr(outputs, "logits", outputs)  # some classifiers have others beside
        loss = F.cross_entropy(scores, targets.to(device), label_smoothing=_SMOOTHING)
        if isinstance(self.teacher, OutputTeacher):
            loss = loss + self.teacher.distance(self.module, images, outputs)
        if self.session is not None:
            loss = loss + self.session.teacher_loss(images, outputs)
        return loss

    def _losses(self, run: Callable[[nn.Module], dict[str, Tensor]]) -> Tensor:
        """Return what a detector makes of a batch, with the distance to its teacher, and to the uncut network."""
        if self.session is not None:
            losses, apart = self.session.learn(run)
            return torch.stack([*losses.values(), apart]).sum()
        if not isinstance(self.teacher, HeadTeacher):
            return torch.stack(list(run(self.module).values())).sum()
        lesson = self.teacher.lesson(self.module)
        losses = lesson.watch(lambda: run(self.module))
        return torch.stack([*losses.values(), lesson.distance(run)]).sum()

    def _cuts(self) -> str | None:
        plan = self.session.plan if self.session else None
        return None if plan is None else plan.to_json()

    def _may_be_result(self) -> bool:
        return self.session is None or self._cuts() is not None

    def _note_best(self, score: float) -> None:
        self.progress.best, self.progress.best_epoch = score, self.progress.epoch
        self._save(self.best)

    def _note_uncut(self, score: float) -> None:
        """Keep the weights of an epoch that is the best so far of a training that is cut at its end."""
        progress = self.progress
        is_better = progress.best is None or score > progress.best
        if self.uncut is None or self._cuts() is not None or not is_better:
            return
        progress.best, progress.best_epoch = score, progress.epoch + 1
        self.uncut.load_state_dict(self.module.state_dict())
        self._save(self.parent)

    def _plan(self) -> PrunePlan | None:
        return self.session.plan if self.session else None

    def _save(self, file: Path, state: Mapping[str, Any] | None = None) -> None:
        files.save(
            file,
            self.module,
            train_args=self.recipe.to_dict(),
            meta={**self.record, "epoch": self.progress.epoch, "fitness": self.progress.best},
            plan=self._plan(),
            more={STATE_KEY: dict(state)} if state is not None else None,
        )

    def _state(self) -> dict[str, Any]:
        """Return what it takes to go on, as plain values and tensors."""
        progress = self.progress
        return {
            "epoch": progress.epoch,
            "start": progress.start,
            "best": progress.best,
            "best_epoch": progress.best_epoch,
            "rows": progress.rows,
            "recipe": self.recipe.to_dict(),
            "began": self.began,
            "optimizer": self.optimizer.state_dict(),
            "session": self.session.state_dict() if self.session else None,
        }

    def _write_results(self) -> None:
        with replacing(self.results) as temporary, temporary.open("w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, list(self.progress.rows[0]))
            writer.writeheader()
            writer.writerows(self.progress.rows)


def make_optimizer(module: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """Return an optimizer of all parameters: weights decay, biases and norms do not."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "AdamW":
        return torch.optim.AdamW(groups, lr=recipe.lr0, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, lr=recipe.lr0, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
