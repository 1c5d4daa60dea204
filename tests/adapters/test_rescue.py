"""A cut that fails in a running training: what was trained is on the disk, and the error says how to go on."""

import errno

import pytest
import torch
from inrun_host import make, run, saved
from tiny_host import tiny

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BudgetError, CutError
from yolo_prune.train import session

SHORT = {"epochs": 2, "save": False}
PRUNING = {"prune_at": 1, "sparsify": "off", "distill": False}


def raising(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


def test_whatever_fails_at_the_cut_the_training_is_kept_and_goes_on(data, tmp_path, monkeypatch):
    """Even where the host was told to save nothing, so that it writes no checkpoint before the last epoch."""
    ways = []
    failures = (
        (
            session,
            "recover",
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
            CutError,
        ),
        (session, "recover", BudgetError("cannot meet keep_macs=0.6."), BudgetError),
        (PrunePlan, "save", OSError(errno.ENOSPC, "No space left on device"), CutError),
    )
    last = None
    for owner, name, error, kind in failures:
        trainer = make(data, tmp_path, pruning=PRUNING, resume=last, **SHORT)
        with monkeypatch.context() as patch, pytest.raises(kind) as caught:
            patch.setattr(owner, name, raising(error))
            trainer.train()
        ways.append(str(caught.value))
        last = trainer.last
        checkpoint = torch.load(last, map_location="cpu", weights_only=False)
        assert (checkpoint["epoch"], checkpoint["optimizer"] is not None) == (0, True)
        assert count_parameters(saved(last)) == count_parameters(tiny())
    way_on = f"Nothing of the training is lost: 'yolo-prune train resume model={last}' goes on with the cut."
    memory, budget, disk = ways
    what = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert memory == f"the cut in epoch 2 failed ({what}). {way_on}"
    assert disk == (f"the cut in epoch 2 failed (OSError: [Errno 28] No space left on device). {way_on}")
    alone = f"'yolo-prune prune model={last} data={data} keep_macs=...'"
    assert (
        budget
        == f"cannot meet keep_macs=0.6. {way_on} With other options cut this checkpoint by itself: {alone}."
    )
    assert load_detector(last).task == "detect", "as that sentence promises"
    resumed = run(data, tmp_path, pruning=PRUNING, resume=last, **SHORT)
    assert PrunePlan.from_json((resumed.save_dir / "plan.json").read_text()).kept_macs <= 0.6
    assert count_parameters(saved(resumed.best)) == resumed.state.cuts[0].params < count_parameters(tiny())


def test_before_anything_was_trained_there_is_nothing_to_keep(data, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "recover", raising(RuntimeError("broken.")))
    with pytest.raises(CutError) as caught:
        run(data, tmp_path, pruning={**PRUNING, "prune_at": 0}, **SHORT)
    assert str(caught.value) == "the cut in epoch 1 failed (RuntimeError: broken). Nothing was trained yet."
