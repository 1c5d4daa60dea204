"""How often `yolo-prune check` is right: drawn steps of a known median against limits around it, as a Markdown table.

Steps of 50 ms scatter by a factor exp(SPREAD * normal); with SLOW, half of their variance lasts for about ten steps, as
other programs do. Run: python scripts/check_verdicts.py [checks]
"""

from __future__ import annotations

import math
import sys

import numpy as np

from yolo_prune.bench.clock import FIELDS, plan_schedule
from yolo_prune.bench.limits import FPS, MET, MISSED, Limit, look_after

STEP_MS, SPREAD, SECONDS, MEMORY = 50.0, 0.1, 10.0, 0.9
MARGINS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2)


def draw(random: np.random.Generator, rounds: int, timed: int, slow: bool) -> np.ndarray:
    """Return steps in ms, [rounds, timed, len(FIELDS)]."""
    noise = random.normal(size=rounds * timed)
    if slow:
        lasting = np.empty_like(noise)
        value = random.normal()
        for index, push in enumerate(random.normal(size=len(noise))):
            value = MEMORY * value + math.sqrt(1 - MEMORY**2) * push
            lasting[index] = value
        noise = (noise + lasting) / math.sqrt(2)
    steps = np.zeros((rounds, timed, len(FIELDS)))
    steps[..., FIELDS.index("latency_ms")] = STEP_MS * np.exp(SPREAD * noise).reshape(rounds, timed)
    return steps


def check(random: np.random.Generator, limit: Limit, slow: bool) -> tuple[str, float]:
    """Return the verdict and the share of the rounds that it took."""
    schedule = plan_schedule([STEP_MS / 1e3], SECONDS)
    steps = draw(random, schedule.rounds, schedule.timed, slow)
    verdict = ""
    for rounds in look_after(schedule.rounds):
        verdict = limit.verdict(limit.bounds({"model": steps[:rounds]}))
        if verdict in (MET, MISSED):
            return verdict, rounds / schedule.rounds
    return verdict, 1.0


def main() -> int:
    """Print the table."""
    checks = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    fps = 1e3 / STEP_MS
    print(
        "| limit over what is true | scatter | met | missed | undecided | seconds |\n|---|---|---|---|---|---|"
    )
    for slow in (False, True):
        for margin in MARGINS:
            random = np.random.default_rng(0)
            found = [check(random, Limit(FPS, fps * margin, "model"), slow) for _ in range(checks)]
            verdicts = [verdict for verdict, _ in found]
            shares = [f"{100 * verdicts.count(one) / checks:.0f} %" for one in (MET, MISSED, "undecided")]
            seconds = SECONDS * float(np.mean([share for _, share in found]))
            cells = [
                f"{100 * (margin - 1):.0f} %",
                "lasting" if slow else "independent",
                *shares,
                f"{seconds:.1f}",
            ]
            print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
