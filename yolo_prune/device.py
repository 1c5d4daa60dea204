"""Which device a run uses, in torch's notation, and whether the devices of a training are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolo_prune.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def resolve_device(device: str | None) -> str:
    """Return the device that ``device=`` means: ``cpu``, ``cuda:N`` or ``mps``.

    Args:
        device: A name, the number of a GPU, or None for the first GPU that is there, else the CPU.

    Raises:
        ConfigError: The device is unknown, is a list, or is not there.
    """
    import torch

    gpus = torch.cuda.device_count()
    name = (device or ("cuda:0" if gpus else "cpu")).strip().lower()
    name = "cuda:0" if name == "cuda" else f"cuda:{name}" if name.isdecimal() else name
    if name in ("cpu", "mps") and (name == "cpu" or torch.backends.mps.is_available()):
        return name
    kind, _, number = name.partition(":")
    if kind == "cuda" and number.isdecimal():
        if int(number) < gpus:
            return name
        raise ConfigError(f"device '{device}' is not there: torch sees {gpus} GPU(s). Use device=cpu.")
    if name == "mps":
        raise ConfigError("device 'mps' is not available in this build of torch. Use device=cpu.")
    raise ConfigError(f"unknown device '{device}'. Use cpu, mps, or the number of one GPU.")


def check_training_device(device: object) -> None:
    """Refuse what the host's ``device=`` of a training names and the machine has not.

    Args:
        device: None, a name, the number of a GPU, or several numbers (a list, or a text with commas); -1 is
            the idlest GPU.

    Raises:
        ConfigError: A device is unknown or is not there.
    """
    import torch

    shown = str(device).strip("[]() ")
    names = [name.strip(" '\"").removeprefix("cuda:") for name in shown.lower().split(",")]
    names = ["0" if name == "cuda" else name for name in names]
    if device is None or names in ([""], ["cpu"]):
        return
    if all(name.removeprefix("-").isdecimal() for name in names):
        gpus = torch.cuda.device_count()
        if max(map(int, names)) >= gpus or len(names) > gpus:
            raise ConfigError(f"device '{shown}' is not there: torch sees {gpus} GPU(s). Use device=cpu.")
        return
    kind = names[0].partition(":")[0]
    if names == ["mps"]:
        resolve_device("mps")
    elif kind not in ("npu", "xpu"):
        raise ConfigError(f"unknown device '{shown}'. Use cpu, mps, or numbers of GPUs such as 0 or 0,1.")
    elif not (hasattr(torch, kind) and getattr(torch, kind).is_available()):
        raise ConfigError(f"device '{shown}' is not there: this torch has no {kind}. Use device=cpu.")


def placed(batch: Tensor, module: nn.Module) -> Tensor:
    """Return images where a module's weights are, in their precision; a module without any takes them as they are."""
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    return batch if weight is None else batch.to(device=weight.device, dtype=weight.dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or the machine, has no memory left."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def release_memory() -> None:
    """Hand back what is kept on devices for later use."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
