"""Half of a segmenter, of a pose estimator and of a detector of oriented boxes: what folding and imitation leave of them.

    python scripts/bench_tasks.py model=bccd_yolo11n.pt data=bccd/data.yaml folder=runs/tasks state=tasks.json

The labels are made of a detection set's boxes: masks are the ellipses in them, key points their middles and the four
ends of their axes, and oriented boxes are the boxes of images turned by an angle of their own (up to 45 degrees). A model
of each task begins with what fits of model=, trains epochs= on them and is pruned without training to keep_macs=.
``folded`` are the same with imitation off. Accuracy is what the task is judged by, on val and test. Trained
models in the folder are not trained again, rows in the state are not run again; tasks= and keeps= choose.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from bench_training import finished, scored
from numpy.typing import NDArray

from yolo_prune.files import write_text
from yolo_prune.options.fields import parse_overrides

DEFAULTS: dict[str, Any] = {
    "tasks": "seg,pose,obb",
    "keeps": "0.5",
    "architecture": "yolo11n",
    "imgsz": 320,
    "epochs": 15,
    "threads": 1,
    "seed": 0,
}
SPLITS = ("train", "val", "test")
CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
AXES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]]) / 2
ROUND = (
    np.array([[math.cos(turn), math.sin(turn)] for turn in np.linspace(0, 2 * math.pi, 24, endpoint=False)])
    / 2
)


def main() -> None:
    given: dict[str, Any] = {**DEFAULTS, **parse_overrides(sys.argv[1:])}
    path = Path(given["state"])
    state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for task in str(given["tasks"]).split(","):
        data = make_data(Path(given["data"]), Path(given["folder"]).resolve(), task)
        how = {**given, "data": data}
        parent = train(task, how)
        if f"{task} parent" not in state:
            keep(state, f"{task} parent", scored(parent, how), path)
        for share in str(given["keeps"]).split(","):
            for name, seconds in (("folded", 0), ("imitated", 3000)):
                key = f"{task} {share} {name} {given['seed']}"
                if key not in state:
                    keep(state, key, scored(prune(task, how, parent, share, name, seconds), how), path)
    for key, found in state.items():
        print(key, found)


def keep(state: dict[str, Any], key: str, found: dict[str, float], path: Path) -> None:
    state[key] = found
    write_text(path, json.dumps(state, indent=1))
    print(f"{key}: {found}", flush=True)


def make_data(source: Path, folder: Path, task: str) -> Path:
    """Write images and labels of a task from those of a detection set, unless they are there; return the data yaml."""
    made = folder / f"data-{task}"
    listed = made / "data.yaml"
    if listed.is_file():
        return listed
    names = yaml.safe_load(source.read_text())["names"]
    for split in SPLITS:
        (made / "images" / split).mkdir(parents=True, exist_ok=True)
        (made / "labels" / split).mkdir(parents=True, exist_ok=True)
        files = sorted((source.parent / "images" / split).iterdir())
        for number, file in enumerate(files):
            labels = (source.parent / "labels" / split / file.name).with_suffix(".txt")
            rows = np.loadtxt(labels, ndmin=2) if labels.read_text().strip() else np.zeros((0, 5))
            image = cv2.imread(str(file))
            degrees = float(np.random.default_rng(number).uniform(-45, 45)) if task == "obb" else 0.0
            image, lines = relabelled(image, rows, task, degrees)
            cv2.imwrite(str(made / "images" / split / f"{file.stem}.png"), image)
            write_text(made / "labels" / split / f"{file.stem}.txt", "\n".join(lines) + "\n")
    about = {"path": str(made), **{split: f"images/{split}" for split in SPLITS}, "names": names}
    if task == "pose":
        about |= {"kpt_shape": [len(AXES), 2], "flip_idx": [0, 2, 1, 3, 4]}
    write_text(listed, yaml.safe_dump(about))
    return listed


def relabelled(
    image: NDArray[np.uint8], rows: NDArray[np.float64], task: str, degrees: float
) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the image, turned, and a line for each box (class, middle and size as shares) in the form of the task."""
    height, width = image.shape[:2]
    size = np.array([width, height])
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    lines = []
    for kind, *box in rows:
        middle, sides = np.array(box[:2]) * size, np.array(box[2:]) * size
        points = middle + {"seg": ROUND, "pose": AXES, "obb": CORNERS}[task] * sides
        shares = (points @ turn[:, :2].T + turn[:, 2]) / size
        if task == "obb" and not ((shares.mean(0) > 0) & (shares.mean(0) < 1)).all():
            continue
        numbers = [*box, *shares.ravel()] if task == "pose" else shares.clip(0, 1).ravel()
        lines.append(" ".join([str(int(kind)), *(f"{number:.6f}" for number in numbers)]))
    turned = cv2.warpAffine(image, turn, (width, height), borderValue=(114, 114, 114)) if degrees else image
    return turned, lines


def train(task: str, given: dict[str, Any]) -> Path:
    """Train a model of the task from the detector's weights, unless that was done; return best.pt."""
    folder = Path(given["folder"]).resolve()
    best = folder / f"{task}-parent" / "weights" / "best.pt"
    words = ["train", f"model={given['architecture']}-{task}.yaml", f"pretrained={given['model']}"]
    words += [f"{key}={given[key]}" for key in ("data", "imgsz", "epochs", "threads", "seed")]
    words += [
        f"project={folder}",
        f"name={task}-parent",
        "exist_ok=true",
        "workers=0",
        "plots=false",
        "device=cpu",
    ]
    return finished(best, words)


def prune(task: str, given: dict[str, Any], parent: Path, share: str, name: str, seconds: int) -> Path:
    """Prune without training, unless that was done; return what came out."""
    folder = Path(given["folder"]).resolve()
    made = folder / f"{task}-{share}-{name}-{given['seed']}" / "weights" / "pruned.pt"
    words = ["prune", f"model={parent}", f"keep_macs={share}", f"recover_seconds={seconds}", "bench=false"]
    words += [f"{key}={given[key]}" for key in ("data", "imgsz", "threads", "seed")]
    words += [
        f"project={folder}",
        f"name={made.parent.parent.name}",
        "exist_ok=true",
        "workers=0",
        "device=cpu",
    ]
    return finished(made, words)


if __name__ == "__main__":
    main()
