"""Sentences that say what the numbers mean, computed from them: won, lost, a draw, no speed gained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from yolo_prune.report.intervals import METHOD, PERCENT, count_resamples, difference_interval, signed
from yolo_prune.report.rows import Row, RunReport, Speedup
from yolo_prune.report.select import (
    count_threads,
    equal_cost_control,
    file_title,
    final_row,
    identity,
    kept_macs,
    label,
    merged,
    metric_of,
    model_row,
    setting,
    settings,
    speedup,
)

NO_GAIN = 1.05
"""A speed-up up to this is reported as no speed gained."""
SAME_ACCURACY = 0.005
"""Files in floating point reach PyTorch's accuracy within this."""
SAME_COST = 0.1
"""Controls within this fraction of the MACs count as the same cost."""


@dataclass(frozen=True)
class Verdict:
    """One sentence and its tone: ``good``, ``bad`` or ``plain``."""

    text: str
    tone: str = "plain"


def verdicts(report: RunReport) -> tuple[Verdict, ...]:
    """Return every sentence that the measured numbers support, most important first."""
    final = final_row(report)
    if final is None:
        return ()
    found: list[Verdict] = []
    judges: tuple[Callable[[RunReport, Row], list[Verdict]], ...] = (
        judge_accuracy,
        judge_speed,
        judge_control,
        judge_retraining,
        judge_int8,
        judge_files,
        judge_intervals,
        judge_proof,
    )
    for judge in judges:
        found.extend(judge(report, final))
    return tuple(found)


def judge_accuracy(report: RunReport, final: Row) -> list[Verdict]:
    """Say what accuracy the final model kept of the parent's, and for which share of the MACs."""
    parent, name = model_row(report, "parent"), metric_of(report).short
    if parent is None or parent.accuracy is None or final.accuracy is None:
        missing = f"the {final.model} model" if final.accuracy is None else "the parent"
        return [Verdict(f"Accuracy: {name} of {missing} was not measured.")]
    change, bounds = final.accuracy - parent.accuracy, difference_interval(report, final, [(parent, 1.0)])
    kept = kept_macs(report, final)
    cost = f" with {_percent(kept)} of the MACs" if kept is not None else ""
    text = f"The {final.model} model reaches {name} {final.accuracy:.3f}{cost}"
    text += f"; the parent has {parent.accuracy:.3f} ({change:+.3f}, {signed(bounds)})."
    if bounds is not None and 0.0 in bounds:
        return [
            Verdict(f"{text} These images do not tell the two apart.", "good" if change >= 0 else "plain")
        ]
    return [Verdict(text, "good" if change > 0 else "bad" if change < -0.05 else "plain")]


def judge_speed(report: RunReport, final: Row) -> list[Verdict]:
    """Say per runtime whether fewer MACs became more FPS."""
    kept = kept_macs(report, final)
    found: list[Verdict] = []
    for one in settings(report):
        rows = [row for row in report.rows if _is(row, final) and setting(row) == one and row.fps is not None]
        gains = [(row, gain) for row in rows if (gain := speedup(report, row)) is not None]
        found.extend(_speed_sentence(kept, gain, _where(row)) for row, gain in gains)
    return found or [Verdict("Speed was not measured: fewer MACs alone promise nothing.")]


def _is(row: Row, other: Row) -> bool:
    return identity(row) == identity(other)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _where(row: Row) -> str:
    parts = [
        row.runtime or "this runtime",
        row.device or "",
        count_threads(row.threads) if row.threads else "",
    ]
    return ", ".join(part for part in parts if part)


def _speed_sentence(kept: float | None, gain: Speedup, where: str) -> Verdict:
    ratio, low, high = gain.ratio, gain.low, gain.high
    bounds = f" (95 % interval {low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    start = f"MACs fell by {_percent(1 - kept)}" if kept is not None else "The model shrank"
    if ratio < 1 and (high is None or high < 1):
        text = f"{start} but FPS fell to {ratio:.2f}x{bounds} on {where}: slower than the parent."
        return Verdict(text, "bad")
    if ratio <= NO_GAIN or (low is not None and low <= 1):
        text = f"{start} but FPS rose only {ratio:.2f}x{bounds} on {where}: no speed gained there."
        return Verdict(text, "bad")
    ideal = f", where MACs alone would promise {1 / kept:.2f}x" if kept else ""
    return Verdict(f"{start} and FPS rose {ratio:.2f}x{bounds} on {where}{ideal}.", "good")


def judge_control(report: RunReport, final: Row) -> list[Verdict]:
    """Compare with what a user would do instead: run the parent at a lower resolution of equal cost."""
    control = equal_cost_control(report, final)
    if control is None or control.accuracy is None or final.accuracy is None:
        return [Verdict("No control was measured: the parent at a lower resolution might do as well.")]
    share = (control.gmacs or 0.0) / (final.gmacs or 1.0)  # a control at equal cost has both
    cost = "reaches the same MACs" if abs(share - 1) <= SAME_COST else f"needs {share:.2f}x the MACs"
    start = f"The {label(report, control)} {cost} with {metric_of(report).short} {control.accuracy:.3f}"
    found = [_margin_sentence(report, start, final, [(control, 1.0)])]
    return found + (_dominating_control(report, final) or _at_equal_speed(report, final))


def _at_equal_speed(report: RunReport, final: Row) -> list[Verdict]:
    """Compare with the parent's AP at the final model's FPS, interpolated between measured resolutions."""
    found: list[Verdict] = []
    for row in (one for one in report.rows if _is(one, final) and one.fps):
        like = [one for one in report.rows if one.precision == row.precision]
        rivals = [merged(report, one) for one in like if one.model in ("parent", "control")]
        points = sorted(
            ((r.fps, r) for r in rivals if setting(r) == setting(row) and r.fps and r.accuracy is not None),
            key=lambda point: point[0],
        )
        fps = row.fps or 0.0
        around = [(low, high) for low, high in pairwise(points) if low[0] <= fps <= high[0]]
        if not around:
            continue
        (fps_low, slower), (fps_high, faster) = around[0]
        share = (fps - fps_low) / (fps_high - fps_low) if fps_high > fps_low else 0.0
        mix = [(slower, 1 - share), (faster, share)]
        rival = sum(weight * (one.accuracy or 0.0) for one, weight in mix)
        start = (
            f"At the speed of the {final.model} model ({fps:.0f} FPS on {_where(row)}) the parent at a lower"
        )
        start = f"{start} resolution has {metric_of(report).short} {rival:.3f} (interpolated)"
        found.append(_margin_sentence(report, start, final, mix))
    return found


def _margin_sentence(
    report: RunReport, start: str, final: Row, rivals: Sequence[tuple[Row, float]]
) -> Verdict:
    """Say who won and by how much, or that these images cannot tell; without an interval nothing is decided."""
    margin = (final.accuracy or 0.0) - sum(weight * (one.accuracy or 0.0) for one, weight in rivals)
    bounds = difference_interval(report, final, rivals)
    if bounds is not None and 0.0 in bounds:
        return Verdict(f"{start}: a draw, the difference is {margin:+.3f} ({signed(bounds)}).")
    won = margin > 0
    tone = "plain" if bounds is None else "good" if won else "bad"
    text = f"{start}: pruning {'won' if won else 'lost'} by {abs(margin):.3f} ({signed(bounds)})."
    return Verdict(text, tone)


def _dominating_control(report: RunReport, final: Row) -> list[Verdict]:
    mine = [row for row in report.rows if _is(row, final) and row.fps]
    for row in (one for one in report.rows if one.model == "control"):
        rival = merged(report, row)
        twin = next((one for one in mine if setting(one) == setting(row)), None)
        ours, theirs = final.accuracy, rival.accuracy
        if twin is None or not twin.fps or not rival.fps or ours is None or theirs is None:
            continue
        bounds = difference_interval(report, final, [(rival, 1.0)])
        if theirs > ours and not (bounds is not None and 0.0 in bounds) and rival.fps > twin.fps * NO_GAIN:
            text = (
                f"The {label(report, row)} is both more accurate ({theirs:.3f} against {ours:.3f}) and "
                f"faster ({rival.fps:.0f} against {twin.fps:.0f} FPS on {_where(row)}): prefer it."
            )
            return [Verdict(text, "bad")]
    return []


def judge_retraining(report: RunReport, final: Row) -> list[Verdict]:
    """Say what retraining gave, or that it took accuracy away."""
    pruned = model_row(report, "pruned")
    if final.model != "retrained" or pruned is None or pruned.accuracy is None or final.accuracy is None:
        return []
    gain, name, before = final.accuracy - pruned.accuracy, metric_of(report).short, pruned.accuracy
    bounds = difference_interval(report, final, [(pruned, 1.0)])
    if gain < 0 and not (bounds is not None and 0.0 in bounds):
        text = f"Retraining lost {-gain:.3f} {name} ({signed(bounds)}): use weights/pruned.pt, "
        return [Verdict(f"{text}which had {before:.3f} before it.", "bad")]
    if bounds is not None and gain == bounds.low == bounds.high == 0:
        text = f"No epoch of the retraining validated better than the pruned model ({name} {before:.3f}), "
        return [Verdict(f"{text}which was kept. More epochs= or a lower lr0= may change that.", "bad")]
    text = f"Before retraining the pruned model had {name} {before:.3f}; retraining changed it by {gain:+.3f}"
    return [Verdict(f"{text} ({signed(bounds)}).")]


def judge_int8(report: RunReport, final: Row) -> list[Verdict]:
    """Say what quantising the final model cost and gave, for every runtime that it was quantised for."""
    rows = [row for row in report.rows if row.model == "int8"]
    return [
        verdict
        for runtime in dict.fromkeys(row.runtime for row in rows)
        for verdict in _judge_int8_of(report, final, [row for row in rows if row.runtime == runtime])
    ]


def _judge_int8_of(report: RunReport, final: Row, rows: Sequence[Row]) -> list[Verdict]:
    if rows[0].accuracy is None or final.accuracy is None:
        return []
    change, bounds = rows[0].accuracy - final.accuracy, difference_interval(report, rows[0], [(final, 1.0)])
    where = f" for {rows[0].runtime}" if rows[0].runtime else ""
    text = f"In INT8{where} the {final.model} model has {metric_of(report).short} {rows[0].accuracy:.3f} "
    text += f"({change:+.3f}, {signed(bounds)})"
    gains = [(row, gain) for row in rows if row.fps and (gain := speedup(report, row)) is not None]
    for row, gain in gains:
        text += f", {gain.ratio:.2f}x the parent's FPS on {_where(row)}"
    slower = any(gain.ratio < 1 for _, gain in gains)
    lost = bounds is not None and bounds.high < 0
    return [Verdict(f"{text}.", "bad" if slower or lost else "good" if gains else "plain")]


def judge_files(report: RunReport, final: Row) -> list[Verdict]:
    """Say what parent and final model reach as they are deployed, and where a file does not reach what PyTorch does."""
    ours, name = _reached(report, final), file_title(report)
    if not ours:
        return []
    parent = model_row(report, "parent")
    before = _reached(report, parent) if parent else {}
    listed = ", ".join(
        f"{value:.3f}{f' (the parent {before[where]:.3f})' if where in before else ''} on {where}"
        for where, value in ours.items()
    )
    found = [Verdict(f"{name[:1].upper()}{name[1:]}, as the {final.model} model is deployed: {listed}.")]
    for model, reached in ((final.model, ours), ("parent", before)):
        for where, value in reached.items():
            change = value - reached.get("torch", value)
            if abs(change) > SAME_ACCURACY:
                text = f"On {where} the file of the {model} model has {change:+.3f} of what PyTorch reaches on the "
                found.append(Verdict(f"{text}same images, fitted alike: it is not what was pruned.", "bad"))
    return found


def _reached(report: RunReport, model: Row) -> dict[str, float]:
    """Return what the files of a model reach, by runtime and device."""
    found: dict[str, float] = {}
    for row in report.rows:
        if _is(row, model) and row.deployed is not None and row.deployed.accuracy is not None:
            where = row.runtime or "this runtime"
            found[where if row.device in (None, "cpu") else f"{where}, {row.device}"] = row.deployed.accuracy
    return found


def judge_intervals(report: RunReport, final: Row) -> list[Verdict]:
    """Say where the intervals come from and what they leave out, or that there are none."""
    if final.accuracy is None:
        return []
    count, short = count_resamples(report), metric_of(report).short
    if not count:
        text = f"This report has no intervals: whether a small {short} difference is chance it cannot say."
        return [Verdict(text)]
    images = f"{report.conditions.images:,} images, " if report.conditions.images else ""
    text = f"{PERCENT} intervals of {short}: {METHOD} ({images}{count:,} resamples), of a difference on the same "
    return [
        Verdict(
            f"{text}images for both models. What another seed of the training would change is not in them."
        )
    ]


def judge_proof(report: RunReport, final: Row) -> list[Verdict]:
    """Repeat the proof of the cut, when it failed or is missing."""
    proof = report.equivalence
    if proof is None:
        return [Verdict("The cut was not checked against the zeroed model.", "bad")]
    text = f"largest difference {proof.difference:.1e} on outputs of scale {proof.scale:.3g}"
    if proof.verdict == "exact":
        return [Verdict(f"The cut is exact: zeroed and cut model agree, {text}.", "good")]
    return [Verdict(f"The cut is not exact ({proof.verdict}): {text}.", "bad")]
