"""Everything of a process that others see, as one flat dictionary; run as a script it checks our calls for traces."""

import importlib
import json
import logging
import os
import pkgutil
import random
import signal
import sys
import types
import warnings
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import requests  # noqa: F401 - what others change when they are first imported is theirs
import scipy.sparse.csgraph  # noqa: F401
import torch
import torch._dynamo.decorators
import torch.distributed.tensor
import yaml
from ultralytics import YOLO
from ultralytics.engine import exporter, trainer, tuner, validator  # noqa: F401 - so that their globals are compared
from ultralytics.utils import benchmarks, checks, nms  # noqa: F401

PLAIN = (int, float, str, bool, type(None), types.FunctionType, types.BuiltinFunctionType, type)


def snapshot(randomness: bool = True) -> dict[str, object]:
    """Return what there is to see; objects by their identity."""
    seen: dict[str, object] = {f"environment {name}": value for name, value in os.environ.items()}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "ultralytics" and name in HOST:
            for key, value in vars(module).items():
                seen |= describe(f"{name}.{key}", value)
    for name in ("", "ultralytics", "torch", "matplotlib"):
        logger = logging.getLogger(name or None)
        seen[f"logger {name}"] = (logger.level, logger.disabled, logger.propagate, *map(id, logger.handlers))
    seen |= {
        "torch threads": torch.get_num_threads(),
        "torch gradients": torch.is_grad_enabled(),
        "torch dtype": torch.get_default_dtype(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch precision": torch.get_float32_matmul_precision(),
        "torch cudnn": [
            getattr(torch.backends.cudnn, key) for key in ("enabled", "benchmark", "deterministic")
        ],
        "torch globals": sorted(map(str, torch.serialization.get_safe_globals())),
        "torch print": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "numpy print": str(np.get_printoptions()),
        "numpy errors": np.geterr(),
        "opencv threads": cv2.getNumThreads(),
        "opencv functions": [id(function) for function in (cv2.imread, cv2.imwrite, cv2.imshow)],
        "warnings": [str(each) for each in warnings.filters],
        "matplotlib": str(dict(matplotlib.rcParams)),
        "json": id(json.JSONEncoder.default),
        "yaml": len(yaml.SafeDumper.yaml_representers) + len(yaml.SafeLoader.yaml_constructors),
        "hooks": [id(hook) for hook in (sys.excepthook, sys.stdout, sys.stderr, print, open)],
        "signals": [str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)],
        "path": list(sys.path),
    }
    if randomness:
        seen["random"] = hash(random.getstate())
        seen["numpy random"] = str(np.random.get_state())
        seen["torch random"] = torch.get_rng_state().tolist()
    return seen


def describe(name: str, value: object) -> dict[str, object]:
    """Return a name of the host's with its value or identity, and those of a class's members."""
    found: dict[str, object] = {}
    if isinstance(value, PLAIN):
        found[name] = value if isinstance(value, PLAIN[:5]) else id(value)
    if isinstance(value, type) and value.__module__.startswith("ultralytics"):
        for key, member in vars(value).items():
            if key[:2] != "__" and not key.startswith("_abc_"):
                found[f"{name}.{key}"] = id(member)
    return found


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return the names of what differs."""
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name, "") != after.get(name, "")
    )


def import_everything() -> None:
    """Import every module of the package but the one that runs it."""
    import yolo_prune

    for module in pkgutil.walk_packages(yolo_prune.__path__, "yolo_prune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main(checkpoint: str, data: str, folder: str) -> None:
    """Print, as JSON, what each of our calls changed; the control changes two things on purpose."""
    found: dict[str, list[str]] = {}
    before = snapshot()
    import_everything()
    found["import"] = changes(before, snapshot())

    import yolo_prune
    from yolo_prune.adapters.checkpoint import load_detector
    from yolo_prune.adapters.ultralytics.evaluate import evaluate_detector
    from yolo_prune.adapters.ultralytics.recognise import is_cut

    module = load_detector(checkpoint).module
    load_detector("yolov8n.yaml")
    is_cut(module)
    found["load"] = changes(before, snapshot())
    evaluate_detector(module, data, imgsz=64)
    found["evaluate"] = changes(before, snapshot())

    host = {"data": data, "imgsz": 64, "batch": 4, "epochs": 2, "device": "cpu", "mosaic": 0.0, "amp": False}
    host |= {"plots": False, "optimizer": "SGD", "project": folder, "verbose": True}
    YOLO(checkpoint).train(name="theirs", **host)
    model = YOLO(checkpoint)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)  # the host sets it there and takes it away after training
    before = snapshot(randomness=False)
    pruning = {"keep_macs": 0.7, "prune_at": 1, "round_to": 4, "min_width": 4, "steps": 1, "threads": 2}
    handle = yolo_prune.attach(model, calibration_images=4, **pruning)
    found["attach"] = changes(before, snapshot(randomness=False))
    model.train(name="ours", **host)
    found["train"] = changes(before, snapshot(randomness=False))
    assert handle.result.cuts
    checks.AUTOINSTALL, os.environ["A_NEW_ONE"] = not checks.AUTOINSTALL, "1"
    found["control"] = changes(before, snapshot(randomness=False))
    Path(folder, "changes.json").write_text(json.dumps(found))


HOST = {name for name in sys.modules if name.split(".")[0] == "ultralytics"}
if __name__ == "__main__":
    main(*sys.argv[1:])
