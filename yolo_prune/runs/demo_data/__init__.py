"""Data that the package draws itself, so that the demo needs no download: parts on a bench."""

from __future__ import annotations

from yolo_prune.runs.demo_data.parts import CLASS_NAMES
from yolo_prune.runs.demo_data.write import make_demo_detection

__all__ = ["CLASS_NAMES", "make_demo_detection"]
