"""What a runtime must offer to be measured, and which ones there are."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.imgsz import ImageSize, read_size
from yolo_prune.runtimes import RUNTIMES, is_exported
from yolo_prune.runtimes.detections import Detections
from yolo_prune.runtimes.images import Image

Loader = Callable[[Path], Any]
"""Loads a checkpoint: returns its ``module`` (float32, evaluation mode), ``task``, ``channels`` and ``names``."""


class DeviceUnavailableError(Exception):
    """The machine has no such device, so nothing was measured; the worker turns it into "not measured"."""


@dataclass(frozen=True)
class Settings:
    """How every candidate of a comparison is run.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        threads: CPU threads the runtime may use.
        batch: Images per step.
        half: Compute in 16-bit floating point: torch on CUDA, OpenVINO and ncnn on CPUs that can.
        compile: Compile the network with ``torch.compile`` (torch only); the first steps, untimed, take minutes.
        trust: Load checkpoints that may run code of their own.
        provider: What ONNX Runtime hands the network to, a key of ``PROVIDERS``; empty for its own kernels.
    """

    device: str
    threads: int
    batch: int
    half: bool = False
    compile: bool = False
    trust: bool = False
    provider: str = ""


@dataclass(frozen=True)
class FileFacts:
    """What an exported file takes, before it runs; None stands for a size that is left open.

    Attributes:
        batch: Images at once.
        channels: Of an image.
        height: Of its input in pixels.
        width: Of its input in pixels.
        precision: Of its weights, as far as the file says: ``float32``, ``float16`` or ``int8``.
        metadata: What its exporter wrote into it.
    """

    batch: int | None
    channels: int | None
    height: int | None
    width: int | None
    precision: str
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def shape(self) -> tuple[int | None, int | None, int | None, int | None]:
        """Of the input, (B, C, H, W)."""
        return self.batch, self.channels, self.height, self.width

    @property
    def imgsz(self) -> ImageSize | None:
        """Size of the input in pixels; None where a side is open."""
        if self.height is None or self.width is None:
            return None
        return read_size((self.height, self.width))


class Runtime(Protocol):
    """A model loaded into a runtime on a device."""

    facts: dict[str, Any]
    """runtime, runtime_version, device, device_name, threads."""
    phases: str
    """What a step does, in words: all of it is timed."""
    channels: int
    """Of the images that the network takes."""
    file: FileFacts | None
    """What an exported file says of itself; None of a checkpoint."""

    def preprocess(self, images: Sequence[Image]) -> Any:
        """Turn uint8 [H, W, channels] images, three of them in BGR order, into the network's input, on its device."""

    def infer(self, batch: Any) -> tuple[Any, float | None]:
        """Run the network to its end; return its output and its time in ms where the device measures it."""

    def postprocess(self, output: Any) -> list[Detections]:
        """Turn the network's output into results in the memory of the CPU."""

    def as_array(self, output: Any) -> NDArray[np.float32]:
        """Return the network's output as it is, in the memory of the CPU."""


def check_runtime(name: str) -> None:
    """Raise ConfigError, with the nearest name, when there is no runtime of that name."""
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"unknown runtime '{name}', expected one of {', '.join(RUNTIMES)}.{hint}")


def runtime_for(path: Path | str, name: str | None = None) -> str:
    """Return the runtime that a file runs on.

    Args:
        path: The file.
        name: The one that was asked for; None takes the first that runs such files.

    Raises:
        ConfigError: There is no runtime of that name, or none runs such a file.
    """
    if name is not None:
        check_runtime(name)
        return name
    found = next((each for each, entry in RUNTIMES.items() if entry.runs(str(path))), None)
    if found is None:
        endings = ", ".join(f"*{ending}" for entry in RUNTIMES.values() for ending in entry.endings)
        raise ConfigError(f"no runtime runs '{path}': expected one of {endings}.")
    return found


def check_runs(name: str, path: Path | str) -> None:
    """Raise ConfigError where a runtime does not run an exported file of such a name."""
    if not RUNTIMES[name].runs(str(path)):
        expected = ", ".join(f"*{ending}" for ending in RUNTIMES[name].endings)
        raise ConfigError(f"the '{name}' runtime does not run '{path}', expected {expected}.")


def read_file(name: str, path: Path) -> FileFacts:
    """Return what an exported file takes, without torch and without running it.

    Args:
        name: A runtime that runs such files.
        path: The file.

    Raises:
        CheckpointError: It is missing or not what its name says.
        MissingRuntimeError: The runtime is not installed.
    """
    facts: FileFacts = _module_of(name).read_file(path)
    return facts


def _module_of(name: str) -> ModuleType:
    return importlib.import_module(RUNTIMES[name].module)


def import_runtime(name: str) -> Any:
    """Return the package of a runtime that is called as the package is.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    try:
        return importlib.import_module(RUNTIMES[name].package or name)
    except ImportError as error:
        raise missing_runtime(name) from error


def facts_of(name: str, version: str, settings: Settings, device_name: str | None = None) -> dict[str, Any]:
    """Return the facts of a :class:`Runtime`; ``device_name`` is the CPU's where it is None."""
    return {
        "runtime": name,
        "runtime_version": version,
        "device": settings.device,
        "device_name": cpu_name() if device_name is None else device_name,
        "threads": settings.threads,
    }


def missing_runtime(name: str) -> MissingRuntimeError:
    """Return the error of a runtime that is not installed."""
    return MissingRuntimeError(
        f"the '{name}' runtime is not installed: pip install \"yolo-prune[{RUNTIMES[name].extra}]\"."
    )


def open_runtime(name: str, path: Path, imgsz: ImageSize, settings: Settings, load: Loader) -> Runtime:
    """Load a model into a runtime.

    Args:
        name: A key of ``RUNTIMES``.
        path: A checkpoint for torch, an exported file for the others.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Loads a checkpoint, for a runtime that runs it in its own framework.

    Returns:
        The runtime, ready to run.

    Raises:
        ConfigError: The runtime is unknown or cannot run such a file or such settings.
        MissingRuntimeError: The runtime is not installed.
        DeviceUnavailableError: The device is not there.
    """
    check_runtime(name)
    if is_exported(str(path)) and not RUNTIMES[name].checkpoints:
        check_runs(name, path)
    opened: Runtime = _module_of(name).open_runtime(path, imgsz, with_provider(settings, name), load)
    return opened


def with_provider(settings: Settings, name: str) -> Settings:
    """Return settings that say what a runtime named ``onnxruntime:PROVIDER`` hands its networks to."""
    return replace(settings, provider=name.partition(":")[2])


def no_checkpoint(path: Path) -> Any:
    """Refuse to load a checkpoint, where exported files alone are expected.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(f"'{path}' is no exported file.")


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
