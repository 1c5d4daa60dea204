"""TorchScript: a traced network that PyTorch runs without the classes that it was built from, on the CPU or a GPU."""

from __future__ import annotations

import importlib
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, one_line
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.layers import LayerShape
from yolo_prune.runtimes import pytorch
from yolo_prune.runtimes.files import (
    FileRuntime,
    check_input,
    refuse_options_of_torch,
    stated_channels,
    stated_size,
)
from yolo_prune.runtimes.pytorch import check_device, first_tensor
from yolo_prune.runtimes.runtime import FileFacts, Loader, Settings, facts_of, import_runtime

FACTS_FILE = "config.txt"
"""What an exporter writes into the archive, as JSON."""
_STORAGES = {b"QInt8Storage": "int8", b"FloatStorage": "float32", b"HalfStorage": "float16"}


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None) -> FileRuntime:
    """Load an archive.

    Args:
        path: The .torchscript file.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime; on CUDA, network time includes the copies both ways.

    Raises:
        MissingRuntimeError: torch is not installed.
        DeviceUnavailableError: The GPU is not there.
        ConfigError: The file was exported for another input, or half precision or compilation is asked for.
        CheckpointError: torch cannot load or run the file.
    """
    torch = import_runtime("torchscript")
    refuse_options_of_torch("torchscript", settings)
    facts = read_file(path)
    check_input(facts.shape, path, imgsz, settings.batch)
    channels = facts.channels or 3
    half = facts.precision == "float16"
    dtype = np.float16 if half else np.float32
    run = open_network(path, settings)
    first = run(np.zeros((settings.batch, channels, *height_width(imgsz)), dtype))
    gpu = None if settings.device == "cpu" else torch.cuda.get_device_name(settings.device)
    return FileRuntime(
        run,
        imgsz=imgsz,
        channels=channels,
        file=facts,
        classifies=first.ndim == 2,
        facts=facts_of("torchscript", torch.__version__, settings, gpu),
        dtype=dtype,
    )


def open_network(path: Path, settings: Settings) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns the one input of a file into its first output, in the memory of the CPU."""
    torch = import_runtime("torchscript")
    check_device(torch, settings.device)
    torch.set_num_threads(settings.threads)
    module = _loaded(torch, path).eval().to(settings.device)

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        try:
            with torch.inference_mode():
                output = first_tensor(module(torch.from_numpy(batch).to(settings.device)))
        except RuntimeError as error:
            raise CheckpointError(
                f"torchscript cannot run '{path}' on images of shape {batch.shape}: {_last_line(error)}."
            ) from error
        found: NDArray[Any] = output.cpu().numpy()
        return found

    return run


def open_layer(shape: LayerShape, images: NDArray[np.float32], settings: Settings) -> Callable[[], Any]:
    """Return a call that runs one convolution, and waits for it: PyTorch's own, which an archive calls, too."""
    return pytorch.open_layer(shape, images, settings)


def read_file(path: Path) -> FileFacts:
    """Return what a file takes, without torch; a trace does not say its size, what its exporter wrote into it may.

    Raises:
        CheckpointError: The file is missing or no TorchScript.
    """
    metadata = {key: str(value) for key, value in read_facts(path).items()}
    height, width = stated_size(metadata)
    batch = metadata.get("batch", "")
    return FileFacts(
        *(int(batch) if batch.isdigit() else None, stated_channels(metadata), height, width),
        *(_precision(path), metadata),
    )


def read_facts(path: Path) -> dict[str, Any]:
    """Return what the exporter wrote into an archive; empty where it wrote nothing.

    Raises:
        CheckpointError: It is no TorchScript, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith(f"extra/{FACTS_FILE}")), None)
            return dict(json.loads(archive.read(name))) if name else {}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is not a TorchScript file, or a damaged one: {error}.") from error


def _precision(path: Path) -> str:
    """Return what the weights are kept in: the archive names the types of its storages."""
    with zipfile.ZipFile(path) as archive:
        pickles = [archive.read(one) for one in archive.namelist() if one.endswith(".pkl")]
    return next((kind for name, kind in _STORAGES.items() if any(name in one for one in pickles)), "float32")


def _loaded(torch: Any, path: Path) -> Any:
    """Load an archive; a library's operators are known once it is imported, and a host's package is.

    Raises:
        CheckpointError: torch cannot.
    """
    with warnings.catch_warnings():
        # 2026-11: torch deprecates TorchScript, and says so with every file.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            try:
                return torch.jit.load(str(path), map_location="cpu")
            except RuntimeError as error:
                if not _import_operators(str(error)):
                    raise
                return torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise CheckpointError(
                f"'{path}' is not a model that torchscript can load: {one_line(error)}."
            ) from error


def _import_operators(message: str) -> bool:
    """Import the library whose operator is not known, where it is a package of a host; tell whether it was imported."""
    from yolo_prune.adapters.hosts import hosts

    found = re.search(r"Unknown builtin op: (\w+)::", message)
    library = found.group(1) if found else ""
    if not any(library in host.packages for host in hosts()):
        return False
    try:
        importlib.import_module(library)
    except ImportError:
        return False  # torch's own sentence names the operator
    return True


def _last_line(error: Exception) -> str:
    """Return what an interpreter's error says itself, after the code that it shows."""
    return str(error).strip().splitlines()[-1].rstrip(".")
