"""What every retraining must keep true, whoever runs it: what comes out has the size of what went in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolo_prune.errors import RebuiltError


@dataclass(frozen=True)
class RetrainResult:
    """What a retraining left behind.

    Attributes:
        best: Checkpoint with the highest fitness on the validation split; the start counts as epoch 0.
        last: Checkpoint of the last epoch.
        results_csv: One line an epoch, as the host writes it.
        params_before: Parameters of the model that went in.
        params_after: Parameters of ``best``, read back from the file; always equal to ``params_before``.
        epochs_run: Epochs in ``results_csv`` (fewer than asked for after an early stop).
        start_fitness: Fitness of the model before retraining, None where it was not measured.
        best_fitness: Fitness of ``best``, in [0, 1] (for detection the host's AP, COCO style).
    """

    best: Path
    last: Path
    results_csv: Path
    params_before: int
    params_after: int
    epochs_run: int
    start_fitness: float | None
    best_fitness: float | None


def check_still_cut(before: int, after: int) -> None:
    """Compare the parameter count of a model before and after training.

    Args:
        before: Parameters that went into training.
        after: Parameters that came out.

    Raises:
        RebuiltError: The counts differ, so the host has built the model anew.
    """
    if before != after:
        raise RebuiltError(
            f"the host rebuilt the model: {before:,} parameters went into training, {after:,} came out. "
            "Train it through yolo_prune."
        )
