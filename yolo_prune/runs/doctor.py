"""What is installed here and whether it works: the page that a report of a fault begins with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yolo_prune import __version__
from yolo_prune.adapters.hosts import hosts
from yolo_prune.bench.machine import read_machine
from yolo_prune.extras import EXTRAS
from yolo_prune.runtimes import RUNTIMES
from yolo_prune.runtimes.runtime import available_cpus, cpu_name

OK, MISSING, BROKEN = "ok", "missing", "broken"
_PATIENCE_S = 120.0
_CUT = """
import torch
from torch import nn
import yolo_prune
torch.manual_seed(0)
def layer(made, read):
    return nn.Sequential(nn.Conv2d(read, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.SiLU())
net = nn.Sequential(layer(32, 3), layer(64, 32), nn.Conv2d(64, 8, 1)).eval()
plan = yolo_prune.prune_module(net, torch.rand(1, 3, 32, 32), keep_macs=0.5)
if not plan.equivalence["exact"]:
    raise SystemExit("the cut model computes something else")
print(f"{100 * plan.kept_macs:.0f} % of the MACs of a small network kept, exact")
"""
_TELL = {
    "torch": "import torch; n = torch.cuda.device_count();"
    "print('; '.join(['CPU', *(torch.cuda.get_device_name(i) for i in range(n))]))",
    "onnxruntime": "import onnxruntime; print(', '.join(onnxruntime.get_available_providers()))",
    "openvino": "import openvino; print(', '.join(openvino.Core().available_devices))",
}
"""What a runtime's package says of its devices, where it says anything; the others are imported."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        kind: ``packages``, ``runtimes`` or ``self-test``.
        name: Of it.
        state: ``ok``, ``missing`` (that is no fault) or ``broken``.
        text: Version and devices, or what to do.
    """

    kind: str
    name: str
    state: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        system: Versions, processor and state of the machine, by name.
        findings: Packages, runtimes, the self-test.
    """

    system: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that is installed is broken."""
        return all(finding.state != BROKEN for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON values."""
        return {"healthy": self.healthy, **asdict(self)}

    def lines(self) -> list[str]:
        """Return the diagnosis as text."""
        width = max(len(name) for name in [*self.system, *(finding.name for finding in self.findings)])
        said = [f"{name:<{width}}  {text}" for name, text in self.system.items()]
        for kind in dict.fromkeys(finding.kind for finding in self.findings):
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            said += ["", kind]
            said += [f"{each.name:<{width}}  {each.state:<7}  {each.text}" for each in of_kind]
        return said


def diagnose() -> Diagnosis:
    """Look at the system, at every optional package, at every runtime, and cut a small network.

    Runtimes and the cut run in processes of their own, so that one that crashes (a wheel for another processor) is a
    line and not the end.
    """
    distributions = importlib.metadata.packages_distributions()
    packages = dict.fromkeys([*EXTRAS, *(name for host in hosts() for name in host.packages)])
    extras = {**{name: name for host in hosts() for name in host.packages}, **EXTRAS}
    return Diagnosis(
        _system(),
        (
            *(_package(name, extras[name], distributions.get(name, ())) for name in packages),
            *_runtimes(),
            _self_test(),
        ),
    )


def _system() -> dict[str, str]:
    state = read_machine()
    clock = f", {state.mhz:.0f} MHz" if state.mhz else ""
    governor = f", governor {state.governor}" if state.governor else ""
    load = f", load {state.load1:.1f}" if state.load1 is not None else ""
    return {
        "yolo-prune": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "processor": f"{cpu_name()}, {available_cpus()} CPUs{clock}{governor}{load}",
    }


def _package(name: str, extra: str, distributions: Sequence[str]) -> Finding:
    if not _is_there(name):
        return Finding("packages", name, MISSING, f'pip install "yolo-prune[{extra}]"')
    versions = {f"{each} {importlib.metadata.version(each)}" for each in distributions}
    return Finding("packages", name, OK, ", ".join(sorted(versions)) or "no version is known")


def _runtimes() -> Iterator[Finding]:
    """Try every runtime; of several that one package runs, the package is started once."""
    said: dict[str, tuple[str, str]] = {}
    for name, entry in RUNTIMES.items():
        package = entry.package or name
        if ":" in name:  # what one of them hands networks to stands in its own line
            continue
        if not _is_there(package):
            yield Finding("runtimes", name, MISSING, f'pip install "yolo-prune[{entry.extra}]"')
            continue
        if package not in said:
            said[package] = _run(_TELL.get(package, f"import {package}"))
        state, text = said[package]
        yield Finding("runtimes", name, state, text or "is there")


def _self_test() -> Finding:
    if not _is_there("torch"):
        return Finding("self-test", "cut", MISSING, 'pruning needs torch: pip install "yolo-prune[torch]"')
    began = time.monotonic()
    state, said = _run(_CUT)
    return Finding(
        "self-test", "cut", state, f"{said}, {time.monotonic() - began:.0f} s" if state == OK else said
    )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module that was replaced or is half imported
        return False


def _run(code: str) -> tuple[str, str]:
    """Run Python code in a process of its own; return its state, and its last line or how it ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return BROKEN, f"did not end within {_PATIENCE_S:g} s"
    if done.returncode == 0:
        return OK, _last_line(done.stdout)
    if done.returncode < 0:
        return BROKEN, f"died by {signal.Signals(-done.returncode).name}: built for another processor?"
    return BROKEN, _last_line(done.stderr) or f"ended with {done.returncode}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
