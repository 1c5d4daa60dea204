"""What an .onnx file says of itself, read from its bytes: neither onnx nor ONNX Runtime is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolo_prune.errors import ConfigError
from yolo_prune.runtimes.runtime import FileFacts

# Numbers of fields in messages of ONNX, and of kinds of elements.
_GRAPH, _METADATA = 7, 14
_INITIALIZER, _INPUT = 5, 11
_KINDS = {1: "float32", 10: "float16"}
_QUANTISED = b"DequantizeLinear"  # the operator that every file with weights of 8 bits has


def read_onnx(path: Path) -> FileFacts:
    """Return what an .onnx file takes.

    Raises:
        ValueError: It is no ONNX model; the text says what was wrong.
        ConfigError: It has several inputs, or one that is no batch of images.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    graph, metadata = memoryview(b""), {}
    for number, value in _fields(memoryview(content)):
        if number == _GRAPH:
            graph = value
        if number == _METADATA:
            pair = {key: bytes(text).decode() for key, text in _fields(value)}
            metadata[pair.get(1, "")] = pair.get(2, "")
    if not graph:
        raise ValueError("it has no graph")
    weights = {_name(value, 8) for number, value in _fields(graph) if number == _INITIALIZER}
    inputs = [value for number, value in _fields(graph) if number == _INPUT]
    inputs = [value for value in inputs if _name(value, 1) not in weights]
    kind, shape = _type(inputs[0]) if inputs else (0, [])
    if len(inputs) != 1 or len(shape) != 4 or kind not in _KINDS:
        raise ConfigError(
            f"'{path}' takes {len(inputs)} input(s), the first a {_KINDS.get(kind, 'tensor')} of shape {shape}: "
            "expected one batch of images [B, C, H, W] in floating point."
        )
    batch, channels, height, width = shape
    precision = "int8" if _QUANTISED in content else _KINDS[kind]
    return FileFacts(batch, channels, height, width, precision, metadata)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protobuf message: numbers, and bytes for all that is longer."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _number(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(message):
            raise ValueError("it ends too early")
        yield key >> 3, message[at : at + size]
        at += size


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, and return it with where it ends."""
    found = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("it ends too early")
        byte = message[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at


def _name(message: memoryview, number: int) -> str:
    return next((bytes(value).decode() for key, value in _fields(message) if key == number), "")


def _type(value_info: memoryview) -> tuple[int, list[int | None]]:
    """Return the kind of the elements of a tensor and its shape; None stands for a size that is left open."""
    tensor = _message(_message(value_info, 2), 1)
    kind = next((value for key, value in _fields(tensor) if key == 1), 0)
    shape: list[int | None] = []
    for key, side in _fields(_message(tensor, 2)):
        if key == 1:
            fixed = next((value for part, value in _fields(side) if part == 1), 0)
            shape.append(fixed if fixed > 0 else None)
    return kind, shape


def _message(message: memoryview, number: int) -> memoryview:
    return next((value for key, value in _fields(message) if key == number), memoryview(b""))
