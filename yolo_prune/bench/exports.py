"""Exported files of checkpoints, each made once, however many devices and runtimes it is measured on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from yolo_prune.imgsz import ImageSize, size_text
from yolo_prune.progress import track
from yolo_prune.runtimes import is_exported


class Exports:
    """Exported files in one folder; a checkpoint that changes in the meantime needs another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Path, ImageSize, int, str], Path] = {}

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
            from yolo_prune.adapters.hosts import find_host

            path, imgsz, *_ = key
            out = self._folder / f"{len(self._made)}-{path.stem}-{size_text(imgsz)}{ending}"
            self._made[key] = find_host(path).export(path, out, imgsz=imgsz, batch=batch, trust=trust)
        return {name: self._made[found[name]] if name in found else path for name, path in files.items()}


@contextmanager
def shared_exports() -> Iterator[Exports]:
    """Keep exported files for the comparisons inside the block."""
    with tempfile.TemporaryDirectory(prefix="yolo-prune-") as folder:
        yield Exports(Path(folder))
