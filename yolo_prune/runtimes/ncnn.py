"""ncnn: a network of its own format on the CPU; an .onnx file is converted by pnnx first."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_prune.errors import CheckpointError, ConfigError, MissingRuntimeError
from yolo_prune.imgsz import ImageSize, height_width
from yolo_prune.runtimes import onnxruntime as reference
from yolo_prune.runtimes.files import (
    FileRuntime,
    check_input,
    metadata_beside,
    refuse_options_of_torch,
    refuse_other_devices,
    stated_channels,
    stated_size,
    the_file_in,
)
from yolo_prune.runtimes.runtime import (
    DeviceUnavailableError,
    FileFacts,
    Loader,
    Settings,
    facts_of,
    import_runtime,
)

_FLOAT16, _INT8 = (0x01306B47).to_bytes(4, "little"), (0x000D4B38).to_bytes(4, "little")
_NARROW = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage")


def open_runtime(path: Path, imgsz: ImageSize, settings: Settings, load: Loader | None = None) -> FileRuntime:
    """Load a network in float32, whatever the CPU could do faster; weights in 16 bits are widened, unless half is set.

    What pnnx makes of an .onnx file is compared with what ONNX Runtime computes before it is measured.

    Args:
        path: The .param of a network, whose .bin lies beside it, a folder that holds both, or an .onnx file.
        imgsz: Size of the network input, in pixels.
        settings: Device, threads, batch.
        load: Not needed: the file is all there is to load.

    Returns:
        The runtime.

    Raises:
        MissingRuntimeError: ncnn is not installed, or pnnx and an .onnx file is given.
        DeviceUnavailableError: Another device than the CPU is asked for, or half precision on one that has none.
        ConfigError: The file takes another input, or several images are asked for.
        CheckpointError: ncnn cannot load the file, or the converted one computes something else.
    """
    ncnn = import_runtime("ncnn")
    refuse_options_of_torch("ncnn", settings, half=True)
    refuse_other_devices("ncnn", settings)
    if settings.batch != 1:
        raise ConfigError(f"the 'ncnn' runtime takes one image at a time, got batch={settings.batch}.")
    facts = read_file(path)
    check_input(facts.shape, path, imgsz, 1)
    channels = facts.channels or 3
    image = np.random.default_rng(0).random((1, channels, *height_width(imgsz)), dtype=np.float32)
    if path.suffix == ".onnx":
        with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
            network = converted(path, image.shape, Path(folder))
            check_conversion(path, network, image.shape)
            run = _loaded(ncnn, network, settings)
    else:
        run = _loaded(ncnn, the_file_in(path, ".param"), settings)
    return FileRuntime(
        run,
        imgsz=imgsz,
        channels=channels,
        file=facts,
        classifies=run(image).ndim == 2,
        facts=facts_of("ncnn", ncnn.__version__, settings),
    )


def open_network(path: Path, settings: Settings) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns the one input of a .param, [1, C, H, W], into its first output."""
    refuse_other_devices("ncnn", settings)
    run: Callable[[NDArray[Any]], NDArray[Any]] = _loaded(import_runtime("ncnn"), path, settings)
    return run


def read_file(path: Path) -> FileFacts:
    """Return what a file takes; a network of ncnn does not say its size, a ``metadata.yaml`` beside it may.

    Raises:
        MissingRuntimeError: ncnn is not installed, or onnxruntime and an .onnx file is given.
        CheckpointError: The file is missing or damaged.
        ConfigError: It has several inputs, or one that is no batch of images.
    """
    import_runtime("ncnn")
    if path.suffix == ".onnx":
        return reference.read_file(path)
    file = the_file_in(path, ".param")
    weights = file.with_suffix(".bin")
    if not file.is_file() or not weights.is_file():
        raise CheckpointError(f"'{path}' is no network of ncnn: expected '{file.name}' and '{weights.name}'.")
    with weights.open("rb") as stream:
        begin = stream.read(4)
    metadata = metadata_beside(file)
    height, width = stated_size(metadata)
    precision = {_FLOAT16: "float16", _INT8: "int8"}.get(begin, "float32")
    return FileFacts(1, stated_channels(metadata), height, width, precision, metadata)


def _loaded(ncnn: Any, file: Path, settings: Settings) -> Any:
    """Return what turns [1, C, H, W] into the first output of a network, [1, ...].

    Raises:
        CheckpointError: ncnn cannot load it.
        ConfigError: It has several inputs.
        DeviceUnavailableError: Half precision is asked for and the CPU has no arithmetic in 16 bits.
    """
    if settings.half and not ncnn.cpu_support_arm_asimdhp():
        raise DeviceUnavailableError(
            "ncnn computes in 16 bits on ARM CPUs of v8.2 and later, and this is none"
        )
    network = ncnn.Net()
    network.opt.num_threads = settings.threads
    network.opt.openmp_blocktime = 0  # do not spin while waiting
    network.opt.use_vulkan_compute = False
    for option in _NARROW:
        if hasattr(network.opt, f"use_{option}"):
            setattr(network.opt, f"use_{option}", settings.half and option.startswith("fp16"))
    if network.load_param(str(file)) != 0 or network.load_model(str(file.with_suffix(".bin"))) != 0:
        raise CheckpointError(f"'{file}' is not a network that ncnn can load.")
    inputs, output = network.input_names(), network.output_names()[0]
    if len(inputs) != 1:
        raise ConfigError(f"'{file}' takes {len(inputs)} inputs: expected one image.")

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        with network.create_extractor() as extractor:
            extractor.input(inputs[0], ncnn.Mat(batch[0]))
            status, found = extractor.extract(output)
            if status != 0:
                raise CheckpointError(f"ncnn cannot run '{file}' on images of shape {batch.shape[1:]}.")
            return np.array(found)[None]

    return run


def converted(path: Path, shape: tuple[int, ...], folder: Path, *, half: bool = False) -> Path:
    """Let pnnx write an .onnx file as a network for one shape of images into a folder, and return its .param.

    Raises:
        MissingRuntimeError: pnnx is not installed.
        CheckpointError: It wrote none.
    """
    found = importlib.util.find_spec("pnnx")  # looked up and not imported: it would import torch
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    program = next(
        (file for place in places for file in (place / "pnnx", place / "pnnx.exe") if file.is_file()), None
    )
    if program is None:
        raise MissingRuntimeError(
            "running an .onnx file on ncnn needs 'pnnx', which is not installed: pip install pnnx, or convert it "
            "elsewhere and give the .param."
        )
    shutil.copyfile(path, folder / "network.onnx")
    command = [str(program), "network.onnx", f"inputshape=[{','.join(map(str, shape))}]", f"fp16={int(half)}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    out = folder / "network.ncnn.param"
    if done.returncode != 0 or not out.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise CheckpointError(
            f"pnnx cannot convert '{path}' to ncnn: {last[0] if last else 'it said nothing'}."
        )
    return out


def check_conversion(path: Path, network: Path, shape: tuple[int, ...], *, half: bool = False) -> None:
    """Compare a converted network with its file, on one image.

    Args:
        path: The .onnx file.
        network: The .param.
        shape: Of the image, (1, C, H, W).
        half: Its weights are in 16 bits, so that outputs may differ more.

    Raises:
        CheckpointError: It computes something else.
    """
    settings = Settings("cpu", 1, 1)
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    ours = open_network(network, settings)(image)
    theirs = reference.open_network(path, settings)(image)
    looser = 10 if half else 1
    if ours.shape != theirs.shape:
        raise CheckpointError(
            f"pnnx made another network of '{path}': its output is {ours.shape}, expected {theirs.shape}."
        )
    if not np.allclose(ours, theirs, rtol=looser * 1e-2, atol=looser * 1e-3):
        worst = float(np.abs(ours - theirs).max())
        raise CheckpointError(f"pnnx made another network of '{path}': outputs differ by up to {worst:.3g}.")
