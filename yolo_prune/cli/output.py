"""Where a command's answer goes: to stdout, alone; progress and messages go to stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from yolo_prune.files import write_text
from yolo_prune.progress import INTERVAL_S
from yolo_prune.words import as_last_drawn, without_colours

_ANSWERS: ContextVar[IO[str] | None] = ContextVar("_ANSWERS", default=None)


def say(text: str) -> None:
    """Write a result to stdout; progress and messages go to stderr."""
    out = _ANSWERS.get() or sys.stdout
    out.write(text.rstrip("\n") + "\n")
    out.flush()


@contextlib.contextmanager
def answers_alone_on_stdout() -> Iterator[None]:
    """Send what the host prints inside the block to stderr, so that a command's stdout can go to a file."""
    kept = _ANSWERS.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _ANSWERS.reset(kept)


@contextlib.contextmanager
def plain_stderr() -> Iterator[None]:
    """Keep out of stderr what it cannot show, whoever writes it: redrawn bars of hosts where it is no terminal.

    ``NO_COLOR`` (to anything but nothing) takes the colours out of a terminal, too. What processes of their own write,
    such as those of a distributed training, does not come through here.
    """
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        yield
        return
    stream = _Plain(sys.stderr)
    with contextlib.redirect_stderr(stream):
        try:
            yield
        finally:
            stream.finish()


class _Plain(io.TextIOBase):
    """A stream without colours; where nothing can be redrawn, a line that is redrawn is written when it is done."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._line = stream, ""
        self._redraws = stream.isatty()
        self._said = time.monotonic()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Tell whether a person watches."""
        return self._redraws

    def fileno(self) -> int:
        """Return what processes of their own write to."""
        return self._stream.fileno()

    def flush(self) -> None:
        """Write out what is complete."""
        self._stream.flush()

    def write(self, text: str) -> int:
        """Write, now or with the end of the line."""
        if self._redraws:
            self._stream.write(without_colours(text))
            return len(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._end(line)
        if "\r" in self._line:
            if time.monotonic() - self._said > INTERVAL_S:
                self._end(self._line)
                self._line = ""
            else:  # what was drawn over is gone
                self._line = "\r" + "\r".join(self._line.split("\r")[-2:])
        return len(text)

    def finish(self) -> None:
        """Write what no line ended."""
        if self._line:
            self._end(self._line)
        self._line = ""
        self.flush()

    def _end(self, line: str) -> None:
        drawn = as_last_drawn(line)
        if drawn or not line:  # a bar that was taken away leaves nothing
            self._stream.write(f"{drawn}\n")
            self._said = time.monotonic()


def write_json_answer(path: str | None, content: object) -> None:
    """Write an answer where ``json=`` says, if it says anything, and name the file."""
    if path is not None:
        write_text(Path(path), json.dumps(content, indent=1, default=str) + "\n")
        say(f"json: {path}")
