"""The commands: each a word of the command line, its options and what it calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yolo_prune.cli import commands, timing
from yolo_prune.cli.kinds import KINDS


@dataclass(frozen=True)
class Command:
    """A word of the command line: its options, what it calls, and what the help says of it.

    What it calls returns the exit code; None is 0.
    """

    kind: type[Any]
    call: Callable[[Any], int | None]
    summary: str
    example: str


COMMANDS = {
    "prune": Command(
        KINDS["prune"],
        commands.prune,
        "cut a model to a budget, recover its accuracy, prove and measure what it cost",
        "yolo-prune prune model=best.pt data=data.yaml keep_macs=0.5 epochs=20",
    ),
    "train": Command(
        KINDS["train"],
        commands.train,
        "train like yolo train, and prune inside the training; go on with a pruned model",
        "yolo-prune train model=yolo11n.pt data=data.yaml epochs=100 imgsz=640 keep_macs=0.5",
    ),
    "sweep": Command(
        KINDS["sweep"],
        commands.sweep,
        "prune to many budgets, draw accuracy against speed, pick the model under a constraint",
        "yolo-prune sweep model=best.pt data=data.yaml keep_macs=0.8,0.65,0.5 epochs=20 max_ap_drop=0.01",
    ),
    "eval": Command(
        KINDS["eval"],
        commands.evaluate,
        "AP of boxes, masks or key points beside the host's number; top-1 and top-5 of a classifier",
        "yolo-prune eval model=best.pt data=data.yaml split=test",
    ),
    "bench": Command(
        KINDS["bench"],
        commands.bench,
        "latency and FPS of models against each other",
        "yolo-prune bench model=parent.pt,pruned.pt imgsz=320 threads=1",
    ),
    "check": Command(
        KINDS["check"],
        commands.check,
        "does a model reach FPS, latency, accuracy, size and memory on this machine: exit 0, 1 or 2",
        "yolo-prune check model=best.onnx min_fps=30 max_size_mb=10",
    ),
    "export": Command(
        KINDS["export"],
        commands.export,
        "a file for a runtime, in 32, 16 or 8 bits, and how far it is from its checkpoint",
        "yolo-prune export model=best.pt data=data.yaml quantize=8",
    ),
    "latency": Command(
        KINDS["latency"],
        timing.latency,
        "what each layer takes on a runtime, here or on a board: the table of prune latency=",
        "yolo-prune latency model=best.pt runtime=ncnn threads=4 out=table.json",
    ),
    "inspect": Command(
        KINDS["inspect"],
        commands.inspect,
        "which channels belong together, what they cost, and what is frozen and why",
        "yolo-prune inspect model=best.pt",
    ),
    "report": Command(
        KINDS["report"],
        commands.report,
        "write the report of a run again, or compare runs: report a/ b/ c/",
        "yolo-prune report run=runs/prune/half,runs/prune/third html=compared.html",
    ),
    "doctor": Command(
        KINDS["doctor"],
        commands.doctor,
        "what is installed, which runtimes and devices work, and whether a small cut is exact",
        "yolo-prune doctor",
    ),
    "demo": Command(
        KINDS["demo"],
        commands.demo,
        "train, prune and retrain a small detector on a data set that the package draws itself",
        "yolo-prune demo",
    ),
    "completion": Command(
        KINDS["completion"],
        commands.completion,
        "print the script that completes commands, keys, choices and files in bash, zsh or fish",
        "yolo-prune completion shell=bash",
    ),
}
