"""Where a command's answer goes: to stdout, alone; progress and messages go to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from yolo_prune.files import write_text

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


def write_json_answer(path: str | None, content: object) -> None:
    """Write an answer where ``json=`` says, if it says anything, and name the file."""
    if path is not None:
        write_text(Path(path), json.dumps(content, indent=1, default=str) + "\n")
        say(f"json: {path}")
