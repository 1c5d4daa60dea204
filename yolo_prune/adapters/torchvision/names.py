"""Which models belong to this host, told without torch: help and errors need none."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

FORMAT = "yolo_prune state dict by architecture, 1"
_TAIL = 1_000_000  # bytes; the names of some thousand classes
LIBRARIES = ("torchvision", "timm")


def names_architecture(model: str | Path) -> bool:
    """Tell whether a text is ``torchvision:NAME`` or ``timm:NAME``."""
    library, colon, _ = str(model).partition(":")
    return bool(colon) and library.strip().lower() in LIBRARIES


def is_file_of_ours(path: str | Path) -> bool:
    """Tell whether a path is a file that this host wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return name is not None and FORMAT.encode() in archive.read(name)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):  # other hosts say what it is
        return False


def is_export_of_ours(path: str | Path) -> bool:
    """Tell whether a path is an ONNX file that this host wrote: what it says of itself stands at its end."""
    file = Path(path)
    if file.suffix != ".onnx" or not file.is_file():
        return False
    with file.open("rb") as opened:
        opened.seek(max(file.stat().st_size - _TAIL, 0))
        return FORMAT.encode() in opened.read()


def is_ours(model: str | Path) -> bool:
    """Tell whether a model belongs to this host."""
    return names_architecture(model) or is_file_of_ours(model) or is_export_of_ours(model)
