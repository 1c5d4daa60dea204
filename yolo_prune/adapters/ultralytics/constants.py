"""Weights of the host that are constants: its losses and its exported models take them as they are written here."""

from __future__ import annotations

CONSTANTS: dict[str, tuple[str, ...]] = {"ultralytics.nn.modules.block.DFL": ("conv.weight",)}
"""Where a class is defined -> names of its parameters that nobody may move: 0 to 15, to read boxes by."""
