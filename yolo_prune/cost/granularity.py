"""Which widths a runtime likes: measured on convolutions like those of the network at hand, not assumed.

A runtime works on blocks of channels, and what is left over beside whole blocks costs it as much as a block or sends
the layer to slower code. For steps of 1, 2, 4, ... 32 channels a convolution is timed at widths that are multiples of
the step and of no larger one, on both sides of one that is a multiple of 64: MACs per millisecond then differ by what
the step costs and hardly by the width itself.

Of the widths that are multiples of a step, half are multiples of no larger one, a quarter are of twice the step alone,
and so on: what rounding to a step costs is that mean. The step to take is the smallest that is close to the best, going
down from the best one. Convolutions alone are timed, and what else a network does likes odd widths still less: "close"
is narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yolo_prune.errors import BudgetError
from yolo_prune.layers import LayerShape

STEPS = (1, 2, 4, 8, 16, 32)
_CLOSE = 0.97  # of the best speed
_CENTRE = 64
_TYPICAL_WIDTH = 0.75  # of the parent's: what a cut leaves
_LAYERS, _OF_A_KERNEL = 6, 3
_MOST_MACS = 60_000_000  # of a probe: a larger map takes longer and likes the same widths
_LEAST_SIDE = 8


@dataclass(frozen=True)
class Granularity:
    """What a runtime makes of widths.

    Attributes:
        step: The channels that widths should be multiples of.
        speeds: MACs per ms of layers whose widths are multiples of each step, as a share of the best.
        layers: How many convolutions were timed.
        facts: Where: runtime, device, threads.
    """

    step: int
    speeds: Mapping[int, float]
    layers: int
    facts: Mapping[str, Any]

    @property
    def text(self) -> str:
        """One sentence of it."""
        names, shares = (
            "/".join(map(str, self.speeds)),
            "/".join(f"{100 * s:.0f}" for s in self.speeds.values()),
        )
        return (
            f"widths become multiples of {self.step}: on {self.facts.get('runtime')}, {self.layers} convolutions of "
            f"widths that are multiples of {names} do {shares} % of the MACs per ms that the best of these do"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        where = {key: self.facts.get(key) for key in ("runtime", "device", "threads")}
        speeds = {str(step): round(share, 4) for step, share in self.speeds.items()}
        return {**where, "step": self.step, "speeds": speeds, "layers": self.layers}


def probes(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """Return what is timed to learn which widths a runtime likes in a network of these layers; may be nothing."""
    return [shape for layer, _ in _typical(layers) for step in STEPS for shape in _beside(layer, step)]


def liked(
    layers: Sequence[LayerShape], ms: Mapping[LayerShape, float], facts: Mapping[str, Any]
) -> Granularity:
    """Return the step that times speak for.

    Args:
        layers: Of the network.
        ms: Times, those of :func:`probes` among them.
        facts: Where they were measured.

    Raises:
        BudgetError: No layer mixes enough channels to tell, or times of probes are missing.
    """
    totals, typical = dict.fromkeys(STEPS, 0.0), _typical(layers)
    if not typical:
        raise BudgetError(
            f"round_to=auto: no convolution of this model has {STEPS[-2]} channels on both sides, so that nothing "
            "tells which widths its runtime likes. Give round_to=8."
        )
    for layer, weight in typical:
        speeds = {step: _speed(_beside(layer, step), ms) for step in STEPS}
        best = max(speeds.values())
        for step, speed in speeds.items():
            totals[step] += weight * best / speed  # time beside that of the best step
    rounded = {STEPS[-1]: totals[STEPS[-1]]}
    for step in reversed(STEPS[:-1]):
        rounded[step] = (totals[step] + rounded[2 * step]) / 2
    least = min(rounded.values())
    shares = {step: least / rounded[step] for step in STEPS}
    step = max(STEPS, key=lambda one: shares[one])
    while step > STEPS[0] and shares[step // 2] >= _CLOSE:
        step //= 2
    return Granularity(step, shares, len(typical), dict(facts))


def _typical(layers: Sequence[LayerShape]) -> list[tuple[LayerShape, float]]:
    """Return the convolutions that most MACs are in, widened to where all steps fit, and their shares of these MACs."""
    found: dict[LayerShape, float] = {}
    for layer in layers:
        if layer.groups == 1 and not layer.transposed and min(layer.outputs, layer.reads) >= STEPS[-2]:
            probe = _probe_of(layer)
            found[probe] = found.get(probe, 0.0) + layer.macs
    chosen = dict[LayerShape, float]()
    for probe in sorted(found, key=lambda one: -found[one]):
        alike = sum(one.kernel == probe.kernel for one in chosen)
        if len(chosen) < _LAYERS and alike < _OF_A_KERNEL:
            chosen[probe] = found[probe]
    total = sum(chosen.values())
    return [(probe, macs / total) for probe, macs in chosen.items()]


def _probe_of(layer: LayerShape) -> LayerShape:
    """Return a layer at widths around which it is timed, its map made smaller where it would take long."""
    outputs, reads = (
        max(round(_TYPICAL_WIDTH * side / _CENTRE), 1) * _CENTRE for side in (layer.outputs, layer.reads)
    )
    probe = layer.resized(outputs, reads)
    while probe.macs > _MOST_MACS and min(probe.height, probe.width) >= 2 * _LEAST_SIDE:
        probe = replace(probe, height=probe.height // 2, width=probe.width // 2)
    return probe


def _beside(layer: LayerShape, step: int) -> list[LayerShape]:
    """Return a layer at widths that are multiples of a step and of no larger one; of the largest step, as it is."""
    if step == STEPS[-1]:
        return [layer]
    return [layer.resized(layer.outputs + more, layer.reads + more) for more in (-step, step)]


def _speed(shapes: Sequence[LayerShape], ms: Mapping[LayerShape, float]) -> float:
    """Return MACs per ms, the mean over shapes."""
    missing = [shape for shape in shapes if shape not in ms]
    if missing:
        raise BudgetError(
            f"round_to=auto: the times hold no widths beside multiples of 8, such as {missing[0].text}. Measure them "
            "again with 'yolo-prune latency' of this release, or give round_to=8."
        )
    return sum(shape.macs / ms[shape] for shape in shapes) / len(shapes)
