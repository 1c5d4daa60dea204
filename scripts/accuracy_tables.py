"""The tables of docs/accuracy.md, out of the JSON that scripts/benchmark_accuracy.py fills."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from yolo_prune.files import write_text

COLUMNS = {
    "none": "bare cut",
    "bn": "BatchNorm",
    "fold": "fold",
    "imitate": "fold, imitation",
    "bn+imitate": "BatchNorm, imitation",
}
BEGIN, END = "<!-- made by scripts/benchmark_accuracy.py -->", "<!-- end -->"


def write_tables(state: Mapping[str, Any], page: Path) -> None:
    """Replace what stands between the marks of a page; where there is no page, it is the tables alone."""
    text = page.read_text("utf-8") if page.is_file() else f"{BEGIN}{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(page, f"{before}{BEGIN}\n\n{tables(state)}\n\n{END}{after}")


def tables(state: Mapping[str, Any]) -> str:
    """Return a table for every model and budget that has a number, as Markdown."""
    entries: dict[tuple[str, float], dict[tuple[str, str, str], list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for name, entry in state["cuts"].items():
        model, keep, criterion, allocation, steps, _ = name.split("/")
        entries[model, float(keep)][criterion, allocation, steps].append(entry)
    parts = []
    for model, parent in state["parents"].items():
        for keep in sorted((k for m, k in entries if m == model), reverse=True):
            low, high = parent["interval"]
            found = entries[model, keep]
            parts.append(
                f"### {model}, {keep:g} of the MACs\n\n"
                f"Parent: {NAMES[parent['metric']]} {parent['value']:.3f} [{low:.3f}, {high:.3f}], "
                f"{parent['images']} validation images. {settings(found)}\n\n{table(found)}"
            )
    return "\n\n".join(parts)


def settings(rows: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Return what all numbers of a table depend on, in a sentence."""
    entries = [entry for each in rows.values() for entry in each]
    images = sorted({entry["measured_on"] for entry in entries if "measured_on" in entry})
    pairs = sorted({tuple(s["imitation"]) for e in entries for s in e["scores"].values() if "imitation" in s})
    text = f"Measured on {' or '.join(map(str, images))} training images" if images else ""
    steps = " or ".join(f"{steps} steps on up to {count}" for steps, count in pairs)
    return f"{text}{f'; imitation: {steps}' if steps else ''}." if text else ""


NAMES = {"ap": "AP", "top1": "top-1"}


def table(rows: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Return one table, the best row first, and the sentences of what failed."""
    used = [name for name in COLUMNS if any(scores(entries, name) for entries in rows.values())]
    best = {name: max(mean(found) for e in rows.values() if (found := scores(e, name))) for name in used}
    lines = [
        f"| criterion | allocation | steps | MACs kept | {' | '.join(COLUMNS[name] for name in used)} | best, less the parent |",
        f"|---|---|---:|---:|{'---:|' * len(used)}---|",
    ]
    failed = []
    order = sorted(
        rows, key=lambda key: -max((mean(scores(rows[key], name) or [-1.0]) for name in used), default=-1.0)
    )
    for criterion, allocation, steps in order:
        entries = rows[criterion, allocation, steps]
        failed += [
            f"* `{criterion}`, {allocation}: {entry['failed']}" for entry in entries if "failed" in entry
        ]
        if not any(scores(entries, name) for name in used):
            continue
        kept = mean(entry["kept"] for entry in entries if "kept" in entry)
        cells = [cell(scores(entries, name), best[name]) for name in used]
        lines.append(
            f"| {criterion} | {allocation} | {steps} | {kept:.3f} | {' | '.join(cells)} | {change(entries, used)} |"
        )
    return "\n".join([*lines, *(["", *failed] if failed else [])])


def scores(entries: Sequence[Mapping[str, Any]], recovery: str) -> list[float]:
    """Return what a recovery reached, one number a seed."""
    found = (entry["scores"].get(recovery, {}) for entry in entries)
    return [each["value"] for each in found if "value" in each]


def cell(found: Sequence[float], best: float) -> str:
    """Return a mean, with the smallest and the largest of several seeds; the best of its column is bold."""
    if not found:
        return ""
    text = f"**{mean(found):.3f}**" if mean(found) >= best else f"{mean(found):.3f}"
    return text if len(found) == 1 else f"{text} ({min(found):.3f} to {max(found):.3f})"


def change(entries: Sequence[Mapping[str, Any]], used: Sequence[str]) -> str:
    """Return the interval of the difference between the best recovery and the parent; of several seeds the outermost."""
    name = max((name for name in used if scores(entries, name)), key=lambda name: mean(scores(entries, name)))
    bounds = [entry["scores"][name].get("change") for entry in entries if name in entry["scores"]]
    known = [each for each in bounds if each]
    if not known:
        return ""
    return f"{min(low for low, _ in known):+.3f} to {max(high for _, high in known):+.3f}"
