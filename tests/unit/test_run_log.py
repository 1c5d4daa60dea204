"""run.log: what was said, the sentence of what went wrong, and people who see no more than before."""

import logging
import re

import pytest

from yolo_prune.errors import BudgetError
from yolo_prune.progress import LOGGER
from yolo_prune.run_log import keep_log_in, logged_run


def lines(folder):
    """The lines of a log without their times, which must be there."""
    text = (folder / "run.log").read_text("utf-8")
    found = text.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found[0][:19])
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ?", "", line) for line in found]


def test_it_begins_before_the_folder_is_known(tmp_path):
    with logged_run():
        LOGGER.info("before")
        keep_log_in(tmp_path)
        LOGGER.warning("beware of %d", 2)
    LOGGER.warning("after the run")
    assert lines(tmp_path) == ["before", "warning: beware of 2"]


def test_the_sentence_of_an_error_is_its_last_line(tmp_path):
    with pytest.raises(BudgetError), logged_run():
        keep_log_in(tmp_path)
        LOGGER.info("cutting")
        raise BudgetError("cannot meet 0.1 GMACs: 0.2 remain.")
    assert lines(tmp_path) == ["cutting", "error: cannot meet 0.1 GMACs: 0.2 remain."]


def test_an_error_that_nobody_raised_on_purpose_says_where_it_came_from(tmp_path):
    with pytest.raises(ZeroDivisionError), logged_run():
        keep_log_in(tmp_path)
        [].append(1 / 0)
    found = lines(tmp_path)
    assert found[0].startswith("error: unexpected ZeroDivisionError: division by zero.")
    assert any("test_run_log.py" in line for line in found)


def test_ctrl_c_is_no_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), logged_run():
        keep_log_in(tmp_path)
        raise KeyboardInterrupt
    assert lines(tmp_path) == ["stopped: by Ctrl-C"]


def test_a_run_that_goes_on_appends(tmp_path):
    for word in ("first", "second"):
        with logged_run():
            keep_log_in(tmp_path)
            LOGGER.info(word)
    assert lines(tmp_path) == ["first", "second"]


def test_the_host_s_words_are_in_it_without_colours(tmp_path):
    host = logging.getLogger("a_host")
    host.setLevel(logging.INFO)
    with logged_run(["a_host"]):
        keep_log_in(tmp_path)
        host.info("\x1b[34mtrain:\x1b[0m 10%%\rtrain: done")
    host.info("after it")
    assert lines(tmp_path) == ["train: done"]


def test_a_trial_s_log_is_in_its_own_folder_and_in_the_sweep_s(tmp_path):
    (tmp_path / "trial").mkdir()
    with logged_run():
        keep_log_in(tmp_path)
        LOGGER.info("two trials")
        with logged_run():
            keep_log_in(tmp_path / "trial")
            LOGGER.info("one of them")
        LOGGER.info("done")
    assert lines(tmp_path) == ["two trials", "one of them", "done"]
    assert lines(tmp_path / "trial") == ["one of them"]


@pytest.fixture
def as_imported():
    """The logger as it is in a program that configured no logging."""
    handlers, level, upwards = list(LOGGER.handlers), LOGGER.level, LOGGER.propagate
    LOGGER.handlers.clear()
    LOGGER.setLevel(logging.NOTSET)
    yield
    LOGGER.handlers[:], LOGGER.propagate = handlers, upwards
    LOGGER.setLevel(level)


def test_people_see_no_more_than_they_asked_for(tmp_path, as_imported, caplog):
    shown = logging.StreamHandler()
    heard = []
    shown.emit = lambda record: heard.append(record.getMessage())
    LOGGER.addHandler(shown)
    with logged_run():
        keep_log_in(tmp_path)
        LOGGER.info("for the log")
        LOGGER.warning("for everyone")
    assert lines(tmp_path) == ["for the log", "warning: for everyone"]
    assert heard == ["for everyone"]
    assert [record.getMessage() for record in caplog.records] == ["for everyone"]
    assert (LOGGER.level, LOGGER.propagate, LOGGER.handlers) == (logging.NOTSET, True, [shown])


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    with logged_run():
        keep_log_in(tmp_path / "no" / "folder")
        LOGGER.warning("one")
        LOGGER.warning("two")
    said = [record.getMessage() for record in caplog.records]
    complaint = (
        f"the log '{tmp_path / 'no' / 'folder' / 'run.log'}' cannot be written: No such file or directory."
    )
    assert sorted(said) == sorted(["one", complaint, "two"]), "said once"


def test_without_a_run_there_is_no_log(tmp_path):
    keep_log_in(tmp_path)
    LOGGER.warning("nobody keeps this")
    assert not (tmp_path / "run.log").exists()
