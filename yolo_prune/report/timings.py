"""Comparisons as a Markdown table, which is what the console shows too."""

from __future__ import annotations

from collections.abc import Sequence

from yolo_prune.bench.results import Comparison, Timing
from yolo_prune.imgsz import size_text
from yolo_prune.report.markdown import table_row
from yolo_prune.report.select import precision_text

HEADER = (
    "model",
    "runtime",
    "precision",
    "device",
    "threads",
    "batch",
    "imgsz",
    "FPS",
    "p50 ms",
    "p90 ms",
    "pre ms",
    "net ms",
    "post ms",
    "CPU ms",
    "FPS vs {base}",
    "net vs {base}",
    "CPU time vs {base}",
)
_HOW = {"half": "in 16 bits", "compile": "compiled"}


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """Return one table with a row per candidate and comparison.

    Args:
        comparisons: Results of ``compare``, all with the same base.

    Returns:
        Markdown, ending in a newline; below it, for each comparison, what was measured and under which load.
    """
    base = comparisons[0].base if comparisons else "the first"
    header = [title.format(base=base) for title in HEADER]
    lines = [table_row(header), "|" + "---|" * len(header)]
    for comparison in comparisons:
        for name, timing in comparison.timings.items():
            cells = [name, *timing_cells(timing), *ratio_cells(comparison, name)]
            lines.append(table_row(cells))
    notes = dict.fromkeys(
        note for comparison in comparisons for note in (*_proofs(comparison), describe(comparison))
    )
    return "\n".join([*lines, "", *notes]) + "\n"


def _proofs(comparison: Comparison) -> list[str]:
    """Say of files that were made here how far they are from their checkpoints, and which were not timed for it."""
    found = [f"{name}: not measured: {why}." for name, why in comparison.refused.items()]
    compared = {name: one for name, one in comparison.parities.items() if name not in comparison.refused}
    if compared:
        name, worst = max(compared.items(), key=lambda pair: pair[1].relative)
        found.append(
            f"{comparison.conditions['runtime']}: every file was compared with its checkpoint in PyTorch; furthest, "
            f"{name}: {worst.sentence}."
        )
    return found


def timing_cells(timing: Timing | None) -> list[str]:
    """Return the cells of one candidate between its name and its ratios."""
    if timing is None:
        return [*["-"] * 6, "not measured", *["-"] * 6]
    latency = timing.latency_ms
    times = (latency["p50"], latency["p90"], timing.pre_ms, timing.net_ms, timing.post_ms, timing.cpu_ms)
    return [
        timing.runtime,
        precision_text(timing.precision) or "-",
        timing.device,
        str(timing.threads),
        str(timing.batch),
        size_text(timing.imgsz),
        f"{timing.fps:.1f}",
        *[f"{value:.2f}" for value in times],
    ]


def ratio_cells(comparison: Comparison, name: str) -> list[str]:
    """Return how many times faster than the base a candidate is: all phases, network, CPU time."""
    if name == comparison.base:
        return ["1"] * 3 if comparison.ratios else ["-"] * 3
    ratios = comparison.ratios.get(name, {})
    return [str(ratios[kind]) if kind in ratios else "-" for kind in ("latency", "net", "cpu")]


def describe(comparison: Comparison) -> str:
    """Return one line on the conditions of a comparison, or why there is nothing."""
    if comparison.not_measured is not None:
        return f"Not measured: {comparison.not_measured}."
    conditions = comparison.conditions
    timing = next(timing for timing in comparison.timings.values() if timing is not None)
    load = "unknown" if timing.load1 is None else f"{timing.load1:.1f}"
    how = "".join(f" {word}" for key, word in _HOW.items() if conditions.get(key))
    return (
        f"{timing.runtime} {timing.runtime_version}{how}, {timing.device_name}, {timing.threads} of "
        f"{conditions['cpus']} CPUs, load {load} at the start, {conditions['rounds']} alternating rounds "
        f"of {conditions['timed_steps']} timed steps, {conditions['image_count']} images "
        f"({conditions['images']}). Timed: {conditions['timed']}. "
        "Ratios are midmeans of per-round ratios with 95 % bootstrap intervals; above 1 is faster."
    )
