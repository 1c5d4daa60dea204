"""Save and load detectors, and say of a file what was pruned and from what; hosts are in ``adapters``."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.errors import CheckpointError

METADATA_KEY = "yolo_prune"
_ZIP, _PICKLE, _LFS = b"PK", b"\x80", b"version https://git-lfs"


@dataclass(frozen=True)
class LoadedModel:
    """A detector ready to be traced: float32, in eval mode, on one device, with stock classes only.

    Attributes:
        module: The network. Its parameters belong to the caller.
        task: The host's name of the task, such as ``"detect"``.
        names: Class index to class name.
        imgsz: Side in pixels of the square input it was trained at (where the file does not say: 640, of a
            classifier 224).
        path: The file it came from.
        meta: What yolo_prune recorded when it wrote the file (plan, parent, versions); None for other files.
        train_args: The options of the training that made it, as the host recorded them.
    """

    module: nn.Module
    task: str
    names: dict[int, str]
    imgsz: int
    path: Path
    meta: dict[str, Any] | None = None
    train_args: dict[str, Any] = field(default_factory=dict)


def load_detector(
    path: Path | str, *, trust: bool = False, device: str = "cpu", seed: int = 0
) -> LoadedModel:
    """Load a checkpoint without running any code of its own.

    Args:
        path: A ``*.pt`` file, the name of an official model that the host may download, or a ``*.yaml``
            architecture, which gets random weights.
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
    from yolo_prune.adapters.ultralytics import load as host

    return host.load_detector(path, trust=trust, device=device, seed=seed)


def save_detector(
    path: Path, module: nn.Module, *, task: str, train_args: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Write a checkpoint of stock classes that the plain host loads in its restricted mode.

    The file holds half-precision weights, as the host's own do, unless a value does not fit;
    ``module`` is left as it is.

    Args:
        path: The ``*.pt`` file to create or replace, whole or not at all.
        module: The network to write.
        task: The host's name of the task.
        train_args: The host's training options to carry along, of which ``imgsz`` matters most.
        meta: What yolo_prune has to say of it: plain values, kept under ``"yolo_prune"``.

    Returns:
        ``path``.

    Raises:
        CheckpointError: The module holds a class, a hook or metadata that a plain host could not load.
    """
    from yolo_prune.adapters.ultralytics import save as host

    return host.save_detector(path, module, task=task, train_args=train_args, meta=meta)


def read_metadata(path: Path | str) -> dict[str, Any] | None:
    """Return what yolo_prune recorded in a checkpoint, or None when another program wrote it.

    Raises:
        CheckpointError: The file is missing, damaged or unsafe.
    """
    from yolo_prune.adapters.ultralytics import save as host

    return host.read_metadata(path)


def write_metadata(path: Path, meta: Mapping[str, Any]) -> Path:
    """Add or replace the metadata of a checkpoint that the host's trainer wrote, and return ``path``.

    Raises:
        CheckpointError: The file cannot be loaded safely, or ``meta`` holds other than plain values.
    """
    from yolo_prune.adapters.ultralytics import save as host

    return host.write_metadata(path, meta)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 (64 hex digits) of a module's tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Refuse what cannot be a PyTorch checkpoint before any unpickler sees it.

    Raises:
        CheckpointError: The file is missing, a folder, unreadable, empty, truncated or no checkpoint.
    """
    if path.is_dir():
        raise CheckpointError(f"'{path}' is a folder, not a checkpoint. Name the *.pt file in it.")
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint '{path}' does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint '{path}' cannot be read: {error.strerror}.") from error
    if not head:
        raise CheckpointError(f"checkpoint '{path}' is empty (0 bytes).")
    if head == _LFS:
        raise CheckpointError(f"'{path}' is a Git LFS pointer, not the file itself: run 'git lfs pull'.")
    if head.startswith(_ZIP):
        _check_archive(path)
    elif not head.startswith(_PICKLE):
        raise CheckpointError(f"'{path}' is not a PyTorch checkpoint: it starts with {head[:12]!r}.")


def _check_archive(path: Path) -> None:
    """Refuse a zip file that is cut short, is TorchScript, or was not written by ``torch.save``."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"checkpoint '{path}' is truncated or damaged: copy or download it again.")
    with zipfile.ZipFile(path) as archive:
        members = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in members:
        raise CheckpointError(
            f"'{path}' is a TorchScript export. Prune the *.pt checkpoint it was made from."
        )
    if "data.pkl" not in members:
        raise CheckpointError(f"'{path}' is a zip file, but not a PyTorch checkpoint.")
