#!/usr/bin/env python
r"""What criteria, allocations and recoveries are worth: accuracy of one cut after another, beside Torch-Pruning's.

    python scripts/benchmark_accuracy.py --list                                     # what is missing, and hours
    python scripts/benchmark_accuracy.py                                            # all of it: days on a CPU
    python scripts/benchmark_accuracy.py --only 'bccd_yolov5nu/0.5/*/*/4/0/fold'    # a part of it
    python scripts/benchmark_accuracy.py --shard 0/4 --state mine.json              # a quarter of it
    python scripts/benchmark_accuracy.py --tables                                   # docs/accuracy.md from the JSON
    python scripts/benchmark_accuracy.py --model best.pt --data data.yaml --imgsz 320 --keep 0.7,0.5 \
        --only 'own/*/reconstruction/cost/12/0/*' --only 'own/*/pruner:*' --state own.json --page own.md

A cell is ``model/keep_macs/criterion/allocation/steps/seed/recovery``, and ``--only`` takes patterns of these names. One
cut serves all its recoveries (it stays in ``--work``); what is in ``--state`` is not run again, and a cell that failed
keeps its sentence.

* ``none``: the bare cut; ``bn``: BatchNorm statistics estimated again; ``fold``: removed channels folded into the kept
  ones; ``imitate``: folded, then imitation of the parent; ``bn+imitate``: imitation from the better of ``none`` and
  ``bn``, which works for any model.
* ``tp:NAME`` ranks by an estimator of Torch-Pruning on the groups of this package; ``pruner:NAME`` is a pruner of
  Torch-Pruning as it is.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import functools
import itertools
import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accuracy_tables import write_tables
from torch import nn
from torch_pruning_models import GLOBAL, LOCAL, PRUNERS, pruned_in_time

from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.cost import count_macs
from yolo_prune.criteria import CRITERIA
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.allocation import ALLOCATIONS
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.progress import log_to_console
from yolo_prune.recover import Recipe, cut_in_steps, recalibrate_bn_
from yolo_prune.recover.imitate import imitate_

ROOT = Path(__file__).resolve().parents[1]
STATE, PAGE = ROOT / "docs" / "accuracy.json", ROOT / "docs" / "accuracy.md"
OURS = ("none", "bn", "fold", "imitate", "bn+imitate")
THEIRS = ("none", "bn", "bn+imitate")
ESTIMATORS = ("BNScale", "GroupMagnitude", "GroupTaylor", "GroupHessian")
RANDOM_SEEDS = (0, 1, 2)
STEPS = (1, 2, 4, 12)  # cuts on the way
PACKAGES = ("torch", "ultralytics", "torch-pruning", "yolo-prune")
PRUNER, OWN = "pruner:", "own"


@dataclass(frozen=True)
class Subject:
    """A parent, its data, and how it is trained where no file of it is there."""

    name: str
    data: str
    imgsz: int
    training: str = ""

    def weights(self, options: argparse.Namespace) -> Path:
        """Return the checkpoint; it is trained first where there is none."""
        given, own = (
            folder / f"{self.name}.pt" for folder in (options.shared / "weights", options.work / "parents")
        )
        if self.name == OWN:
            return Path(options.model)
        if given.is_file() or not self.training:
            return given
        if not own.is_file():
            words = self.training.format(shared=options.shared).split()
            run = [f"data={options.shared / 'data' / self.data}", f"project={options.work}", "name=training"]
            common = ["threads=1", "workers=0", "seed=0", "exist_ok=true", *run]
            subprocess.run([sys.executable, "-m", "yolo_prune", "train", *words, *common], check=True)
            own.parent.mkdir(parents=True, exist_ok=True)
            (options.work / "training" / "weights" / "best.pt").rename(own)
        return own


BACKBONE = "{shared}/weights/yolov5n_ultralytics_coco_backbone.pt"
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("bccd_yolov5nu", "bccd/data.yaml", 320),
        Subject("bccd_yolo11n", "bccd/data.yaml", 320),
        Subject(
            "cifar_yolo11n-cls", "cifar10_mini", 64, "model=yolo11n-cls.yaml imgsz=64 epochs=30 batch=64"
        ),
        Subject(
            "coco_yolov5nu",
            "coco_mini/data.yaml",
            256,
            f"model={BACKBONE} imgsz=256 epochs=30 batch=16 freeze=24 optimizer=AdamW lr0=0.003",
        ),
    )
}


def subjects(options: argparse.Namespace) -> dict[str, Subject]:
    """Return the parents by name: those above, or the user's own."""
    if options.model is None:
        return SUBJECTS
    return {OWN: Subject(OWN, os.fspath(Path(options.data).resolve()), options.imgsz)}


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    model: str
    keep: float
    criterion: str
    allocation: str
    steps: int
    seed: int
    recovery: str

    @property
    def cut(self) -> str:
        """The cut that it is a recovery of, as the state and the file of that cut are named."""
        return f"{self.model}/{self.keep:g}/{self.criterion}/{self.allocation}/{self.steps}/{self.seed}"

    @property
    def name(self) -> str:
        """All of it."""
        return f"{self.cut}/{self.recovery}"


def grid(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield every cell."""
    names = [*CRITERIA, *(f"tp:{name}Importance" for name in ESTIMATORS)]
    ways = [(name, allocation, STEPS, OURS) for name in names for allocation in ALLOCATIONS]
    ways += [(f"{PRUNER}{kind}", ranking, (0,), THEIRS) for kind in PRUNERS for ranking in (GLOBAL, LOCAL)]
    keeps = [float(value) for value in options.keep.split(",")]
    each = itertools.product(subjects(options), keeps, ways)
    for model, keep, (criterion, allocation, steps, recoveries) in each:
        seeds = RANDOM_SEEDS if criterion == "random" else (0,)
        for number, seed, recovery in itertools.product(steps, seeds, recoveries):
            yield Cell(model, keep, criterion, allocation, number, seed, recovery)


class Bench:
    """One parent: cuts it, recovers the cut and measures what comes of it."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        subject = subjects(options)[model]
        self.options, self.imgsz = options, subject.imgsz
        self.file = subject.weights(options)
        loaded = load_detector(self.file)
        host = find_host(str(self.file))
        self.task = host.open_task(
            loaded, options.shared / "data" / subject.data, split="val", batch=16, device="cpu", workers=0
        )
        self.parent = Traced.of(loaded.module, host.anatomy(loaded.module, self.imgsz))
        self._images = functools.partial(self.task.calibration_batches, self.imgsz)
        self._calibration = functools.partial(
            host.calibration, loaded.module, imgsz=self.imgsz, classes=len(loaded.names)
        )
        self.input = torch.zeros(1, loaded.channels, self.imgsz, self.imgsz)
        self.whole = self.measured(self.parent.module)

    @functools.cache  # noqa: B019  a bench lives as long as the run
    def calibration(self, images: int, seed: int = 0) -> Calibration:
        """Return so many images and what the task feels of them."""
        read = functools.cache(lambda: self.task.calibration_labels(self.imgsz, images, seed))
        return replace(self._calibration(self._images(images, seed), seed=seed), labels=read)

    def measured(self, module: nn.Module) -> dict[str, Any]:
        """Return accuracy with its interval over images, and that of its difference to the parent."""
        result = self.task.evaluate(module, self.imgsz)
        value = result.scores[self.task.metric]
        drawn = resampled_accuracy(result.sample)
        found: dict[str, Any] = {"value": value, "draws": drawn, "images": result.images}
        found["interval"] = _bounds(drawn)
        if hasattr(self, "whole"):
            found["change"] = _bounds(drawn - self.whole["draws"])
        return found

    def cut(self, cell: Cell) -> dict[str, Any]:
        """Return the cut of a cell: the bare module, the folded one where it is ours, and what it keeps."""
        if cell.criterion.startswith(PRUNER):
            opened = functools.partial(_opened, cell.model, self.options)
            made = pruned_in_time(opened, cell.keep, cell.criterion.removeprefix(PRUNER), cell.allocation)
            if isinstance(made, str):
                raise YoloPruneError(made)
            return {
                "bare": made,
                "kept": count_macs(made, self.input) / count_macs(self.parent.module, self.input),
            }
        options = self.options
        recipe = Recipe(cell.criterion, cell.steps, seed=cell.seed, allocation=cell.allocation)
        result = cut_in_steps(
            self.parent, Budget("keep_macs", cell.keep), recipe, self.calibration(options.images, cell.seed)
        )
        bare = cut_(copy.deepcopy(self.parent.module), result.plan, rules=self.parent.anatomy.rules)
        return {"bare": bare, "folded": result.module, "kept": result.plan.kept_macs}

    def recovered(self, cut: dict[str, Any], recovery: str, scores: dict[str, Any], seed: int) -> nn.Module:
        """Return a cut module after one way of recovery."""
        images = self.calibration(self.options.images, seed)
        if recovery in ("none", "fold"):
            return cut["bare" if recovery == "none" else "folded"]
        if recovery == "bn":
            return recalibrate_bn_(copy.deepcopy(cut["bare"]), images)
        student = copy.deepcopy(cut["folded" if recovery == "imitate" else "bare"])
        if recovery == "bn+imitate" and scores["bn"]["value"] >= scores["none"]["value"]:
            recalibrate_bn_(student, images)
        many = self.calibration(self.options.imitation_images, seed)
        imitate_(student, self.parent.module, many, steps=self.options.imitation_steps)
        return student


def _opened(model: str, options: argparse.Namespace) -> tuple[nn.Module, torch.Tensor, Calibration]:
    """Open a parent in another process."""
    bench = Bench(model, options)
    return bench.parent.module, bench.input, bench.calibration(options.images)


def _bounds(values: Any) -> list[float] | None:
    found = interval_of(values)
    return [round(found.low, 5), round(found.high, 5)] if found else None


def _plain(measured: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a measurement."""
    kept = {key: value for key, value in measured.items() if key != "draws"}
    return {**kept, "value": round(float(kept["value"]), 5)}


class Run:
    """Fills the state, one cut after another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.state = read_state(options.state)
        self._bench: Bench | None = None
        self._of = ""

    def bench(self, model: str) -> Bench:
        """Return the bench of a model; one is held at a time."""
        if self._bench is None or self._of != model:
            self._bench, self._of = Bench(model, self.options), model
            self.state["parents"][model] = {**_plain(self._bench.whole), "metric": self._bench.task.metric}
        return self._bench

    def fill(self, cells: Sequence[Cell]) -> None:
        """Run cells of one cut."""
        bench, first = self.bench(cells[0].model), cells[0]
        entry = self.state["cuts"].setdefault(first.cut, {"scores": {}})
        file = self.options.work / "cuts" / f"{first.cut.replace('/', '_').replace(':', '_')}.pt"
        try:
            cut = self._cut(bench, first, entry, file)
        except YoloPruneError as error:
            entry["failed"] = str(error)
            return
        for cell in cells:
            needed = ("none", "bn") if cell.recovery == "bn+imitate" else ()
            for recovery in (*needed, cell.recovery):
                if recovery not in entry["scores"]:
                    self._recover(bench, cell, recovery, cut, entry)
                    self.save()

    def _cut(self, bench: Bench, cell: Cell, entry: dict[str, Any], file: Path) -> dict[str, Any]:
        if file.is_file():
            return torch.load(file, weights_only=False)  # our own file of an earlier run
        seconds, cut = timed(lambda: bench.cut(cell))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(cut, file)
        entry |= {"kept": round(cut["kept"], 4), "cpu_s": seconds, "measured_on": self.options.images}
        return cut

    def _recover(
        self, bench: Bench, cell: Cell, recovery: str, cut: dict[str, Any], entry: dict[str, Any]
    ) -> None:
        try:
            seconds, found = timed(
                lambda: bench.measured(bench.recovered(cut, recovery, entry["scores"], cell.seed))
            )
            found = {**_plain(found), "cpu_s": seconds}
            if recovery.endswith("imitate"):
                found["imitation"] = [self.options.imitation_steps, self.options.imitation_images]
        except YoloPruneError as error:
            found = {"failed": str(error)}
        entry["scores"][recovery] = found
        print(f"{cell.cut}/{recovery}: {found}", flush=True)

    def save(self) -> None:
        """Write the state."""
        self.state["versions"] = {name: version(name) for name in PACKAGES} | {
            "python": platform.python_version()
        }
        write_text(self.options.state, json.dumps(self.state, indent=1, sort_keys=True) + "\n")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds of this process and its children, and the result."""
    before = sum(os.times()[:4])
    result = work()
    return round(sum(os.times()[:4]) - before, 1), result


def read_state(file: Path) -> dict[str, Any]:
    """Return what was measured so far."""
    if file.is_file():
        state: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return state
    return {"parents": {}, "cuts": {}, "versions": {}}


def merge(state: dict[str, Any], other: dict[str, Any]) -> None:
    """Add what another state has."""
    state["parents"] |= other["parents"]
    for name, entry in other["cuts"].items():
        held = state["cuts"].setdefault(name, {"scores": {}})
        state["cuts"][name] = {**held, **entry, "scores": {**held["scores"], **entry["scores"]}}


def is_done(cell: Cell, state: dict[str, Any]) -> bool:
    """Tell whether a cell has a number or a sentence."""
    entry = state["cuts"].get(cell.cut, {})
    return "failed" in entry or cell.recovery in entry.get("scores", {})


def chosen(options: argparse.Namespace, state: dict[str, Any]) -> list[list[Cell]]:
    """Return the missing cells that were asked for, those of one cut together."""
    part, parts = (int(word) for word in options.shard.split("/"))
    patterns = options.only or ["*"]
    cuts: dict[str, list[Cell]] = {}
    for pattern in patterns:
        for cell in grid(options):
            if fnmatch.fnmatchcase(cell.name, pattern) and cell not in cuts.get(cell.cut, []):
                cuts.setdefault(cell.cut, []).append(cell)
    mine = [cells for number, cells in enumerate(cuts.values()) if number % parts == part]
    left = [[cell for cell in cells if not is_done(cell, state)] for cells in mine]
    return [cells for cells in left if cells]


def print_missing(cuts: Sequence[Sequence[Cell]], state: dict[str, Any]) -> None:
    """Print what is missing, and how long it takes where cells of that model, else of any, took time before."""
    known: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, entry in state["cuts"].items():
        of = {"cut": entry, **entry["scores"]}
        for part, found in of.items():
            for model in (name.split("/")[0], ""):
                known[model, part] += [found["cpu_s"]] if "cpu_s" in found else []
    total, unknown = 0.0, 0
    for cells in cuts:
        for part in ["cut"] * (cells[0].cut not in state["cuts"]) + [cell.recovery for cell in cells]:
            seconds = known[cells[0].model, part] or known["", part]
            total += mean(seconds) if seconds else 0.0
            unknown += not seconds
        print(*(cell.name for cell in cells), sep="\n")
    count = sum(map(len, cuts))
    print(
        f"{count} cells of {len(cuts)} cuts, about {total / 3600:.1f} hours of one core, {unknown} steps unknown"
    )


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and weights/"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "accuracy", help="keeps cuts and trained parents"
    )
    parser.add_argument("--state", type=Path, default=STATE, help="JSON with what was measured so far")
    parser.add_argument("--page", type=Path, default=PAGE, help="whose tables are written anew at the end")
    parser.add_argument("--model", help="a checkpoint of your own, with --data and --imgsz")
    parser.add_argument("--data", help="its data yaml, or a classifier's folder")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--keep", default="0.7,0.5,0.35,0.25", help="shares of the MACs")
    parser.add_argument("--only", action="append", help="pattern of cells; several are run in their order")
    parser.add_argument("--shard", default="0/1", help="i/n: the i-th of n parts, from 0")
    parser.add_argument("--merge", type=Path, action="append", default=[], help="states of other shards")
    parser.add_argument("--list", action="store_true", help="print what is missing and how long it takes")
    parser.add_argument("--tables", action="store_true", help="write the tables alone")
    parser.add_argument("--images", type=int, default=96, help="training images that are measured on")
    parser.add_argument("--imitation-images", type=int, default=256, help="training images to imitate on")
    parser.add_argument("--imitation-steps", type=int, default=240)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(words)


def main() -> None:
    """Run what is missing and write the tables."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    log_to_console()
    run = Run(options)
    for file in options.merge:
        merge(run.state, read_state(file))
    cuts = chosen(options, run.state)
    if options.list:
        print_missing(cuts, run.state)
        return
    for cells in [] if options.tables else cuts:
        run.fill(cells)
        run.save()
    if options.merge:
        run.save()
    write_tables(run.state, options.page)


if __name__ == "__main__":
    main()
