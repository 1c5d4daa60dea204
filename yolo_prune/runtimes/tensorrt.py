"""TensorRT: an .engine that was built for this very GPU, timed between two CUDA events. It is run only.

Written for TensorRT 10 and later. Memory and events are PyTorch's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.imgsz import ImageSize
from yolo_prune.runtimes.files import (
    FileRuntime,
    check_input,
    refuse_options_of_torch,
    stated_channels,
    stated_size,
)
from yolo_prune.runtimes.images import Image
from yolo_prune.runtimes.pytorch import check_device
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    FileFacts,
    Loader,
    Settings,
    facts_of,
    import_runtime,
    missing_runtime,
)

_LENGTH = 4  # bytes before what an exporter wrote in front of an engine


class EngineRuntime(FileRuntime):
    """An engine whose input and output stay on the GPU while it is timed."""

    def __init__(
        self, torch: Any, context: Any, names: Sequence[str], makes: Any, device: str, **options: Any
    ) -> None:
        """Keep what runs the engine.

        Args:
            torch: The package.
            context: Of the engine's execution.
            names: Of its input and of its output.
            makes: Type of the output, as NumPy's.
            device: ``cuda:N``.
            **options: Of :class:`FileRuntime`, without ``run``.
        """
        super().__init__(lambda batch: batch, **options)
        self._torch, self._context, self._names = torch, context, names
        self._makes = torch.from_numpy(np.empty(0, makes)).dtype
        self._device = torch.device(device)

    def preprocess(self, images: Sequence[Image]) -> Any:
        """Turn images into the engine's input on its GPU, and wait until it is there."""
        batch = self._torch.from_numpy(super().preprocess(images)).to(self._device)
        self._torch.cuda.synchronize(self._device)
        return batch

    def infer(self, batch: Any) -> tuple[Any, float | None]:
        """Run the engine; return its output, on the GPU, and the milliseconds between the events."""
        cuda, (reads, makes) = self._torch.cuda, self._names
        if isinstance(batch, np.ndarray):
            batch = self._torch.from_numpy(batch.astype(self._dtype, copy=False)).to(self._device)
        shape = tuple(self._context.get_tensor_shape(makes))
        output = self._torch.empty(shape, dtype=self._makes, device=self._device)
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        stream = cuda.current_stream(self._device)
        for name, tensor in ((reads, batch), (makes, output)):
            self._context.set_tensor_address(name, tensor.data_ptr())
        start.record(stream)
        done = self._context.execute_async_v3(stream.cuda_stream)
        end.record(stream)
        end.synchronize()
        if not done:
            raise CheckpointError("tensorrt could not run the engine: its log says why.")
        return output, float(start.elapsed_time(end))

    def as_array(self, output: Any) -> NDArray[np.float32]:
        """Copy to the CPU."""
        return np.asarray(output.float().cpu())


def open_runtime(
    path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None
) -> EngineRuntime:
    """Load an engine.

    Args:
        path: The .engine file, with or without what an exporter wrote in front of it.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime; network time is between two events on the GPU, without the copies.

    Raises:
        MissingRuntimeError: tensorrt or torch is not installed.
        DeviceUnavailableError: The GPU is not there, or the CPU is asked for.
        ConfigError: The engine was built for another input or has several, or half precision or compilation is asked
            for.
        CheckpointError: TensorRT cannot load the engine; one built for another GPU or version is none.
    """
    refuse_options_of_torch("tensorrt", settings)
    if settings.device == "cpu":
        raise DeviceUnavailableError("tensorrt runs on a GPU: device=cuda:0")
    trt = import_runtime("tensorrt")
    try:
        import torch
    except ImportError as error:
        raise missing_runtime("torch") from error
    check_device(torch, settings.device)
    _, content = _parts(path)
    torch.cuda.set_device(settings.device)
    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(content)
    if engine is None:
        raise CheckpointError(
            f"'{path}' is not an engine that tensorrt {trt.__version__} can load on this GPU: build it here."
        )
    reads, makes = _tensors(trt, engine, path)
    shape = [size if size > 0 else None for size in engine.get_tensor_shape(reads)]
    check_input(shape, path, imgsz, settings.batch)
    if None in shape:
        raise ConfigError(f"'{path}' has an input of open size {shape}: build it for one size.")
    output = engine.get_tensor_shape(makes)
    return EngineRuntime(
        torch,
        engine.create_execution_context(),
        (reads, makes),
        trt.nptype(engine.get_tensor_dtype(makes)),
        settings.device,
        imgsz=imgsz,
        channels=int(shape[1] or 3),
        file=read_file(path),
        classifies=len(output) == 2,
        facts=facts_of("tensorrt", trt.__version__, settings, torch.cuda.get_device_name(settings.device)),
        dtype=trt.nptype(engine.get_tensor_dtype(reads)),
    )


def read_file(path: Path) -> FileFacts:
    """Return what an exporter wrote in front of an engine; the engine itself says nothing without its GPU.

    Raises:
        CheckpointError: The file is missing.
    """
    metadata, _ = _parts(path)
    height, width = stated_size(metadata)
    batch = metadata.get("batch", "")
    half = "'half': True" in metadata.get("args", "")
    precision = "int8" if "'int8': True" in metadata.get("args", "") else "float16" if half else "float32"
    return FileFacts(
        *(int(batch) if batch.isdigit() else None, stated_channels(metadata), height, width),
        *(precision, metadata),
    )


def _tensors(trt: Any, engine: Any, path: Path) -> tuple[str, str]:
    """Return the names of the one input and of the first output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConfigError(
            f"'{path}' has {len(inputs)} input(s) and {len(outputs)} output(s): expected one batch of images and one "
            "output."
        )
    return inputs[0], outputs[0]


def _parts(path: Path) -> tuple[dict[str, str], bytes]:
    """Return what an exporter wrote in front of an engine, values as text, and the engine."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    length = int.from_bytes(content[:_LENGTH], "little")
    if content[_LENGTH : _LENGTH + 1] != b"{" or length > len(content):
        return {}, content
    try:
        stated = json.loads(content[_LENGTH : _LENGTH + length])
    except ValueError:
        return {}, content
    return {key: str(value) for key, value in stated.items()}, content[_LENGTH + length :]
