"""What a person sees while waiting, on a terminal, in a file and in a log."""

import io
import logging
import sys

import pytest

from yolo_prune import progress
from yolo_prune.cli.output import plain_stderr
from yolo_prune.progress import LOGGER, bar, log_to_console, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Put a stream in the place of stderr, with the package's messages on it."""
    handlers, level = list(LOGGER.handlers), LOGGER.level

    def install(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        LOGGER.handlers.clear()
        log_to_console()
        return stream

    yield install
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)


@pytest.fixture
def clock(monkeypatch):
    """A clock that steps ten seconds each time it is read."""
    ticks = iter(range(0, 100000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_a_file_gets_a_line_at_intervals_and_nothing_that_is_redrawn(stderr, clock):
    stream = stderr(io.StringIO())
    assert list(track(range(7), "Evaluating")) == list(range(7))
    assert stream.getvalue() == "Evaluating: 3/7 after 30 s\nEvaluating: 6/7 after 1 min\n"


def test_a_line_says_what_stands_beside_the_bar(stderr, clock):
    stream = stderr(io.StringIO())
    with bar(None, "imitating") as shown:
        for step in range(4):
            shown.set_postfix_str(f"distance {step}")
            shown.update()
    assert stream.getvalue() == "imitating: 3 after 30 s, distance 2\n"


def test_what_is_over_soon_says_nothing(stderr):
    stream = stderr(io.StringIO())
    assert list(track([1, 2], "short")) == [1, 2]
    assert stream.getvalue() == ""


def test_a_terminal_gets_one_bar_at_a_time(stderr, monkeypatch):
    drawn = []

    class Drawn(progress.tqdm):
        def __init__(self, *arguments, **options):
            drawn.append(options)
            super().__init__(*arguments, **options)

    stderr(Terminal())
    monkeypatch.setattr(progress, "tqdm", Drawn)
    for _ in track([1, 2], "outer"):
        assert list(track([1, 2, 3], "inner")) == [1, 2, 3]
    shown = [options for options in drawn if not options.get("disable")]
    assert [(one["desc"], one["total"]) for one in shown] == [("outer", 2)]
    drawn.clear()
    list(track([1], "after it"))
    assert [one["desc"] for one in drawn] == ["after it"], "the control: it is shown when the other is gone"


def test_quiet_is_quiet(stderr, clock):
    stream = stderr(io.StringIO())
    log_to_console(verbose=False)
    assert list(track(range(9), "Evaluating")) == list(range(9))
    LOGGER.info("no one reads this")
    assert stream.getvalue() == ""


def test_a_message_does_not_break_the_bar_that_is_shown(stderr):
    stream = stderr(Terminal())
    with bar(2, "slow") as shown:
        shown.delay = 0
        shown.refresh()
        LOGGER.info("a message")
    lines = stream.getvalue().replace("\r", "\n").split("\n")
    assert "a message" in lines


def redrawn(stream):
    """Write as a host does that draws its own bar."""
    for percent in (10, 50, 100):
        stream.write(f"\r\x1b[K\x1b[34mtrain:\x1b[0m {percent}%")
        stream.flush()
    stream.write("\n\nnext \x1b[1mline\x1b[0m\n")
    stream.write("\r\x1b[K 3%\r\x1b[K\nwithout an end")


def test_bars_of_a_host_leave_their_last_state_in_a_file(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with plain_stderr():
        redrawn(sys.stderr)
        assert not sys.stderr.isatty()
    assert stream.getvalue() == "train: 100%\n\nnext line\n 3%\nwithout an end\n"
    assert sys.stderr is stream


def test_a_terminal_gets_bars_and_colours_unless_no_color_is_set(monkeypatch):
    def written(no_color):
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with plain_stderr():
            redrawn(sys.stderr)
            assert sys.stderr.isatty()
        return stream.getvalue()

    assert "\x1b[34mtrain" in written("")
    assert "\x1b[34m" not in written("1")
    assert "\r\x1b[Ktrain: 50%" in written("1"), "a bar is still redrawn"


def test_messages_are_not_lost_on_others_who_listen(caplog):
    with caplog.at_level(logging.INFO, logger="yolo_prune"):
        LOGGER.info("for all")
    assert "for all" in caplog.text
