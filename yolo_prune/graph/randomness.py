"""The generators of random numbers that a run draws from: Python's, NumPy's and PyTorch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed_generators(seed: int) -> None:
    """Begin all generators anew, those of every device too.

    Args:
        seed: In [0, 2**32).
    """
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Restore every generator of random numbers afterwards, after an error too: what happens inside leaves no trace."""
    import torch

    states = random.getstate(), np.random.get_state()
    # The one GPU of this process: without a list PyTorch opens every GPU of the machine, and warns of it.
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
