#!/usr/bin/env python
"""Draw AP against speed from the numbers of ``bench_results.py``, and print the table of the README.

    python scripts/plot_results.py docs/results.json --svg docs/results.svg

The picture has a ground of its own, so that it reads on light and on dark pages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 72, 20, 24, 60
COLOURS = {"parent": "#24303c", "yolo_prune": "#1f6fd0", "resolution": "#6b7280", "torch_pruning": "#d9822b"}
SPEED = "onnxruntime_speed"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of all models."""
    lines = [
        "| model | GMACs | parameters M | size MB | COCO AP | AP50 | ONNX Runtime | PyTorch |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = [f"{row[key][0]:.2f}x" if key in row else "" for key in (SPEED, "torch_speed")]
        name = f"**{row['name']}**" if row["name"] == "pruned, retrained" else row["name"]
        numbers = [f"{row['gmacs']:.3f}", f"{row['params_m']:.2f}", f"{row['size_mb']:.2f}"]
        lines.append(
            "| " + " | ".join([name, *numbers, f"{row['ap']:.3f}", f"{row['ap50']:.3f}", *times]) + " |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> str:
    """Return the picture: AP over times the parent's FPS, intervals as lines."""
    lowest = min(row["ap"] for row in rows if row["ap"] > 0.3)
    floor = int(20 * lowest) / 20 - 0.05  # with room for what lies below
    top = int(20 * max(row["ap"] for row in rows)) / 20 + 0.05
    widest = max(row[SPEED][2] for row in rows) + 0.15
    start = 0.85

    def across(speed: float) -> float:
        return LEFT + (speed - start) / (widest - start) * (WIDTH - LEFT - RIGHT)

    def up(ap: float) -> float:
        return TOP + (top - ap) / (top - floor) * (HEIGHT - TOP - BOTTOM)

    parts = [*frame(floor, top, start, widest, across, up)]
    line = sorted(
        (row for row in rows if row["group"] in ("parent", "resolution")), key=lambda row: row[SPEED][0]
    )
    points = " ".join(f"{across(row[SPEED][0]):.1f},{up(row['ap']):.1f}" for row in line)
    parts.append(
        f'<polyline points="{points}" fill="none" stroke="{COLOURS["resolution"]}" stroke-width="1.5"/>'
    )
    for row in rows:
        crowded = any(
            0 < across(other[SPEED][0]) - across(row[SPEED][0]) < 200
            and abs(up(other["ap"]) - up(row["ap"])) < 15
            for other in rows
        )
        parts += point(row, across, up, floor, crowded=crowded)
    parts += below(rows, across, up, floor)
    return "\n".join(parts) + "\n</svg>\n"


def frame(floor: float, top: float, start: float, widest: float, across: Any, up: Any) -> Iterator[str]:
    """Yield the ground, the grid and the axes."""
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="COCO AP against speed" font-family="system-ui, sans-serif" font-size="15">'
    )
    yield f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10" fill="#ffffff" stroke="#d0d7de"/>'
    ticks = [floor + 0.05 * step for step in range(round((top - floor) / 0.05) + 1)]
    for ap in ticks:
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(ap):.1f}" y2="{up(ap):.1f}" stroke="#e4e8ec"/>'
        yield f'<text x="{LEFT - 10}" y="{up(ap) + 4:.1f}" text-anchor="end" fill="#57606a">{ap:.2f}</text>'
    for tenth in range(10, int(10 * widest) + 1, 2):
        x, speed = across(tenth / 10), tenth / 10
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" stroke="#8a8f98"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#57606a">{speed:.1f}x</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle" fill="#24303c">FPS, times the parent (ONNX Runtime, one CPU thread)</text>'
    yield f'<text transform="translate(20 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" fill="#24303c">COCO AP</text>'


def point(row: dict[str, Any], across: Any, up: Any, floor: float, *, crowded: bool) -> Iterator[str]:
    """Yield one model: a dot, its interval and its name, on the left where another dot is near; below the floor, an arrow."""
    colour = COLOURS[row["group"]]
    value, low, high = row[SPEED]
    x, y = across(value), up(max(row["ap"], floor))
    yield f'<line x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="1.5"/>'
    if row["ap"] < floor:
        yield f'<path d="M{x - 6:.1f} {y - 10:.1f}h12l-6 10z" fill="{colour}"/>'
    else:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>'
    if row["ap"] >= floor:
        side = (across(low) - x - 4, 19, "end") if crowded else (across(high) - x + 10, 5, "start")
        dx, dy, anchor = {"parent": (0, -14, "middle"), "resolution": (-10, 17, "end")}.get(
            row["group"], side
        )
        yield written(row["name"].removeprefix("parent at "), x + dx, y + dy, anchor, colour)


def below(rows: list[dict[str, Any]], across: Any, up: Any, floor: float) -> Iterator[str]:
    """Yield one text for all models that lie below the picture."""
    low = [row for row in rows if row["ap"] < floor]
    if low:
        x = max(across(row[SPEED][2]) for row in low)
        said = f"Torch-Pruning, no training: AP {max(row['ap'] for row in low):.3f}"
        yield written(said, x + 10, up(floor) - 6, "start", COLOURS["torch_pruning"])


def written(text: str, x: float, y: float, anchor: str, colour: str) -> str:
    """Return a name in the colour of its group."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="600">{text}</text>'


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", type=Path)
    parser.add_argument("--svg", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.numbers.read_text("utf-8"))["rows"]
    options.svg.write_text(draw(rows), "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
