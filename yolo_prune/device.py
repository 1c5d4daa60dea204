"""Which device a run uses, in torch's notation."""

from __future__ import annotations

from yolo_prune.errors import ConfigError


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
