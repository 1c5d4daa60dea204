"""One of two processes that train a detector together, with the hook: each sees other images, one evaluates."""

import sys
from pathlib import Path

import torch
from detectron_stand_in import Detector, Evaluation, Trainer, loader
from torch import nn

from yolo_prune.adapters.detectron import PruningHook


class Share:
    """Every second batch."""

    def __init__(self, rank):
        self._rank = rank

    def __iter__(self):
        yield from (batch for number, batch in enumerate(loader(8)) if number % 2 == self._rank)


def train(rank, folder, options):
    """Train, and leave what came out in a file."""
    torch.set_num_threads(1)
    meet = f"file://{folder / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Detector())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    own = folder / str(rank)
    own.mkdir()
    trainer = Trainer(model, Share(rank), optimizer, own, 16)
    trainer._hooks = [hook for hook in trainer._hooks if rank == 0 or not isinstance(hook, Evaluation)]
    hook = PruningHook(**options)
    trainer.register_hooks([hook])
    trainer.train()
    state = hook.state_dict()["session"]["state"]
    torch.save({"model": model.module.state_dict(), "state": state}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train(int(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3]))
