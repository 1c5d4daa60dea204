"""What a person sees while waiting: one logger, and one progress bar at a time, or a line at intervals in its place."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from yolo_prune.words import duration

LOGGER = logging.getLogger("yolo_prune")
INTERVAL_S = 30.0
"""Between two lines of progress where nothing can be redrawn: in a file, a pipe, the page of a CI job."""
_Item = TypeVar("_Item")


class Bar(Protocol):
    """What a loop moves."""

    def update(self, n: float = 1) -> Any:
        """Say that ``n`` more steps are done."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> Any:
        """Say something beside it."""


def track(items: Iterable[_Item], description: str, total: int | None = None) -> Iterator[_Item]:
    """Yield ``items`` under a progress bar, as :func:`bar` shows it.

    Args:
        items: Anything iterable.
        description: A few words, shown left of the bar.
        total: Number of items, where ``items`` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(total, description) as shown:
        for item in items:
            yield item
            shown.update()


@contextlib.contextmanager
def bar(total: int | None, description: str) -> Iterator[Bar]:
    """Show a progress bar for a loop that moves it by itself.

    It stays hidden for the first second, where nobody watches (``verbose=false``), and inside another one. Where
    stderr is no terminal, a line at intervals takes its place.

    Args:
        total: Number of steps, None where it is not known.
        description: As for :func:`track`.
    """
    if _Shown.bars or not _is_watched():
        with tqdm(disable=True) as hidden:
            yield hidden
        return
    _Shown.bars += 1
    try:
        if sys.stderr.isatty():
            with tqdm(total=total, desc=description, delay=1.0, leave=False, file=sys.stderr) as drawn:
                yield drawn
        else:
            yield _Lines(total, description)
    finally:
        _Shown.bars -= 1


class _Lines:
    """A bar's steps as lines of the log, none for what is over before the first interval is."""

    def __init__(self, total: int | None, description: str) -> None:
        self.total, self.description, self.beside = total, description, ""
        self.done = 0.0
        self.began = self.said = time.monotonic()

    def update(self, n: float = 1) -> None:
        """Count, and say so when it is time."""
        self.done += n
        now = time.monotonic()
        if now - self.said < INTERVAL_S:
            return
        self.said = now
        of = "" if self.total is None else f"/{self.total:g}"
        beside = f", {self.beside}" if self.beside else ""
        LOGGER.info(
            "%s: %g%s after %s%s", self.description, self.done, of, duration(now - self.began), beside
        )

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Keep it for the next line."""
        self.beside = s


class _Shown:
    """What is on the screen of this process.

    Attributes:
        bars: How many progress bars.
        level: From which level on messages are shown, where more of them are recorded; None where that is the
            logger's own.
    """

    bars = 0
    level: int | None = None


def _is_watched() -> bool:
    return (LOGGER.getEffectiveLevel() if _Shown.level is None else _Shown.level) <= logging.INFO


class _Console(logging.Handler):
    """Writes to what is stderr at the moment, where the standard handler keeps the one of its first day.

    A bar that is on the screen makes room for the line.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        tqdm.write(self.format(record), file=sys.stderr)


def log_to_console(verbose: bool = True) -> None:
    """Send the package's messages to stderr (called by the command line, never on import)."""
    if not LOGGER.handlers:
        handler = _Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if verbose else logging.WARNING)


class _Upwards(logging.Handler):
    """Hands records from a level on to the loggers above, in place of handing on everything."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        if LOGGER.parent is not None:
            LOGGER.parent.handle(record)


@contextlib.contextmanager
def everything_recorded() -> Iterator[None]:
    """Let messages of every run reach handlers that are added inside; people see as much as before."""
    level, own, upwards = LOGGER.getEffectiveLevel(), LOGGER.level, LOGGER.propagate
    if level <= logging.INFO:
        yield
        return
    held = {handler: handler.level for handler in LOGGER.handlers}
    relay = _Upwards(level)
    for handler in held:
        handler.setLevel(max(level, handler.level))
    if upwards:
        LOGGER.addHandler(relay)
    LOGGER.propagate, _Shown.level = False, level
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler, before in held.items():
            handler.setLevel(before)
        LOGGER.removeHandler(relay)
        LOGGER.propagate, _Shown.level = upwards, None
        LOGGER.setLevel(own)
