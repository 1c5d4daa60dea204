"""A training that a kill does not change: until its last cut, a resumed run goes on bit for bit as an unbroken one.

The host resumes from averaged float16 weights, with data in another order and in the middle of no gradient
accumulation. The cut would then be another one. So, as long as there are cuts to come:

* every epoch draws its data and its random numbers from the run's seed and its own number alone;
* beside ``last.pt`` lies a file with all that the host's checkpoint rounds or leaves out.

Where we step in (starred), beside what ``inrun.py`` does::

    "on_train_epoch_start" *    numbers and data of this epoch; after a resume everything is put back
    "on_train_batch_start" *    one batch more since the last step
    optimizer_step() *          not before its time, though the host has forgotten when the last one was
    save_model() *              first our file, then the host's
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from yolo_prune.adapters.ultralytics.training.trainer import _StaysCut, unwrap
from yolo_prune.files import replacing
from yolo_prune.graph.randomness import seed_generators
from yolo_prune.progress import LOGGER

_PATTERN = "exact-*.pt"


class _OneEpoch:
    """The batches of one epoch: in the host's place, which goes on for ever and fetches what is then thrown away."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sampler)


class _ResumesExactly(_StaysCut):
    """The overrides, mixed in before a trainer class of the host and below the pruning."""

    pending = 0
    realigning = False
    batches_per_step = 1
    _accumulate = 1
    _endless: Any = None

    def _build_train_pipeline(self: Any) -> None:
        """Build like the host, which reads what it has just set; a smaller batch after an error of memory counts."""
        self.realigning = False
        super()._build_train_pipeline()  # type: ignore[misc]

    @property
    def accumulate(self) -> int:
        """Batches for one step of the optimizer; 1 after a resume until the first step, so that the host asks."""
        return 1 if self.realigning else self._accumulate

    @accumulate.setter
    def accumulate(self, value: int) -> None:
        self._accumulate = value

    def note_batches_per_step(self) -> None:
        """Remember how many batches make a step after the warm-up, which begins with fewer; call before that."""
        self.batches_per_step = max(self._accumulate, 1)

    def count_batch(self) -> None:
        """Note that one more batch goes into the next step."""
        self.pending += 1

    def optimizer_step(self: Any) -> None:
        """Make a step like the host, unless an unbroken run would not have made one yet."""
        if self.realigning and self.pending < self._accumulate:
            return
        super().optimizer_step()  # type: ignore[misc]
        self.pending, self.realigning = 0, False

    def is_exact(self: Any) -> bool:
        """Tell whether a kill may not change what is still to be cut."""
        exact = self.pruning.exact_resume and not self.pruning.at_end  # where the training is the host's own
        return bool(exact) and len(self.state.cuts) < self.pruning.cuts

    def pick_up_exactly(self: Any) -> None:
        """In the first epoch of a resumed run, put everything back; call before a cut."""
        if self.epoch != self.start_epoch:
            return
        self.note_batches_per_step()  # again after an error of memory, with smaller batches
        if self.resume and self.is_exact() and not self.nan_recovery_attempts:
            self.restore_exact_state()

    def order_epoch(self: Any) -> None:
        """Settle what the epoch draws, or leave that to the host when nothing is left to cut; call after a cut."""
        if self.is_exact():
            self.begin_exact_epoch()
        elif isinstance(getattr(self.train_loader, "batch_sampler", None), _OneEpoch):
            _set_sampler(self.train_loader, self._endless)
            self.train_loader.reset()

    def save_model(self: Any) -> bool:
        """Save like the host; what it leaves out is there before, so that a kill in between does no harm."""
        exact = self.save_exact_state() if self.is_exact() else None
        try:
            saved = super().save_model()
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter on a full disk
            if exact is None:
                raise
            LOGGER.warning("'%s' has to make room for the checkpoint: %s", exact, error)
            self.forget_exact_state()
            exact, saved = None, super().save_model()
        self.forget_exact_state(keep=exact)
        return saved

    def final_eval(self: Any) -> None:
        """Evaluate like the host; there is nothing left to resume."""
        super().final_eval()
        self.forget_exact_state()

    def begin_exact_epoch(self: Any) -> None:
        """Make what this epoch draws a matter of the run's seed and the epoch's number."""
        from ultralytics.utils import RANK

        attempt = self.nan_recovery_attempts  # the batch that lost the loss shall not come again
        parts = [int(self.args.seed), int(self.epoch), RANK + 1, attempt]
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        seed_generators(seed)
        loader = self.train_loader
        if not hasattr(loader, "reset") or not hasattr(getattr(loader, "batch_sampler", None), "sampler"):
            return  # of the user's own: it must see to its order itself
        if not isinstance(loader.batch_sampler, _OneEpoch):
            self._endless = loader.batch_sampler
            _set_sampler(loader, _OneEpoch(loader.batch_sampler.sampler))
        if loader.generator is not None:
            loader.generator.manual_seed(seed)
        if hasattr(loader.sampler, "set_epoch"):  # of a distributed run: all processes draw the same order
            loader.sampler.seed = int(self.args.seed)
            loader.sampler.set_epoch(self.epoch)
        _refill_mosaic(loader.dataset, random.Random(seed))
        loader.reset()

    def forget_exact_state(self: Any, keep: Path | None = None) -> None:
        """Delete the files of earlier epochs."""
        for path in self.wdir.glob(_PATTERN):
            if path != keep:
                path.unlink(missing_ok=True)

    def save_exact_state(self: Any) -> Path | None:
        """Write what the host's checkpoint of this epoch will leave out; None when the disk is full."""
        model = unwrap(self.model)
        path: Path = self.exact_path(self.epoch + 1)
        state = {
            "model": model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": _plain_groups(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "gradients": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
            "pending": self.pending,
        }
        try:
            with replacing(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:
            LOGGER.warning("a resume of this epoch will not be exact, '%s' was not written: %s", path, error)
            return None
        return path

    def exact_path(self: Any, done: int) -> Path:
        """Return the file that belongs to last.pt as it is after ``done`` epochs and the cuts so far."""
        return Path(self.wdir, _PATTERN.replace("*", f"{done}-{len(self.state.cuts)}"))

    def restore_exact_state(self: Any) -> None:
        """Put everything back as it was when last.pt was written; say so when that cannot be."""
        path = self.exact_path(self.epoch)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError):
            LOGGER.warning(
                "'%s' is missing or broken: the run goes on from the rounded weights of last.pt, and its cut may "
                "differ a little from that of an unbroken run.",
                path,
            )
            return
        model = unwrap(self.model)
        model.load_state_dict(state["model"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        for saved, group in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # the device of today decides that
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name, parameter in model.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        self.pending, self.realigning = state["pending"], True


def _plain_groups(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state without the NumPy numbers of an older host, which no safe loader reads."""
    groups = [
        {key: value.item() if isinstance(value, np.generic) else value for key, value in group.items()}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def _set_sampler(loader: Any, sampler: Any) -> None:
    """Exchange the batches of a loader, past the guard of PyTorch, as the host does itself."""
    object.__setattr__(loader, "batch_sampler", sampler)


def _refill_mosaic(dataset: Any, chooser: random.Random) -> None:
    """Choose the images from which the first mosaics of an epoch are made: what earlier epochs read is not known.

    Args:
        dataset: A data set of the host; one without such a buffer is left alone.
        chooser: Random numbers of the epoch.
    """
    buffer, limit = getattr(dataset, "buffer", None), getattr(dataset, "max_buffer_length", 0)
    if not isinstance(buffer, list) or dataset.cache == "ram" or limit < 2:
        return
    for index in buffer:
        dataset.ims[index] = dataset.im_hw0[index] = dataset.im_hw[index] = None
    dataset.buffer = chooser.sample(range(dataset.ni), limit - 1)
