"""Atoms: one index of one dimension of one parameter or buffer, and what the trace learned about them.

A convolution with weight ``(C_out, C_in, k, k)`` owns ``C_out`` atoms along dimension 0 and ``C_in`` along
dimension 1; a BatchNorm owns ``C`` atoms in each of its four vectors. Cutting the network means choosing which
atoms stay; atoms that were united must make the same choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolo_prune.layers import LayerShape

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer.

    Attributes:
        name: Dotted name of the parameter or buffer in the model.
        dim: The dimension that this axis runs along.
        size: Number of indices along it.
        base: Atom of index 0; index ``i`` is atom ``base + i``.
        role: ``out`` (makes channels), ``in`` (reads channels), ``grouped`` (reads them at the same position of every
            group of a grouped convolution) or ``vector`` (passes them through).
    """

    name: str
    dim: int
    size: int
    base: int
    role: str

    @property
    def label(self) -> str:
        """Name and dimension, as plans and messages write it."""
        return f"{self.name}[{self.dim}]"

    @property
    def atoms(self) -> slice:
        """The atoms of this axis as a slice."""
        return slice(self.base, self.base + self.size)

    @property
    def vector(self) -> Tensor:
        """The atoms of this axis, shape (size,)."""
        return torch.arange(self.base, self.base + self.size)


@dataclass(frozen=True)
class MacUse:
    """One multiply-accumulate operation of the forward pass.

    Attributes:
        kind: ``conv``, ``linear`` or ``matmul``.
        module: Dotted name of the module whose forward ran it.
        weight: Dotted name of the weight, empty for a product of two activations.
        macs: Multiply-accumulates of the whole operation at the input that costs are counted for.
        out_axis: Index into the axes, or -1.
        in_axis: Index into the axes, or -1.
        atoms: For ``matmul``: atoms whose number the cost is proportional to (empty: constant cost).
        elements: Numbers that it makes at that input; 0 until they are counted.
        layer: Its shape at that input, where a runtime can be timed on it alone.
    """

    kind: str
    module: str
    weight: str
    macs: float
    out_axis: int = -1
    in_axis: int = -1
    atoms: tuple[int, ...] = ()
    elements: int = 0
    layer: LayerShape | None = None


@dataclass(frozen=True)
class Pieces:
    """A channel dimension that was taken apart, with the counts that must stay equal.

    Attributes:
        parts: One array of atoms a part; parts in the same inner list must keep equally many channels.
        where: Module in which it happened.
    """

    parts: tuple[tuple[IntArray, ...], ...]
    where: str


@dataclass
class Findings:
    """Everything the trace collects before it is solved into groups.

    Attributes:
        axes: All axes met, in order of first use.
        pairs: Arrays of shape ``(2, n)``: atoms that live and die together.
        frozen: Arrays of atoms that must stay, each with the reason.
        pieces: Count constraints from splits.
        uses: Multiply-accumulate operations in execution order.
        norm_of: Weight name -> prefix of the BatchNorm that directly follows it.
        contracted: Atoms summed over by a product of two activations.
        unknown: Operator -> number of times it was met without a rule.
        returned: Arrays of atoms that the model returned, whether their width is fixed or not.
        untraced: Parameters that no operator used.
    """

    axes: list[Axis] = field(default_factory=list)
    pairs: list[IntArray] = field(default_factory=list)
    frozen: list[tuple[IntArray, str]] = field(default_factory=list)
    pieces: list[Pieces] = field(default_factory=list)
    uses: list[MacUse] = field(default_factory=list)
    norm_of: dict[str, str] = field(default_factory=dict)
    contracted: list[IntArray] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    returned: list[IntArray] = field(default_factory=list)
    untraced: tuple[str, ...] = ()

    @property
    def atom_count(self) -> int:
        """Number of atoms, plus one for atom 0, which stands for 'no channel'."""
        return self.axes[-1].base + self.axes[-1].size if self.axes else 1
