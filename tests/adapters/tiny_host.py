"""Models of the host with few channels, and images to train them on, drawn in a moment."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from ultralytics.nn import tasks

# Every module costs each test a copy, a trace and a checkpoint: a block with a shortcut, a concatenation and one head.
BACKBONE = [
    [-1, 1, "Conv", [8, 3, 2]],
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "C2f", [16, True]],
    [-1, 1, "Conv", [32, 3, 2]],
]
NECK = [
    [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
    [[-1, 2], 1, "Concat", [1]],
    [-1, 1, "Conv", [16, 3, 2]],
]
MODELS = {
    "detect": (tasks.DetectionModel, ["Detect", ["nc"]]),
    "segment": (tasks.SegmentationModel, ["Segment", ["nc", 8, 16]]),
    "pose": (tasks.PoseModel, ["Pose", ["nc", "kpt_shape"]]),
    "obb": (tasks.OBBModel, ["OBB", ["nc", 1]]),
    "classify": (tasks.ClassificationModel, ["Classify", ["nc"]]),
}


def corners(box: np.ndarray) -> str:
    x, y, w, h = box
    points = [(x - w / 2, y - h / 2), (x + w / 2, y - h / 2), (x + w / 2, y + h / 2), (x - w / 2, y + h / 2)]
    return " ".join(f"{value:.4f}" for point in points for value in point)


def label(task: str, kind: int, box: np.ndarray) -> str:
    if task in ("segment", "obb"):
        return f"{kind} {corners(box)}"
    keypoint = f" {box[0]:.4f} {box[1]:.4f} 2" if task == "pose" else ""
    return f"{kind} " + " ".join(f"{value:.4f}" for value in box) + keypoint


def draw(folder: Path, task: str = "detect", classes: int = 2, channels: int = 3) -> Path:
    """Draw eight images of 64 px with one bright rectangle each, for training and for validation.

    Three channels are a .jpg as cameras write it; others are kept exactly, more than four as pages of a .tiff.
    """
    ending = {1: "png", 3: "jpg", 4: "png"}.get(channels, "tiff")
    random = np.random.default_rng(0)
    for index in range(8):
        kind = index % classes
        image = random.integers(0, 60, (64, 64, channels), dtype=np.uint8)
        box = np.array([*random.uniform(0.3, 0.7, 2), *random.uniform(0.2, 0.5, 2)])
        (left, top), (right, bottom) = (box[:2] - box[2:] / 2) * 64, (box[:2] + box[2:] / 2) * 64
        image[int(top) : int(bottom), int(left) : int(right), kind % channels] = 255
        for split in ("train", "val"):
            name = f"{split}/{kind}/{index}" if task == "classify" else f"images/{split}/{index}"
            file = folder / f"{name}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if channels > 4:
                cv2.imwritemulti(str(file), np.moveaxis(image, 2, 0))
            else:
                cv2.imwrite(str(file), image)
            text = folder / "labels" / split / f"{index}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(label(task, kind, box) + "\n")
    if task == "classify":
        return folder
    names = "".join(f"  {kind}: kind{kind}\n" for kind in range(classes))
    stated = f"channels: {channels}\n" if channels != 3 else ""
    keypoints = "kpt_shape: [1, 3]\n" if task == "pose" else ""
    yaml = folder / "data.yaml"
    yaml.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\n{stated}{keypoints}names:\n{names}"
    )
    return yaml


def description(task: str = "detect") -> dict[str, Any]:
    """What the host builds a tiny model from: the content of a yaml file."""
    head = [-1 if task == "classify" else [6], 1, *MODELS[task][1]]
    neck = [] if task == "classify" else NECK
    return copy.deepcopy({"nc": 2, "kpt_shape": [1, 3], "backbone": BACKBONE, "head": [*neck, head]})


def tiny(task: str = "detect", channels: int = 3) -> nn.Module:
    """A model with few channels, random weights and two classes."""
    torch.manual_seed(0)
    cls, config = MODELS[task][0], description(task)
    module = cls(config, ch=channels, nc=2, verbose=False)
    module.task, module.args = task, {"task": task, "imgsz": 64}
    return module


def cut(module: nn.Module, keep: int = 4) -> nn.Module:
    """Keep the first ``keep`` channels between the first two convolutions, by hand."""
    module = copy.deepcopy(module)
    first, second = module.model[0], module.model[1].conv
    first.conv.weight = nn.Parameter(first.conv.weight.detach()[:keep].clone())
    first.conv.out_channels = first.bn.num_features = keep
    for name in ("weight", "bias"):
        setattr(first.bn, name, nn.Parameter(getattr(first.bn, name).detach()[:keep].clone()))
    for name in ("running_mean", "running_var"):
        setattr(first.bn, name, getattr(first.bn, name)[:keep].clone())
    second.weight = nn.Parameter(second.weight.detach()[:, :keep].clone())
    second.in_channels = keep
    return module
