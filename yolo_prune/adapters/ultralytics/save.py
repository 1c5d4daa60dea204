"""Write Ultralytics checkpoints; those of stock classes are loaded by the plain host in its restricted mode."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import yolo_prune
from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.allowed import allow, wanted_by
from yolo_prune.adapters.ultralytics.load import read_checkpoint
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.errors import CheckpointError
from yolo_prune.files import replacing
from yolo_prune.progress import LOGGER


def save_detector(
    path: Path,
    module: nn.Module,
    *,
    task: str,
    train_args: Mapping[str, Any],
    meta: Mapping[str, Any],
    trust: bool = False,
) -> Path:
    """Write a checkpoint; see ``yolo_prune.adapters.checkpoint.save_detector``."""
    from ultralytics import __version__ as host_version

    _check_savable(module, path)
    options = {key: _plain(value) for key, value in train_args.items()}
    checkpoint = {
        "epoch": -1,
        "best_fitness": None,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "modelopt": None,
        "model": _stored_copy(module, task, path),
        "train_args": {**options, "task": task},
        METADATA_KEY: marked(_plain_metadata(meta), module),
        "date": datetime.now().astimezone().isoformat(),
        "version": host_version,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }
    return _write(path, checkpoint, trust=trust)


def marked(meta: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return metadata with the names of a module's own classes, where it holds some, under ``"classes"``."""
    own = own_classes(module)
    return {**meta, "classes": own} if own else dict(meta)


def _check_savable(module: nn.Module, path: Path) -> None:
    """Refuse hooks: a plain host would not have them, so the file would compute something else."""
    for name, layer in module.named_modules():
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            raise CheckpointError(
                f"cannot write '{path}': the module '{name}' carries a hook; remove it first."
            )


def _stored_copy(module: nn.Module, task: str, path: Path) -> nn.Module:
    """Return a half-precision copy, or a float32 one where a value would overflow, without training state."""
    copy: Any = deepcopy(module).cpu().float().eval()
    copy.criterion = None
    copy.task = task
    copy.__dict__.pop("pt_path", None)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)  # as in the host's own final checkpoints; its trainer switches it on
    largest = torch.finfo(torch.float16).max
    tensors = [tensor for tensor in copy.state_dict().values() if tensor.is_floating_point()]
    if all(tensor.abs().max() <= largest for tensor in tensors if tensor.numel()):
        copy = copy.half()
    else:
        LOGGER.info(f"{path.name} is stored in float32: a value exceeds the range of float16")
    return copy.to(memory_format=torch.contiguous_format)  # type: ignore[no-any-return]


def _plain(value: object) -> Any:
    """Return the value when every restricted loader accepts it, else its text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _plain_metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata as JSON would give it back, with the versions that wrote it."""
    from ultralytics import __version__ as host_version

    versions = {"yolo_prune": yolo_prune.__version__, "torch": torch.__version__, "ultralytics": host_version}
    try:
        plain = json.loads(json.dumps(dict(meta)))
    except TypeError as error:
        raise CheckpointError(f"checkpoint metadata must be plain JSON values: {error}.") from error
    return {**plain, "versions": {str(key): str(value) for key, value in versions.items()}}


def _write(path: Path, checkpoint: Mapping[str, Any], *, trust: bool) -> Path:
    """Write a checkpoint whole or not at all, after proving that it loads under the allow-list or is trusted."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch cannot find the source of a stock class
        try:
            torch.save(dict(checkpoint), buffer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CheckpointError(f"cannot write '{path}': {error}") from error
    buffer.seek(0)
    _, refused = allow(wanted_by(buffer))
    if refused and not trust:
        raise CheckpointError(
            f"cannot write '{path}': the model holds '{refused[0]}', which the host's restricted loader refuses. "
            "If the class is your own, pass trust=true."
        )
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path


def read_metadata(path: Path | str, *, trust: bool = False) -> dict[str, Any] | None:
    """Return the metadata of a checkpoint; see ``yolo_prune.adapters.checkpoint.read_metadata``."""
    meta = read_checkpoint(Path(path), trust=trust).get(METADATA_KEY)
    return dict(meta) if isinstance(meta, Mapping) else None


def write_metadata(path: Path, meta: Mapping[str, Any], *, trust: bool = False) -> Path:
    """Add metadata to a checkpoint; see ``yolo_prune.adapters.checkpoint.write_metadata``."""
    checkpoint = read_checkpoint(path, trust=trust)
    return _write(path, {**checkpoint, METADATA_KEY: _plain_metadata(meta)}, trust=trust)
