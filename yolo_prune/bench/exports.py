"""Exported files of checkpoints, each made once, however many devices and runtimes it is measured on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_prune.bench.parity import reference_of
from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.progress import track
from yolo_prune.runtimes import is_exported

if TYPE_CHECKING:
    from yolo_prune.adapters.stored import LoadedModel

_BY_HOST = (".onnx", ".torchscript")


def write_export(
    checkpoint: Path | str,
    out: Path,
    *,
    imgsz: ImageSize,
    batch: int = 1,
    half: bool = False,
    trust: bool = False,
) -> Path:
    """Export a checkpoint: by its host, or converted from what the host writes.

    Args:
        checkpoint: The file.
        out: The file or folder to create or replace, whole or not at all; its ending says what it is.
        imgsz: Size of the input in pixels.
        batch: Images in a batch.
        half: Keep weights in 16 bits, where the format has them.
        trust: Load a checkpoint that may run code of its own.

    Raises:
        MissingRuntimeError: What writes the file is not installed.
        BenchmarkError: The host cannot export the checkpoint.
        CheckpointError: What was written cannot be converted.
    """
    from yolo_prune.adapters.hosts import find_host
    from yolo_prune.runtimes.converted import to_ncnn, to_openvino

    host = find_host(checkpoint)
    if out.name.endswith(_BY_HOST):
        return host.export(checkpoint, out, imgsz=imgsz, batch=batch, trust=trust)
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        whole = host.export(checkpoint, Path(folder, "whole.onnx"), imgsz=imgsz, batch=batch, trust=trust)
        if out.name.endswith("_openvino_model"):
            return to_openvino(whole, out, half=half)
        return to_ncnn(whole, out, imgsz=imgsz, half=half)


class Exports:
    """Exported files in one folder; a checkpoint that changes in the meantime needs another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Path, ImageSize, int, str], Path] = {}
        self._references: dict[tuple[Path, ImageSize], Path] = {}

    def of(
        self,
        files: Mapping[str, Path],
        sizes: Mapping[str, ImageSize],
        *,
        ending: str = ".onnx",
        batch: int = 1,
        trust: bool = False,
    ) -> dict[str, Path]:
        """Export every candidate that is no exported file yet, and return the files by the candidates' names.

        Args:
            files: Checkpoints and exported files by name.
            sizes: Size of the input of each, in pixels.
            ending: Of the files, which says what they are.
            batch: Images per step.
            trust: Load checkpoints that may run code of their own.
        """
        found = {
            name: (path, sizes[name], batch, ending)
            for name, path in files.items()
            if not is_exported(str(path))
        }
        waiting = dict.fromkeys(key for key in found.values() if key not in self._made)
        for key in track(list(waiting), f"export to {ending}") if waiting else ():
            path, imgsz, *_ = key
            out = self._folder / f"{len(self._made)}-{path.stem}-{size_text(imgsz)}{ending}"
            self._made[key] = write_export(path, out, imgsz=imgsz, batch=batch, trust=trust)
        return {name: self._made[found[name]] if name in found else path for name, path in files.items()}

    def references(
        self,
        files: Mapping[str, Path],
        sizes: Mapping[str, ImageSize],
        *,
        images: Sequence[Path | str] | None = None,
        trust: bool = False,
        loaded: Mapping[str, LoadedModel] | None = None,
    ) -> dict[str, Path]:
        """Run every checkpoint in PyTorch, and return what its exported files are compared with, by name.

        Args:
            files: Checkpoints, and exported files, which have none: nobody says what they were made from.
            sizes: Size of the input of each, in pixels.
            images: Of the data that the checkpoints were trained for, the same in every call; drawn ones when None.
            trust: Load checkpoints that may run code of their own.
            loaded: Those of them that are in memory, by name.
        """
        from yolo_prune.adapters.hosts import find_host

        found = {name: (path, sizes[name]) for name, path in files.items() if not is_exported(str(path))}
        paths = None if images is None else [Path(image) for image in images]
        for name, (path, imgsz) in found.items():
            if (path, imgsz) not in self._references:
                opened = (loaded or {}).get(name) or find_host(path).load(path, trust=trust)
                out = self._folder / f"reference-{len(self._references)}.npz"
                self._references[path, imgsz] = reference_of(opened, imgsz, paths).save(out)
        return {name: self._references[key] for name, key in found.items()}


@contextmanager
def shared_exports() -> Iterator[Exports]:
    """Keep exported files for the comparisons inside the block."""
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        yield Exports(Path(folder))
