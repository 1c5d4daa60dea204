"""The verdicts of a check: plain values, as JSON, as JUnit XML and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.etree import ElementTree

from yolo_prune.bench.limits import CONFIDENCE, LOOK_SHARES, MET, MISSED, UNDECIDED
from yolo_prune.report.markdown import cell

EXIT_CODES = {MET: 0, MISSED: 1, UNDECIDED: 1}
_TITLES = {MET: "MET", MISSED: "MISSED", UNDECIDED: "UNDECIDED"}
INTERVALS = (
    f"{100 * CONFIDENCE:.0f} % over {len(LOOK_SHARES)} looks: order statistics, bootstrap of blocks of steps"
)


@dataclass(frozen=True)
class Finding:
    """One requirement, and what was measured of it.

    Attributes:
        key: Of the option.
        name: What is measured, in words, for example ``p95 latency``.
        limit: What must be reached.
        value: What was measured, in the same unit.
        low: Lower bound of its interval; None where it has none, minus infinity where too little is known.
        high: Upper bound.
        unit: Behind the numbers; empty where there is none.
        digits: Behind the point.
        verdict: ``met``, ``missed`` or ``undecided``.
    """

    key: str
    name: str
    limit: float
    value: float
    low: float | None
    high: float | None
    unit: str
    digits: int
    verdict: str

    @property
    def requirement(self) -> str:
        """The requirement in words, for example ``FPS >= 30``."""
        sign = ">=" if self.key.startswith("min_") else "<="
        return f"{self.name} {sign} {self.limit:g}{self.unit}"

    @property
    def measured(self) -> str:
        """The value with its interval."""
        text = f"{self._number(self.value)}{self.unit}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self._number(self.low)}, {self._number(self.high)}]"

    @property
    def sentence(self) -> str:
        """The verdict and by how much."""
        if self.verdict == UNDECIDED:
            return "too close to call"
        share = f" ({100 * abs(self.value / self.limit - 1):.1f} %)" if self.limit else ""
        return f"{self.verdict} by {self._number(abs(self.value - self.limit))}{self.unit}{share}"

    def _number(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "?"


@dataclass(frozen=True)
class CheckReport:
    """What a check found; without findings it could not be measured.

    Attributes:
        model: As it was given.
        findings: One for each requirement.
        conditions: What it ran on, in words, by name.
        details: Times and the machine, by name, one line each.
        warnings: What makes the numbers doubtful, in sentences.
        values: Everything that was measured, as plain JSON values.
        seconds: How long the check took.
        error: Why there are no findings.
    """

    model: str
    findings: tuple[Finding, ...] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def verdict(self) -> str:
        """``missed`` where a requirement is, else ``undecided`` where one is, else ``met``."""
        found = {finding.verdict for finding in self.findings}
        return next((verdict for verdict in (MISSED, UNDECIDED) if verdict in found), MET)

    @property
    def exit_code(self) -> int:
        """0 met, 1 missed or undecided, 2 not measured."""
        return 2 if self.error else EXIT_CODES[self.verdict]

    @property
    def title(self) -> str:
        """The verdict, and on what."""
        if self.error:
            return f"NOT MEASURED: {self.model}"
        good = sum(finding.verdict == MET for finding in self.findings)
        where = ", ".join(self.conditions.values())
        return f"{_TITLES[self.verdict]}: {good} of {len(self.findings)} met by {self.model}, {where}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; a bound that is not known is null."""
        findings = [
            {**{key: _finite(value) for key, value in asdict(one).items()}, "text": one.sentence}
            for one in self.findings
        ]
        return {
            "model": self.model,
            "verdict": None if self.error else self.verdict,
            "exit_code": self.exit_code,
            "error": self.error,
            "findings": findings,
            "conditions": dict(self.conditions),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
            **self.values,
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_markdown(report: CheckReport) -> str:
    """Return a check as the summary of a job."""
    lines = [f"### {report.title}", ""]
    if report.error:
        return "\n".join([*lines, report.error, ""])
    lines += ["| requirement | measured | verdict |", "|---|---|---|"]
    lines += [
        f"| {cell(one.requirement)} | {cell(one.measured)} | {cell(one.sentence)} |"
        for one in report.findings
    ]
    lines += ["", *(f"* {name}: {text}" for name, text in report.details.items())]
    return "\n".join([*lines, *(f"* **{warning}**" for warning in report.warnings), ""])


def check_junit(report: CheckReport) -> str:
    """Return a check as JUnit XML: one case a requirement, too close to call counts as a failure."""
    failures = sum(one.verdict != MET for one in report.findings)
    count = {
        "name": "yolo-prune check",
        "tests": str(max(len(report.findings), 1)),
        "failures": str(failures),
        "errors": str(int(report.error is not None)),
        "time": f"{report.seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", count)
    suite = ElementTree.SubElement(root, "testsuite", {**count, "name": report.model})
    for one in report.findings:
        case = ElementTree.SubElement(suite, "testcase", classname=report.model, name=one.requirement)
        if one.verdict != MET:
            text = f"{one.sentence}: measured {one.measured}, wanted {one.requirement}"
            failure = ElementTree.SubElement(case, "failure", type=one.verdict, message=text)
            failure.text = "\n".join([text, report.title, *report.warnings])
    if report.error:
        case = ElementTree.SubElement(suite, "testcase", classname=report.model, name="measuring")
        ElementTree.SubElement(case, "error", type="not measured", message=report.error)
    output = ElementTree.SubElement(suite, "system-out")
    output.text = "\n".join([report.title, *(f"{name}: {line}" for name, line in report.details.items())])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
