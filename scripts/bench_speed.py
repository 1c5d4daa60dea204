"""Compare the speed of two checkpoints across runtimes and thread counts, alternately in one process each.

    python scripts/bench_speed.py parent.pt pruned.pt --imgsz 320 --threads 1,2 --images images/val

Prints a Markdown table with ratios and 95 % intervals. Comparing a checkpoint with itself shows what the
machine's noise alone does: the interval should contain 1.
"""

import argparse
from pathlib import Path

from yolo_prune.bench import Comparison, compare
from yolo_prune.progress import log_to_console
from yolo_prune.report.timings import markdown_table

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}


def main() -> None:
    options = parse_arguments()
    log_to_console()
    images = None
    if options.images is not None:
        images = sorted(path for path in options.images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    comparisons: list[Comparison] = []
    for runtime in options.runtimes.split(","):
        for threads in options.threads.split(","):
            comparison = compare(
                {"parent": options.parent, "pruned": options.pruned},
                runtime=runtime,
                imgsz=options.imgsz,
                device=options.device,
                threads=int(threads),
                batch=options.batch,
                seconds=options.seconds,
                images=images,
                half=options.half,
            )
            comparisons.append(comparison)
    print(markdown_table(comparisons))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the speed of two checkpoints.")
    parser.add_argument("parent", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--runtimes", default="onnxruntime,torch")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="time budget per candidate")
    parser.add_argument("--images", type=Path, help="folder of images; drawn images without it")
    parser.add_argument("--half", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
