"""Write every file of a report into a run folder."""

from __future__ import annotations

from pathlib import Path

from yolo_prune.files import write_text
from yolo_prune.report.csv import render_csv
from yolo_prune.report.examples import embedded, read_examples
from yolo_prune.report.html import render_html
from yolo_prune.report.rows import RunReport, report_from_json, write_json
from yolo_prune.report.table import render_table

LINKED = (
    *("plan.json", "args.yaml", "results.csv", "results.png", "report.json", "report.md", "report.csv"),
    *("weights/parent.pt", "weights/pruned.pt", "weights/best.pt", "weights/last.pt"),
)
"""Files of a run folder that report.html links to, where they exist."""


def write_report(report: RunReport, folder: Path | str) -> Path:
    """Write report.json, then report.md, report.csv and report.html from that JSON.

    Args:
        report: The run.
        folder: The run folder, created when missing.

    Returns:
        The path of report.html.

    Raises:
        OSError: The folder cannot be written.
    """
    write_json(report, folder)
    return rebuild_report(folder)


def rebuild_report(folder: Path | str) -> Path:
    """Make report.md, report.csv and report.html again from a run folder's report.json.

    Args:
        folder: A run folder.

    Returns:
        The path of report.html.

    Raises:
        ConfigError: There is no readable report.json.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    report = report_from_json(folder)
    write_text(folder / "report.md", f"# {report.name}\n\n{render_table(report)}")
    write_text(folder / "report.csv", render_csv(report))
    files = [name for name in LINKED if (folder / name).is_file()]
    examples = read_examples(folder)
    pictures = embedded(folder, examples) if examples else {}
    return write_text(folder / "report.html", render_html(report, files, examples, pictures))
