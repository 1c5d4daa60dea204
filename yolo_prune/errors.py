"""The errors that a user can cause; each is also the builtin a caller would expect to catch."""

from __future__ import annotations


class YoloPruneError(Exception):
    """Base of every error raised on purpose; its text is what the command line prints."""


class ConfigError(YoloPruneError, ValueError):
    """An option has an unknown name or a value outside its range."""


class CheckpointError(YoloPruneError, ValueError):
    """A checkpoint is missing, truncated, unsafe to load or of a kind that cannot be pruned."""


class DataError(YoloPruneError, ValueError):
    """A data set is missing, empty, or does not fit the model."""


class BudgetError(YoloPruneError, ValueError):
    """No plan meets the budget; the text says what is possible."""


class PlanError(YoloPruneError, ValueError):
    """A plan does not fit the model it is applied to."""


class EquivalenceError(YoloPruneError, RuntimeError):
    """The cut model does not compute what the zeroed model computes: the cut would be wrong.

    Attributes:
        freeze: Names of the modules to freeze for an exact cut; empty when they are not known.
        unseen: Whether they are no wrong cut, but one of which nothing could be compared.
    """

    def __init__(self, message: str, freeze: tuple[str, ...] = (), *, unseen: bool = False) -> None:
        super().__init__(message)
        self.freeze = freeze
        self.unseen = unseen


class CutError(YoloPruneError, RuntimeError):
    """The cut of a running training failed; its last checkpoint is whole, and the text says how to go on from it."""


class RebuiltError(YoloPruneError, RuntimeError):
    """The host rebuilt the model during training, so the pruning was lost."""


class MissingRuntimeError(YoloPruneError, ImportError):
    """An optional package is not installed; the text names the extra to install."""


class BenchmarkError(YoloPruneError, RuntimeError):
    """The process that measures speed died; the text says how."""


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, without pictures, notes and its final full stop."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (
        " ".join(text.partition("\nNote ")[0].replace("❌", "").split()).rstrip(". ") or type(error).__name__
    )


def sentence_of(error: BaseException) -> str:
    """Say what went wrong; an error that nobody raised on purpose also says how to see where."""
    if isinstance(error, YoloPruneError):
        return str(error)
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return f"{error.strerror or error}{where}."
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"unexpected {type(error).__name__}: {first}. Add debug=true to see where it came from."
