"""What a person sees while waiting: one logger and one kind of progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

LOGGER = logging.getLogger("yolo_prune")
_Item = TypeVar("_Item")


def track(items: Iterable[_Item], description: str, total: int | None = None) -> Iterator[_Item]:
    """Yield ``items`` under a progress bar that stays hidden for the first second or when nobody watches.

    Args:
        items: Anything iterable.
        description: A few words, shown left of the bar.
        total: Number of items, where ``items`` has no length.
    """
    yield from tqdm(items, desc=description, total=total, **_manner())


def bar(total: int, description: str) -> tqdm[Any]:
    """Return such a progress bar for a loop that moves it by itself; a context manager.

    Args:
        total: Number of steps.
        description: As for :func:`track`.
    """
    return tqdm(total=total, desc=description, **_manner())


def _manner() -> dict[str, Any]:
    quiet = not LOGGER.isEnabledFor(logging.INFO)
    return {"delay": 1.0, "leave": False, "disable": quiet or None, "file": sys.stderr}


class _Console(logging.Handler):
    """Writes to what is stderr at the moment, where the standard handler keeps the one of its first day."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        sys.stderr.write(f"{self.format(record)}\n")


def log_to_console(verbose: bool = True) -> None:
    """Send the package's messages to stderr (called by the command line, never on import)."""
    if not LOGGER.handlers:
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if verbose else logging.WARNING)
