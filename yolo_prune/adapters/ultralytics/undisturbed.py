"""Run the host's code without leaving a trace in a process that belongs to somebody else.

The host is made for processes of its own: it chooses threads and hides GPUs for everybody, draws from the shared random
numbers, and installs packages when it misses one. Our calls of it happen inside these context managers, so importing
and using this package changes nothing that others see.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.progress import LOGGER

_SWITCH = "YOLO_AUTOINSTALL"
_KIND = "legacy"


@contextmanager
def no_installs() -> Iterator[None]:
    """Keep the host from installing packages, here and in processes that start meanwhile."""
    checks: Any = importlib.import_module("ultralytics.utils.checks")  # first: it reads the variable once
    allowed = checks.AUTOINSTALL
    with _same_environment():
        os.environ[_SWITCH] = "false"
        checks.AUTOINSTALL = False
        try:
            yield
        finally:
            checks.AUTOINSTALL = allowed


@contextmanager
def undisturbed(level: int = logging.ERROR) -> Iterator[None]:
    """Run host code silently, and put back what it changes: threads, environment, random numbers, defaults of layers.

    Args:
        level: What the host may still say. From ``ERROR`` on its progress bars are hidden, too.
    """
    logger = logging.getLogger("ultralytics")
    with no_installs(), untouched_randomness(), _same_layers():
        before, threads = logger.level, torch.get_num_threads()
        logger.setLevel(level)
        try:
            yield
        finally:
            logger.setLevel(before)
            torch.set_num_threads(threads)


@contextmanager
def training_options(threads: int | None) -> Iterator[None]:
    """Put back after a training what its options asked for while it ran: threads, and our messages on the console.

    Args:
        threads: CPU threads that were asked for; None leaves what the host chose as it leaves it.
    """
    before, handlers, level = torch.get_num_threads(), list(LOGGER.handlers), LOGGER.level
    try:
        yield
    finally:
        LOGGER.handlers[:] = handlers
        LOGGER.setLevel(level)
        if threads is not None:
            torch.set_num_threads(before)


@contextmanager
def _same_environment() -> Iterator[None]:
    """Restore the environment variables; some versions hide every GPU when they select the CPU."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@contextmanager
def _same_layers() -> Iterator[None]:
    """Restore what building a model leaves on the host's classes: the kind of head, on older hosts the activation."""
    head: Any = importlib.import_module("ultralytics.nn.modules.head")
    conv: Any = importlib.import_module("ultralytics.nn.modules.conv").Conv
    heads = [each for each in vars(head).values() if isinstance(each, type) and issubclass(each, head.Detect)]
    before, activation = {each: vars(each).get(_KIND) for each in heads}, conv.default_act
    try:
        yield
    finally:
        conv.default_act = activation
        for each, kind in before.items():
            if kind is not None:
                setattr(each, _KIND, kind)
            elif _KIND in vars(each):
                delattr(each, _KIND)
