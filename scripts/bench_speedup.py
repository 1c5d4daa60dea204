"""What MACs are worth: the ratio of MACs beside the ratio of time, for families of detectors and runtimes.

    python scripts/bench_speedup.py --state speedup.json                       # five families at 640 px, minutes each
    python scripts/bench_speedup.py --state speedup.json --models yolov5n.yaml --runtimes onnxruntime --imgsz 320

Networks have random weights and are cut by l1 without images: time does not depend on weights. Of each family the parent and the cut
models are timed in turns in one process, all phases and the network alone, with one thread. What is in the state is not measured
again, so that a run that was stopped goes on. The table that it prints is the whole state.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.bench import compare
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.errors import YoloPruneError
from yolo_prune.files import write_text
from yolo_prune.progress import log_to_console
from yolo_prune.recover import Recipe, cut_in_steps

MODELS = "yolov5n.yaml,yolov8n.yaml,yolo11n.yaml,yolo26n.yaml,yolov8s.yaml"
SHARES = (0.75, 0.5, 0.35)


def main() -> None:
    options = parse_arguments()
    log_to_console()
    state: dict[str, Any] = json.loads(options.state.read_text()) if options.state.is_file() else {}
    for model in options.models.split(","):
        wanted = {name: f"{model} {options.imgsz} {name}" for name in options.runtimes.split(",")}
        missing = {name: key for name, key in wanted.items() if key not in state}
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
            files, kept = written(model, options.imgsz, Path(folder))
            for runtime, key in missing.items():
                state[key] = timed(files, kept, runtime, options)
                write_text(options.state, json.dumps(state, indent=1))
                print(f"{key}: {state[key]}", flush=True)
    print(table(state))


def written(model: str, imgsz: int, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """Write the parent and its cut models; return the files, and the share of the MACs that each keeps."""
    torch.manual_seed(0)
    host, loaded = find_host(model), load_detector(model)
    parent = Traced.of(loaded.module, host.anatomy(loaded.module, imgsz))
    files, kept = dict[str, Path](), dict[str, float]()
    for share in (1.0, *SHARES):
        cut = cut_in_steps(parent, Budget("keep_macs", share), Recipe(criterion="l1", steps=1, fold=False))
        name = f"{share:g}"
        files[name] = host.save(
            folder / f"{name}.pt",
            cut.module,
            task=loaded.task,
            train_args={**loaded.train_args, "imgsz": imgsz, "task": loaded.task},
            meta={"imgsz": imgsz},
            plan=cut.plan if share < 1 else None,
        )
        kept[name] = cut.plan.kept_macs
    return files, kept


def timed(
    files: dict[str, Path], kept: dict[str, float], runtime: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the ratios of one family on one runtime."""
    try:
        found = compare(
            files,
            runtime=runtime,
            imgsz=options.imgsz,
            threads=options.threads,
            seconds=options.seconds,
        )
    except YoloPruneError as error:
        return {"not_measured": str(error)}
    if found.not_measured:
        return {"not_measured": found.not_measured}
    timing = next(one for one in found.timings.values() if one is not None)
    return {
        "kept": kept,
        "ms": timing.latency_ms["p50"],
        "load1": timing.load1,
        "cpu": timing.device_name,
        "ratios": {
            name: {kind: asdict(ratio) for kind, ratio in ratios.items()}
            for name, ratios in found.ratios.items()
            if name != "1"
        },
    }


def table(state: dict[str, Any]) -> str:
    """Return the state as Markdown: of each share the ratio of time over the ratio of MACs, with its interval."""
    lines = [
        "| model | px | runtime | parent ms | "
        + " | ".join(f"{1 / share:.2f}x fewer MACs" for share in SHARES)
        + " |"
    ]
    lines.append("|---|---|---|---|" + "---|" * len(SHARES))
    for key, found in state.items():
        model, imgsz, runtime = key.split()
        if "not_measured" in found:
            lines.append(
                f"| {model} | {imgsz} | {runtime} | not measured: {found['not_measured']} |"
                + " |" * len(SHARES)
            )
            continue
        cells = [cell(found, f"{share:g}") for share in SHARES]
        lines.append(f"| {model} | {imgsz} | {runtime} | {found['ms']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: dict[str, Any], share: str) -> str:
    """Return the speed-up of all phases with its interval, and that of the network alone."""
    ratios = found["ratios"][share]
    whole, network = ratios["latency"], ratios["net"]
    text = f"{whole['value']:.2f}x [{whole['low']:.2f}, {whole['high']:.2f}], network {network['value']:.2f}x"
    actual = found["kept"][share]
    return text if abs(actual - float(share)) < 0.01 else f"{text} ({1 / actual:.2f}x fewer MACs)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="JSON with what was measured so far")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--runtimes", default="torch,onnxruntime,openvino,ncnn")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="time to measure each model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
