"""What the machine was doing while it was measured on: load, governor, clock, heat. Linux says most of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CPUS = Path("/sys/devices/system/cpu")
_ZONES = Path("/sys/class/thermal")
_FIRMWARE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_CPUINFO, _STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")
_SLOWER = 0.95  # a clock below this share of the one before has been throttled


@dataclass(frozen=True)
class MachineState:
    """The machine at one moment; None is what the system does not say.

    Attributes:
        load1: One-minute load average.
        governor: What chooses the clock of the CPUs, several with commas.
        mhz: Mean clock of the CPUs.
        celsius: The hottest sensor.
        throttle_events: How often CPUs have been slowed down by heat since the start of the system.
        firmware: Flags of a board's firmware in hexadecimal: the lowest four bits are too little power or too much
            heat now, the upper ones since its start.
    """

    load1: float | None = None
    governor: str | None = None
    mhz: float | None = None
    celsius: float | None = None
    throttle_events: int | None = None
    firmware: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return asdict(self)


def load_average() -> float | None:
    """Return the one-minute load average; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def read_machine() -> MachineState:
    """Return the state of this machine now."""
    governors = sorted(set(_words(_CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor"))))
    clocks = [
        int(word) / 1e3 for word in _words(_CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")) if word.isdigit()
    ]
    clocks = clocks or _clocks_of_cpuinfo()
    heat = [int(word) / 1e3 for word in _words(_ZONES.glob("thermal_zone*/temp")) if word.isdigit()]
    events = _words(_CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    counts = [int(word) for word in events if word.isdigit()]
    return MachineState(
        load1=load_average(),
        governor=", ".join(governors) or None,
        mhz=sum(clocks) / len(clocks) if clocks else None,
        celsius=max(heat, default=None),
        throttle_events=sum(counts) if counts else None,
        firmware=next(iter(_words([_FIRMWARE])), None),
    )


def peak_memory_mb() -> float | None:
    """Return the most memory that this process has held so far, in 1e6 bytes; None where the system does not say."""
    for line in _text(_STATUS).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def busy_with_others(load1: float | None, cpus: int, threads: int) -> str:
    """Say the load of a machine on which the threads of a model will not have CPUs of their own; nothing where they do.

    Args:
        load1: One-minute load average before the model runs; None where the system has none.
        cpus: CPUs that the process may use.
        threads: That the model uses.
    """
    if load1 is None or load1 <= cpus - threads + 0.5:
        return ""
    return f"load {load1:.1f} on {cpus} CPUs, of which the model uses {threads}"


def overloaded(load1: float | None, cpus: int) -> str:
    """Say the load of a machine that has more to do than CPUs, other than the work just before a measurement.

    A run that measures at its end has kept the CPUs busy itself, so a load of one for each says nothing.

    Args:
        load1: One-minute load average before the model runs; None where the system has none.
        cpus: CPUs that the process may use.
    """
    return "" if load1 is None or load1 <= cpus + 0.5 else f"load {load1:.1f} on {cpus} CPUs"


def warnings_of(before: MachineState, after: MachineState, cpus: int, threads: int) -> tuple[str, ...]:
    """Say in sentences what made the times of a measurement doubtful.

    Args:
        before: When measuring began, the model warm.
        after: When it ended.
        cpus: CPUs that the process may use.
        threads: That the model uses.
    """
    found = []
    if busy := busy_with_others(before.load1, cpus, threads):
        found.append(f"The machine was busy before it began: {busy}. Stop other programs and check again.")
    if before.mhz and after.mhz and after.mhz < _SLOWER * before.mhz:
        found.append(
            f"The clock fell from {before.mhz:.0f} to {after.mhz:.0f} MHz while measuring: cool the board."
        )
    if before.throttle_events is not None and (after.throttle_events or 0) > before.throttle_events:
        count = (after.throttle_events or 0) - before.throttle_events
        found.append(f"CPUs were slowed down by heat {count} times while measuring.")
    if _raised(before.firmware, after.firmware):
        found.append(f"The firmware reports too little power or too much heat (flags {after.firmware}).")
    if after.governor and set(after.governor.split(", ")) & {"powersave", "ondemand", "conservative"}:
        found.append(
            f"The governor '{after.governor}' changes the clock: 'performance' gives steadier times."
        )
    return tuple(found)


def _raised(before: str | None, after: str | None) -> bool:
    """Tell whether flags of the firmware say something of now, or something that they did not say before."""
    if before is None or after is None:
        return False
    return bool(int(after, 16) & 0xF or int(after, 16) & ~int(before, 16))


def _clocks_of_cpuinfo() -> list[float]:
    lines = _text(_CPUINFO).splitlines()
    return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]


def _words(files: Any) -> list[str]:
    return [word for file in sorted(files) if (word := _text(file).strip())]


def _text(file: Path) -> str:
    """Return what a file of the system holds; nothing where it is not there or not to be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
