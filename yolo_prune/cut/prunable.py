"""Networks that cannot be cut in place, whatever is asked for."""

from __future__ import annotations

import torch
from torch import nn

from yolo_prune.errors import ConfigError


def check_prunable(model: nn.Module) -> None:
    """Refuse a network that cannot be cut in place.

    Args:
        model: The network without the wrappers that a session sees through.

    Raises:
        ConfigError: It is scripted, quantised, or in a wrapper that keeps copies of it.
    """
    if isinstance(model, nn.DataParallel):
        raise ConfigError(
            "DataParallel copies the model anew for every batch: hand over model.module, and train with "
            "DistributedDataParallel."
        )
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ConfigError("a scripted model cannot be cut: prune the module that it was made from.")
    if any("quantized" in type(child).__module__ for child in model.modules()):
        raise ConfigError("a quantised model cannot be cut: prune first, then quantise.")
