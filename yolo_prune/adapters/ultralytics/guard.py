"""What the host may read and know while one of our commands runs.

The host unpickles checkpoints and its caches of labels in full, which runs whatever code is in them. Inside
:func:`guarded` it reads checkpoints as this package does, takes a cache that holds more than plain values for
missing, installs no package, and knows the classes of the user's own by name, as architecture files name them. Then it
is as it was.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.adapters.ultralytics.load import read_checkpoint
from yolo_prune.adapters.ultralytics.own import import_classes, known_to_host
from yolo_prune.adapters.ultralytics.undisturbed import no_installs
from yolo_prune.progress import LOGGER

_LOADERS = ("ultralytics.nn.tasks", "ultralytics.utils.torch_utils")
_CACHE_READERS = ("ultralytics.data.dataset", "ultralytics.data.utils")
_ARRAY_PARTS = {
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
    *(
        (f"numpy.{core}.multiarray", part)
        for core in ("core", "_core")
        for part in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


@contextmanager
def guarded(*, trust: bool, imports: Sequence[str] = ()) -> Iterator[None]:
    """Guard what the host reads, and lend it classes of the user's own.

    Args:
        trust: Checkpoints may hold classes that are not stock.
        imports: Python files or modules whose classes the host should know.

    Raises:
        ConfigError: One of ``imports`` cannot be imported.
    """
    import_classes(imports)

    def load(file: Any, *_: Any, **__: Any) -> Any:
        return read_checkpoint(Path(file), trust=trust)

    with ExitStack() as stack:
        stack.enter_context(no_installs())
        stack.enter_context(known_to_host())
        for name in _LOADERS:
            stack.enter_context(_replaced(name, "torch_load", load))
        for name in _CACHE_READERS:
            stack.enter_context(_replaced(name, "load_dataset_cache_file", read_label_cache))
        yield


@contextmanager
def _replaced(module: str, name: str, ours: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of the host for a while, where this version has it there."""
    owner = importlib.import_module(module)
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    setattr(owner, name, ours)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds arrays and plain values, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def read_label_cache(path: Path | str) -> dict[str, Any]:
    """Read a cache of labels like the host, but no code; one that wants more counts as missing.

    Raises:
        FileNotFoundError: It is missing, or could run code; the host then makes it again.
    """
    with Path(path).open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        try:
            content: dict[str, Any] = _PlainUnpickler(file).load().item()
        except pickle.UnpicklingError as error:
            LOGGER.warning(
                "'%s' wants to load '%s', which could run any code: it is made again from the labels.",
                path,
                error,
            )
            raise FileNotFoundError(str(path)) from error
    return content
