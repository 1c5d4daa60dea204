"""PyTorch eager: a checkpoint with BatchNorm folded into the convolutions, as its host runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.layers import LayerShape
from yolo_prune.runtimes.detections import Detections, detect
from yolo_prune.runtimes.images import CLASSIFIER, DETECTOR, Image, Surroundings, to_input
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    Loader,
    Settings,
    device_index,
    facts_of,
    missing_runtime,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchRuntime:
    """A module in eval and inference mode; on CUDA its time is taken between two events."""

    def __init__(
        self,
        module: nn.Module,
        imgsz: ImageSize,
        channels: int,
        classes: int | None,
        half: bool,
        facts: dict[str, Any],
        around: Surroundings = DETECTOR,
    ) -> None:
        import torch

        self.facts = facts
        self.phases = around.phases
        self._resize = around.resize
        self._torch = torch
        self._module = module
        self.channels = channels
        self._imgsz = imgsz
        self._classes = classes
        self.file = None
        self._device = torch.device(facts["device"])
        self._dtype = torch.float16 if half else torch.float32

    def preprocess(self, images: Sequence[Image]) -> torch.Tensor:
        """Turn images into [B, channels, height, width] on the device, and wait until they are there."""
        planes = to_input(images, self._imgsz, self._resize)
        # First there, then to 16 bits: in one call PyTorch converts on the CPU, many times as slowly.
        batch = self._torch.from_numpy(planes).to(self._device).to(self._dtype)
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)
        return batch

    def infer(self, batch: torch.Tensor) -> tuple[torch.Tensor, float | None]:
        """Run the network; return its decoded output and, on CUDA, the milliseconds between the events."""
        with self._torch.inference_mode():
            if self._device.type != "cuda":
                return first_tensor(self._module(batch)), None
            start, end = self._event(), self._event()
            stream = self._torch.cuda.current_stream(self._device)
            start.record(stream)
            output = first_tensor(self._module(batch))
            end.record(stream)
            end.synchronize()
            return output, float(start.elapsed_time(end))

    def _event(self) -> Any:
        """Return a CUDA event that keeps the time."""
        event: Any = self._torch.cuda.Event
        return event(enable_timing=True)

    def postprocess(self, output: torch.Tensor) -> list[Detections]:
        """Copy to the CPU and suppress overlapping boxes."""
        return detect(self.as_array(output), self._classes)

    def as_array(self, output: torch.Tensor) -> NDArray[np.float32]:
        """Copy to the CPU."""
        return np.asarray(output.float().cpu())


def first_tensor(output: Any) -> torch.Tensor:
    """Return the decoded predictions of a detector that also hands out its raw maps; of named outputs the first."""
    while isinstance(output, (list, tuple, Mapping)) and output:
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    if not hasattr(output, "shape"):
        raise CheckpointError(f"the network must return a tensor first, got {type(output).__name__}.")
    tensor: torch.Tensor = output
    return tensor


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader) -> TorchRuntime:
    """Load a checkpoint, fold its BatchNorm and pin the threads.

    Args:
        path: The checkpoint; its file is not touched.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch, half, compile, trust.
        load: Loads the checkpoint.

    Returns:
        The runtime.

    Raises:
        MissingRuntimeError: torch is not installed.
        DeviceUnavailableError: The GPU is not there.
        ConfigError: The file is an ONNX model, or half precision is asked for on a CPU.
        CheckpointError: The checkpoint cannot be loaded.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_runtime("torch") from error
    if path.suffix == ".onnx":
        raise ConfigError(f"the 'torch' runtime cannot run '{path}'. Give the checkpoint or use onnxruntime.")
    if settings.half and settings.device == "cpu":
        raise ConfigError("half=true needs a CUDA device, got device=cpu.")
    check_device(torch, settings.device)
    opened = load(path)
    module = deployed(opened).to(settings.device)
    module = module.half() if settings.half else module
    if settings.compile:
        module.compile()  # in place: it stays the module that it was
    torch.set_num_threads(settings.threads)
    gpu = None if settings.device == "cpu" else torch.cuda.get_device_name(settings.device)
    facts = facts_of("torch", torch.__version__, settings, gpu)
    around = CLASSIFIER if opened.task == "classify" else DETECTOR
    classes = len(opened.names) if opened.deployed is None else None
    return TorchRuntime(module, imgsz, opened.channels, classes, settings.half, facts, around)


def open_layer(shape: LayerShape, images: NDArray[np.float32], settings: Settings) -> Callable[[], Any]:
    """Return a call that runs one convolution, and waits for it.

    Raises:
        MissingRuntimeError: torch is not installed.
        DeviceUnavailableError: The GPU is not there.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_runtime("torch") from error
    check_device(torch, settings.device)
    torch.set_num_threads(settings.threads)
    kind: Any = torch.nn.ConvTranspose2d if shape.transposed else torch.nn.Conv2d
    convolution = kind(
        shape.channels,
        shape.outputs,
        shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        groups=shape.groups,
    ).to(settings.device)
    batch = torch.from_numpy(images).to(settings.device)

    def run() -> None:
        with torch.inference_mode():
            convolution(batch)
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)

    return run


def check_device(torch: Any, device: str) -> None:
    """Raise DeviceUnavailableError when torch does not see the device."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise DeviceUnavailableError("torch finds no CUDA device")
    if device_index(device) >= torch.cuda.device_count():
        raise DeviceUnavailableError(
            f"torch finds {torch.cuda.device_count()} CUDA devices, {device} is not among them"
        )


def deployed(opened: Any) -> nn.Module:
    """Return a copy of what a host has loaded, as it is deployed."""
    made: nn.Module = opened.deployed(opened.module) if opened.deployed else fuse(opened.module)
    return made


def fuse(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode with BatchNorm folded, where the module knows how to do that."""
    fused = copy.deepcopy(module).eval()
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    host_fuse = getattr(fused, "fuse", None)
    return host_fuse(verbose=False) if callable(host_fuse) else fused
