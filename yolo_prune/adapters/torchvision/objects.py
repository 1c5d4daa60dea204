"""Objects of the libraries as files: which name builds such a network is found, for a file holds no module.

A network is what its name builds when its tensors have the same names and shapes, and when its layers hold the same
plain values: two detectors of one shape differ in how many proposals they keep.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from yolo_prune.adapters.checkpoint import fingerprint
from yolo_prune.adapters.torchvision import build as building
from yolo_prune.adapters.torchvision import files
from yolo_prune.adapters.torchvision.described import Described, describe_, described, is_described
from yolo_prune.adapters.torchvision.names import LIBRARIES
from yolo_prune.errors import CheckpointError

_FROZEN = "FrozenBatchNorm2d"
_OWN = frozenset(vars(nn.Module()))
_PASSED_OVER = frozenset(
    {
        *(
            "pretrained_cfg",
            "default_cfg",
            "_model_args",
            "num_classes",
        ),  # statistics are compared by themselves
        *("min_size", "max_size"),  # images are framed before
        *("track_running_stats", "drop_rate", "drop_prob", "drop_path_rate"),  # felt in training alone
    }
)


def write_object(module: nn.Module, folder: Path) -> Path:
    """Write a network that one of the libraries built, as a file of this host.

    Args:
        module: A detector or classifier, on any device; it stays as it is.
        folder: Where the file goes; its name says what it holds, so the same weights have the same file.

    Returns:
        The file.

    Raises:
        CheckpointError: No name builds this network, or it was changed since it was built.
    """
    _refuse_hooks(module)
    named = module if is_described(module) else _built_again(module)
    what = described(named)
    file = folder / f"{what.architecture.replace(':', '-')}-{fingerprint(named)[:8]}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = {"role": "given", "cut": what.plan is not None}
    return files.save(file, named, train_args={}, meta=meta)


def _refuse_hooks(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
        if any(not isinstance(hook, building.Normalise) for hook in hooks):
            raise CheckpointError(
                f"'{name or type(layer).__name__}' has a forward hook, which a file does not hold: take it off."
            )


def _built_again(module: nn.Module) -> nn.Module:
    """Return the network that a library builds by name, with the weights of this one."""
    differences = []
    for architecture, classes in _possible(module):
        built = building.build(architecture, classes)
        difference = _difference(module, built)
        if difference is None:
            built.load_state_dict(_weights_for(module, built), strict=False)
            size = building.own_size(architecture, module)
            return describe_(built, Described(architecture, building.task_of(architecture), classes, size))
        differences.append(f"{architecture} is another: {difference}.")
    kind = type(module).__name__
    said = f" {differences[0]}" if differences else ""
    raise CheckpointError(
        f"no detector or classifier that {' or '.join(LIBRARIES)} builds by name is this {kind}.{said} For a module of "
        "your own use prune_module, and report_modules for its report."
    )


def _possible(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield architectures with tensors of the same names and shapes, and how many classes there are."""
    state = module.state_dict()
    for architecture in _named_alike(module):
        classes = building.classes_in(state, architecture)
        if classes is not None and building.shapes_with(architecture, classes) == building.shapes_of(state):
            yield architecture, classes


def _named_alike(module: nn.Module) -> list[str]:
    """Return the architectures whose builders make objects of this class."""
    library = type(module).__module__.partition(".")[0]
    if library == "timm":
        stated: Any = getattr(module, "pretrained_cfg", None) or {}
        name, tag = stated.get("architecture"), stated.get("tag")
        return [f"timm:{name}.{tag}" if tag else f"timm:{name}"] if name else []
    return [
        f"{library}:{name}"
        for name in building.names_of(library)
        if typing.get_type_hints(building.builder_of(library, name)).get("return", type(module))
        is type(module)
    ]


def _difference(given: nn.Module, built: nn.Module) -> str | None:
    """Say how a network computes otherwise than the one that its name builds; None: it does not."""
    ours, theirs = dict(given.named_modules()), dict(built.named_modules())
    for name, layer in theirs.items():
        other = ours.get(name)
        if other is None or not _same_kind(other, layer):
            return f"it has {_kind(layer)} at '{name}', this one {_kind(other)}"
        for key, value in vars(layer).items():
            if key in _OWN or key in _PASSED_OVER or _is_shown_elsewhere(layer, key):
                continue
            have, want = _told(vars(other).get(key)), _told(value)
            if have != want:
                at = f"{name}.{key}" if name else key
                return f"its '{at}' is {want}, this one's {have}"
    if len(ours) != len(theirs):
        return f"this one has '{next(name for name in ours if name not in theirs)}' beside"
    return _other_pixels(given, built)


def _other_pixels(given: nn.Module, built: nn.Module) -> str | None:
    """Say where a classifier wants images normalised otherwise."""
    if given.__class__.__module__.partition(".")[0] != "timm":
        return None
    own, theirs = (tuple(map(tuple, building.statistics_of("timm", module))) for module in (given, built))
    return None if own == theirs else f"its images have mean and deviation {theirs}, this one's {own}"


def _same_kind(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two layers are of one class, where a norm may be frozen and a transform ours."""
    if type(one) is type(other) or isinstance(other, type(one)):
        return True
    return type(one).__name__ == _FROZEN and isinstance(other, nn.BatchNorm2d)


def _is_shown_elsewhere(layer: nn.Module, key: str) -> bool:
    """Tell whether a value is no matter of its own: a norm's size and momentum, how often a dropout drops."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return key == "p"
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and key in (
        *("eps", "momentum", "affine", "num_features"),
    )


def _kind(layer: nn.Module | None) -> str:
    return "nothing" if layer is None else type(layer).__name__


def _told(value: Any) -> Any:
    """Return what can be compared of a value: plain ones as they are, a library's own by what they hold."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_told(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    kind = type(value)
    if kind.__module__.partition(".")[0] in LIBRARIES and not isinstance(value, nn.Module):
        return (kind.__name__, {key: _told(item) for key, item in vars(value).items()})
    if isinstance(value, type):  # what layers were made of: they are compared themselves
        return None
    return getattr(value, "__qualname__", kind.__name__)


def _weights_for(given: nn.Module, built: nn.Module) -> dict[str, Tensor]:
    """Return the tensors, those of norms such that the built one's own epsilon makes the same of them."""
    state = {name: tensor.detach().cpu() for name, tensor in given.state_dict().items()}
    theirs = dict(built.named_modules())
    for name, layer in given.named_modules():
        norm: Any = theirs[name]
        own = getattr(layer, "eps", None)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or own in (None, norm.eps):
            continue
        variance = state[f"{name}.running_var"].double()
        factor = ((variance + norm.eps) / (variance + float(own))).sqrt()
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = (weight.double() * factor).to(weight.dtype)
    return state
