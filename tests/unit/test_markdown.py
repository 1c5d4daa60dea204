"""Names with a vertical bar keep every table of ours a table."""

import re
from pathlib import Path

import pytest

from yolo_prune.bench.results import Comparison
from yolo_prune.report import Row, RunReport, render_table
from yolo_prune.report.timings import markdown_table
from yolo_prune.runs.trials import SweepResult, Trial, render_sweep


def report_table(name):
    return render_table(RunReport(rows=(Row(name, gmacs=1.0, ap=0.5), Row("b", gmacs=0.5, ap=0.4))))


def bench_table(name):
    return markdown_table([Comparison(name, {name: None, "b": None}, {}, {}, not_measured="no GPU")])


def sweep_table(name):
    trials = (Trial(name, 1.0, ""), Trial("b", 0.5, "l1", error=f"{name}\nis broken"))
    return render_sweep(SweepResult(Path(), trials, (), None))


@pytest.mark.parametrize("table", [report_table, bench_table, sweep_table])
def test_every_row_has_as_many_cells_as_the_header(table):
    lines = [line for line in table("a|b").splitlines() if line.startswith("|")]
    assert any(r"a\|b" in line for line in lines)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(lines) >= 4
