"""Save and load detectors, and say of a file what was pruned and from what; hosts are in ``adapters``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.adapters.hosts import find_host
from yolo_prune.adapters.stored import LoadedModel


def load_detector(
    path: Path | str,
    *,
    weights: Path | str | None = None,
    trust: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """Load a checkpoint without running any code of its own.

    Args:
        path: A ``*.pt`` file, the name of an official model that the host may download, or a ``*.yaml``
            architecture, which gets random weights; or the name of an architecture of a library, for ``weights``.
        weights: State dict of such an architecture, or a checkpoint that holds one.
        trust: Allow classes that are not stock. Their code runs: only for files of your own.
        device: Where the module goes, in torch's notation.
        seed: Seed of the random weights of a ``*.yaml``.

    Returns:
        The module (float32, eval) and what is known of it.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, fused, quantised or has no BatchNorm.

    Example:
        >>> load_detector("yolov8n.yaml").task
        'detect'
    """
    return find_host(path).load(path, weights=weights, trust=trust, device=device, seed=seed)


def save_detector(
    path: Path | str,
    module: nn.Module,
    *,
    task: str,
    train_args: Mapping[str, Any],
    meta: Mapping[str, Any],
    trust: bool = False,
) -> Path:
    """Write a checkpoint; one of stock classes is loaded by the plain host in its restricted mode.

    The file holds half-precision weights, as the host's own do, unless a value does not fit;
    ``module`` is left as it is.

    Args:
        path: The ``*.pt`` file to create or replace, whole or not at all.
        module: The network to write.
        task: The host's name of the task.
        train_args: The host's training options to carry along, of which ``imgsz`` matters most.
        meta: What yolo_prune has to say of it: plain values, kept under ``"yolo_prune"``.
        trust: Write classes that are not stock too. The metadata names them under ``"classes"``; who loads the
            file needs to trust it, and Python to find the classes.

    Returns:
        ``path``.

    Raises:
        CheckpointError: The module holds a class that is not trusted, or a hook or metadata that a plain host could
            not load.
    """
    return find_host(path).save(Path(path), module, task=task, train_args=train_args, meta=meta, trust=trust)


def read_metadata(path: Path | str, *, trust: bool = False) -> dict[str, Any] | None:
    """Return what yolo_prune recorded in a checkpoint, or None when another program wrote it.

    Raises:
        CheckpointError: The file is missing, damaged or unsafe.
    """
    return find_host(path).read_metadata(path, trust=trust)


def write_metadata(path: Path | str, meta: Mapping[str, Any], *, trust: bool = False) -> Path:
    """Add or replace the metadata of a checkpoint that the host's trainer wrote, and return ``path``.

    Raises:
        CheckpointError: The file cannot be loaded safely, or ``meta`` holds other than plain values.
    """
    return find_host(path).write_metadata(Path(path), meta, trust=trust)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 (64 hex digits) of a module's tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
