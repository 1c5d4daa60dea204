"""Runs that are stopped or hit a full disk: a sentence, nothing half-written, and a resume that ends in the same plan."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.progress import LOGGER

SLOW_TO_START = 120  # seconds; the limit of a hang, not a time to be measured


class StopsAt(logging.Handler):
    """Ctrl-C as soon as the run says that a stage begins."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.words):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def stopping_at():
    handlers = []

    def install(words: str) -> None:
        handlers.append(StopsAt(words))
        LOGGER.addHandler(handlers[-1])

    yield install
    for handler in handlers:
        LOGGER.removeHandler(handler)


@pytest.fixture
def run(words, tmp_path, capsys):
    """Run the short run in a folder of its own, other words instead of its own; returns exit code and stderr."""

    def run(*more: str) -> tuple[int, str]:
        replaced = {word.partition("=")[0] for word in more}
        kept = [word for word in words if word.partition("=")[0] not in replaced]
        code = cli.main([*kept, "bench=false", f"project={tmp_path}", "name=a", *more])
        return code, capsys.readouterr().err

    return run


def check_readable(folder: Path) -> list[str]:
    """Check that every file there is whole, and return their names."""
    for file in folder.rglob("*"):
        assert not file.name.startswith("."), f"{file} is a temporary file"
        if file.suffix == ".json":
            json.loads(file.read_text())
        if file.suffix == ".pt" and file.parent == folder / "weights":
            load_detector(file)
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def plan_of(folder: Path) -> dict:
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize(
    ("at", "there", "missing"),
    [
        ("evaluating the parent", "args.yaml", "plan.json"),
        ("step 1/2", "weights/parent.pt", "weights/pruned.pt"),
        ("evaluating the controls", "weights/pruned.pt", "report.json"),
    ],
)
def test_a_stopped_run_leaves_whole_files_and_can_be_resumed(
    stopping_at, run, tmp_path, finished, at, there, missing
):
    stopping_at(at)
    code, err = run()
    assert code == 130
    ours = [line for line in err.splitlines() if line.startswith("yolo-prune: ")]
    folder = tmp_path / "a"
    assert ours == [f"yolo-prune: stopped: {folder} keeps what was finished; resume=true name=a goes on"]
    assert "Traceback" not in err
    names = check_readable(folder)
    assert there in names
    assert missing not in names
    stopped = ours[0].removeprefix("yolo-prune: ")
    assert (folder / "run.log").read_text("utf-8").splitlines()[-1].endswith(f" {stopped}")

    LOGGER.handlers = [handler for handler in LOGGER.handlers if not isinstance(handler, StopsAt)]
    code, err = run("resume=true")
    assert code == 0
    assert {"report.json", "report.html", "weights/pruned.pt"} <= set(check_readable(folder))
    assert plan_of(folder) == plan_of(finished[0])  # the same seed, another run: the same plan
    report = json.loads((folder / "report.json").read_text())
    assert {"cut", "recover"} <= set(report["timing_s"])
    assert [stage["name"] for stage in report["stages"]] == ["cut", "bn", "fold", "fold_bn"]
    said = (folder / "run.log").read_text("utf-8")
    assert 0 < said.index(stopped) < said.index(" going on with "), "the log was appended to"


def test_a_run_stopped_while_retraining_goes_on_with_the_next_epoch(
    run, tmp_path, finished, monkeypatch, parent
):
    from ultralytics.engine.trainer import BaseTrainer

    original, steps = BaseTrainer.optimizer_step, []

    def step(self):
        steps.append(self.epoch)
        if len(steps) == 5:  # three batches an epoch: in the middle of the second
            signal.raise_signal(signal.SIGINT)
        original(self)

    monkeypatch.setattr(BaseTrainer, "optimizer_step", step)
    code, err = run("epochs=2", "plots=false")
    folder = tmp_path / "a"
    assert code == 130
    assert err.splitlines()[-1].startswith(f"yolo-prune: stopped: {folder} keeps what was finished")
    assert "train/weights/last.pt" in check_readable(folder)

    code, err = run("epochs=2", "plots=false", "resume=true")
    assert code == 0
    assert steps == [0, 0, 0, 1, 1, 1, 1, 1]  # the second epoch again, the first and the cut not
    assert "cutting to" not in err
    assert {"weights/best.pt", "weights/last.pt", "report.json"} <= set(check_readable(folder))
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert plan_of(folder) == plan_of(finished[0])

    code, err = run("epochs=2", "plots=false", "resume=true", "keep_macs=0.8")
    assert code == 2
    assert err.splitlines()[-1] == (
        f"yolo-prune: error: the run in '{folder}' was started with keep_macs=0.6, not keep_macs=0.8. Give what it "
        "was started with, or choose another name=."
    )
    other = folder / "weights" / "best.pt"
    code, err = run("epochs=2", "plots=false", "resume=true", f"model={other}", "keep_macs=0.6")
    assert code == 2
    assert err.splitlines()[-1] == (
        f"yolo-prune: error: the run in '{folder}' was started with model={parent}, not model={other}. Give what it "
        "was started with, or choose another name=."
    )
    args = (folder / "args.yaml").read_text()
    assert "resume: false" in args
    (folder / "args.yaml").write_text(args.replace(str(parent), str(other)))  # the same name, another content
    code, err = run("epochs=2", "plots=false", "resume=true", f"model={other}")
    assert code == 2
    assert err.splitlines()[-1] == (
        f"yolo-prune: error: '{folder}' was cut from another model than '{other}'. Choose another name=."
    )


def test_ctrl_c_in_a_terminal(words, tmp_path):
    """The same with a real signal from outside, to a process of its own."""
    command = [sys.executable, "-m", "yolo_prune", *words, f"project={tmp_path}", "name=a"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("cutting to"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=SLOW_TO_START) == 130, "".join(seen) + rest
    assert rest.splitlines()[-1].startswith(f"yolo-prune: stopped: {tmp_path / 'a'} keeps what was finished")
    assert "Traceback" not in rest
    assert "weights/parent.pt" in check_readable(tmp_path / "a")


@pytest.mark.parametrize("name", ["args.yaml", "parent.pt", "plan.json", "report.json"])
def test_a_full_disk_is_one_sentence_and_nothing_half_written(run, tmp_path, monkeypatch, name):
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    code, err = run("steps=1")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("yolo-prune: error: No space left on device '")
    assert "Traceback" not in err
    assert not any(file.endswith(name) for file in check_readable(tmp_path / "a"))


def test_a_run_never_overwrites_the_model_it_starts_from(run, finished, tmp_path, words):
    assert run("steps=1")[0] == 0
    model = tmp_path / "a" / "weights" / "pruned.pt"
    before = model.read_bytes()
    code, err = run("steps=1", "exist_ok=true", f"model={model}")
    assert code == 2
    assert err.splitlines()[-1] == (
        f"yolo-prune: error: the run would overwrite its own model '{model}'. Choose another name=."
    )
    assert model.read_bytes() == before


def test_writing_into_an_old_folder_leaves_nothing_of_the_old_run(run, tmp_path):
    folder = tmp_path / "a"
    (folder / "weights").mkdir(parents=True)
    for stale in ("report.json", "recovery.json", "results.csv", "weights/best.pt"):
        (folder / stale).write_text("old")
    assert run("steps=1")[0] == 2
    assert (folder / "report.json").read_text() == "old"
    assert run("steps=1", "exist_ok=true")[0] == 0
    names = check_readable(folder)
    assert "weights/best.pt" not in names
    assert "results.csv" not in names
