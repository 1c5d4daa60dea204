"""Which options a host takes beside ours, and how its values are read; each host's adapter has its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HostKeys:
    """Names of a host's own options, known without importing it.

    Attributes:
        retrain: What ``prune`` hands on to a retraining.
        train: What ``train`` hands on.
        ignored: What a file of the host's options may hold that is no option of a training.
        texts: Those whose value is a text, whatever it looks like: ``name=2024_01`` is no number.
        switches_or_texts: Those whose value is true, false or a text.
        lists: Those whose value is a whole number or a list.
    """

    retrain: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    switches_or_texts: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


NO_HOST = HostKeys()
"""Options of our own alone."""
