"""Which classes a checkpoint may hold, and a way to rebuild them that runs no constructor.

Ultralytics has had a restricted loader only since late in 8.4, so the list is ours and serves every supported
version; it allows a subset of what the host's own restricted mode allows.
"""

from __future__ import annotations

import importlib
import io
import pathlib
import pickle
import pickletools
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

_MODULE_FILES = ("torch.nn.modules", "ultralytics.nn.modules")
_TASK_FILE = "ultralytics.nn.tasks"
_LOSS_FILES = ("ultralytics.utils.loss", "ultralytics.utils.tal")
_FORWARDS = ("forward", "forward_fuse")
# A classifier's checkpoint says how its images are prepared.
_TRANSFORMS_FILE = "torchvision.transforms.transforms"
_TRANSFORMS = ("CenterCrop", "Compose", "Normalize", "Resize", "ToTensor")
_INTERPOLATION = "torchvision.transforms.functional.InterpolationMode"
RENAMED = {
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
}


class _Blank:
    """Stands for a class that may be rebuilt empty and given its state, but never called with arguments.

    Some constructors of the host evaluate strings of their configuration, so a pickle must not reach them.
    """

    def __init__(self, real: type) -> None:
        self.real = real
        self.__new__ = lambda _self: object.__new__(real)  # type: ignore[method-assign, assignment]

    def __call__(self, *_: Any) -> NoReturn:
        raise pickle.UnpicklingError(
            f"it calls the constructor of '{self.real.__name__}', which is not allowed"
        )


def _attribute_of_module(owner: Any, name: str) -> Any:
    """Take the place of ``getattr``, which fused modules pickle their forward with, and of nothing else."""
    real = owner.real if isinstance(owner, _Blank) else owner
    is_module = isinstance(real, nn.Module) or (isinstance(real, type) and issubclass(real, nn.Module))
    if is_module and name in _FORWARDS:
        return getattr(real, name)
    raise pickle.UnpicklingError(f"getattr({type(owner).__name__}, {name!r}) is not allowed in a checkpoint")


def _find_class(name: str) -> type | None:
    """Return the stock class of a dotted name, or None when the name is not one."""
    file, _, attribute = RENAMED.get(name, name).rpartition(".")
    is_layer = file in _MODULE_FILES or file.rpartition(".")[0] in _MODULE_FILES or file == _TASK_FILE
    is_transform = file == _TRANSFORMS_FILE and attribute in _TRANSFORMS
    if not (is_layer or is_transform or file in _LOSS_FILES):
        return None
    try:
        found = getattr(importlib.import_module(file), attribute, None)
    except ModuleNotFoundError:
        return None
    if not isinstance(found, type):
        return None
    stock = issubclass(found, nn.Module) if is_layer else found.__module__ == file
    return found if stock else None


def is_stock(kind: type) -> bool:
    """Tell whether a class is one of torch's or the host's own that every host can load."""
    return _find_class(f"{kind.__module__}.{kind.__qualname__}") is kind


def _plain_values(wanted: Collection[str]) -> dict[str, Any]:
    """Return the harmless values, other than layers, that the host's checkpoints hold."""
    from ultralytics.utils import IterableSimpleNamespace

    scalar = np.float64(0).__reduce__()[0]
    values: dict[str, Any] = {
        "builtins.getattr": _attribute_of_module,
        "numpy.dtype": np.dtype,
        "numpy.core.multiarray.scalar": scalar,
        "numpy._core.multiarray.scalar": scalar,
        "ultralytics.utils.IterableSimpleNamespace": IterableSimpleNamespace,
        "ultralytics.yolo.utils.IterableSimpleNamespace": IterableSimpleNamespace,
    }
    for file in ("pathlib", "pathlib._local"):
        for system in ("PosixPath", "WindowsPath"):
            values[f"{file}.{system}"] = type(pathlib.Path())
    if _INTERPOLATION in wanted:  # an enumeration; the import takes seconds
        values[_INTERPOLATION] = importlib.import_module(
            "torchvision.transforms.functional"
        ).InterpolationMode
    return values


def allow(wanted: Collection[str]) -> tuple[list[Any], list[str]]:
    """Sort the names in a checkpoint into entries for ``torch.serialization.safe_globals`` and the rest.

    Args:
        wanted: Dotted names of classes and functions.

    Returns:
        Entries for ``safe_globals``, and the names that are refused (sorted).
    """
    plain = _plain_values(wanted)
    entries: list[Any] = []
    refused: list[str] = []
    for name in sorted(wanted):
        found = _find_class(name)
        if name in plain:
            entries.append((plain[name], name))
        elif found is not None:
            # State may be given to the real class; no pickle can know the name it is listed under.
            entries += [(_Blank(found), name), (found, f"{name}#{uuid.uuid4().hex}")]
        else:
            refused.append(name)
    if "numpy.dtype" in wanted:
        entries.append(type(np.dtype(np.float64)))
    return entries, refused


def wanted_by(source: Path | io.BytesIO) -> list[str]:
    """List the classes and functions that a checkpoint refers to and torch does not know, without loading it.

    Args:
        source: A file, or the bytes of one.

    Raises:
        ValueError: It is not a checkpoint that ``torch.save`` wrote.
    """
    if isinstance(source, Path) and source.read_bytes()[:2] != b"PK":
        return _wanted_by_bare_pickle(source.read_bytes())
    return list(torch.serialization.get_unsafe_globals_in_checkpoint(source))


def _wanted_by_bare_pickle(data: bytes) -> list[str]:
    """List the globals of the first pickle in ``data``: torch's format before 1.6, or no checkpoint."""
    names: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return sorted(names)
