"""A tiny detector, trained for a few seconds on drawn squares until it finds them, and one whole run of it."""

import contextlib
import functools
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from yolo_prune import bench, cli
from yolo_prune.runs.measure import speed

ARCHITECTURE = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, C3k2, [48, False]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, SPPF, [64, 5]]
  - [-1, 1, C2PSA, [64]]
head:
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 1, Conv, [48, 1]]
  - [[10, 7], 1, Detect, [nc]]
"""
NAMES = ("red", "blue")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The host takes all cores but one, and the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw_squares(folder: Path, train: int = 24, val: int = 8, side: int = 64) -> Path:
    """Draw one red or blue rectangle an image, and return the data yaml."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image = random.integers(0, 60, (side, side, 3), dtype=np.uint8)
            centre, size = random.uniform(0.35, 0.65, 2), random.uniform(0.3, 0.5, 2)
            (left, top), (right, bottom) = (
                ((centre + sign * size / 2) * side).astype(int) for sign in (-1, 1)
            )
            image[top:bottom, left:right, 2 - 2 * (index % 2)] = 250  # blue, green, red
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            row = " ".join(f"{value:.6f}" for value in (*centre, *size))
            (folder / "labels" / split / f"{index}.txt").write_text(f"{index % 2} {row}\n")
    yaml = folder / "data.yaml"
    yaml.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")
    return yaml


def draw_bars(folder: Path) -> None:
    """Draw bars of three directions on noise, some of them hard to tell: a folder of images a class."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12)):
        for kind in ("across", "both", "down"):
            (folder / split / kind).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 110, (64, 64, 3), dtype=np.uint8)
                at, strength = random.integers(8, 48), random.integers(20, 140)
                if kind != "down":
                    pixels[at : at + 8] += np.uint8(strength)
                if kind != "across":
                    pixels[:, at : at + 8] += np.uint8(strength if kind == "down" else strength // 2)
                Image.fromarray(pixels).save(folder / split / kind / f"{index}.png")


@pytest.fixture(scope="session")
def bars(made_once) -> Path:
    return made_once("bars", draw_bars)


@pytest.fixture(scope="session")
def data(made_once) -> Path:
    return made_once("squares", draw_squares) / "data.yaml"


@pytest.fixture(scope="session")
def parent(made_once, data) -> Path:
    """A checkpoint of the host's own trainer that finds the squares."""
    folder = made_once("parent", lambda folder: train_parent(folder, data))
    return folder / "train" / "weights" / "last.pt"


def train_parent(folder: Path, data: Path) -> None:
    from ultralytics import YOLO

    (folder / "tiny.yaml").write_text(ARCHITECTURE)
    model = YOLO(str(folder / "tiny.yaml"), task="detect")
    still = {"mosaic": 0, "close_mosaic": 0, "scale": 0.1, "hsv_h": 0, "erasing": 0}
    quick = {"val": False, "amp": False, "workers": 0, "cache": "ram", "plots": False, "verbose": False}
    recipe = {"batch": 8, "nbs": 8, "optimizer": "AdamW", "lr0": 0.01, "warmup_epochs": 1, "epochs": 30}
    where = {"project": str(folder), "name": "train", "device": "cpu"}
    model.train(data=str(data), imgsz=64, seed=0, **where, **still, **quick, **recipe)


@pytest.fixture(scope="session")
def words(parent, data) -> list[str]:
    """The words of a short run, without its name, its length and its speed."""
    short = ["keep_macs=0.6", "steps=2", "calibration_images=16", "batch=8", "workers=0"]
    short += ["recover_seconds=0"]  # tried where tasks and classifiers are pruned
    return ["prune", f"model={parent}", f"data={data}", *short]


@pytest.fixture(scope="session")
def finished(made_once, words) -> tuple[Path, int, str]:
    """One whole run with retraining and a short measurement of speed: its folder, exit code and stdout."""
    project = made_once("runs", lambda folder: run_whole(folder, words))
    code, out = json.loads((project / "said.json").read_text())
    return project / "whole", code, out


def run_whole(project: Path, words: list[str]) -> None:
    options = ["epochs=1", "plots=false", "threads=1", "quantize=8", f"project={project}", "name=whole"]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(speed, "compare", functools.partial(bench.compare, rounds=4))
        code = cli.main([*words, *options])
    (project / "said.json").write_text(json.dumps([code, out.getvalue()]))
