"""Push BatchNorm scales to zero while training, so that a scale says what its channel is worth.

Adding an L1 gradient by hand never gives a zero (it oscillates around it) and is wrong where gradients are
scaled (AMP), clipped or accumulated. So the penalty is a *proximal* step instead: after each step of the
optimizer every scale moves towards zero by a threshold and stops there::

    gamma <- gamma - clamp(gamma, -t, t)        t = lr * lambda * f
    f = (1 - dampening) / (1 - momentum)        for SGD: what momentum makes of a constant gradient
    f = 1                                       for Adam and its relatives, whose steps are normalised

For SGD lambda is in units of the loss per unit of scale: a scale stays at zero while the loss pulls at it
with less than lambda. For Adam it is a fraction of a full optimizer step, so useful values are below 1.

It runs in a hook of the optimizer (``register_step_post_hook``), so it happens exactly as often as steps do:
not while gradients accumulate, not when AMP skips a step.

Source: soft-thresholding is Beck and Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009; the
penalty on BatchNorm scales is Liu et al., Learning Efficient Convolutional Networks through Network Slimming,
2017. Joining the two as a hook, the momentum factor and the schedule are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.errors import ConfigError


@dataclass(frozen=True)
class Ramp:
    """How lambda comes and goes: up over the first steps, full in the middle, down again after half.

    Attributes:
        steps: Optimizer steps of the whole run.
        up: Share of the run in which lambda grows linearly from 0.
        down_from: Share of the run after which it falls linearly.
        end: What is left of it on the last step.
    """

    steps: int
    up: float = 0.1
    down_from: float = 0.5
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"a ramp needs at least 1 step, got {self.steps}.")
        if not 0 <= self.up <= self.down_from <= 1:
            raise ConfigError(
                f"a ramp needs 0 <= up <= down_from <= 1, got up={self.up}, down_from={self.down_from}."
            )

    def at(self, step: int) -> float:
        """Return the factor for lambda in ``step`` (the first is 1); after the last it stays the same."""
        share = min(step / self.steps, 1.0)
        if share < self.up:
            return share / self.up
        if share <= self.down_from or self.down_from == 1:
            return 1.0
        return 1.0 - (1.0 - self.end) * (share - self.down_from) / (1.0 - self.down_from)


@dataclass(frozen=True)
class ScaleSummary:
    """Where the scales are: the numbers of one line of progress.

    Attributes:
        channels: How many scales there are.
        zero: Share that is exactly zero.
        below: Share whose magnitude is below the threshold asked for.
        median: Median magnitude.
        mean: Mean magnitude.
    """

    channels: int
    zero: float
    below: float
    median: float
    mean: float


class Sparsifier:
    """The hook at work; made by :func:`sparsify`.

    Attributes:
        strength: lambda at full height; may be changed while training.
        ramp: Its schedule, or None for a constant.
        steps: Steps of the optimizer since the start, skipped ones not counted on a CPU.
        scales: The scales by name.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scales: Mapping[str, nn.Parameter],
        strength: float,
        ramp: Ramp | None,
    ) -> None:
        self.strength, self.ramp, self.steps, self.scales = strength, ramp, 0, dict(scales)
        self._members = _members_by_group(optimizer, self.scales)
        self._hook: Any = optimizer.register_step_post_hook(self._after_step)

    @property
    def current(self) -> float:
        """The lambda of the last step (of the first one before it)."""
        return self.strength * (self.ramp.at(max(self.steps, 1)) if self.ramp else 1.0)

    @property
    def active(self) -> bool:
        """Whether the hook is still attached."""
        return self._hook is not None

    def remove(self) -> None:
        """Detach from the optimizer; the scales stay as they are. Calling it twice is harmless."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __enter__(self) -> Sparsifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Shrink the scales by what their own group's rate asks for."""
        self.steps += 1
        skipped = getattr(optimizer, "found_inf", None)  # a fused optimizer under AMP skips inside its kernel
        for index, members in self._members.items():
            threshold = shrinkage(optimizer.param_groups[index], self.current)
            if threshold > 0:
                soft_threshold_(members, threshold, skipped)


def sparsify(
    optimizer: torch.optim.Optimizer,
    scales: Mapping[str, nn.Parameter],
    strength: float,
    ramp: Ramp | None = None,
) -> Sparsifier:
    """Shrink ``scales`` after every step of ``optimizer`` until the returned handle is removed.

    Args:
        optimizer: The optimizer that trains the scales. After a cut it is another one: attach again.
        scales: The scales by name, as from :func:`batchnorm_scales`; frozen ones are left alone.
        strength: lambda, at least 0 (see the top of this file for its unit).
        ramp: Its schedule; None keeps it constant.

    Raises:
        ConfigError: lambda is negative, or none of the scales is trained by this optimizer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = sparsify(optimizer, batchnorm_scales(model), strength=0.01)
        >>> model(torch.rand(2, 3, 8, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> handle.remove()
    """
    if not strength >= 0:
        raise ConfigError(f"lambda must be 0 or more, got {strength}.")
    return Sparsifier(optimizer, scales, strength, ramp)


def batchnorm_scales(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the scale vectors (C,) of all BatchNorm layers of ``module`` by the layer's name, each once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, layer in module.named_modules():
        scale = layer.weight if isinstance(layer, nn.modules.batchnorm._BatchNorm) else None
        if isinstance(scale, nn.Parameter) and id(scale) not in seen:
            seen.add(id(scale))
            found[name] = scale
    return found


def shrinkage(group: Mapping[str, Any], strength: float) -> float:
    """Return the threshold of one step for a parameter group of any PyTorch optimizer.

    Args:
        group: A parameter group: "lr", and "momentum" and "dampening" where the optimizer has them.
        strength: lambda.
    """
    momentum = float(group.get("momentum") or 0.0)
    dampening = float(group.get("dampening") or 0.0)
    gain = (1.0 - dampening) / (1.0 - momentum) if momentum else 1.0
    return float(group["lr"]) * strength * gain


def soft_threshold_(scales: list[Tensor], threshold: float, skipped: Tensor | None = None) -> None:
    """Move every element of ``scales`` towards zero by ``threshold``, and to exactly zero when it is closer.

    Args:
        scales: Tensors of any shape, changed in place.
        threshold: How far, in the unit of the scales.
        skipped: One element, non-zero when the optimizer did nothing; read on its device, without a wait.
    """
    moves = torch._foreach_clamp_max(torch._foreach_clamp_min(scales, -threshold), threshold)
    if skipped is not None:
        torch._foreach_mul_(moves, (skipped == 0).to(moves[0].dtype).reshape(()))
    torch._foreach_sub_(scales, moves)


def summarise_scales(scales: Mapping[str, Tensor], threshold: float = 1e-2) -> ScaleSummary:
    """Return where the magnitudes of ``scales`` are.

    Scales of averaged (EMA) weights are never exactly zero: say which weights a summary or a score came from.

    Args:
        scales: Vectors by name.
        threshold: What counts as nearly zero.

    Raises:
        ConfigError: There are no scales.
    """
    if not scales:
        raise ConfigError("there are no BatchNorm scales to summarise.")
    every = torch.cat([scale.detach().abs().flatten().float().cpu() for scale in scales.values()])
    return ScaleSummary(
        channels=every.numel(),
        zero=float((every == 0).float().mean()),
        below=float((every < threshold).float().mean()),
        median=float(every.median()),
        mean=float(every.mean()),
    )


def _members_by_group(
    optimizer: torch.optim.Optimizer, scales: Mapping[str, nn.Parameter]
) -> dict[int, list[Tensor]]:
    """Return the trainable scales by the index of their parameter group (indices outlive load_state_dict)."""
    wanted = {id(scale) for scale in scales.values() if scale.requires_grad}
    members: dict[int, list[Tensor]] = {}
    for index, group in enumerate(optimizer.param_groups):
        ours = [parameter for parameter in group["params"] if id(parameter) in wanted]
        if ours:
            members[index] = ours
    if not members:
        raise ConfigError(
            f"this optimizer trains none of the {len(scales)} BatchNorm scales. "
            "Attach to the optimizer that does, and unfreeze the layers."
        )
    return members
