"""The options of the training loop, with their defaults."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from yolo_prune.adapters.torchvision.described import DETECT
from yolo_prune.adapters.torchvision.keys import TRAIN_KEYS
from yolo_prune.device import resolve_device
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize, plain_size, read_size
from yolo_prune.options.fields import SEED_MAX

OPTIMIZERS = ("SGD", "AdamW")
_LIMITS: dict[str, tuple[float, float | None]] = {
    "epochs": (1, None),
    "batch": (1, None),
    "workers": (0, None),
    "seed": (0, SEED_MAX),
    "lr0": (0, None),
}
_LIMITS |= {"momentum": (0, 1), "weight_decay": (0, None), "warmup_epochs": (0, None), "lrf": (0, 1)}
_LIMITS |= {"fliplr": (0, 1), "scale": (0, 0.9), "patience": (0, None), "rois": (4, None)}
_WHOLE = ("epochs", "batch", "workers", "seed", "patience", "rois")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        imgsz: Size of the input in pixels.
        batch: Images in a step.
        device: Where.
        seed: Of weights, order and augmentation.
        workers: Processes that load images.
        lr0: Learning rate after the warm-up.
        optimizer: ``SGD`` or ``AdamW``.
        momentum: Of SGD; the first beta of AdamW.
        weight_decay: On weights of more than one dimension; biases and norms have none.
        warmup_epochs: Epochs in which the rate rises to ``lr0``.
        lrf: Last rate over the first, at the end of a cosine.
        fliplr: Probability that an image is mirrored.
        scale: An image is made up to this share larger or smaller, and moved.
        rois: Regions an image that a second stage learns from; the library's own 512 take twice the time.
        patience: Epochs without a better model after which the training ends; 0 for never.
    """

    epochs: int
    imgsz: ImageSize
    batch: int = 16
    device: str = "cpu"
    seed: int = 0
    workers: int = 2
    lr0: float
    optimizer: str = "SGD"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    lrf: float = 0.01
    fliplr: float = 0.5
    scale: float = 0.3
    patience: int = 0
    rois: int = 128

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step of the training.

        Args:
            step: Its number, from 0.
            steps: In an epoch.
        """
        warm = self.warmup_epochs * steps
        if step < warm:
            return self.lr0 * (step + 1) / max(warm, 1.0)
        share = min((step - warm) / max(self.epochs * steps - warm, 1.0), 1.0)
        return self.lr0 * (self.lrf + (1 - self.lrf) * 0.5 * (1 + math.cos(math.pi * share)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "imgsz": plain_size(self.imgsz)}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> TrainRecipe:
        """Return what :meth:`to_dict` gave."""
        known = {field.name for field in fields(TrainRecipe)}
        values = {key: value for key, value in stored.items() if key in known}
        return TrainRecipe(**{**values, "imgsz": read_size(values["imgsz"])})


def default_rate(task: str, optimizer: str, batch: int, *, of_cut_model: bool) -> float:
    """Return the learning rate where none is given: it grows with the batch, and a cut model gets a fifth."""
    if optimizer == "AdamW":
        rate = 5e-4 if task == DETECT else 1e-3
    else:
        rate = 0.02 * batch / 16 if task == DETECT else 0.1 * batch / 128
    return rate / 5 if of_cut_model else rate


def make_recipe(task: str, values: Mapping[str, Any], *, of_cut_model: bool = False) -> TrainRecipe:
    """Make a recipe of options that :func:`check_options` has checked; those that are None have their defaults."""
    given = {key: value for key, value in values.items() if value is not None}
    given["optimizer"] = _optimizer(given.get("optimizer", "auto"))
    batch = int(given.get("batch", 16))
    given.setdefault("lr0", default_rate(task, given["optimizer"], batch, of_cut_model=of_cut_model))
    given["imgsz"] = read_size(given["imgsz"])
    if "device" in given:
        given["device"] = resolve_device(str(given["device"]))
    else:
        given["device"] = resolve_device(None)
    return TrainRecipe.from_dict(given)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what the loop does not know or cannot take.

    Raises:
        ConfigError: A key is unknown, or a value is of another type or out of range.
    """
    for key, value in options.items():
        if key not in TRAIN_KEYS:
            near = difflib.get_close_matches(key, TRAIN_KEYS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" It takes {', '.join(TRAIN_KEYS)}."
            raise ConfigError(f"'{key}' is no option of this host's training.{hint}")
        if value is None or key not in _LIMITS:
            continue
        low, high = _LIMITS[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (key in _WHOLE and value != int(value)):
            kind = "a whole number" if key in _WHOLE else "a number"
            raise ConfigError(f"{key} must be {kind}, got '{value}'.")
        if value < low or (high is not None and value > high):
            limit = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise ConfigError(f"{key} must be {limit}, got {value:g}.")
    _optimizer(options.get("optimizer") or "auto")


def _optimizer(name: object) -> str:
    """Return the optimizer that a name means, in any case; ``auto`` is SGD."""
    known = {each.lower(): each for each in OPTIMIZERS} | {"auto": OPTIMIZERS[0]}
    if str(name).lower() not in known:
        raise ConfigError(f"unknown optimizer '{name}'; this host's training has {', '.join(OPTIMIZERS)}.")
    return known[str(name).lower()]
