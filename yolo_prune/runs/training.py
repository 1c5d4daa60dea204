"""``yolo-prune train``: say what the training will do, let the host do it, and keep its log and how long it took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from yolo_prune.adapters.hosts import find_host
from yolo_prune.options import TrainConfig
from yolo_prune.progress import LOGGER
from yolo_prune.run_log import folder_of_run, logged_run
from yolo_prune.words import counted


def train_from_config(config: TrainConfig) -> list[str]:
    """Run ``yolo-prune train``.

    Returns:
        What to print.
    """
    host = find_host(config.model)
    host.check_training(config.train_args)
    # Behind that, as it needs torch: a host that is missing names its own extra.
    from yolo_prune.runs.outline import Memory, Stage, outline

    given = config.train_args
    device = str(given.get("device") or "")
    memory = Memory("train", config.model, str(config.data), given.get("imgsz"), device, config.threads)
    stages = [Stage("train", _in_words(config))]
    verb = "going on with the training of" if config.resume else "training"
    where = f" with {config.data}" if config.data else ""
    with logged_run(host.packages):
        LOGGER.info("%s", outline(f"{verb} {config.model}{where}:", stages, *memory.recall()))
        began = time.monotonic()
        try:
            lines = host.train(config)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(folder_of_run())) from None
    if not config.resume:
        memory.keep(stages, {"train": time.monotonic() - began})
    return lines


def _how_to_go_on(folder: Path | None) -> str:
    """Say what a training that was stopped left, and which command goes on from there."""
    last = folder / "weights" / "last.pt" if folder else None
    if last is None or not last.is_file():
        return "no epoch was over, so nothing is kept"
    return f"'yolo-prune train resume model={last}' goes on"


def _in_words(config: TrainConfig) -> str:
    """Say how long a training is and what is cut when, as far as its options tell."""
    epochs: Any = config.train_args.get("epochs")
    length = counted(int(epochs), "epoch") if epochs else "as many epochs as the host takes"
    if config.resume:
        return "what is left of it, as it was begun"
    if config.budget is None:
        return f"{length}, no budget: nothing is cut"
    kind, value = config.budget
    goal = f"cut to {kind}={value:g}"
    if config.at_end:
        return f"{length}, then {goal} and imitating the uncut model without labels"
    if not epochs or config.train_args.get("time"):
        return f"{length}, {goal} on the way"
    from yolo_prune.train.schedule import check_schedule

    cuts = check_schedule(config.moment, config.cuts, int(epochs))
    latest = " at the latest" if config.moment == "auto" else ""
    after = ", ".join(map(str, cuts))
    return f"{length}, {goal} after epoch{'s' * (len(cuts) > 1)} {after}{latest}, then retraining"
