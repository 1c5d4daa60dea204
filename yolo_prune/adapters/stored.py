"""What a stored detector is, and whether a file can be one; ``checkpoint`` loads and saves it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.errors import CheckpointError
from yolo_prune.imgsz import ImageSize

METADATA_KEY = "yolo_prune"
_CUT_ROLES = ("pruned", "retrained")
_ZIP, _PICKLE, _LFS = b"PK", b"\x80", b"version https://git-lfs"


@dataclass(frozen=True)
class LoadedModel:
    """A detector ready to be traced: float32, in eval mode, on one device, with stock classes only.

    Attributes:
        module: The network. Its parameters belong to the caller.
        task: The host's name of the task, such as ``"detect"``.
        names: Class index to class name.
        imgsz: Size of its input: what we recorded, else that of its training (where the file does not say: 640, of a
            classifier 224).
        channels: Of the images that it takes.
        path: The file it came from.
        meta: What yolo_prune recorded when it wrote the file (plan, parent, versions); None for other files.
        train_args: The options of the training that made it, as the host recorded them.
        deployed: Makes of the module a copy as it is exported and timed, which returns class scores (B, C) or ranked
            boxes (B, N, 6); None: the module is run as it is, with BatchNorm folded where it knows how.
    """

    module: nn.Module
    task: str
    names: dict[int, str]
    imgsz: ImageSize
    channels: int
    path: Path
    meta: dict[str, Any] | None = None
    train_args: dict[str, Any] = field(default_factory=dict)
    deployed: Callable[[nn.Module], nn.Module] | None = None


def record_of_cut(meta: Mapping[str, Any] | None) -> bool | None:
    """Return whether our record in a checkpoint says that its model was cut; None where it does not say.

    Args:
        meta: What yolo_prune recorded in the checkpoint.
    """
    record = meta or {}
    if record.get("role") in _CUT_ROLES:
        return True
    said = record.get("cut")  # of a model that a run began with
    return said if isinstance(said, bool) else None


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
