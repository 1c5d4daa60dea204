"""Which hosts there are, and which one a model belongs to."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yolo_prune.adapters
from yolo_prune.adapters.host import Attached, Host
from yolo_prune.errors import CheckpointError, ConfigError


class Trusting(Protocol):
    """Options that say what may be loaded."""

    @property
    def trust(self) -> bool:
        """Whether classes that are not stock may be loaded."""

    @property
    def imports(self) -> tuple[str, ...]:
        """Python files or modules that hold such classes."""


PLAIN_CHECKPOINT = "best.pt"
"""A path that the host of plain checkpoints takes, the one that a command without a model is about."""
_Config = TypeVar("_Config", bound=Trusting)
_Result = TypeVar("_Result")


@functools.cache
def hosts() -> tuple[Host, ...]:
    """Return the hosts that there is an adapter for; none of them is imported by it.

    A folder without ``host.py`` adapts a training loop and no files.
    """
    folders = [Path(place) for place in yolo_prune.adapters.__path__]
    names = sorted(home.parent.name for folder in folders for home in folder.glob("*/host.py"))
    homes = [importlib.import_module(f"{yolo_prune.adapters.__name__}.{name}.host") for name in names]
    return tuple(home.HOST for home in homes)


def find_host(model: Any) -> Host:
    """Return the host that a model belongs to.

    Args:
        model: A path, the name of an official model, a model object or a trainer class.

    Raises:
        CheckpointError: No host takes such a thing.
    """
    found = _host_of(model)
    if found is None:
        raise _no_file(model)
    return found


def file_of(model: Any, folder: Path) -> Path:
    """Return the file that a model came from, or one with an object that was in none.

    Args:
        model: A path, the name of a model, or a model object.
        folder: Where an object is written.

    Raises:
        CheckpointError: It is no model of a host, or one that no file can hold.
    """
    host = find_host(model)
    file = host.file_of(model)
    if file is None:
        file = host.write_object(model, folder)
    if file is None:
        raise _no_file(model)
    return Path(file)


def guarding_host(call: Callable[[_Config], _Result]) -> Callable[[_Config], _Result]:
    """Run a command with its hosts guarded as its options say; nothing is imported before it is called."""

    @functools.wraps(call)
    def guarded_call(config: _Config) -> _Result:
        model = getattr(config, "model", "")
        with guarded([model] if isinstance(model, str) else model, config):
            return call(config)

    return guarded_call


@contextmanager
def guarded(models: Iterable[Any], config: Trusting) -> Iterator[None]:
    """Guard the hosts of models for the duration of the block; without models none is imported."""
    with ExitStack() as stack:
        for host in {find_host(one) for one in models}:
            stack.enter_context(host.guarded(trust=config.trust, imports=config.imports))
        yield


def attach(model: Any, **options: Any) -> Attached:
    """Let every training of a model object prune it on the way, until the handle is removed.

    The object's own ``train(...)`` line stays as it is. Nothing else is touched: other objects, and the host itself,
    know nothing of it. Once the budget is met, later trainings of the object train what is left of it; a further cut
    is asked for with ``remove()`` and a new ``attach``.

    Args:
        model: A model object of a host, such as a ``YOLO``.
        **options: Fields of :class:`yolo_prune.options.inrun.InRunSettings`, such as ``keep_macs=0.5``, a share
            of the model as it is now: of a pruned one, of what is left. Without a budget the object must come from an
            interrupted run (it is resumed with the options that it began with) or be pruned already (it stays so).

    Returns:
        A handle with ``remove()`` and, after the training, ``result``.

    Raises:
        ConfigError: An option is wrong, there is no budget, or pruning is attached already.
    """
    return _host_of_object(model).attach(model, **options)


def inrun_trainer(base: type, settings: Any = None, **options: Any) -> type:
    """Return a subclass of a host's trainer that prunes inside the training; :func:`attach` needs no class.

    Args:
        base: A trainer class of a host.
        settings: The options; None makes them from ``options``.
        **options: Fields of :class:`yolo_prune.options.inrun.InRunSettings`.

    Raises:
        ConfigError: An option is unknown or wrong, or there is no budget.
    """
    return _host_of_object(base).inrun_trainer(base, settings, **options)


def _host_of_object(model: Any) -> Host:
    """Return the host of a thing that is no path."""
    found = None if isinstance(model, (str, Path)) else _host_of(model)
    if found is None:
        raise ConfigError(f"expected {_objects()}, got {type(model).__name__}.")
    return found


def _host_of(model: Any) -> Host | None:
    return next((host for host in hosts() if host.takes(model)), None)


def _objects() -> str:
    return " or ".join(host.objects for host in hosts() if host.objects)


def _no_file(model: Any) -> CheckpointError:
    modules = "".join(f", or {host.modules}" for host in hosts() if host.modules)
    return CheckpointError(
        f"expected a checkpoint path, {_objects()} that came from one{modules}, got {type(model).__name__}. "
        "For a module of your own use prune_module, and report_modules for its report."
    )
