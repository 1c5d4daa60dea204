"""What the hook of sparse training costs: its share of a training step, measured in one run.

    scripts/bench_hook.py [model=yolov8n.yaml] [imgsz=320] [batch=8] [steps=30] [threads=2]

Steps with and without the hook alternate, so that drift of the machine hits both alike. Printed are the hook's own
time as a share of the step (the number to trust: it is not a difference of two large ones) and the ratio of the
medians with its bootstrap interval.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import statistics
import sys
import time

import numpy as np
import torch

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.options.fields import parse_overrides
from yolo_prune.train.sparse import free_scales
from yolo_prune.train.sparsify import Ramp, batchnorm_scales, sparsify

DEFAULTS = {"model": "yolov8n.yaml", "imgsz": "320", "batch": "8", "steps": "30", "threads": "2"}


def main(words: list[str]) -> None:
    options = DEFAULTS | parse_overrides(words)
    torch.set_num_threads(int(options["threads"]))
    imgsz, batch, steps = (int(options[key]) for key in ("imgsz", "batch", "steps"))
    module = load_detector(options["model"]).module
    cost = anatomy_of(module, imgsz).cost_of(module)
    module.train().requires_grad_(True)
    scales = {n: s for n, s in batchnorm_scales(module).items() if n in free_scales(cost)}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    hook = sparsify(optimizer, scales, 0.01, Ramp(10 * steps))
    hook.remove()
    inside: list[float] = []
    after_step = hook._after_step

    def timed(*args: object) -> None:
        began = time.perf_counter()
        after_step(*args)
        inside.append(time.perf_counter() - began)

    images = torch.rand(batch, 3, imgsz, imgsz)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(-4, 2 * steps):
        hooked = number % 2 == 0
        handle = optimizer.register_step_post_hook(timed) if hooked else None
        began = time.perf_counter()
        optimizer.zero_grad()
        outputs = module(images)
        (outputs["scores"].square().mean() + outputs["boxes"].square().mean()).backward()
        optimizer.step()
        if number >= 0:  # two steps of each to warm up
            times[hooked].append(time.perf_counter() - began)
        if handle is not None:
            handle.remove()
    show(times, inside, len(scales), sum(s.numel() for s in scales.values()), options)


def show(
    times: dict[bool, list[float]], inside: list[float], layers: int, channels: int, options: dict[str, str]
) -> None:
    step, own = statistics.median(times[False]), statistics.median(inside)
    draw = np.random.default_rng(0)
    ratios = [
        np.median(draw.choice(times[True], len(times[True])))
        / np.median(draw.choice(times[False], len(times[False])))
        for _ in range(2000)
    ]
    low, high = np.quantile(ratios, [0.025, 0.975])
    print(" ".join(f"{key}={value}" for key, value in options.items()), f"load={os.getloadavg()[0]:.1f}")
    print(
        f"step without the hook: {1e3 * step:.1f} ms; the hook: {1e3 * own:.3f} ms ({layers} layers, {channels} scales)"
    )
    print(f"share of a step: {100 * own / step:.3f} %")
    print(
        f"ratio of medians with / without: {statistics.median(times[True]) / step:.3f} "
        f"[{low:.3f}, {high:.3f}], {len(times[True])} steps of each"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
