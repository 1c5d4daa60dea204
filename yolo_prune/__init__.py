"""Structural pruning for object detectors: cut channels, keep the accuracy, prove what it cost."""

from __future__ import annotations

__version__ = "0.1.0"
