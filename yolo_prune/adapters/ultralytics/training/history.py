"""What a checkpoint remembers of the training that pruned it, and what such a training left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.load import read_checkpoint
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CheckpointError
from yolo_prune.train import CutRecord, RunState

RUN_KEY = "in_run"  # the checkpoint is of the run that cuts: an interrupted one goes on with its state
EARLIER_RUN_KEY = "earlier_in_run"  # of a later training, which only keeps what that run left


@dataclass(frozen=True)
class InRunResult:
    """What a training with pruning inside left behind.

    Attributes:
        folder: The host's run folder.
        best: The checkpoint to use.
        parent: The model right before the first cut, None when it could not be written or lies in an earlier run.
        plan: What was cut, None when the run ended before.
        cuts: One entry a cut.
        params_before: Parameters of the model that the run began with.
        params_after: Parameters of ``best``, read back from the file.
    """

    folder: Path
    best: Path
    parent: Path | None
    plan: PrunePlan | None
    cuts: tuple[CutRecord, ...]
    params_before: int
    params_after: int


def meta_of(checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what yolo_prune recorded in a checkpoint; empty where it recorded nothing."""
    return dict((checkpoint or {}).get(METADATA_KEY) or {})


def carried(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the record for a later training of a pruned model: what was cut stays known, the run is over.

    Args:
        meta: The record of the model that it begins with.
    """
    kept = {**(meta or {}), "role": "retrained"}
    if RUN_KEY in kept:
        kept[EARLIER_RUN_KEY] = kept.pop(RUN_KEY)
    return kept


def run_state(meta: Mapping[str, Any]) -> RunState | None:
    """Return the state of the run that cut a model, this one or an earlier one; None where there was none.

    Raises:
        CheckpointError: Another version wrote it.
    """
    run = meta.get(RUN_KEY) or meta.get(EARLIER_RUN_KEY)
    return RunState.from_dict(run["state"]) if run else None


def read_result(folder: Path | str, *, trust: bool = False) -> InRunResult:
    """Read the outcome of a training with pruning inside back from its run folder.

    Args:
        folder: The host's run folder.
        trust: Read a checkpoint that holds classes that are not stock.

    Raises:
        CheckpointError: The folder holds no checkpoint of such a run.
    """
    folder = Path(folder)
    weights = folder / "weights"
    best = weights / "best.pt" if (weights / "best.pt").is_file() else weights / "last.pt"
    if not best.is_file():
        raise CheckpointError(f"'{folder}' holds no checkpoint: its training did not get so far.")
    checkpoint = read_checkpoint(best, trust=trust)
    state = run_state(meta_of(checkpoint))
    if state is None:
        raise CheckpointError(f"'{best}' is not of a training that yolo_prune pruned.")
    parent = weights / "parent.pt"
    return InRunResult(
        folder=folder,
        best=best,
        parent=parent if parent.is_file() else None,
        plan=PrunePlan.from_json(state.plan) if state.plan else None,
        cuts=tuple(state.cuts),
        params_before=state.params,
        params_after=count_parameters(checkpoint.get("ema") or checkpoint["model"]),
    )
