"""Load Ultralytics checkpoints without running their code, and build its architectures."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from torch import nn

from yolo_prune.adapters.stored import METADATA_KEY, LoadedModel, check_file
from yolo_prune.adapters.ultralytics.allowed import allow, wanted_by
from yolo_prune.adapters.ultralytics.anatomy import STRIDE, input_channels
from yolo_prune.adapters.ultralytics.own import TrustedPickle, lend_classes_of, own_classes, where_from
from yolo_prune.adapters.ultralytics.undisturbed import undisturbed
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize, longer_side, read_size

_DEFAULT_IMGSZ = {"classify": 224}  # the host's; 640 for every other task
_BROKEN = (RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, pickle.UnpicklingError)
_ACTIVATION = re.compile(r"(torch\.)?nn\.\w+\([\w\s=.,-]*\)")
_OLD_REPOSITORIES = ("models.yolo.", "models.common.", "models.experimental.")
_QUANTISED_FILES = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "modelopt.", "torchao.")


def load_detector(
    path: Path | str, *, trust: bool = False, device: str = "cpu", seed: int = 0
) -> LoadedModel:
    """Load a checkpoint or build an architecture; see ``yolo_prune.adapters.checkpoint.load_detector``."""
    name = str(path).strip()
    if "://" in name:
        raise CheckpointError(f"'{name}' is an address: download the checkpoint first and name the file.")
    if name.lower().endswith((".yaml", ".yml")):
        return _build_from_yaml(name, device, seed, trust=trust)
    file = _find(name)
    checkpoint = read_checkpoint(file, trust=trust)
    module = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(module, nn.Module):
        kind = "only weights, without their architecture" if _has_tensors(checkpoint) else "no model"
        raise CheckpointError(f"'{file}' holds {kind}. Save it with the host's model.save().")
    if checkpoint.get("modelopt"):
        _refuse_quantised(file)
    module = module.float()
    _check_prunable(module, file)
    lend_classes_of(module)
    train_args = dict(checkpoint.get("train_args") or {})
    return _loaded(module, file, train_args, checkpoint.get(METADATA_KEY), device)


def _find(name: str) -> Path:
    """Return the local file of a checkpoint; let the host download it only when it is an official model."""
    if not name:
        raise CheckpointError("the name of the checkpoint is empty.")
    if Path(name).exists():
        return Path(name)
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    official = name if Path(name).suffix else f"{name}.pt"
    official = check_yolov5u_filename(official, verbose=False)
    if official not in GITHUB_ASSETS_NAMES or not official.endswith(".pt"):
        return Path(name)  # check_file says that it is missing
    try:
        return Path(attempt_download_asset(official))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"'{official}' is not here and could not be downloaded: {error}") from error


def read_checkpoint(file: Path, *, trust: bool) -> dict[str, Any]:
    """Unpickle a checkpoint under the allow-list, or in full when the user trusts it.

    Raises:
        CheckpointError: The file is damaged, or wants a class that is not stock and is not trusted.
    """
    check_file(file)
    try:
        entries, refused = allow(wanted_by(file))
    except pickle.UnpicklingError as error:
        if not trust:
            raise CheckpointError(
                f"'{file}' is pickled in a way that cannot be loaded safely ({error}). "
                "If you made the file yourself, pass trust=true."
            ) from error
        entries, refused = [], ["anything"]
    except _BROKEN as error:
        raise CheckpointError(f"checkpoint '{file}' is truncated or damaged: copy it again.") from error
    if refused and not trust:
        _refuse_classes(file, refused)
    try:
        if refused:
            checkpoint = torch.load(file, map_location="cpu", weights_only=False, pickle_module=TrustedPickle)
        else:
            with torch.serialization.safe_globals(entries):
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError as error:
        _refuse_old_repository(file, refused)
        raise CheckpointError(f"'{file}' cannot be loaded: {error}") from error
    except ImportError as error:
        raise CheckpointError(
            f"'{file}' needs the package of '{error.name}', which is not installed."
        ) from error
    except _BROKEN as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()[:1]
        raise CheckpointError(f"checkpoint '{file}' cannot be unpickled: {''.join(reason)[:200]}.") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"'{file}' holds a {type(checkpoint).__name__}, not a checkpoint of the host.")
    return checkpoint


def check_run_files(last: Path, checkpoint: Mapping[str, Any], *, trust: bool) -> None:
    """Read what the host loads beside a last.pt that it goes on from: best.pt, and a teacher that its options name.

    Raises:
        CheckpointError: One of them is damaged or not safe to load.
    """
    named = dict(checkpoint.get("train_args") or {}).get("distill_model")
    for file in (last.with_name("best.pt"), Path(str(named or ""))):
        if file.suffix == ".pt" and file.is_file():
            read_checkpoint(file, trust=trust)


def check_named_files(train_args: Mapping[str, Any], *, trust: bool) -> None:
    """Read the checkpoints that training arguments name, which the host would load in full.

    Raises:
        CheckpointError: One of them is damaged or not safe to load.
    """
    for key in ("pretrained", "distill_model"):
        name = train_args.get(key)
        if isinstance(name, (str, Path)) and Path(name).suffix == ".pt" and Path(name).is_file():
            read_checkpoint(Path(name), trust=trust)


def _refuse_classes(file: Path, refused: list[str]) -> NoReturn:
    """Say which class was wanted and the way out."""
    if any(name.startswith(_QUANTISED_FILES) for name in refused):
        _refuse_quantised(file)
    _refuse_old_repository(file, refused)
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    wants = "wants to load" if file.suffix == ".pt" else "names"
    raise CheckpointError(
        f"'{file}' {wants} '{refused[0]}'{more}, which is not a stock class and could run any code. "
        f"If you made the file yourself, pass trust=true{where_from(refused[0])}."
    )


def _refuse_old_repository(file: Path, refused: list[str]) -> None:
    """Name a checkpoint of the repositories before the host's package, whose classes nobody can import here."""
    found = [name for name in refused if name.startswith(_OLD_REPOSITORIES)]
    if found:
        raise CheckpointError(
            f"'{file}' is of the old YOLOv5 repository (or one made from it): it wants '{found[0]}', which this "
            "host does not have. Start from the host's own variant, such as yolov5nu.pt, or train it anew."
        )


def _refuse_quantised(file: Path) -> NoReturn:
    raise CheckpointError(f"'{file}' is quantised. Prune the model first and quantise the pruned one.")


def _has_tensors(checkpoint: Mapping[str, Any]) -> bool:
    """Tell a state dict, bare or under one key, from a checkpoint that holds no model at all."""
    inner = [value for value in checkpoint.values() if isinstance(value, Mapping)]
    return any(isinstance(v, torch.Tensor) for group in (checkpoint, *inner) for v in group.values())


def _check_prunable(module: nn.Module, file: Path) -> None:
    """Refuse a module whose channels cannot be ranked or cut.

    Raises:
        CheckpointError: It is quantised, fused, has no BatchNorm or holds NaN.
    """
    from ultralytics.nn.modules.conv import Conv

    layers = list(module.modules())
    if any(type(layer).__module__.startswith(_QUANTISED_FILES) for layer in layers):
        _refuse_quantised(file)
    if any(isinstance(layer, Conv) and not hasattr(layer, "bn") for layer in layers):
        raise CheckpointError(
            f"'{file}' is fused: its BatchNorm layers are merged into the convolutions. "
            "Prune the checkpoint that training wrote (weights/best.pt)."
        )
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers):
        raise CheckpointError(f"'{file}' has no BatchNorm layers, so its channels cannot be ranked.")
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"'{file}' holds NaN or infinity in '{name}': its training diverged.")


def _loaded(
    module: nn.Module, file: Path, train_args: dict[str, Any], meta: dict[str, Any] | None, device: str
) -> LoadedModel:
    """Give the module the attributes that the host's own loader gives it."""
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils import DEFAULT_CFG_DICT

    host: Any = module
    host.args = {**DEFAULT_CFG_DICT, **train_args}
    host.pt_path = str(file)
    host.task = getattr(host, "task", None) or guess_model_task(module)
    if not hasattr(host, "stride"):
        host.stride = torch.tensor([float(STRIDE)])
    for layer in module.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = True  # type: ignore[assignment]
        elif isinstance(layer, nn.Upsample) and not hasattr(layer, "recompute_scale_factor"):
            layer.recompute_scale_factor = None
    names = host.names if isinstance(host.names, dict) else dict(enumerate(host.names))
    return LoadedModel(
        module=module.eval().to(device),
        task=str(host.task),
        names={int(index): str(name) for index, name in names.items()},
        imgsz=_recorded_size(meta or {}, train_args) or _DEFAULT_IMGSZ.get(str(host.task), 640),
        channels=input_channels(module),
        path=file,
        meta=meta,
        train_args=train_args,
    )


def _recorded_size(meta: Mapping[str, Any], train_args: Mapping[str, Any]) -> ImageSize | None:
    """Return the image size that is recorded of a model.

    The host trains on squares and records their side. Which shape of that longer side was meant is in our metadata.
    """
    found: list[ImageSize] = []
    for record in (train_args, meta):
        with contextlib.suppress(KeyError, ConfigError):
            found.append(read_size(record["imgsz"]))
    if len({longer_side(size) for size in found}) > 1:
        return found[0]  # trained at another size since
    return found[-1] if found else None


def _build_from_yaml(name: str, device: str, seed: int, *, trust: bool) -> LoadedModel:
    """Build an architecture with random weights.

    Raises:
        CheckpointError: There is no such architecture, the file does not describe one, or it holds a class that is
            not stock and not trusted.
    """
    from ultralytics import RTDETR, YOLO
    from ultralytics.nn.tasks import yaml_model_load

    try:
        description = yaml_model_load(name)
    except FileNotFoundError as error:
        message = f"architecture '{name}' is neither a file nor one of the host's own."
        raise CheckpointError(message) from error
    except (*_BROKEN, yaml.YAMLError) as error:
        raise CheckpointError(f"architecture '{name}' is not a readable YAML file.") from error
    rows = _check_architecture(description, name)
    build = RTDETR if rows[-1][2] == "RTDETRDecoder" else YOLO
    try:
        with undisturbed(logging.WARNING):
            torch.manual_seed(seed)
            module = build(name).model
    except (*_BROKEN, SyntaxError) as error:
        raise CheckpointError(f"'{name}' does not describe a model of the host: {error}.") from error
    file = Path(name)
    own = own_classes(module)
    if own and not trust:
        _refuse_classes(file, own)
    _check_prunable(module, file)
    return _loaded(module, file, {}, None, device)


def _check_architecture(description: Mapping[str, Any], name: str) -> list[Any]:
    """Return the rows of an architecture, but refuse one that names anything else than layers.

    The host would evaluate or call it.

    Raises:
        CheckpointError: A row names no layer of the host or of torch, or the activation is more than one.
    """
    from ultralytics.nn import tasks

    rows = [*(description.get("backbone") or ()), *(description.get("head") or ())]
    if not rows or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise CheckpointError(f"'{name}' describes no model: it needs 'backbone' and 'head' rows of 4 items.")
    activation = description.get("activation")
    if activation and not _ACTIVATION.fullmatch(str(activation).strip()):
        raise CheckpointError(f"'{name}' has activation {activation!r}: expected one like 'nn.ReLU()'.")
    for row in rows:
        layer = str(row[2])
        found = getattr(tasks, layer, None)
        is_layer = isinstance(found, type) and issubclass(found, nn.Module)
        if not (is_layer or layer.startswith(("nn.", "torchvision.ops."))):
            raise CheckpointError(
                f"'{name}' names '{layer}', which is no layer of the host. "
                "For a layer of your own pass trust=true and imports= with the Python file that holds it."
            )
    return rows
