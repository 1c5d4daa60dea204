"""``run.log``: what was said during a run, kept in its folder, with the sentence of the error that ended it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from yolo_prune.errors import YoloPruneError, sentence_of
from yolo_prune.progress import LOGGER, everything_recorded
from yolo_prune.words import as_last_drawn

FILE = "run.log"
_STAMP = "%Y-%m-%d %H:%M:%S"
_OPEN: list[_RunLog] = []


class _RunLog(logging.Handler):
    """Keeps messages until it is known where the run's folder is, then appends them to a file.

    A file that cannot be written ends no run: that is said once, and the run goes on without its log.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._waiting: list[str] = []
        self._file: Path | None = None
        self._broken = False

    @property
    def folder(self) -> Path | None:
        """Where the file is."""
        return self._file.parent if self._file else None

    def emit(self, record: logging.LogRecord) -> None:
        """Append one message, without control characters."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        said = "\n".join(as_last_drawn(line) for line in self.format(record).split("\n"))
        self._waiting.append(f"{time.strftime(_STAMP, time.localtime(record.created))} {level}{said}\n")
        self._write()

    def write_to(self, file: Path) -> None:
        """Append what was said so far, and everything that follows."""
        self._file = file
        self._write()

    def _write(self) -> None:
        if self._file is None or self._broken:
            return
        try:
            with self._file.open("a", encoding="utf-8") as out:
                out.writelines(self._waiting)
        except OSError as error:
            self._broken = True
            LOGGER.warning("the log '%s' cannot be written: %s.", self._file, error.strerror or error)
        self._waiting.clear()


@contextlib.contextmanager
def logged_run(packages: Iterable[str] = ()) -> Iterator[None]:
    """Record what is said inside the block, and why it ended where it failed; :func:`keep_log_in` names the folder.

    Args:
        packages: Other loggers whose messages belong to the run: those of its host.
    """
    log = _RunLog()
    with contextlib.ExitStack() as stack:
        stack.enter_context(everything_recorded())
        for logger in (LOGGER, *map(logging.getLogger, packages)):
            logger.addHandler(log)
            stack.callback(logger.removeHandler, log)
        _OPEN.append(log)
        stack.callback(_OPEN.remove, log)
        try:
            yield
        except BaseException as error:
            log.handle(_last_words(error))
            raise


def folder_of_run() -> Path | None:
    """Return the folder of the run that is going on, None as long as nobody knows it."""
    return _OPEN[-1].folder if _OPEN else None


def keep_log_in(folder: Path | str) -> None:
    """Write the log of the run that is going on into its folder; without one, do nothing."""
    if _OPEN:
        _OPEN[-1].write_to(Path(folder) / FILE)


def _last_words(error: BaseException) -> logging.LogRecord:
    """Return the record of what ended a run; of an error that nobody raised on purpose with where it came from."""
    record = logging.makeLogRecord({"name": LOGGER.name, "levelno": logging.ERROR, "levelname": "ERROR"})
    if isinstance(error, KeyboardInterrupt):
        record.levelname, record.msg = "STOPPED", str(error) or "by Ctrl-C"
        return record
    record.msg = sentence_of(error)
    if not isinstance(error, (YoloPruneError, OSError)):
        record.exc_info = (type(error), error, error.__traceback__)
    return record
