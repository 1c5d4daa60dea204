"""What the flag is worth beside patience: equal epochs, several seeds, accuracy on val and test after every way.

    python scripts/bench_training.py model=yolov5n.pt data=data.yaml state=training.json folder=runs/training
    python scripts/bench_training.py model=yolo11n-cls.yaml data=cifar10_mini imgsz=64 epochs=30 batch=64 ...

Accuracy is what the task is judged by: COCO AP, top-1 of classifiers; on test where the data has one.

    plain            the training without the flag
    flag             the same line with keep_macs=: cut at its end
    flag-late        with prune_at=late: sparse epochs, the cut after 0.7 of them, retraining with a teacher
    flag-inexact     that with exact_resume=false
    flag-dense       that with sparsify=off: no sparse epochs
    flag-strong      that with sparsify=0.05: scales pushed by a given lambda
    flag-scales      that, and the scales alone rank
    flag-imitates    that with imitation_steps=120 at the cut
    flag-0.9         the same with prune_at=0.9
    flag-0.9-dense   the same without sparse epochs
    lasso            the plain training with group lasso (lasso=, its strength) on all that reads a channel, then as patience
    patience         the plain training, then prune without training (fold, imitation)
    patience-tuned   a plain training of 0.7 of the epochs, prune, and the other 0.3 of them as retraining
    torch-pruning    that, cut by Torch-Pruning's GroupNormPruner: the same retraining, teacher and epochs
    thin             cut by its weights after one epoch, then trained as a plain one: as thin from the beginning on

What is in the state is not run again. ways= and seeds= choose; fraction= (the host's) makes the training set smaller; the
table that is printed is the whole state. Runs of this model, data, size, epochs and budget share a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import torch
from bench_results import torch_pruning_cut
from torch import nn

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.errors import DataError
from yolo_prune.files import write_text
from yolo_prune.options.fields import parse_overrides

DEFAULTS: dict[str, Any] = {
    "imgsz": 320,
    "epochs": 50,
    "fraction": 1.0,
    "batch": 16,
    "keep_macs": 0.5,
    "threads": 1,
    "seeds": "0,1,2",
    "ways": "plain,flag,flag-late,patience,patience-tuned",
    "imitate_seconds": 120,
    "lasso": 1.0,
}
FLAGS = {
    "flag": (),
    "flag-late": ("prune_at=late",),
    "flag-inexact": ("prune_at=late", "exact_resume=false"),
    "flag-dense": ("prune_at=late", "sparsify=off"),
    "flag-strong": ("prune_at=late", "sparsify=0.05"),
    "flag-scales": ("prune_at=late", "sparsify=0.05", "criterion=bn_scale"),
    "flag-imitates": ("prune_at=late", "imitation_steps=120"),
    "flag-0.9": ("prune_at=0.9", "imitation_steps=120"),
    "flag-0.9-dense": ("prune_at=0.9", "imitation_steps=120", "sparsify=off"),
}
LATE = 0.7
"""The share of the epochs before the cut, that of ``prune_at=late``."""


def main() -> None:
    given: dict[str, Any] = {**DEFAULTS, **parse_overrides(sys.argv[1:])}
    path = Path(given["state"])
    state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for seed in str(given["seeds"]).split(","):
        for way in str(given["ways"]).split(","):
            named = f"{way}-{given['lasso']}" if way == "lasso" else way
            key = " ".join([setting(given), named, seed])
            if key in state:
                continue
            state[key] = scored(go(way, seed, given), given)
            write_text(path, json.dumps(state, indent=1))
            print(f"{way} {seed}: {state[key]}", flush=True)
    print(table(state))


def setting(given: dict[str, Any]) -> str:
    """Return what runs must share to stand in one table."""
    data = Path(str(given["data"]))
    names = (Path(str(given["model"])).stem, data.parent.name if data.suffix else data.name)
    numbers = (f"{key}={given[key]}" for key in ("imgsz", "epochs", "fraction", "keep_macs"))
    return " ".join([*names, *numbers])


def go(way: str, seed: str, given: dict[str, Any]) -> Path:
    """Run one way, or go on with what is there of it; return its checkpoint."""
    epochs = int(given["epochs"])
    if way == "plain":
        return train(way, seed, given, epochs)
    if way in FLAGS:
        return train(way, seed, given, epochs, f"keep_macs={given['keep_macs']}", *FLAGS[way])
    if way == "patience":
        return prune(way, seed, given, go("plain", seed, given))
    if way == "lasso":
        return prune(f"{way}-{given['lasso']}", seed, given, train_lasso(seed, given, epochs))
    first = round(LATE * epochs)
    if way in ("patience-tuned", "torch-pruning"):
        parent = train("plain-first", seed, given, first)
    if way == "patience-tuned":
        rest = (f"epochs={epochs - first}", f"fraction={given['fraction']}", f"batch={given['batch']}")
        return prune(way, seed, given, parent, *rest)
    if way == "torch-pruning":
        made = Path(given["folder"], f"{way}-{seed}-cut")
        sizes = {"imgsz": int(given["imgsz"]), "keep_macs": float(given["keep_macs"])}
        cut = torch_pruning_cut(parent, made, "GroupNorm", True, sizes)
        return train(way, seed, {**given, "model": cut}, epochs - first, f"teacher={parent}")
    if way == "thin":
        parent = train("thin-first", seed, given, 1)
        whole = {**given, "imitate_seconds": 0}
        cut = prune("thin-cut", seed, whole, parent, criterion="l1", fold="false", recalibrate_bn="true")
        return train(way, seed, {**given, "model": cut}, epochs - 1, "recipe=host")
    known = ", ".join(("plain", *FLAGS, "lasso", "patience", "patience-tuned", "torch-pruning", "thin"))
    raise SystemExit(f"ways= must be of {known}, got '{way}'")


def train(way: str, seed: str, given: dict[str, Any], epochs: int, *more: str) -> Path:
    """Train the model unless that was done; return best.pt."""
    shared = [f"{key}={given[key]}" for key in ("model", "data", "imgsz", "fraction", "batch", "threads")]
    place = [f"project={Path(given['folder']).resolve()}", f"name={way}-{seed}", "exist_ok=true"]
    rest = [
        f"epochs={epochs}",
        f"seed={seed}",
        "workers=0",
        "cache=ram",
        "plots=false",
        "patience=1000",
        "device=cpu",
    ]
    best = Path(given["folder"], f"{way}-{seed}", "weights", "best.pt")
    return finished(best, ["train", *shared, *place, *rest, *more])


def train_lasso(seed: str, given: dict[str, Any], epochs: int) -> Path:
    """Train a detector with group lasso on the weights that read a channel, unless that was done; return best.pt.

    After every step of the optimizer the norm of each group falls by rate x strength, not below zero (the proximal step).
    """
    from ultralytics.models.yolo.detect import DetectionTrainer

    strength, name = float(given["lasso"]), f"lasso-{given['lasso']}-{seed}-whole"

    class LassoTrainer(DetectionTrainer):  # type: ignore[misc]
        def optimizer_step(self) -> None:
            super().optimizer_step()
            rate = self.optimizer.param_groups[0]["lr"]
            with torch.no_grad():
                for reader in readers(self.model):
                    norms = reader.weight.square().sum((0, 2, 3), keepdim=True).sqrt()
                    reader.weight.mul_((1 - rate * strength / norms.clamp(min=1e-9)).clamp(min=0))

    best = Path(given["folder"], name, "weights", "best.pt")
    note = best.parent.parent / "finished"
    if not note.is_file():
        torch.set_num_threads(int(given["threads"]))
        how = {key: str(given[key]) for key in ("model", "data")}
        how |= {
            key: float(given[key]) if key == "fraction" else int(given[key])
            for key in ("imgsz", "fraction", "batch")
        }
        place = {"project": str(Path(given["folder"]).resolve()), "name": name, "exist_ok": True}
        rest = {"workers": 0, "cache": "ram", "plots": False, "patience": 1000, "device": "cpu"}
        LassoTrainer(
            overrides={**how, **place, **rest, "epochs": epochs, "seed": int(seed), "task": "detect"}
        ).train()
        write_text(note, f"lasso={strength}")
    print(
        f"lasso={strength} {seed}, before the cut: {scored(best, given)}, {faint(best):.1%} of the groups below a tenth",
        flush=True,
    )
    return best


def readers(module: nn.Module) -> list[nn.Conv2d]:
    """Return the dense convolutions that read channels of others, without the one of box distributions, which is fixed."""
    found = [
        part for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and "dfl" not in name
    ]
    return [part for part in found if part.groups == 1 and part.in_channels > 3]


def faint(checkpoint: Path) -> float:
    """Return the share of groups whose norm is below a tenth of their layer's mean: what the lasso has emptied."""
    norms = [
        part.weight.float().square().sum((0, 2, 3)).sqrt()
        for part in readers(load_detector(checkpoint).module)
    ]
    return float(torch.cat([layer < 0.1 * layer.mean() for layer in norms]).float().mean())


def prune(way: str, seed: str, given: dict[str, Any], parent: Path, *more: str, **how: str) -> Path:
    """Prune a trained model unless that was done; return the model that it ends with."""
    shared = [f"{key}={given[key]}" for key in ("data", "imgsz", "threads", "keep_macs")]
    place = [f"project={Path(given['folder']).resolve()}", f"name={way}-{seed}", "exist_ok=true"]
    rest = [f"seed={seed}", "workers=0", f"recover_seconds={given['imitate_seconds']}", "bench=false"]
    rest += [f"{key}={value}" for key, value in how.items()]
    weights = Path(given["folder"], f"{way}-{seed}", "weights")
    made = weights / ("best.pt" if more else "pruned.pt")
    return finished(made, ["prune", f"model={parent}", *shared, *place, *rest, *more])


def finished(made: Path, words: list[str]) -> Path:
    """Run a command of the package unless its end is noted beside what it makes."""
    note = made.parent.parent / "finished"
    if not note.is_file():
        subprocess.run([sys.executable, "-m", "yolo_prune", *words], check=True, stdin=subprocess.DEVNULL)
        write_text(note, " ".join(words))
    return made


def scored(checkpoint: Path, given: dict[str, Any]) -> dict[str, float]:
    """Return the accuracy of a checkpoint, of last.pt beside a trained one, on val and test."""
    found, how = {}, {"batch": 16, "device": "cpu", "workers": 0}
    for name in (checkpoint.name, "last.pt") if checkpoint.name == "best.pt" else (checkpoint.name,):
        file = checkpoint.with_name(name)
        loaded, host = load_detector(file), find_host(str(file))
        label = "last" if name == "last.pt" else "best"
        for split in ("val", "test"):
            try:
                task = host.open_task(loaded, given["data"], split=split, **how)
            except DataError:
                if split == "val":
                    raise
                continue
            result = task.evaluate(loaded.module, int(given["imgsz"]))
            found[f"{label} {split}"] = round(float(result.scores[task.metric]), 4)
    return found


def table(state: dict[str, Any]) -> str:
    """Return means over seeds with the seeds' spread, a row a way."""
    ways: dict[str, list[dict[str, float]]] = {}
    for key, found in state.items():
        ways.setdefault(key.rsplit(" ", 1)[0], []).append(found)
    columns = ("best val", "best test", "last val", "last test")
    lines = ["| setting and way | seeds | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for way, rows in ways.items():
        cells = [spread([row[column] for row in rows if column in row]) for column in columns]
        lines.append(f"| {way} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return the mean, with the standard deviation of several."""
    if not values:
        return "-"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
