"""One convolution as a runtime sees it, and what it took there; needs neither a network nor PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

SHARES = (0.25, 0.5, 0.75)
"""Of a layer's full width: the other rungs at which it is timed."""
_MULTIPLE = 8

Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerShape:
    """A convolution; a linear layer is the 1x1 convolution that computes the same.

    Attributes:
        outputs: Channels that it makes.
        reads: Channels of its input that one of them is made of.
        kernel: Height and width.
        stride: Along height and width.
        padding: Along height and width.
        dilation: Along height and width.
        groups: Parts of the channels that do not mix.
        height: Of its input.
        width: Of its input.
        transposed: Whether it is a transposed convolution.
    """

    outputs: int
    reads: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    height: int = 1
    width: int = 1
    transposed: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own."""
        return self.groups > 1 and self.reads == 1 and self.outputs == self.groups

    @property
    def channels(self) -> int:
        """Channels of its input."""
        return self.reads * self.groups

    @property
    def weights(self) -> int:
        """Numbers in its weight."""
        return self.outputs * self.reads * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        if self.transposed:
            return self.weights * self.height * self.width
        sides = zip(
            (self.height, self.width), self.padding, self.dilation, self.kernel, self.stride, strict=True
        )
        high, wide = (
            (side + 2 * pad - far * (size - 1) - 1) // step + 1 for side, pad, far, size, step in sides
        )
        return self.weights * high * wide

    @property
    def family(self) -> LayerShape:
        """What it has in common with the same layer of other widths: two of one family differ in nothing else."""
        return replace(self, outputs=0, reads=0, groups=0 if self.depthwise else self.groups)

    @property
    def text(self) -> str:
        """Its key in files, such as ``conv 32x16 k3x3 s1x1 p1x1 d1x1 g1 @ 40x40``."""
        pairs = zip("kspd", (self.kernel, self.stride, self.padding, self.dilation), strict=True)
        middle = " ".join(f"{name}{pair[0]}x{pair[1]}" for name, pair in pairs)
        kind = "transposed" if self.transposed else "conv"
        return f"{kind} {self.outputs}x{self.reads} {middle} g{self.groups} @ {self.height}x{self.width}"

    def resized(self, outputs: int, reads: int) -> LayerShape:
        """Return the same layer of other widths; of a depthwise one the groups follow."""
        if self.depthwise:
            return replace(self, outputs=outputs, groups=outputs)
        return replace(self, outputs=outputs, reads=reads)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> LayerShape:
        """Read what :meth:`to_dict` wrote."""
        read: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return LayerShape(**read)


NOTHING = LayerShape(1, 1)
"""A layer that computes next to nothing: what it takes is the call."""


def rungs(width: int) -> list[int]:
    """Return the widths at which a side of a layer is timed, ascending: multiples of 8, and its own.

    Example:
        >>> rungs(64), rungs(20), rungs(3)
        ([16, 32, 48, 64], [8, 16, 20], [3])
    """
    found = {max(round(share * width / _MULTIPLE), 1) * _MULTIPLE for share in SHARES}
    return sorted({rung for rung in found if rung < width} | {width})


def ladder(shape: LayerShape) -> tuple[list[int], list[int]]:
    """Return the widths at which a layer is timed: what it makes, and what it reads."""
    return rungs(shape.outputs), [1] if shape.depthwise else rungs(shape.reads)


def shapes_to_time(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """Return every rung of the ladders of layers, each once."""
    found = dict[LayerShape, None]()
    for layer in dict.fromkeys(layers):
        made, read = ladder(layer)
        found |= dict.fromkeys(layer.resized(outputs, reads) for outputs in made for reads in read)
    return list(found)
