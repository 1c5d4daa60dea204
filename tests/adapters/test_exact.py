"""A run that was killed before its cut ends as the one that was not: same data, same weights, same plan."""

import errno
import json
import signal
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from inrun_host import again, make, run, saved, stop_in, table
from tiny_host import draw
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_prune.cost import count_parameters


class Workers(DetectionTrainer):
    """The host reads without worker processes on a CPU, with them on a GPU."""

    def get_dataloader(self, *args, **options):
        self.args.workers = 2
        return super().get_dataloader(*args, **options)


BASE = {"epochs": 5, "batch": 3, "nbs": 6, "mosaic": 1.0, "warmup_epochs": 1, "close_mosaic": 1}
HOSTS = {
    "adamw and workers": {"optimizer": "AdamW", "base": Workers},
    "musgd, multi_scale, images in memory": {
        "optimizer": "MuSGD",
        "multi_scale": 0.5,
        "lr0": 0.002,
        "cache": "ram",
    },
    "warm-up and long accumulation": {"nbs": 15, "warmup_epochs": 4},
}


def same_weights(one: Path, other: Path) -> bool:
    first, second = saved(one).state_dict(), saved(other).state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def kill_and_resume(data, tmp_path, kills, base=DetectionTrainer, *, pruning=(), **host):
    """Stop in the first batch of each of these epochs (none is the first), and go on."""
    trainer = None
    for number, epoch in enumerate(kills):
        folder, callbacks = tmp_path / str(number), {"on_train_batch_end": stop_in(epoch)}
        last = None if trainer is None else again(trainer.save_dir, folder)
        trainer = make(data, folder, base, pruning=pruning, resume=last, callbacks=callbacks, **host)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    folder = tmp_path / "end"
    last = again(trainer.save_dir, folder)
    return run(data, folder, base, pruning=pruning, resume=last, **host)


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_the_same_cut_after_kills_in_the_dense_and_the_sparse_epochs(host, data, tmp_path):
    host, pruning = {**BASE, **host}, {"prune_at": 4}
    base = host.pop("base", DetectionTrainer)
    whole = run(data, tmp_path / "whole", base, pruning=pruning, **host)
    resumed = kill_and_resume(data, tmp_path, [1, 3], base, pruning=pruning, **host)
    assert same_weights(whole.wdir / "parent.pt", resumed.wdir / "parent.pt")
    assert (resumed.save_dir / "plan.json").read_text() == (whole.save_dir / "plan.json").read_text()
    assert resumed.state.to_dict() == whole.state.to_dict()
    columns = ("train/box_loss", "prune/lambda", "prune/below", "lr/pg0")
    assert [[row[c] for c in columns] for row in table(resumed)[:4]] == [
        [row[c] for c in columns] for row in table(whole)[:4]
    ]
    assert not [path for run in (whole, resumed) for path in run.wdir.glob("exact-*")]


def test_control_without_the_files_the_weights_differ_and_the_run_says_so(data, tmp_path, caplog):
    host, pruning = BASE, {"prune_at": 4}
    whole = run(data, tmp_path / "whole", pruning=pruning, **host)
    trainer = make(
        data, tmp_path / "a", pruning=pruning, callbacks={"on_train_batch_end": stop_in(3)}, **host
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    (file,) = trainer.wdir.glob("exact-*")
    assert file.name == "exact-3-0.pt"
    file.write_bytes(file.read_bytes()[:1000])
    resumed = run(
        data, tmp_path / "b", pruning=pruning, resume=again(trainer.save_dir, tmp_path / "b"), **host
    )
    assert "exact-3-0.pt' is missing or broken" in caplog.text
    assert not same_weights(whole.wdir / "parent.pt", resumed.wdir / "parent.pt")
    assert resumed.state.cuts


def test_the_same_cuts_after_a_kill_between_two_of_them(data, tmp_path):
    host, pruning = {**BASE, "epochs": 7}, {"prune_at": 2, "cuts": 2, "sparsify": 0.5}
    whole = run(data, tmp_path / "whole", pruning=pruning, **host)
    assert [record.epoch for record in whole.state.cuts] == [2, 5]
    resumed = kill_and_resume(data, tmp_path, [2, 4], pruning=pruning, **host)
    assert resumed.state.to_dict() == whole.state.to_dict()


def test_a_classifier_is_cut_the_same(tmp_path):
    data = draw(tmp_path / "data", "classify")
    host = {"epochs": 4, "batch": 3, "task": "classify", "dropout": 0.2}
    whole = run(data, tmp_path / "whole", ClassificationTrainer, **host)
    resumed = kill_and_resume(data, tmp_path, [1], ClassificationTrainer, **host)
    assert same_weights(whole.wdir / "parent.pt", resumed.wdir / "parent.pt")
    assert resumed.state.to_dict() == whole.state.to_dict()


def test_each_epoch_has_other_data_and_sees_every_image_once(data, tmp_path):
    seen = []

    def note(trainer):
        seen.append((trainer.epoch, deepcopy(trainer.train_loader.dataset.buffer)))

    def batch(trainer):
        orders.setdefault(trainer.epoch, []).extend(trainer.files)

    class Watched(Workers):
        def preprocess_batch(self, batch):
            self.files = [Path(name).name for name in batch["im_file"]]
            return super().preprocess_batch(batch)

    orders = {}
    callbacks = {"on_train_epoch_end": note, "on_train_batch_end": batch}
    run(data, tmp_path, Watched, callbacks=callbacks, **BASE, pruning={"prune_at": 3})
    assert all(sorted(order) == [f"{index}.jpg" for index in range(8)] for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == len(orders) == 5
    before = [tuple(buffer) for epoch, buffer in seen if epoch < 3]
    assert len(set(before)) == 3
    assert all(len(set(buffer)) == 7 for buffer in before)  # the host's limit less one


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import inrun_host, torch
from pathlib import Path
torch.set_num_threads(1)
host = eval(sys.argv[4])
kill = lambda trainer: trainer.epoch == 2 and os.kill(os.getpid(), signal.SIGKILL)
inrun_host.run(Path(sys.argv[2]), Path(sys.argv[3]), callbacks={"on_model_save": kill}, **host)
"""


def test_kill_9_while_the_epoch_is_being_saved(data, tmp_path):
    host = BASE
    whole = run(data, tmp_path / "whole", pruning={"prune_at": 4}, **host)
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(data), str(tmp_path)]
    words += [repr({**host, "pruning": {"prune_at": 4}})]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = run(data, tmp_path, pruning={"prune_at": 4}, resume=tmp_path / "run/weights/last.pt", **host)
    assert resumed.state.to_dict() == whole.state.to_dict()
    assert same_weights(whole.wdir / "parent.pt", resumed.wdir / "parent.pt")


def train_in_two_processes(data, *folders, stop=-1):
    """Train in each folder; return what each process says of each training, or None where both stopped dead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).with_name("one_of_two.py"))
    both = [
        subprocess.Popen(
            [sys.executable, script, rank, port, str(data), str(stop), *map(str, folders)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=240) for process in both]
    codes = [process.returncode for process in both]
    assert codes == ([0, 0] if stop < 0 else [3, 3]), said
    return None if stop >= 0 else [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_two_processes_cut_the_same_together_and_after_a_kill(data, tmp_path):
    train_in_two_processes(data, tmp_path / "killed", stop=1)
    first, second = train_in_two_processes(data, tmp_path / "whole", tmp_path / "killed")
    assert first[0] == second[0]
    assert first[0]["state"]["cuts"]
    assert [resumed["state"] for _, resumed in (first, second)] == [
        whole["state"] for whole, _ in (first, second)
    ]
    parents = [tmp_path / name / "run" / "weights" / "parent.pt" for name in ("whole", "killed")]
    assert same_weights(*parents)


def test_two_processes_cut_the_best_model_together_at_the_end(data, tmp_path):
    ((first, second),) = zip(*train_in_two_processes(data, tmp_path / "at_end"), strict=True)
    assert first == second
    assert [record["epoch"] for record in first["state"]["cuts"]] == [4]
    weights = tmp_path / "at_end" / "run" / "weights"
    assert (
        count_parameters(torch.load(weights / "best.pt", weights_only=False)["model"])
        == first["state"]["cuts"][0]["params"]
    )
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt", "parent.pt"]


class FullDisk(DetectionTrainer):
    """A disk on which the checkpoint fits, but not beside another file."""

    def save_model(self):
        if list(self.wdir.glob("exact-*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().save_model()


def test_on_a_full_disk_the_checkpoint_comes_first(data, tmp_path, caplog):
    trainer = make(data, tmp_path, FullDisk, callbacks={"on_train_batch_end": stop_in(1)})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "has to make room for the checkpoint" in caplog.text
    assert trainer.last.is_file()
    assert not list(trainer.wdir.glob("exact-*"))
