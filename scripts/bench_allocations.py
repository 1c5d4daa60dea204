"""What an allocation loses, and what a distance without labels says of it: one cut by each, then imitation on request.

    python scripts/bench_allocations.py models=bccd_yolov5nu,bccd_yolo11n keeps=0.5,0.35 steps=4 state=allocations.json
    python scripts/bench_allocations.py models=bccd_yolov5nu keeps=0.35 steps=6 ways=auto imitation_steps=240 state=goals.json

``rates=0.01`` imitates at that rate alone, ``rates=0.01,0.003`` at the first of them that leads closer, and
``rates=0.01/0.003 imitation_steps=30,120`` makes four rows of one cut;
``box_weight=1`` weighs boxes otherwise than the package where channels are chosen and folded. ``ways`` are
rankings of reconstruction (``cost``, ``root``, ``global``), or ``auto``: the one that trials say is best;
``ways=disturbed keeps=1 imitation_steps=240`` is the control, an uncut model whose weights got noise. Every cut is
measured on 96 training images and folded. The distance of its outputs to the parent's is that on the images that it
was measured on (seen) and on 64 others (held out); accuracy is that on val, and on test where the data has one, less the
parent's with its 95 % interval over images. Models and data are those of ``scripts/benchmark_accuracy.py``, whose options
``shared=`` and ``work=`` are. What is in the state is not run again; the table that is printed is the whole state.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import torch
from benchmark_accuracy import ROOT, SUBJECTS, Bench, parse_arguments, timed
from torch import nn

from yolo_prune.accuracy.bootstrap import interval_of, resampled_accuracy
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.ultralytics.saliency import detection_projection
from yolo_prune.criteria.apart import mean_distance
from yolo_prune.criteria.calibration import Calibration, images_in, part_of
from yolo_prune.cut.budget import Budget
from yolo_prune.errors import YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.graph.modes import evaluating
from yolo_prune.options.fields import parse_overrides
from yolo_prune.progress import log_to_console
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.recover.imitate import RATES, imitate_
from yolo_prune.recover.learnable import learnable

DEFAULTS: dict[str, Any] = {
    "models": "bccd_yolov5nu",
    "keeps": "0.5",
    "ways": "cost,root,global",
    "steps": 4,
    "imitation_steps": 0,
    "rates": "",
    "box_weight": "",
    "seed": 0,
    "images": 96,
    "held_out": 64,
    "shared": str(ROOT.parent / "shared"),
    "work": str(ROOT / "runs" / "accuracy"),
}
IMITATION_IMAGES = 256
DISTURBED, NOISE = "disturbed", 0.05  # of a tensor's size: as far from the parent as a cut to a third, folded


def main() -> None:
    given: dict[str, Any] = {**DEFAULTS, **parse_overrides(sys.argv[1:])}
    log_to_console()
    torch.set_num_threads(1)
    path = Path(given["state"])
    state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for model in listed(given["models"]):
        bench = None
        for keep in listed(given["keeps"]):
            for way, (steps, rates) in itertools.product(listed(given["ways"]), imitations(given)):
                name = "*".join(filter(None, (way, str(given["box_weight"]))))
                how = "@".join(filter(None, (str(steps), ",".join(map(str, rates)))))
                key = f"{model} {keep} {name} {given['steps']} {how} {given['seed']}"
                if key in state:
                    continue
                bench = bench or Judge(model, given)
                state[key] = bench.row(float(keep), way, steps, rates)
                write_text(path, json.dumps(state, indent=1) + "\n")
                print(f"{key}: {state[key]}", flush=True)
    print(table(state))


def listed(value: Any) -> list[str]:
    """Return words of an option, of which there may be one or several."""
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else str(value).split(",")


def imitations(given: dict[str, Any]) -> list[tuple[int, list[float]]]:
    """Return steps and rates of every imitation that was asked for; no rates are those of the package."""
    rates = ",".join(listed(given["rates"]))
    each = [[float(rate) for rate in one.split(",") if rate] for one in rates.split("/")]
    return list(itertools.product(map(int, listed(given["imitation_steps"])), each))


class Judge:
    """One parent, cut and judged on val, and on test where there is one."""

    def __init__(self, model: str, given: dict[str, Any]) -> None:
        self.given = given
        options = parse_arguments([f"--shared={given['shared']}", f"--work={given['work']}"])
        self.bench = Bench(model, options)
        self.tasks = {"val": self.bench.task}
        loaded = load_detector(self.bench.file)
        self.classes = len(loaded.names)
        host, data = find_host(str(self.bench.file)), options.shared / "data" / SUBJECTS[model].data
        try:
            self.tasks["test"] = host.open_task(loaded, data, split="test", batch=16, device="cpu", workers=0)
        except YoloPruneError as error:
            print(f"{model}: no test split ({error})", flush=True)
        self.parent = {
            split: self.judged(self.bench.parent.module, split) for split in self.tasks
        }  # the value, and its draws over images

    def judged(self, module: nn.Module, split: str) -> tuple[float, Any]:
        """Return accuracy, and what it is on resampled images."""
        result = self.tasks[split].evaluate(module, self.bench.imgsz)
        return result.scores[self.tasks[split].metric], resampled_accuracy(result.sample)

    @functools.cached_property
    def images(self) -> tuple[Calibration, Calibration]:
        """Images that are measured on, and others."""
        given, seed, number = self.given, int(self.given["seed"]), int(self.given["images"])
        seen, held = split_images(self.bench.calibration(number + int(given["held_out"]), seed), number)
        if given["box_weight"]:
            weight = float(given["box_weight"])
            felt = detection_projection(self.bench.imgsz, seed, classes=self.classes, box_weight=weight)
            seen = replace(seen, projection=felt)
        return seen, held

    @functools.lru_cache(1)  # noqa: B019  a judge lives as long as the run
    def cut(self, keep: float, way: str) -> tuple[nn.Module, dict[str, Any]]:
        """Return the parent after a cut by one way, or after noise, and what is to be said of that."""
        steps, seed = int(self.given["steps"]), int(self.given["seed"])
        if way == DISTURBED:
            return disturbed(self.bench.parent.module, seed), {
                "cut_cpu_s": 0.0,
                "allocation": way,
                "kept": 1.0,
            }
        recipe = Recipe(steps=steps, seed=seed, allocation=None if way == "auto" else way)
        budget = Budget("keep_macs", keep)
        seconds, cut = timed(lambda: cut_in_steps(self.bench.parent, budget, recipe, self.images[0]))
        kept, allocation = round(cut.plan.kept_macs, 4), cut.plan.settings["allocation"]
        return cut.module, {"cut_cpu_s": seconds, "allocation": allocation, "kept": kept}

    def row(self, keep: float, way: str, steps: int, rates: list[float]) -> dict[str, Any]:
        """Cut by one way, imitate on request, and return what came of it."""
        bench, (seen, held) = self.bench, self.images
        module, said = self.cut(keep, way)
        module, found = copy.deepcopy(module), dict(said)
        if steps:
            many = bench.calibration(IMITATION_IMAGES, int(self.given["seed"]))
            how: dict[str, Any] = {"steps": steps, "rates": rates or RATES}
            seconds, imitation = timed(lambda: imitate_(module, bench.parent.module, many, **how))
            found |= {"imitation_cpu_s": seconds, "rate": imitation.rate}
        with evaluating(module), evaluating(bench.parent.module):
            for name, part in {"seen": seen, "held_out": held}.items():
                apart = mean_distance(module, bench.parent.module, part, part.batches)
                found[name] = float(f"{apart:.4g}")
        for split, (before, draws) in self.parent.items():
            value, now = self.judged(module, split)
            change = interval_of(now - draws)
            found[split] = round(float(value), 4)
            found[f"{split}_parent"] = round(float(before), 4)
            found[f"{split}_change"] = [round(change.low, 4), round(change.high, 4)] if change else None
        return found


def disturbed(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose matrices of weights got normal noise of 5 % of their root mean squares; constants stay."""
    module, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in learnable(module, module):
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(NOISE * weight.square().mean().sqrt() * noise)
    return module


def split_images(calibration: Calibration, first: int) -> tuple[Calibration, Calibration]:
    """Return the first images of a calibration, and the others."""
    seen, others = list[Any](), list[Any]()
    for batch in calibration.batches:
        taken = min(images_in(batch), max(first, 0))
        first -= taken
        seen += [part_of(batch, slice(0, taken))] if taken else []
        others += [part_of(batch, slice(taken, None))] if taken < images_in(batch) else []
    return replace(calibration, batches=seen), replace(calibration, batches=others)


def table(state: dict[str, Any]) -> str:
    """Return all rows."""
    lines = [
        "| model | MACs kept | ranking | steps | imitation | distance seen | held out | val | change | test | change |",
        "|---|---:|---|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for key, row in state.items():
        model, _, way, steps, imitation, _ = key.split(" ")
        name = way if way == row["allocation"] else f"{way} ({row['allocation']})"
        scores = [cell for split in ("val", "test") for cell in judged_cells(row, split)]
        numbers = (f"{row['kept']:.3f}", name, steps, imitation, f"{row['seen']:g}", f"{row['held_out']:g}")
        lines.append(f"| {' | '.join((model, *numbers, *scores))} |")
    return "\n".join(lines)


def judged_cells(row: dict[str, Any], split: str) -> tuple[str, str]:
    """Return accuracy and its change in words."""
    if split not in row:
        return "", ""
    change = row[f"{split}_change"]
    return f"{row[split]:.3f}", f"{change[0]:+.3f} to {change[1]:+.3f}" if change else ""


if __name__ == "__main__":
    main()
