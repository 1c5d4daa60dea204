"""Which widths each runtime likes: what ``round_to=auto`` measures, beside whole networks of such widths.

    python scripts/bench_widths.py --model bccd_yolov5nu.pt --imgsz 320
    python scripts/bench_widths.py --model yolo11n.yaml --imgsz 640 --runtimes onnxruntime --threads 4

The model is cut by l1 to a share of its MACs, with widths that are multiples of 1, 2, 4, ...; its parent and these are
timed in turns in one process. What a MAC takes in each of them, beside the best, is what the widths cost the whole network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.hosts import find_host
from yolo_prune.bench import compare
from yolo_prune.cost.granularity import STEPS
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.progress import log_to_console
from yolo_prune.recover import Recipe, cut_in_steps
from yolo_prune.runs.latency import Deployment, Place, ask_runtime, deployment_of
from yolo_prune.runtimes.runtime import Settings


def main() -> None:
    options = parse_arguments()
    log_to_console()
    host, loaded = find_host(options.model), load_detector(options.model)
    parent = Traced.of(loaded.module, host.anatomy(loaded.module, options.imgsz))
    how = deployment_of(host, loaded, options.imgsz, None, trust=False)
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        files, kept = written(parent, how, Path(folder), options.keep)
        for runtime in options.runtimes.split(","):
            place = Place(runtime, Settings("cpu", options.threads, 1))
            asked, _ = ask_runtime(place, how, parent, target=False, auto=True)
            if asked.granularity is None:
                continue
            print(f"{runtime}: {asked.granularity.text}", flush=True)
            print(
                f"{runtime}: {networks(files, kept, runtime, options)} (multiples of {'/'.join(map(str, STEPS))})",
                flush=True,
            )


def written(
    parent: Traced, how: Deployment, folder: Path, share: float
) -> tuple[dict[str, Path], dict[str, float]]:
    """Write the parent and a cut model for each step; return the files, and the share of the MACs that each keeps."""
    files, kept = {"parent": how.write(parent.module, folder / "parent.pt", None)}, {"parent": 1.0}
    for step in STEPS:
        recipe = Recipe(criterion="l1", steps=1, fold=False, widths=Widths(step, 8))
        cut = cut_in_steps(parent, Budget("keep_macs", share), recipe)
        files[str(step)] = how.write(cut.module, folder / f"{step}.pt", cut.plan)
        kept[str(step)] = cut.plan.kept_macs
    return files, kept


def networks(
    files: dict[str, Path], kept: dict[str, float], runtime: str, options: argparse.Namespace
) -> str:
    """Return the time of the parent, and MACs per ms of the network after each cut, in per cent of the best."""
    found = compare(
        files, runtime=runtime, imgsz=options.imgsz, threads=options.threads, seconds=options.seconds
    )
    kind = "cpu" if options.threads == 1 else "latency"
    ratios = {name: found.ratios[name][kind] for name in files if name != "parent"}
    speed = {name: ratio.value * kept[name] for name, ratio in ratios.items()}
    low = {name: ratio.low * kept[name] / max(speed.values()) for name, ratio in ratios.items()}
    high = {name: ratio.high * kept[name] / max(speed.values()) for name, ratio in ratios.items()}
    best = max(speed.values())
    cells = [
        f"{100 * value / best:.0f} [{100 * low[name]:.0f}, {100 * high[name]:.0f}]"
        for name, value in speed.items()
    ]
    return f"whole networks at {options.keep:g} of the MACs do {' / '.join(cells)} %"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the MACs that stays")
    parser.add_argument("--runtimes", default="onnxruntime,openvino,ncnn,torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="time to measure each network")
    return parser.parse_args()


if __name__ == "__main__":
    main()
