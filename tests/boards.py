"""In the place of a runtime: layers take their multiply-accumulates, and no clock is asked."""

import torch

import yolo_prune.runs.latency as timing
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.bench import Comparison
from yolo_prune.bench.clock import Ratio
from yolo_prune.bench.layers import LayerTimes
from yolo_prune.cost import count_macs
from yolo_prune.layers import shapes_to_time


class Board:
    """Networks take 0.5 ms more than their layers; what is measured of a cut one differs by a little each time.

    Attributes:
        asked: What was asked of it: runtime, threads, size, numbers of layers and of probes.
        measured: How many cut models were measured.
        dies_at: The measurement that is interrupted.
    """

    def __init__(self, patch, *, dies_at=None, measured=0):
        self.asked, self.measured, self.dies_at = [], measured, dies_at
        patch.setattr(timing, "measure_layers", self.measure_layers)
        patch.setattr(timing, "compare", self.compare)

    def measure_layers(self, layers, network, *, runtime, settings, probes=()):
        self.asked.append((runtime, settings.threads, network.imgsz, len(layers), len(probes)))
        assert load_detector(network.file).module is not None
        ms = {shape: self.ms(shape) for shape in [*shapes_to_time(layers), *probes]}
        facts = {"runtime": runtime, "device": "cpu", "device_name": "a board", "threads": settings.threads}
        return LayerTimes(ms, sum(map(self.ms, layers)), 0.5, facts)

    def ms(self, shape):
        return shape.macs / 1e6 * (1.5 if shape.outputs % 4 or shape.reads % 4 else 1.0)

    def compare(self, candidates, *, imgsz, **options):
        self.measured += 1
        if self.measured == self.dies_at:
            raise KeyboardInterrupt
        parent, cut = (time_of(file) for file in candidates.values())
        ratio = parent / cut * (1 + 0.04 * (self.measured % 2))
        return Comparison("parent", {}, {"cut": {"latency": Ratio(ratio, ratio, ratio, 0.95, 9)}}, {})


def time_of(file, imgsz=64):
    """Return what a checkpoint takes there, ms."""
    return 0.5 + count_macs(load_detector(file).module, torch.zeros(1, 3, imgsz, imgsz)) / 1e6
