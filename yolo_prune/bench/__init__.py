"""How fast is it: candidates timed alternately on one runtime and device, see ``compare``.

Importing this package imports numpy only; runtimes are loaded in the worker process that measures.
"""

from __future__ import annotations

from yolo_prune.bench.clock import Ratio
from yolo_prune.bench.comparison import compare
from yolo_prune.bench.resolution import Resolution, lower_resolutions
from yolo_prune.bench.results import Comparison, Timing

__all__ = ["Comparison", "Ratio", "Resolution", "Timing", "compare", "lower_resolutions"]
