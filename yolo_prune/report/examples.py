"""The images on which parent and final model differ most: small pictures beside the report, embedded in its page."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yolo_prune.errors import ConfigError
from yolo_prune.files import write_text
from yolo_prune.report.codec import decode, encode

FOLDER = "examples"
"""Of a run folder."""
_LIST = "examples.json"


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        name: Of its file.
        notes: What is said of each column.
        files: Pictures, one for every column, or one for all of them.
    """

    name: str
    notes: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Examples:
    """What is shown of single images.

    Attributes:
        columns: What stands beside each other: truth and models.
        chosen: By what the images were chosen, in a sentence.
        images: Largest difference first.
        left_out: Why there are none, in a sentence.
    """

    columns: tuple[str, ...] = ()
    chosen: str = ""
    images: tuple[Example, ...] = ()
    left_out: str | None = None


def write_examples(folder: Path, examples: Examples, pictures: Mapping[str, bytes]) -> None:
    """Write pictures and what is said of them into a run folder, in place of those of an earlier run."""
    clear_examples(folder)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (folder / FOLDER / name).write_bytes(data)
    write_text(folder / FOLDER / _LIST, json.dumps(encode(examples), indent=1) + "\n")


def clear_examples(folder: Path) -> None:
    """Delete what an earlier run drew; a folder of that name that holds none of it stays."""
    if (folder / FOLDER / _LIST).is_file():
        shutil.rmtree(folder / FOLDER)


def read_examples(folder: Path) -> Examples | None:
    """Return what :func:`write_examples` wrote; None where there is nothing.

    Raises:
        ConfigError: It is there, and nobody wrote it so.
    """
    file = folder / FOLDER / _LIST
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}).") from error
    return decode(Examples, values, str(file))


def embedded(folder: Path, examples: Examples) -> dict[str, str]:
    """Return every picture as a data URI; those that somebody deleted are missing."""
    names = [name for each in examples.images for name in each.files]
    files = {name: folder / FOLDER / Path(name).name for name in names}
    return {
        name: f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
        for name, file in files.items()
        if file.is_file()
    }
