"""What an exact resume costs: time of an epoch with it over one without, measured in one run.

    scripts/bench_exact.py [model=yolov5nu.yaml] [data=data.yaml] [imgsz=320] [batch=16] [workers=0] [epochs=24] [threads=1]

Two epochs with it and two without alternate, and the second of each pair counts: the first restarts the loader either
way. The host reads with worker processes on a GPU alone; workers= starts them on a CPU too. Without data= images are
drawn. Printed are the ratio of the medians and the time of the file beside last.pt.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_prune import inrun_trainer
from yolo_prune.options.fields import parse_overrides
from yolo_prune.runs.demo_data import make_demo_detection

DEFAULTS = {
    "model": "yolov5nu.yaml",
    "imgsz": "320",
    "batch": "16",
    "workers": "0",
    "epochs": "24",
    "threads": "1",
}


class Timed(inrun_trainer(DetectionTrainer, keep_macs=0.9)):  # type: ignore[misc]
    """A training that is exact in every other pair of epochs and never comes to its cut."""

    workers = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.writing: list[float] = []

    def get_dataloader(self, *args: Any, **options: Any) -> Any:
        """Read with worker processes on a CPU too."""
        self.args.workers = self.workers
        return super().get_dataloader(*args, **options)

    def run_callbacks(self, event: str) -> None:
        """Time every second epoch; stop before the cut."""
        if event == "on_train_epoch_start":
            self.pruning = replace(self.pruning, exact_resume=self.epoch // 2 % 2 == 0)
            self.began = time.perf_counter()
        if event == "on_fit_epoch_end" and self.epoch % 2 and self.epoch > 4:
            self.times[self.pruning.exact_resume].append(time.perf_counter() - self.began)
        if event == "on_fit_epoch_end" and self.epoch == self.epochs - 2:
            self.stop = True
        super().run_callbacks(event)

    def save_exact_state(self) -> Any:
        """Time the file."""
        began = time.perf_counter()
        path = super().save_exact_state()
        self.writing.append(time.perf_counter() - began)
        return path


def main(words: list[str]) -> None:
    options = DEFAULTS | parse_overrides(words)
    Timed.workers = int(options["workers"])
    at = float(options["epochs"]) - 1
    Timed.pruning = replace(Timed.pruning, threads=int(options["threads"]), prune_at=at)
    with tempfile.TemporaryDirectory() as folder:
        data = options.get("data") or make_demo_detection(Path(folder, "data"), train=200, val=8, imgsz=320)
        numbers = {key: int(options[key]) for key in ("imgsz", "batch", "epochs")}
        model = YOLO(options["model"])
        model.train(
            trainer=Timed, data=str(data), project=folder, name="run", plots=False, val=False, **numbers
        )
        trainer: Any = model.trainer
    medians = {exact: statistics.median(times) for exact, times in trainer.times.items()}
    print(
        f"epoch: {medians[True]:.2f} s exact, {medians[False]:.2f} s without, of {len(trainer.times[True])} each"
    )
    print(
        f"ratio: {medians[True] / medians[False]:.3f}; file: {statistics.median(trainer.writing):.3f} s of it"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
