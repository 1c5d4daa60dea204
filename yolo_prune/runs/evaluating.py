"""Accuracy of a model as it is deployed on a runtime: a checkpoint is exported and compared with it first."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolo_prune.bench.exports import shared_exports
from yolo_prune.bench.parity import TOLERANCE, Parity, stored_parity
from yolo_prune.errors import BenchmarkError, ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.options import CheckConfig, EvalConfig
from yolo_prune.runs.subject import Subject, accuracy_of, open_subject
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    Settings,
    available_cpus,
    no_checkpoint,
    open_runtime,
    parse_device,
    runtime_for,
)

if TYPE_CHECKING:
    from yolo_prune.accuracy.number import Accuracy


@dataclass(frozen=True)
class EvaluatedFile:
    """What a file reaches on its runtime.

    Attributes:
        accuracy: The number, and what it is of.
        imgsz: Size of its input in pixels.
        runtime: What ran it.
        parity: How far it is from its checkpoint; None where a file was given, of INT8 and of PyTorch itself.
    """

    accuracy: Accuracy
    imgsz: ImageSize
    runtime: str
    parity: Parity | None


def evaluate_on_runtime(config: EvalConfig) -> EvaluatedFile:
    """Evaluate a model on one runtime, every image fitted to its input, as ``check`` does.

    Raises:
        ConfigError: The runtime does not run it, or weights are given apart.
        CheckpointError: It is missing or damaged.
        DataError: The data is missing, broken, or of other classes.
        MissingRuntimeError: The runtime, or what exports for it, is not installed.
        BenchmarkError: The device is not there, or the file does not compute what its checkpoint computes.
    """
    if config.weights is not None:
        raise ConfigError("runtime= takes a checkpoint or an exported file: leave weights= out.")
    runtime = runtime_for(config.model, config.runtime)
    same = {key: getattr(config, key) for key in ("model", "data", "imgsz", "split", "trust", "imports")}
    asked = CheckConfig(**same, min_ap=0.0, runtime=runtime)
    with ExitStack() as stack:
        own = open_subject(config.model, runtime, asked, stack.enter_context(shared_exports()), stack)
        settings = Settings(
            parse_device(config.device or "cpu"), available_cpus(), own.batch, trust=config.trust
        )
        parity = _compared(own, runtime, settings)
        return EvaluatedFile(accuracy_of(own, runtime, settings, asked), own.imgsz, runtime, parity)


def _compared(own: Subject, runtime: str, settings: Settings) -> Parity | None:
    """Compare a file that was exported here with its checkpoint.

    Raises:
        BenchmarkError: It computes something else.
    """
    if own.reference is None or own.precision not in TOLERANCE:
        return None
    try:
        opened = open_runtime(runtime, own.file, own.imgsz, settings, no_checkpoint)
    except DeviceUnavailableError as error:
        raise BenchmarkError(f"not measured: {error}.") from error
    parity = stored_parity(opened, own.reference, own.precision, own.batch)
    if parity is not None:
        parity.check(f"the file of '{own.name}' for {runtime}")
    return parity
