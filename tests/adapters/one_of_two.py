"""One of two processes that train together on the CPU: ``python one_of_two.py RANK PORT DATA STOP FOLDER...``.

The host trains distributed on GPUs alone; what it asks of one is taken out here, and nothing else.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

RANK, PORT = sys.argv[1:3]
os.environ |= {"RANK": RANK, "LOCAL_RANK": RANK, "WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}

import torch  # noqa: E402 - the host reads the environment when it is imported
from inrun_host import make, stop_in  # noqa: E402
from torch import nn  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.utils.torch_utils import strip_optimizer  # noqa: E402

Distributed = nn.parallel.DistributedDataParallel
HOST = {"epochs": 4, "batch": 4, "nbs": 12, "mosaic": 1.0, "close_mosaic": 1, "exist_ok": True}


def without_devices(model, device_ids=None, **options):
    return Distributed(model, **options)


class OnTwo(DetectionTrainer):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.world_size = 2

    def _setup_ddp(self):
        """Nothing: the group is there already."""

    def _setup_train(self):
        nn.parallel.DistributedDataParallel = without_devices
        try:
            super()._setup_train()
        finally:
            nn.parallel.DistributedDataParallel = Distributed

    def final_eval(self):
        """Strip the checkpoints like the host, whose evaluation asks CUDA for a device."""
        for path in (self.last, self.best) if RANK == "0" else ():
            strip_optimizer(path)
        torch.distributed.barrier()


def train(data: Path, folder: Path, stop: int) -> dict[str, object]:
    """Train to the end, or to an epoch in which both processes stop dead, as by kill -9; say what came of it.

    In a folder whose name ends with ``_end`` the cut comes after the last epoch.
    """
    last = folder / "run" / "weights" / "last.pt"
    pruning = {"prune_at": "end", "imitation_steps": 4} if folder.name.endswith("_end") else {"prune_at": 3}
    options = {"pruning": pruning, "resume": last if last.is_file() else None, **HOST}
    trainer = make(data, folder, OnTwo, callbacks={"on_train_batch_end": stop_in(stop)}, **options)
    try:
        trainer.train()
    except KeyboardInterrupt:
        os._exit(3)
    weights = trainer.model.module.state_dict()
    own = ("running_mean", "running_var", "num_batches_tracked")  # each process has statistics of its own
    shared = b"".join(value.numpy().tobytes() for key, value in weights.items() if not key.endswith(own))
    return {"state": trainer.state.to_dict(), "weights": hashlib.sha256(shared).hexdigest()}


def main(data: Path, stop: int, folders: list[Path]) -> None:
    """Train in each of the folders in turn."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=int(RANK), world_size=2)
    said = [train(data, folder, stop) for folder in folders]
    sys.stdout.write(json.dumps(said) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[3]), int(sys.argv[4]), [Path(folder) for folder in sys.argv[5:]])
