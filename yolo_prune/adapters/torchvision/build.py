"""Networks by name: ``torchvision:resnet50``, ``timm:mobilenetv3_large_100``, with random weights."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.adapters.torchvision.described import CLASSIFY, DETECT
from yolo_prune.errors import CheckpointError, ConfigError, MissingRuntimeError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_EXTRA = {"torchvision": "torchvision", "timm": "timm"}
_MANY = 3  # names that an error lists
_COUNTED = 997  # classes of a network that is built to see which tensors have one entry a class: a prime
_WITHOUT_BACKGROUND = ("retinanet_", "fcos_")


class Normalise:
    """A hook that brings images in [0, 1] to what a classifier was trained on, in their own type and place.

    Detectors of torchvision do that themselves. As a hook it leaves the names of layers as they are, so that plans and
    state dicts fit the network as its library builds it.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Normalise the first argument, images of shape (B, 3, H, W) in [0, 1]."""
        images, *rest = args
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((images - mean) / std, *rest)


def split_name(model: str) -> tuple[str, str]:
    """Return library and architecture of ``torchvision:resnet50``."""
    library, _, name = model.partition(":")
    return library.strip().lower(), name.strip()


def task_of(architecture: str) -> str:
    """Return what an architecture does: ``detect`` or ``classify``.

    Raises:
        ConfigError: There is none of this name, or it does something else.
        MissingRuntimeError: Its library is not installed.
    """
    library, name = split_name(architecture)
    detectors, classifiers = _names(library)
    if name in detectors:
        return DETECT
    if name.partition(".")[0] in classifiers:  # timm names a training behind a dot
        return CLASSIFY
    near = difflib.get_close_matches(name, [*detectors, *classifiers], n=1)
    hint = f" Did you mean '{library}:{near[0]}'?" if near else ""
    raise ConfigError(f"{library} has no detector or classifier '{name}'.{hint}")


def names_of(library: str) -> list[str]:
    """Return the names of a library's detectors and classifiers."""
    return [name for kind in _names(library) for name in kind]


@functools.cache
def _names(library: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a library's detectors and classifiers."""
    package = _imported(library)
    if library == "timm":
        return (), tuple(package.list_models())
    models = package.models
    return tuple(models.list_models(module=models.detection)), tuple(models.list_models(module=models))


def _imported(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise MissingRuntimeError(
            f"'{library}' is not installed: pip install \"yolo-prune[{_EXTRA[library]}]\"."
        ) from error


def build(architecture: str, classes: int, *, seed: int = 0) -> nn.Module:
    """Build a network with random weights, as it is trained: every BatchNorm learns, every layer of the backbone too.

    Args:
        architecture: Library and name.
        classes: What the builder is told; of detectors with the background.
        seed: Of the weights.

    Returns:
        The network in evaluation mode. A classifier takes images in [0, 1]; a detector takes them as they come and does
        not resize them.

    Raises:
        ConfigError: There is no such architecture.
        CheckpointError: The library cannot build it with so many classes.
    """
    task, (library, name) = task_of(architecture), split_name(architecture)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of initial weights, which are replaced or trained
        torch.manual_seed(seed)
        try:
            module: nn.Module = _with_classes(library, name)(classes)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                f"'{architecture}' cannot be built with {classes} classes: {error}."
            ) from error
    if task == DETECT:
        from yolo_prune.adapters.torchvision.detector import take_as_they_come_

        take_as_they_come_(module)
    else:
        module.register_forward_pre_hook(Normalise(*statistics_of(library, module)))
    return module.eval()


def builder_of(library: str, name: str) -> Callable[..., nn.Module]:
    """Return the function of a library with builders that makes an architecture."""
    found: Callable[..., nn.Module] = _imported(library).models.get_model_builder(name)
    return found


def _with_classes(library: str, name: str) -> Callable[[int], nn.Module]:
    package: Any = _imported(library)
    if library == "timm":
        return lambda classes: package.create_model(name, pretrained=False, num_classes=classes)
    found = builder_of(library, name)
    known = inspect.signature(found).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in known}
    return lambda classes: found(**none, num_classes=classes)


def statistics_of(library: str, module: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the images that a classifier is made for."""
    stated: Any = getattr(module, "pretrained_cfg", None) if library == "timm" else None
    return (stated["mean"], stated["std"]) if stated and stated.get("mean") else IMAGENET


def own_size(architecture: str, module: nn.Module) -> int:
    """Return the side of the images that an architecture is made for, in pixels; of a range of sides the smallest."""
    transform: Any = getattr(module, "transform", None)
    if transform is not None:
        return int(max(transform.fixed_size or [min(transform.min_size)]))
    stated: Any = getattr(module, "pretrained_cfg", None)
    if stated and split_name(architecture)[0] == "timm":
        return int(max(stated["input_size"][1:]))
    return 299 if architecture.endswith("inception_v3") else 224


def may_lack_background(architecture: str) -> bool:
    """Tell whether a detector's label 0 may be a class: its head has no score for the background."""
    return split_name(architecture)[1].startswith(_WITHOUT_BACKGROUND)


def classes_in(state: Mapping[str, Tensor], architecture: str) -> int | None:
    """Return how many classes the network had that a state dict was taken from; None where it does not say.

    Which tensors have one entry a class is seen on the network itself, built with an unlikely number of them.
    """
    counts: set[int] = set()
    for name, tensor in _counted(architecture).items():
        if tensor.dim() and tensor.shape[0] % _COUNTED == 0 and name in state and state[name].dim():
            each = tensor.shape[0] // _COUNTED
            counts.add(state[name].shape[0] // each if state[name].shape[0] % each == 0 else 0)
    return counts.pop() if len(counts) == 1 and 0 not in counts else None


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors; a frozen norm has no count of batches."""
    return {n: tuple(t.shape) for n, t in state.items() if not n.endswith("num_batches_tracked")}


def shapes_with(architecture: str, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an architecture's tensors when it tells so many classes apart."""
    shapes = shapes_of(_counted(architecture))
    heads = per_class_tensors(architecture)
    return {
        name: (shape[0] // _COUNTED * classes, *shape[1:]) if name in heads else shape
        for name, shape in shapes.items()
    }


@functools.lru_cache(maxsize=2)
def _counted(architecture: str) -> dict[str, Tensor]:
    try:
        with torch.device("meta"):
            return build(architecture, _COUNTED).state_dict()
    except (NotImplementedError, CheckpointError):  # its builder looks at values
        return build(architecture, _COUNTED).state_dict()


def per_class_tensors(architecture: str) -> set[str]:
    """Return the names of the tensors that have one entry a class."""
    found = _counted(architecture).items()
    return {name for name, tensor in found if tensor.dim() and tensor.shape[0] % _COUNTED == 0}


def listed(names: Sequence[str]) -> str:
    """Return the first names and how many follow."""
    more = len(names) - _MANY
    return ", ".join(names[:_MANY]) + (f" and {more} more" if more > 0 else "")


@functools.cache
def coco_names() -> tuple[str, ...]:
    """Return what the labels of a detector trained on COCO mean, by their numbers; 0 is the background."""
    models = _imported("torchvision").models
    return tuple(models.get_weight("FCOS_ResNet50_FPN_Weights.COCO_V1").meta["categories"])
