"""Checkpoints of this host: a plain dict of a name, tensors and text, which any restricted loader takes.

It comes back by building the network, cutting it by the stored plan and loading the state dict::

    stored = torch.load("best.pt", weights_only=True)
    net = torchvision.models.get_model(stored["architecture"].partition(":")[2], num_classes=stored["outputs"])
    yolo_prune.restore(net, yolo_prune.PrunePlan.from_json(stored["plan"])).load_state_dict(stored["state_dict"])
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import yolo_prune
from yolo_prune.adapters.stored import METADATA_KEY, LoadedModel, check_file
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.adapters.torchvision.deployed import deployed
from yolo_prune.adapters.torchvision.described import DETECT, Described, describe_, described
from yolo_prune.adapters.torchvision.names import FORMAT, names_architecture
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.restore import restore
from yolo_prune.errors import CheckpointError, ConfigError, PlanError
from yolo_prune.files import replacing
from yolo_prune.imgsz import plain_size, read_size

_WEIGHTS_UNDER = ("state_dict", "model_state_dict", "model", "model_ema", "ema")
_BROKEN = (RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, pickle.UnpicklingError)


def load(
    model: str | Path, *, weights: str | Path | None = None, device: str = "cpu", seed: int = 0
) -> LoadedModel:
    """Load a file of this host, or build an architecture and load a state dict into it.

    Args:
        model: A file that :func:`save` wrote, or an architecture such as ``torchvision:resnet50``.
        weights: The architecture's state dict, or a checkpoint with one; None: random weights.
        device: Where the network goes.
        seed: Of random weights.

    Raises:
        CheckpointError: A file is missing, damaged or unsafe, or its weights are of another network.
        ConfigError: The architecture is unknown, or weights are given for a file that has its own.
    """
    if not names_architecture(model):
        if weights is not None:
            raise ConfigError(f"'{model}' holds its own weights: leave weights= out.")
        return _load_file(Path(model), device)
    library, name = building.split_name(str(model))
    architecture, task = f"{library}:{name}", building.task_of(str(model))
    file = Path(weights) if weights is not None else None
    if file is None:
        classes = 91 if task == DETECT else 1000
        module = building.build(architecture, classes, seed=seed)
    else:
        state = read_weights(file)
        classes = _checked_classes(state, architecture, file)
        module = building.build(architecture, classes, seed=seed)
        load_state_(module, state, architecture, file)
    size = building.own_size(architecture, module)
    what = Described(architecture, task, classes, size)
    return _loaded(describe_(module, what), file or Path(str(model)), None, {}, device)


def _load_file(file: Path, device: str) -> LoadedModel:
    stored = read(file)
    plan = stored["plan"]
    try:
        what = Described(
            architecture=str(stored["architecture"]),
            task=building.task_of(str(stored["architecture"])),
            outputs=int(stored["outputs"]),
            imgsz=read_size(stored["imgsz"]),
            names=tuple(stored["names"]),
            labels=tuple(stored["labels"]),
            plan=plan,
            example=stored.get("example"),
        )
        module = building.build(what.architecture, what.outputs)
        if plan is not None:
            restore(module, PrunePlan.from_json(plan))
        module.load_state_dict(stored["state_dict"])
    except (KeyError, RuntimeError, PlanError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"'{file}' cannot be built again: {str(error).splitlines()[0]}") from error
    meta = stored.get(METADATA_KEY)
    train_args = dict(stored.get("train_args") or {})
    return _loaded(describe_(module, what), file, dict(meta) if meta else None, train_args, device)


def _loaded(
    module: nn.Module, file: Path, meta: dict[str, Any] | None, train_args: dict[str, Any], device: str
) -> LoadedModel:
    what = described(module)
    return LoadedModel(
        module=module.eval().to(device),
        task=what.task,
        names=what.numbered,
        imgsz=what.imgsz,
        channels=3,
        path=file,
        meta=meta,
        train_args=train_args,
        deployed=deployed,
    )


def read(file: Path) -> dict[str, Any]:
    """Read a file of this host.

    Raises:
        CheckpointError: It is missing, damaged, or another host's.
    """
    stored = _unpickled(file)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise CheckpointError(f"'{file}' was not written by this host: give model= and weights=.")
    return stored


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state dict, bare or in a checkpoint, without running code of the file.

    Raises:
        CheckpointError: The file is missing, damaged or unsafe, holds no state dict, or one with NaN.
    """
    held = _unpickled(file)
    for key in ("", *_WEIGHTS_UNDER):
        found = held.get(key) if key and isinstance(held, Mapping) else held
        if isinstance(found, Mapping) and found and all(isinstance(v, Tensor) for v in found.values()):
            break
    else:
        keys = f" under {', '.join(map(repr, list(held)[:6]))}" if isinstance(held, Mapping) else ""
        raise CheckpointError(
            f"'{file}' holds no state dict, bare or under one of {', '.join(_WEIGHTS_UNDER)}: it has "
            f"{type(held).__name__}{keys}. Save model.state_dict()."
        )
    state = {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"'{file}' holds NaN or infinity in '{name}': its training diverged.")
    return state


def _unpickled(file: Path) -> Any:
    check_file(file)
    try:
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # the libraries' own scripts store theirs
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{file}' holds more than tensors and plain values, which could run any code: save "
            "model.state_dict() alone."
        ) from error
    except _BROKEN as error:
        raise CheckpointError(f"checkpoint '{file}' is truncated or damaged: copy it again.") from error


def _checked_classes(state: Mapping[str, Tensor], architecture: str, file: Path) -> int:
    classes = building.classes_in(state, architecture)
    if classes is None:
        heads = sorted(building.per_class_tensors(architecture))
        raise CheckpointError(
            f"the weights in '{file}' are not of {architecture}: the number of classes cannot be read off "
            f"{building.listed(heads)}."
        )
    return classes


def load_state_(module: nn.Module, state: Mapping[str, Tensor], architecture: str, file: Path) -> None:
    """Load a state dict whose names and shapes must be those of the network.

    A frozen BatchNorm has no count of batches, and its numbers mean the same in one that learns.

    Raises:
        CheckpointError: They are of another network.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or foreign:
        lacks = f" they lack {building.listed(missing)};" if missing else ""
        has = f" they have {building.listed(foreign)};" if foreign else ""
        raise CheckpointError(
            f"the weights in '{file}' are not of {architecture}:{lacks}{has} {len(own) - len(missing)} of "
            f"{len(own)} names are the same."
        )
    if other:
        name = other[0]
        raise CheckpointError(
            f"the weights in '{file}' are not of {architecture}: '{name}' is {tuple(state[name].shape)}, expected "
            f"{tuple(own[name].shape)} ({len(other)} tensors differ). Weights of a pruned network need its plan: give "
            "the file that the run wrote as model=."
        )
    module.load_state_dict(dict(state), strict=False)


def save(
    path: Path,
    module: nn.Module,
    *,
    train_args: Mapping[str, Any],
    meta: Mapping[str, Any],
    plan: PrunePlan | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network of this host, float32, whole or not at all.

    Args:
        path: The file.
        module: The network.
        train_args: The options of its training.
        meta: What yolo_prune has to say of it: plain values.
        plan: What was cut of it since it was loaded or built.
        more: What else the file holds: the state of a training.

    Raises:
        CheckpointError: The metadata is not plain.
    """
    what = described(module).cut_by(plan)
    try:
        plain: dict[str, Any] = json.loads(json.dumps({"meta": dict(meta), "train_args": dict(train_args)}))
    except TypeError as error:
        raise CheckpointError(f"checkpoint metadata must be plain JSON values: {error}.") from error
    versions = {"yolo_prune": yolo_prune.__version__, "torch": str(torch.__version__)}
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    stored = {
        "format": FORMAT,
        "architecture": what.architecture,
        "outputs": what.outputs,
        "state_dict": {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},
        "plan": what.plan,
        "names": list(what.names),
        "labels": list(what.labels),
        "imgsz": plain.get("meta", {}).get("imgsz", plain_size(what.imgsz)),
        "example": what.example,
        "train_args": plain["train_args"],
        METADATA_KEY: {**plain["meta"], "versions": versions},
        **(more or {}),
    }
    with replacing(path) as temporary:
        torch.save(stored, temporary)
    return path


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return what yolo_prune recorded in a file, None for an architecture's name."""
    if not Path(path).is_file():
        return None
    meta = read(Path(path)).get(METADATA_KEY)
    return dict(meta) if isinstance(meta, Mapping) else None


def write_metadata(path: Path, meta: Mapping[str, Any]) -> Path:
    """Replace what yolo_prune recorded in a file."""
    stored = read(path)
    versions = dict(stored.get(METADATA_KEY) or {}).get("versions")
    plain = json.loads(json.dumps(dict(meta)))
    with replacing(path) as temporary:
        torch.save({**stored, METADATA_KEY: {**plain, "versions": versions}}, temporary)
    return path


def renamed(module: nn.Module, names: tuple[str, ...], labels: tuple[int, ...], example: str | None) -> None:
    """Write on a network what its classes are called, and an image of theirs."""
    describe_(module, replace(described(module), names=names, labels=labels, example=example))
