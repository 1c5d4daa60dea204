"""Files appear whole or not at all, written under a temporary name and renamed; and names that tell paths apart."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, delete it on any failure.

    Args:
        path: The file to create or replace. Its folder is created when missing.

    Yields:
        A path in the same folder and with the same suffix, to write to.

    Raises:
        OSError: The folder cannot be created or written (full disk, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it was
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes its place on success and is deleted on any failure.

    Args:
        path: The folder to create or replace. The one around it is created when missing.

    Yields:
        An empty folder.

    Raises:
        OSError: It cannot be created or replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path | str, text: str) -> Path:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all, and return ``path``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def cache_folder() -> Path:
    """Return the folder of what can be measured again: in ``XDG_CACHE_HOME``, ``LOCALAPPDATA`` or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(home) / "yolo_prune"


def short_names(paths: Sequence[Path]) -> list[str] | None:
    """Return as few parts of each path as tell all of them apart, None where nothing does.

    Example:
        >>> short_names([Path("runs/a/best"), Path("runs/b/best")])
        ['a/best', 'b/best']
    """
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return None
