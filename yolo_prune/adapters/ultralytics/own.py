"""Classes of the user's own: where they come from, how a pickle and the host find them, which a model holds.

The host looks layers of an architecture file up by name among its own; a pickle names a module, which may be the
script that was run (``__main__``) or a file that lies elsewhere now. Both find what was imported here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from yolo_prune.adapters.ultralytics.allowed import RENAMED, is_stock
from yolo_prune.errors import CheckpointError, ConfigError

_HOST = "ultralytics.nn.tasks"
_IMPORTED: dict[str, type] = {}
_LENDING: list[dict[str, type]] = []


def import_classes(imports: Sequence[str]) -> None:
    """Import Python files or modules and remember the classes that they define.

    Args:
        imports: Paths of ``*.py`` files, or dotted names of modules (also of the working folder).

    Raises:
        ConfigError: One cannot be imported, or its name is taken by another module.
    """
    for name in imports:
        module = _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
        defined = {label: value for label, value in vars(module).items() if isinstance(value, type)}
        _IMPORTED.update({k: v for k, v in defined.items() if v.__module__ == module.__name__})


def _import_file(file: Path) -> ModuleType:
    name = file.stem
    if not file.is_file():
        raise ConfigError(f"imports names '{file}', which does not exist.")
    there = sys.modules.get(name)
    if there is not None:
        if Path(getattr(there, "__file__", None) or "").resolve() == file.resolve():
            return there
        raise ConfigError(f"'{file}' cannot be imported: another module is named '{name}'. Rename the file.")
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{file}' cannot be imported: it is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # stays: pickles look it up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"'{file}' cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))  # a console script does not look here by itself
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"'{name}' cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))


@contextlib.contextmanager
def known_to_host() -> Iterator[None]:
    """Let the host find classes of the user's own by name: the imported ones, and those of every model that loads."""
    lent: dict[str, type] = {}
    _LENDING.append(lent)
    try:
        _lend(_IMPORTED.values())
        yield
    finally:
        _LENDING.pop()
        names = vars(importlib.import_module(_HOST))
        for name, found in lent.items():
            if names.get(name) is found:
                del names[name]


def lend_classes_of(module: nn.Module) -> None:
    """Let the host find the classes of a loaded model by name until the command ends; outside of one do nothing."""
    _lend({type(layer) for layer in module.modules() if not is_stock(type(layer))})


def _lend(classes: Any) -> None:
    if not _LENDING:
        return
    names = vars(importlib.import_module(_HOST))
    for found in classes:
        if issubclass(found, nn.Module) and found.__name__ not in names:
            names[found.__name__] = _LENDING[-1][found.__name__] = found


def own_classes(module: nn.Module) -> list[str]:
    """Return the dotted names of a model's classes that are not stock, sorted."""
    kinds = {type(layer) for layer in module.modules()}
    return sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if not is_stock(kind))


def where_from(name: str) -> str:
    """Return what to add to ``trust=true`` for a class that no module at hand holds; nothing where one does."""
    module, _, attribute = name.rpartition(".")
    top = module.partition(".")[0]
    try:
        there = top != "__main__" and (top in sys.modules or importlib.util.find_spec(top) is not None)
    except (ImportError, ValueError):
        there = False
    return "" if there else f" and imports= with the Python file that holds '{attribute}'"


class Unpickler(pickle.Unpickler):
    """The full unpickler, for files that are trusted; it also knows renamed classes and those that were imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function that a pickle names."""
        module, _, name = RENAMED.get(f"{module}.{name}", f"{module}.{name}").rpartition(".")
        if module == "__main__" and name in _IMPORTED:
            return _IMPORTED[name]
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            if name in _IMPORTED:
                return _IMPORTED[name]
            raise CheckpointError(
                f"class '{name}' of module '{module}' is not found. Install that package, or pass imports= with "
                "the Python file that holds the class."
            ) from error


class TrustedPickle:
    """What ``torch.load`` takes for a pickle module."""

    Unpickler = Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """Unpickle one object in full."""
        return Unpickler(file, **options).load()
