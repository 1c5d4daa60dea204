"""A model of the host that knows the answers: it tells images apart by their colour, and finds what it was told to.

Everything after the network is the host's and ours: letterbox, NMS, masks from prototypes, scaling back, matching.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tiny_host import tiny
from torch import nn

NAMES = {0: "disc", 1: "card", 2: "nothing"}
POINTS = 3
SIZES = ((160, 96), (96, 160), (128, 128), (150, 70), (160, 120), (64, 160), (140, 140), (160, 160))
_PADDING = 114


@dataclass(frozen=True)
class Thing:
    """An object in pixels of its image: ``outline`` is convex, ``points`` are x, y and visibility."""

    kind: int
    outline: np.ndarray
    points: np.ndarray
    score: float = 0.9

    def moved(self, dx: float, dy: float) -> "Thing":
        step = np.array([dx, dy])
        points = np.concatenate([self.points[:, :2] + step, self.points[:, 2:]], axis=1)
        return replace(self, outline=self.outline + step, points=points)

    def box(self, size: tuple[int, int]) -> np.ndarray:
        inside = self.outline.clip(0, size)
        return np.array([*inside.min(axis=0), *inside.max(axis=0)])


@dataclass
class Picture:
    size: tuple[int, int]  # width, height
    things: list[Thing] = field(default_factory=list)


def rectangle(rng, centre, half, angle: float) -> np.ndarray:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return corners @ turn.T + centre


def ellipse(centre, half) -> np.ndarray:
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1) * half + centre


def pictures(task: str, seed: int = 0) -> list[Picture]:
    """Images of all shapes: one is empty, in some an object reaches over the border, and nobody is of the last class."""
    rng = np.random.default_rng(seed)
    found = []
    for number, size in enumerate(SIZES):
        made = Picture(size)
        for kind in range(0 if number == 3 else 2):
            at = np.array(size) * (0.28 + 0.44 * kind)
            half = np.array(size) * rng.uniform(0.16, 0.2, 2)
            at = at + rng.uniform(-3, 3, 2)
            if kind == 1 and number % 2 and task != "obb":
                at = np.array(size) - half * 0.6  # over the border
            outline = (
                ellipse(at, half) if kind == 0 and task != "obb" else rectangle(rng, at, half, number / 3)
            )
            places = at + rng.uniform(-0.8, 0.8, (POINTS, 2)) * half
            labelled = (rng.random(POINTS) < 0.8) * 2.0
            labelled[0] = 2.0
            inside = places.clip(0, np.array(size) - 1)
            points = np.concatenate([inside * (labelled[:, None] > 0), labelled[:, None]], axis=1)
            made.things.append(Thing(kind, outline, points))
        found.append(made)
    return found


def colour(number: int) -> int:
    return 10 + 12 * number + (6 if 10 + 12 * number > _PADDING - 6 else 0)


def write(folder: Path, task: str, made: list[Picture]) -> Path:
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for number, picture in enumerate(made):
        width, height = picture.size
        image = np.full((height, width, 3), colour(number), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / "val" / f"{number}.png"), image)
        rows = [label_row(task, thing, picture.size) for thing in picture.things]
        (folder / "labels" / "val" / f"{number}.txt").write_text("".join(f"{row}\n" for row in rows))
    shape = f"kpt_shape: [{POINTS}, 3]\n" if task == "pose" else ""
    yaml = folder / "data.yaml"
    yaml.write_text(f"train: images/val\nval: images/val\n{shape}names: {list(NAMES.values())}\n")
    return yaml


def label_row(task: str, thing: Thing, size: tuple[int, int]) -> str:
    if task == "pose":
        left, top, right, bottom = thing.box(size) / [*size, *size]
        numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        numbers += (thing.points / [*size, 1]).ravel().tolist()
    else:
        numbers = (thing.outline.clip(0, size) / size).ravel().tolist()
    return f"{thing.kind} " + " ".join(f"{number:.6f}" for number in numbers)


class Oracle:
    """Mixin for a model: its predictions are things it was told, in the form of the host's heads."""

    told: list[Picture]

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        if x.dim() != 4:
            raise TypeError("the oracle takes images alone")
        task, side = self.task, [x.shape[2] // 4, x.shape[3] // 4]
        most = max(len(picture.things) for picture in self.told)
        extra = {"segment": most, "pose": 3 * POINTS, "obb": 1}[task]
        out = torch.zeros(len(x), 4 + len(NAMES) + extra, most)
        masks = torch.full((len(x), most, *side), -1.0)
        for row, image in enumerate(x):
            content = self._content(image)
            if content is None:  # a warm-up
                continue
            number, corner, gain = content
            for at, thing in enumerate(self.told[number].things):
                column, mask = self._column(thing, self.told[number].size, corner, gain, side)
                out[row, 4 + thing.kind, at] = thing.score
                out[row, :4, at] = torch.tensor(column[:4])
                rest = torch.eye(most)[at] if task == "segment" else torch.tensor(column[4:])
                out[row, 4 + len(NAMES) :, at] = rest
                masks[row, at] = torch.from_numpy(mask)
        return ((out, masks), None) if task == "segment" else (out, None)

    def _content(self, image: torch.Tensor) -> Any:
        grey = (image[0] * 255).round()
        here = torch.nonzero(grey != _PADDING)
        if not len(here) or not grey.max():
            return None
        (top, left), (bottom, right) = here.min(dim=0).values.tolist(), (here.max(dim=0).values + 1).tolist()
        value = int(grey[(top + bottom) // 2, (left + right) // 2])
        number = [colour(each) for each in range(len(self.told))].index(value)
        width, height = self.told[number].size
        return number, np.array([left, top]), np.array([(right - left) / width, (bottom - top) / height])

    def _column(self, thing: Thing, size: tuple[int, int], corner: Any, gain: Any, side: list[int]) -> Any:
        outline = thing.outline.clip(0, size) * gain + corner
        box = thing.box(size).reshape(2, 2) * gain + corner
        column = [*box.mean(axis=0), *(box[1] - box[0])]
        if self.task == "pose":
            points = np.concatenate([thing.points[:, :2] * gain + corner, thing.points[:, 2:]], axis=1)
            column += points.ravel().tolist()
        if self.task == "obb":
            (x, y), (w, h), angle = cv2.minAreaRect(outline.astype(np.float32))
            column = [x, y, w, h, np.radians(angle)]
        rows, columns = np.mgrid[: side[0], : side[1]] * 4.0 + 2.0
        # Along straight edges a distance is linear, so that interpolation does not move its zero.
        edge = np.roll(outline, -1, axis=0) - outline
        normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1)
        normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        away = np.stack([columns, rows], axis=-1)[:, :, None] - outline
        distance = (away * normal).sum(axis=-1).max(axis=-1)
        return [float(value) for value in column], -distance.astype(np.float32)


def oracle(task: str, told: list[Picture]) -> nn.Module:
    module = tiny(task).eval()
    module.__class__ = type("OracleModel", (Oracle, type(module)), {})
    module.told, module.names = told, dict(NAMES)
    module.fuse = lambda *_, **__: module
    return module


def disturbed(made: list[Picture], share: float, seed: int = 1) -> list[Picture]:
    """Move every object by a random share of its size, and give it a score that falls with it."""
    rng = np.random.default_rng(seed)
    found = []
    for picture in made:
        things = []
        for thing in picture.things:
            extent = np.ptp(thing.outline, axis=0)
            step = rng.normal(0, share, 2) * extent
            score = 0.9 - min(0.8, float(np.abs(step / extent).max())) + rng.uniform(0, 0.05)
            things.append(replace(thing.moved(*step), score=score))
        found.append(Picture(picture.size, things))
    return found
