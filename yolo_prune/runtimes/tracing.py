"""Networks as ONNX and TorchScript files, by PyTorch's own tracer."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.errors import BenchmarkError, one_line
from yolo_prune.graph.passes import FAILURES
from yolo_prune.runtimes.torchscript import FACTS_FILE

_OPSET = 17


def trace_to_onnx(
    network: nn.Module,
    images: Tensor,
    file: Path,
    *,
    what: str,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write what a network does with a batch of images; its input is ``images``, its one result ``output``.

    Args:
        network: Returns one tensor.
        images: Shape (B, C, H, W), the fixed size of the input.
        file: What is written.
        what: The network, to begin the sentence of an error with.
        dynamic_axes: Sizes of ``output`` that depend on what is in the images, by axis.

    Raises:
        BenchmarkError: It cannot be exported.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), _without_graph_dump():
            # 2026-11: torch deprecates the exporter of traces, the one that knows detectors with suppression inside,
            # and warns of every shape that is a constant in a trace.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                *(network, (images,), str(file)),
                input_names=["images"],
                output_names=["output"],
                opset_version=_OPSET,
                dynamo=False,
                dynamic_axes=dynamic_axes,
            )
    except FAILURES as error:
        raise BenchmarkError(f"{what} cannot be exported to ONNX: {one_line(error)}.") from error


@contextmanager
def _without_graph_dump() -> Iterator[None]:
    """Keep the process's standard output clean: before it raises, the exporter's C++ writes its whole graph there."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # a process without standard output
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nothing)
        os.close(kept)


def trace_to_torchscript(
    network: nn.Module, images: Tensor, file: Path, *, what: str, facts: Mapping[str, str]
) -> None:
    """Write what a network does with a batch of images as TorchScript.

    Args:
        network: Returns one tensor.
        images: Shape (B, C, H, W), the fixed size of the input.
        file: What is written.
        what: The network, to begin the sentence of an error with.
        facts: What the file says of itself.

    Raises:
        BenchmarkError: It cannot be traced.
    """
    stated = {"batch": images.shape[0], "channels": images.shape[1], **facts}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # 2026-11: torch deprecates TorchScript, and warns of every shape that is a constant in a trace.
            warnings.simplefilter("ignore")
            trace: Any = torch.jit.trace
            trace(network, images, check_trace=False).save(
                str(file), _extra_files={FACTS_FILE: json.dumps(stated)}
            )
    except FAILURES as error:
        raise BenchmarkError(f"{what} cannot be exported to TorchScript: {one_line(error)}.") from error
