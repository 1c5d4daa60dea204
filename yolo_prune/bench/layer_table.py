"""Times of layers as a file, and layers as a folder that a board measures them from: neither needs torch there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_prune.bench.layers import LayerTimes, Network, time_files, write_layers
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.files import write_text
from yolo_prune.imgsz import ImageSize, plain_size, read_size, size_text
from yolo_prune.layers import NOTHING, LayerShape, shapes_to_time
from yolo_prune.runtimes.layers import ending_of
from yolo_prune.runtimes.runtime import Settings

MANIFEST = "layers.json"
_VERSION = 1


def write_table(file: Path, times: LayerTimes, imgsz: ImageSize) -> Path:
    """Write times for ``prune latency=``.

    Args:
        file: Of JSON.
        times: What was measured.
        imgsz: Size of the network's input in pixels.
    """
    content = {
        "version": _VERSION,
        "imgsz": plain_size(imgsz),
        "network_ms": times.network_ms,
        "fixed_ms": times.fixed_ms,
        "facts": dict(times.facts),
        "layers": [{"shape": shape.to_dict(), "ms": ms} for shape, ms in times.ms.items()],
    }
    return write_text(file, json.dumps(content, indent=1) + "\n")


def read_table(file: Path, layers: Sequence[LayerShape], imgsz: ImageSize) -> LayerTimes:
    """Read times that another machine measured.

    Args:
        file: What :func:`write_table` wrote.
        layers: Of the model that is cut.
        imgsz: Size of its input in pixels.

    Raises:
        ConfigError: It is no such file, or one of another model or size.
    """
    content = _read(file, "table of latency", "yolo-prune latency model=... out=...")
    size = read_size(content["imgsz"])
    if size != imgsz:
        raise ConfigError(
            f"'{file}' was measured at {size_text(size)} px and the model runs at {size_text(imgsz)} px: give "
            f"imgsz={size_text(size)}, or measure it again."
        )
    ms = {LayerShape.from_dict(one["shape"]): float(one["ms"]) for one in content["layers"]}
    different = dict.fromkeys(layers)
    missing = [layer for layer in different if any(rung not in ms for rung in shapes_to_time([layer]))]
    if missing:
        raise ConfigError(
            f"'{file}' was measured of another model: {len(missing)} of the {len(different)} layers of this one are "
            f"not in it, such as {missing[0].text}. Measure it again with this model."
        )
    return LayerTimes(ms, content["network_ms"], content["fixed_ms"], content["facts"])


def write_folder(
    folder: Path,
    layers: Sequence[LayerShape],
    network: Path,
    imgsz: ImageSize,
    runtime: str,
    probes: Sequence[LayerShape] = (),
) -> int:
    """Write layers as files of a runtime, the network beside them, and what they are.

    Args:
        folder: Is made.
        layers: Of the network.
        network: A file that the runtime runs; its ``.bin`` and ``metadata.yaml`` beside it go along.
        imgsz: Size of its input in pixels.
        runtime: A key of ``RUNTIMES``.
        probes: What else is timed, as it is.

    Returns:
        How many layers there are.

    Raises:
        ConfigError: The runtime has no files of layers.
    """
    ending = ending_of(runtime)
    if not ending:
        raise ConfigError(
            f"the '{runtime}' runtime runs layers without files: measure it where it runs, with out=."
        )
    files = write_layers(dict.fromkeys([NOTHING, *shapes_to_time(layers), *probes]), folder, ending)
    for file in network.parent.glob(f"{network.stem}.*"):
        shutil.copyfile(file, folder / f"network{file.suffix}")
    if (stated := network.with_name("metadata.yaml")).is_file():
        shutil.copyfile(stated, folder / stated.name)
    content = {
        "version": _VERSION,
        "imgsz": plain_size(imgsz),
        "runtime": runtime,
        "network": f"network{network.suffix}",
        "layers": [
            {"file": file.name, "shape": shape.to_dict()} for shape, file in files.items() if file is not None
        ],
    }
    write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    return len(files)


def time_folder(folder: Path, runtime: str, settings: Settings) -> tuple[LayerTimes, ImageSize]:
    """Time what :func:`write_folder` wrote, without torch.

    Raises:
        ConfigError: It was written for a runtime of other files.
        CheckpointError: A file is missing.
    """
    content = _read(folder / MANIFEST, "list of layers", "yolo-prune latency model=... layers=...")
    if ending_of(content["runtime"]) != ending_of(runtime):
        raise ConfigError(
            f"'{folder}' was written for {content['runtime']}, whose files {runtime} does not run. Give "
            f"runtime={content['runtime']}, or write it again with runtime={runtime}."
        )
    files: dict[LayerShape, Path | None] = {
        LayerShape.from_dict(one["shape"]): folder / one["file"] for one in content["layers"]
    }
    network = folder / content["network"]
    for file in (network, *files.values()):
        if file is not None and not file.is_file():
            raise CheckpointError(f"'{folder}' is not whole: '{file.name}' is missing. Copy it again.")
    imgsz = read_size(content["imgsz"])
    return time_files(files, Network(network, imgsz), runtime=runtime, settings=settings), imgsz


def _read(file: Path, what: str, command: str) -> dict[str, Any]:
    """Read JSON of ours.

    Raises:
        ConfigError: It is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] == _VERSION and isinstance(content["layers"], list):
            return dict(content)
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"'{file}' is no {what} of this release: write it with '{command}'.")
