"""Commands inside which the host knows the user's own classes, and reads nothing that is not trusted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeVar


class Trusting(Protocol):
    """Options that say what may be loaded."""

    @property
    def trust(self) -> bool:
        """Whether classes that are not stock may be loaded."""

    @property
    def imports(self) -> tuple[str, ...]:
        """Python files or modules that hold such classes."""


_Config = TypeVar("_Config", bound=Trusting)
_Result = TypeVar("_Result")


def guarding_host(call: Callable[[_Config], _Result]) -> Callable[[_Config], _Result]:
    """Run a command with the host guarded as its options say; nothing is imported before it is called."""

    @functools.wraps(call)
    def guarded_call(config: _Config) -> _Result:
        from yolo_prune.adapters.ultralytics.guard import guarded

        with guarded(trust=config.trust, imports=config.imports):
            return call(config)

    return guarded_call
