"""What a person sees while waiting: one logger and one kind of progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
    quiet = not LOGGER.isEnabledFor(logging.INFO)
    yield from tqdm(
        items, desc=description, total=total, delay=1.0, leave=False, disable=quiet or None, file=sys.stderr
    )


def log_to_console(verbose: bool = True) -> None:
    """Send the package's messages to stderr (called by the command line, never on import)."""
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if verbose else logging.WARNING)
