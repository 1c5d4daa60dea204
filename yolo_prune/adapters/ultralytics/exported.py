"""Files that the host exported, as models to evaluate: what they are of, and which images they take."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.accuracy.deployed import DeployedModel
from yolo_prune.errors import CheckpointError, ConfigError, DataError, MissingRuntimeError
from yolo_prune.imgsz import ImageSize, plain_size, read_size, size_text
from yolo_prune.runtimes.detections import ANCHORS, QUERIES, RANKED
from yolo_prune.runtimes.torchscript import read_facts

if TYPE_CHECKING:
    from yolo_prune.adapters.stored import LoadedModel

_OPENVINO = "_openvino_model"
_NEEDED = {  # modules that a format runs on, and the extra that installs them
    "onnx": (("onnx", "onnxruntime"), "onnx"),
    "torchscript": ((), ""),
    "openvino": (("openvino",), "openvino"),
}
_LITERALS = ("names", "imgsz", "batch", "channels", "args", "end2end")


@dataclass(frozen=True)
class ExportedModel:
    """An exported file: it takes a module's place in an evaluation.

    Attributes:
        path: The file, or the folder of an OpenVINO model.
        format: ``onnx``, ``torchscript`` or ``openvino``.
        task: The host's name for what it does.
        names: Class index -> name.
        size: Height and width of its input in pixels; of a file of open size those that it was exported at.
        batch: Images that it takes at once.
        channels: Of its input.
        dynamic: Whether it takes images of any size and number.
        stretched: Whether images are stretched to its input instead of padded.
        suppresses: Whether it drops overlapping and unlikely boxes by itself.
    """

    path: Path
    format: str
    task: str
    names: dict[int, str] = field(repr=False)
    size: tuple[int, int]
    batch: int
    channels: int
    dynamic: bool
    stretched: bool
    suppresses: bool

    @property
    def imgsz(self) -> ImageSize:
        """The size of the input."""
        return read_size(self.size)

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes its accuracy another than that of its checkpoint, in sentences."""
        found = []
        if not self.dynamic and not self.stretched and self.task != "classify":
            shape = f"{self.size[0]} x {self.size[1]} px"
            found.append(
                f"Every image was padded to {shape}, the fixed input of the file; a checkpoint is evaluated on "
                "rectangles unless rect=false, and the padding alone can change AP."
            )
        if self.suppresses:
            found.append(
                "The file suppresses boxes by itself, at its own thresholds: what it dropped is not in this AP."
            )
        return tuple(found)

    def check_input(self, imgsz: ImageSize, channels: int = 3) -> None:
        """Refuse images that the file cannot take.

        Args:
            imgsz: Size that is asked for, in pixels.
            channels: Of the images.

        Raises:
            ConfigError: The file's size is fixed and another one.
            DataError: The images have other channels.
        """
        if not self.dynamic and imgsz != self.imgsz:
            raise ConfigError(
                f"'{self.path}' takes images of {self.size[0]} x {self.size[1]} px and "
                f"imgsz={size_text(imgsz)} was asked for. "
                "Leave imgsz= away, or export it again."
            )
        if channels != self.channels:
            raise DataError(
                f"'{self.path}' takes images of {self.channels} channels and the data has {channels}."
            )


def is_export(path: str | Path) -> bool:
    """Tell whether a path names a file that :func:`open_export` takes."""
    return format_of(path) is not None


def format_of(path: str | Path) -> str | None:
    """Return the format of an export by its name; None for everything else."""
    name = Path(path).name.lower()
    if name.endswith(_OPENVINO):
        return "openvino"
    return {".onnx": "onnx", ".torchscript": "torchscript"}.get(Path(name).suffix)


def open_export(path: str | Path) -> ExportedModel:
    """Read what an exported file says of itself, without running it.

    Args:
        path: An .onnx or .torchscript file, or a folder that ends in ``_openvino_model``.

    Raises:
        CheckpointError: The file is missing, damaged, or not one that the host exported.
        MissingRuntimeError: What runs it is not installed; the text names the extra.
    """
    path, kind = Path(path), format_of(path) or ""
    if not path.exists():
        raise CheckpointError(f"the export '{path}' does not exist.")
    modules, extra = _NEEDED[kind]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingRuntimeError(
                f"evaluating '{path.name}' needs '{module}', which is not installed: "
                f'pip install "yolo-prune[{extra}]".'
            )
    readers = {"onnx": _read_onnx, "torchscript": read_facts, "openvino": _read_openvino}
    found = _plain(readers[kind](path))
    if not {"task", "names", "imgsz"} <= set(found):
        raise CheckpointError(
            f"'{path}' does not say its task, classes and image size: expected a file that 'yolo export' or "
            "'yolo-prune export' wrote."
        )
    size, options = found["imgsz"], found.get("args") or {}
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    names = found["names"]
    return ExportedModel(
        path=path,
        format=kind,
        task=str(found["task"]),
        names=dict(names) if isinstance(names, Mapping) else dict(enumerate(names)),
        size=(height, width),
        batch=int(found.get("batch") or 1),
        channels=int(found.get("channels") or 3),
        dynamic=bool(found.get("dynamic", options.get("dynamic", False))),
        stretched=_holds_queries(found),
        suppresses=bool(options.get("nms", False)),
    )


def read_export(metadata: Mapping[str, Any]) -> DeployedModel | None:
    """Return what metadata of the host's exporter says; None where it is not its own."""
    found = _plain(metadata)
    if not {"task", "names", "imgsz"} <= set(found):
        return None
    names, options = found["names"], found.get("args") or {}
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    names = {int(index): name for index, name in pairs}  # JSON keeps the indices as text
    queries = _holds_queries(found)
    suppresses = bool(options.get("nms", False))
    return DeployedModel(
        task=str(found["task"]),
        names=names,
        labels=tuple(names),
        layout=QUERIES if queries else RANKED if suppresses or found.get("end2end") else ANCHORS,
        imgsz=read_size(found["imgsz"]),
        stretched=queries,
        suppresses=suppresses,
    )


def describe(loaded: LoadedModel, imgsz: ImageSize) -> DeployedModel:
    """Return what a checkpoint puts out as it is deployed: what a file says that is exported from it."""
    layers: Any = getattr(loaded.module, "model", None)
    facts = {
        "task": loaded.task,
        "names": loaded.names,
        "imgsz": plain_size(imgsz),
        "end2end": bool(getattr(loaded.module, "end2end", False)),
        "head": type(layers[-1]).__name__ if layers is not None else "",
    }
    found = read_export(facts)
    if found is None:
        raise CheckpointError(f"'{loaded.path}' does not say its task, classes and image size.")
    return found


def _holds_queries(found: Mapping[str, Any]) -> bool:
    """Tell a transformer's file, which takes stretched images and answers with queries."""
    return found.get("head") == "RTDETRDecoder" or "rtdetr" in str(found.get("description", "")).lower()


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what some formats keep as text into values; nothing is run."""
    found = dict(metadata)
    for key in _LITERALS:
        if isinstance(found.get(key), str):
            try:
                found[key] = ast.literal_eval(found[key])
            except (ValueError, SyntaxError):
                del found[key]
    return found


def _read_onnx(path: Path) -> dict[str, Any]:
    """Read the metadata of an ONNX file, and from its graph what the input really is."""
    import onnxruntime

    from yolo_prune.runtimes.onnxruntime import open_session
    from yolo_prune.runtimes.runtime import Settings

    session = open_session(onnxruntime, path, Settings("cpu", 1, 1))
    found = dict(session.get_modelmeta().custom_metadata_map)
    shape = session.get_inputs()[0].shape
    if len(shape) == 4:
        found["dynamic"] = not all(isinstance(side, int) for side in shape)
        if not found["dynamic"]:
            found.update(batch=shape[0], channels=shape[1], imgsz=list(shape[2:]))
    return found


def _read_openvino(path: Path) -> dict[str, Any]:
    """Read the metadata beside an OpenVINO network."""
    import yaml

    if not any(path.glob("*.xml")):
        raise CheckpointError(f"'{path}' holds no OpenVINO network (*.xml).")
    file = path / "metadata.yaml"
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {error}.") from error
