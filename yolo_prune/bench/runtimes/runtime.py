"""What a runtime must offer to be measured, and the stepper that reads the clocks around it."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from yolo_prune.bench.clock import Clock, Step, Stepper
from yolo_prune.bench.images import Detections, Image
from yolo_prune.errors import ConfigError
from yolo_prune.imgsz import ImageSize

RUNTIMES: Mapping[str, str] = {
    "torch": "yolo_prune.bench.runtimes.pytorch",
    "onnxruntime": "yolo_prune.bench.runtimes.onnxruntime",
}
"""Runtime by name -> the module whose ``open_runtime`` loads a model into it."""


class DeviceUnavailableError(Exception):
    """The machine has no such device, so nothing was measured; the worker turns it into "not measured"."""


@dataclass(frozen=True)
class Settings:
    """How every candidate of a comparison is run.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        threads: CPU threads the runtime may use.
        batch: Images per step.
        half: Run in 16-bit floating point (torch on CUDA only).
        compile: Compile the network with ``torch.compile`` (torch only); the first steps, untimed, take minutes.
        trust: Load checkpoints that may run code of their own.
    """

    device: str
    threads: int
    batch: int
    half: bool = False
    compile: bool = False
    trust: bool = False


class Runtime(Protocol):
    """A model loaded into a runtime on a device."""

    facts: dict[str, Any]
    """runtime, runtime_version, device, device_name, threads."""
    phases: str
    """What a step does, in words: all of it is timed."""
    channels: int
    """Of the images that the network takes."""

    def preprocess(self, images: Sequence[Image]) -> Any:
        """Turn uint8 [H, W, channels] images, three of them in BGR order, into the network's input, on its device."""

    def infer(self, batch: Any) -> tuple[Any, float | None]:
        """Run the network to its end; return its output and its time in ms where the device measures it."""

    def postprocess(self, output: Any) -> list[Detections]:
        """Turn the network's output into results in the memory of the CPU."""


def check_runtime(name: str) -> None:
    """Raise ConfigError, with the nearest name, when there is no runtime of that name."""
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown runtime '{name}', expected one of {', '.join(RUNTIMES)}.{hint}")


def open_runtime(name: str, path: Path, imgsz: ImageSize, settings: Settings) -> Runtime:
    """Load a model into a runtime.

    Args:
        name: A key of ``RUNTIMES``.
        path: A checkpoint for torch, an ONNX file for onnxruntime.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.

    Returns:
        The runtime, ready to run.

    Raises:
        ConfigError: The runtime is unknown or cannot run such a file or such settings.
        MissingRuntimeError: The runtime is not installed.
        DeviceUnavailableError: The device is not there.
    """
    check_runtime(name)
    opened: Runtime = importlib.import_module(RUNTIMES[name]).open_runtime(path, imgsz, settings)
    return opened


def parse_device(device: str | int) -> str:
    """Return ``cpu`` or ``cuda:N`` for ``cpu``, ``cuda``, ``cuda:1``, ``0`` or 0.

    Raises:
        ConfigError: It is something else.
    """
    text = str(device).strip().lower()
    if text == "cpu":
        return text
    index = text.removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdigit() or text == "":
        raise ConfigError(f"cannot measure on device '{device}', expected cpu, cuda or cuda:N.")
    return f"cuda:{int(index)}"


def device_index(device: str) -> int:
    """Return N of ``cuda:N``."""
    return int(device.rpartition(":")[2])


def cpu_name() -> str:
    """Return the processor's name as the system gives it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Return how many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_stepper(
    runtime: Runtime, images: Sequence[Image], batch: int, clock: Clock, cpu_clock: Clock
) -> Stepper:
    """Return a function that runs one batch and times its phases.

    Args:
        runtime: The loaded model.
        images: Images to take in turn: step k uses images k * batch, ... modulo their number.
        batch: Images per step.
        clock: Wall clock in seconds.
        cpu_clock: CPU time of the process in seconds.

    Returns:
        The stepper.
    """

    def step(index: int) -> Step:
        chosen = [images[(index * batch + offset) % len(images)] for offset in range(batch)]
        cpu_start, start = cpu_clock(), clock()
        inputs = runtime.preprocess(chosen)
        prepared = clock()
        output, device_ms = runtime.infer(inputs)
        inferred = clock()
        runtime.postprocess(output)
        end, cpu_end = clock(), cpu_clock()
        return Step(
            latency_ms=1e3 * (end - start),
            pre_ms=1e3 * (prepared - start),
            net_ms=1e3 * (inferred - prepared) if device_ms is None else device_ms,
            post_ms=1e3 * (end - inferred),
            cpu_ms=1e3 * (cpu_end - cpu_start),
        )

    return step
