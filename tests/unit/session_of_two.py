"""One of two processes that train one model in a loop of their own: ``python session_of_two.py RANK MEETING``."""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from test_session import batches, build, first
from torch import nn

from yolo_prune import PruningSession
from yolo_prune.cost import count_parameters


def train(rank):
    """Train four epochs on other images than the other process does, and say what came of it."""
    model = build()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    own = [(images + rank / 10, targets) for images, targets in batches()]
    session = PruningSession(
        *(wrapped, optimizer, torch.rand(1, 3, 12, 12)),
        keep_macs=0.5,
        total=4,
        prune_at=2,
        steps=2,
        min_width=4,
        round_to=4,
        calibration=own,
        forward=first,
    )
    session.before_train()
    for _ in range(4):
        for images, targets in own:
            outputs = wrapped(images)
            loss = nn.functional.cross_entropy(outputs, targets)
            (loss + session.teacher_loss((images, targets), outputs)).backward()
            optimizer.step()
            optimizer.zero_grad()
        session.after_epoch()
    plan = session.finish()
    shared = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    momenta = [list(optimizer.state[p]["momentum_buffer"].shape) == list(p.shape) for p in model.parameters()]
    return {
        "keep": plan.keep,
        "left": count_parameters(model) == plan.params,
        "weights": hashlib.sha256(shared).hexdigest(),
        "momenta": all(momenta),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2
    )
    sys.stdout.write(json.dumps(train(int(sys.argv[1]))) + "\n")
    torch.distributed.destroy_process_group()
