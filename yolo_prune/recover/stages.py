"""Accuracy after each step of recovery, and the choice between them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from torch import nn

from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.surgery import cut_
from yolo_prune.progress import LOGGER
from yolo_prune.recover.fold import recalibrate_bn_
from yolo_prune.recover.imitate import Imitation, imitate_
from yolo_prune.recover.steps import CutResult

Stages = dict[str, float | None]
"""Score after each step of recovery, by its name; None: not measured."""


def recover_by_stages(
    parent: Traced,
    cut: CutResult,
    calibration: Calibration,
    score: Callable[[nn.Module], float],
    *,
    recalibrate: bool | str = "auto",
    folded: bool = True,
) -> tuple[nn.Module, Stages]:
    """Score the bare cut, the bare cut with new BatchNorm statistics, and the folded cut; return the model to keep.

    Args:
        parent: The uncut model.
        cut: What :func:`cut_in_steps` returned; its module is folded when ``folded``. Where its last step has a score,
            that one stands for the module.
        calibration: Images and how the model runs on them.
        score: Accuracy of a model, larger is better.
        recalibrate: Re-estimate the chosen model's BatchNorm: True, False, or ``auto``: whichever scores better.
        folded: The cut's module was folded.

    Returns:
        The model to keep, and the score of every stage: ``cut``, ``bn``, ``fold`` and ``fold_bn`` (None: not measured).
    """
    bare = cut_(copy.deepcopy(parent.module), cut.plan, rules=parent.anatomy.rules)
    stages: Stages = {"cut": score(bare), "bn": None, "fold": None, "fold_bn": None}
    stages["bn"] = score(recalibrate_bn_(bare, calibration))
    if folded:
        known = cut.steps[-1].score if cut.steps else None
        stages["fold"] = score(cut.module) if known is None else known
    if recalibrate is False:
        return cut.module, stages
    again = recalibrate_bn_(copy.deepcopy(cut.module), calibration) if folded else bare
    after = score(again) if folded else stages["bn"]
    if folded:
        stages["fold_bn"] = after
    before = stages["fold"] if folded else stages["cut"]
    better = after is not None and before is not None and after > before
    LOGGER.info("re-estimating BatchNorm after the cut: %.3f -> %.3f", before or 0.0, after or 0.0)
    return (again if recalibrate is True or better else cut.module), stages


def score_of_kept(stages: Stages, *, recalibrate: bool | str = "auto", folded: bool = True) -> float:
    """Return the score of the model that :func:`recover_by_stages` kept, of what it was asked and what it returned."""
    before, after = ("fold", "fold_bn") if folded else ("cut", "bn")
    names = (before, after) if recalibrate == "auto" else (after,) if recalibrate else (before,)
    return max((score for name in names if (score := stages[name]) is not None), default=-math.inf)


def recover_without_labels(
    parent: Traced,
    cut: CutResult,
    calibration: Calibration,
    *,
    folded: bool,
    steps: int,
    score: Callable[[nn.Module], float] | None = None,
    lessons: Callable[[], Calibration] | None = None,
) -> tuple[nn.Module, Stages, Imitation | None]:
    """Recover a cut model: BatchNorm where that scores better, then imitation; return the model to keep.

    Args:
        parent: The uncut model.
        cut: What :func:`cut_in_steps` returned, of one step at least.
        calibration: Images and how the model runs on them.
        folded: The cut's module was folded.
        steps: Of imitation; 0 leaves it out.
        score: Accuracy of a model, larger is better; None: what got closer to the parent is kept.
        lessons: Makes what is imitated on, when it is time; None: the calibration.

    Returns:
        The model, the score of every stage (none without ``score``), and how far imitation got, None without one.
    """
    module, known, stages = cut.module, -math.inf, Stages()
    if score is not None:
        module, stages = recover_by_stages(parent, cut, calibration, score, folded=folded)
        known = score_of_kept(stages, folded=folded)
    if not steps:
        return module, stages, None
    images = lessons() if lessons else calibration
    module, result, reached = recover_by_imitation(
        module, parent.module, images, steps=steps, score=score, known=known
    )
    return module, ({**stages, "imitation": reached} if stages else stages), result


def recover_by_imitation(
    module: nn.Module,
    parent: nn.Module,
    calibration: Calibration,
    *,
    steps: int = 240,
    seconds: float | None = None,
    score: Callable[[nn.Module], float] | None = None,
    known: float = -math.inf,
) -> tuple[nn.Module, Imitation, float | None]:
    """Let a cut model imitate its parent; return the model to keep.

    Args:
        module: The cut model; a copy of it imitates.
        parent: The uncut one.
        calibration: See :func:`yolo_prune.recover.imitate.imitate_`, as ``steps`` and ``seconds``.
        steps: Of the optimizer.
        seconds: Most time.
        score: Accuracy of a model, larger is better; None: what got closer on images that were not learnt from is kept.
        known: Accuracy of ``module``.

    Returns:
        The imitating copy where it got closer and, with ``score``, more accurate, else ``module``; how far it got; and
        the copy's accuracy, None where it was not measured.
    """
    student = copy.deepcopy(module)
    result = imitate_(student, parent, calibration, steps=steps, seconds=seconds)
    if not result.steps:
        return module, result, None
    if score is None:
        return student, result, None
    reached = score(student)
    LOGGER.info("imitating the parent: %.3f -> %.3f", known, reached)
    return (student if reached > known else module), result, reached
