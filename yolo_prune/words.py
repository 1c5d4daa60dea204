"""Texts as people read them: spans of time, and lines without what only a terminal understands."""

from __future__ import annotations

import re

# Sequences that colour, move and clear; then single control characters but for the end of a line and a tab.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def duration(seconds: float) -> str:
    """Return a span of time in at most two units.

    Example:
        >>> [duration(each) for each in (0.04, 9.96, 75, 3720)]
        ['0 s', '10 s', '1 min 15 s', '1 h 2 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0", "")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min".removesuffix(" 0 min")


def counted(number: int, thing: str) -> str:
    """Return a number of things: ``1 epoch``, ``2 epochs``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def without_colours(text: str) -> str:
    """Return a text without the sequences that colour it; bars are still redrawn."""
    return _COLOUR.sub("", text)


def as_last_drawn(line: str) -> str:
    r"""Return what a line that was redrawn shows in the end, without control characters.

    Example:
        >>> as_last_drawn("\r 10 %\r\x1b[K100 % \x1b[1mdone\x1b[0m")
        '100 % done'
    """
    frames = [_CONTROL.sub("", frame) for frame in line.split("\r")]
    return next((frame for frame in reversed(frames) if frame.strip()), "").rstrip()
