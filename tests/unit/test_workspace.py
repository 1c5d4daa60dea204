"""The run folder: where it is, what may be overwritten, and files that are whole or not there."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from yolo_prune import files
from yolo_prune.errors import ConfigError
from yolo_prune.runs.workspace import OUTPUTS, open_workspace


def opened(project: Path, name: str | None = None, **options: bool | None):
    return open_workspace(str(project), name, "prune", **{"exist_ok": False, "resume": False, **options})


def test_folders_are_numbered_when_no_name_is_given(tmp_path):
    names = [opened(tmp_path / "runs").root.name for _ in range(3)]
    assert names == ["prune", "prune2", "prune3"]


def test_a_folder_has_a_place_for_weights(tmp_path):
    space = opened(tmp_path, "a")
    assert space.root == tmp_path / "a"
    assert space.weights.is_dir()
    assert space.plan == tmp_path / "a" / "plan.json"


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    opened(tmp_path, "a")
    expected = (
        f"the run folder '{tmp_path / 'a'}' exists. Choose another name=, resume=true to go on with what was stopped "
        "in it, or exist_ok=true to write into it."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        opened(tmp_path, "a")
    with pytest.raises(
        ConfigError, match=r"exists\. Choose another name=, or exist_ok=true to write into it\.$"
    ):
        opened(tmp_path, "a", resume=None)  # a command that cannot go on
    assert opened(tmp_path, "a", exist_ok=True).root == tmp_path / "a"


def test_exist_ok_without_a_name_takes_the_first_folder(tmp_path):
    opened(tmp_path)
    assert opened(tmp_path, exist_ok=True).root.name == "prune"


def test_resume_needs_a_name_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"^resume=true needs name= of the run folder to go on with\.$"):
        opened(tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"^no run folder '.*gone' to resume\.$"):
        opened(tmp_path, "gone", resume=True)
    opened(tmp_path, "there")
    assert opened(tmp_path, "there", resume=True).root.name == "there"


def test_a_project_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^cannot make the run folder '.*file/a': Not a directory\.$"):
        opened(tmp_path / "file", "a")


def test_a_name_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match=r"^the run folder '.*a' exists"):
        opened(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"^cannot make the run folder '.*a': File exists\.$"):
        opened(tmp_path, "a", exist_ok=True)


def test_an_unwritable_folder_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"^cannot make the run folder '.*a': Permission denied\.$"):
        opened(tmp_path, "a")


def test_a_folder_that_cannot_be_written_into_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"^cannot write into the run folder '.*a'\.$"):
        opened(tmp_path, "a")


def test_stages_are_timed_and_add_up(tmp_path):
    space = opened(tmp_path)
    with space.stage("cut", "cutting"):
        pass
    first = space.timing_s["cut"]
    with pytest.raises(ValueError, match="no"), space.stage("cut", "cutting"):
        raise ValueError("no")
    assert space.timing_s["cut"] >= first >= 0.0


def test_what_is_remembered_can_be_recalled(tmp_path):
    space = opened(tmp_path)
    assert space.recall("recovery") is None
    space.remember("recovery", {"cut": 0.25, "bn": None})
    assert opened(tmp_path, "prune", resume=True).recall("recovery") == {"cut": 0.25, "bn": None}


def test_clearing_takes_away_what_a_run_writes_and_nothing_else(tmp_path):
    space = opened(tmp_path)
    for name in (*OUTPUTS, "notes.txt", "weights/mine.pt"):
        (space.root / name).write_text("old")
    space.clear()
    left = sorted(str(path.relative_to(space.root)) for path in space.root.rglob("*") if path.is_file())
    assert left == ["notes.txt", "weights/mine.pt"]
    space.clear()  # nothing there is no error


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    space = opened(tmp_path)
    space.remember("recovery", {"ap": 1})

    def full(self, *_, **__):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        space.remember("recovery", {"ap": 2})
    assert json.loads((space.root / "recovery.json").read_bytes()) == {"ap": 1}
    assert [path.name for path in space.root.iterdir() if path.is_file()] == ["recovery.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write():
        with files.replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())
