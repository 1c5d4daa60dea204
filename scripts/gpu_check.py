"""What scripts/gpu_check.sh runs: tests marked gpu, a small prune and its speed on a GPU, written to one JSON.

The file is written anew after every step, so that what was finished is there whatever comes next.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("pytest", "hypothesis", "cloudpickle", "pip")
LEFT_OUT = ("torch", "triton", "nvidia", "cuda")  # what the machine with the GPU brings itself
IMGSZ = 640
NO_GPU = "torch finds no CUDA device"
SECONDS = 3.0  # to time each model in each way
ENOUGH = {False: 30.0, True: 100.0}  # seconds that must be left for one more way: eager, compiled
WAYS = [(half, compiled, batch) for compiled in (False, True) for batch in (1, 32) for half in (False, True)]


def needed(roots: list[str]) -> list[str]:
    """Return name==version of all that the roots need, as it is installed here, without torch and its own needs."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    pending = [Requirement(root) for root in roots]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (name.startswith(LEFT_OUT) and name != "torchvision"):
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found[name] = importlib.metadata.version(name)
        pending += [Requirement(each) for each in importlib.metadata.requires(name) or ()]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def list_packages(options: list[str]) -> None:
    """Print what to download, one a line; a package that is pinned on the command line is left to it."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    given = {word.partition("==")[0] for word in options if "==" in word}
    extras = project["optional-dependencies"]
    roots = [*project["dependencies"], *extras["torch"], *extras["ultralytics"], *EXTRAS]
    for pin in needed([root for root in roots if not root.startswith("yolo-prune[")]):
        if pin.partition("==")[0] not in {*given, "pip"}:
            print(pin)


def machine() -> dict:
    import torch

    there = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name(0) if there else None,
        "gpu_memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if there else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if there else None,
        "float32_convolutions": "TF32" if torch.backends.cudnn.allow_tf32 else "float32",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": importlib.metadata.version("ultralytics"),
    }


def run_tests(out: Path, seconds: float) -> dict:
    """Run the tests marked gpu and return how many passed, and the others by name with the reason."""
    report = out / "tests.xml"
    words = [
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        "tests/adapters/test_gpu.py",
    ]
    with (out / "tests.log").open("w") as log:
        try:
            done = subprocess.run(
                [sys.executable, *words], cwd=ROOT, stdout=log, stderr=log, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"not_finished": f"the tests were stopped after {seconds:.0f} s; see tests.log"}
    if not report.is_file():
        return {"not_finished": f"pytest ended with {done.returncode}; see tests.log"}
    cases = ElementTree.parse(report).getroot().iter("testcase")
    found: dict = {"passed": 0, "failed": {}, "skipped": {}, "seconds": {}}
    for case in cases:
        name = case.get("name")
        found["seconds"][name] = float(case.get("time", 0))
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            found["failed"][name] = (bad[0].get("message") or "")[:500]
        elif skipped is not None:
            found["skipped"][name] = skipped.get("message")
        else:
            found["passed"] += 1
    return found


def small_prune(out: Path, device: str) -> dict:
    """Train a detector for a moment on drawn images, prune it, and say what came out."""
    from yolo_prune import prune
    from yolo_prune.adapters.ultralytics.scratch import train_from_scratch
    from yolo_prune.runs.demo_data import make_demo_detection

    large = device != "cpu"
    images, epochs, imgsz = ((192, 48), 8, 320) if large else ((16, 8), 1, 64)
    data = make_demo_detection(out / "data", train=images[0], val=images[1], seed=0)
    parent = train_from_scratch(
        "yolov8n.yaml", data, out / "parent", epochs=epochs, imgsz=imgsz, device=device, seed=0
    )
    result = prune(
        parent,
        data=data,
        keep_macs=0.5,
        epochs=2 if large else 0,
        steps=5 if large else 1,
        calibration_images=96 if large else 4,
        imgsz=imgsz,
        batch=16,
        device=device,
        bench=False,
        **({"plots": False} if large else {}),
        project=str(out),
        name="prune",
        exist_ok=True,
    )
    rows = [
        {
            "model": row.model,
            "imgsz": row.imgsz,
            "gmacs": row.gmacs,
            "params_m": row.params_m,
            "accuracy": row.accuracy,
        }
        for row in result.report.rows
    ]
    proof = result.report.equivalence
    return {
        "parent": "prune/weights/parent.pt",
        "pruned": result.best.relative_to(out).as_posix(),
        "rows": rows,
        "exact": None if proof is None else proof.verdict,
        "stage_seconds": result.report.timing_s,
    }


def time_models(models: dict[str, Path], way: dict) -> list[dict]:
    """Time parent and pruned in one way; a way that is not there says why."""
    from yolo_prune.bench import compare
    from yolo_prune.errors import YoloPruneError

    options = {"runtime": "torch", "imgsz": way["imgsz"], "device": "cuda:0", "seconds": SECONDS}
    options |= {"half": way["dtype"] == "float16", "compile": way["mode"] == "compile", "batch": way["batch"]}
    try:
        found = compare(models, **options)
    except YoloPruneError as error:
        return [{"model": name, **way, "not_measured": str(error)} for name in models]
    if found.not_measured:
        return [{"model": name, **way, "not_measured": found.not_measured} for name in models]
    rows = []
    for name, timing in found.timings.items():
        speed = {
            "fps": timing.fps,
            "net_fps": 1e3 * way["batch"] / timing.net_ms,
            "latency_ms": timing.latency_ms,
        }
        speed |= {key: getattr(timing, key) for key in ("pre_ms", "net_ms", "post_ms", "samples")}
        ratios = {kind: [r.value, r.low, r.high] for kind, r in found.ratios[name].items()}
        rows.append({"model": name, **way, **speed, "times_faster": ratios})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_check")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--list", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.list is not None:
        list_packages(given.list)
        return 0
    began = time.monotonic()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found: dict = {"machine": machine(), "seconds": {}}

    def left() -> float:
        return 60 * given.minutes - (time.monotonic() - began)

    def note(step: str, since: float) -> None:
        found["seconds"][step] = round(time.monotonic() - since, 1)
        (out / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{step}: {found['seconds'][step]:.0f} s, {left():.0f} s left", flush=True)

    since = time.monotonic()
    found["prune"] = small_prune(out, "cuda:0" if found["machine"]["gpu"] else "cpu")
    note("prune", since)
    since = time.monotonic()
    found["tests"] = run_tests(out, max(left() - 120, 60))
    note("tests", since)
    since = time.monotonic()
    models, found["speed"] = {name: out / found["prune"][name] for name in ("parent", "pruned")}, []
    for half, compiled, batch in WAYS:
        way = {"dtype": "float16" if half else "float32", "mode": "compile" if compiled else "eager"}
        way |= {"batch": batch, "imgsz": IMGSZ}
        if not found["machine"]["gpu"]:
            found["speed"] += [{"model": name, **way, "not_measured": NO_GPU} for name in models]
        elif left() < ENOUGH[compiled]:
            found["speed"] += [{"model": name, **way, "not_measured": "the time was up"} for name in models]
        else:
            found["speed"] += time_models(models, way)
        note("speed", since)
    tests = found["tests"]
    bad = tests.get("failed") or tests.get("not_finished")
    print(
        f"{out / 'gpu_check.json'}: {tests.get('passed', 0)} tests passed, {len(tests.get('skipped', ()))} skipped"
    )
    for name, reason in tests.get("skipped", {}).items():
        print(f"skipped: {name}: {reason}")
    if bad:
        print(f"red: {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
