"""The command line: ``yolo-prune COMMAND key=value ...``, in the grammar of ``yolo``."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from yolo_prune.adapters.hosts import PLAIN_CHECKPOINT, find_host, hosts
from yolo_prune.cli.help import command_help, general_help, version_text, welcome
from yolo_prune.cli.output import answers_alone_on_stdout, plain_stderr, say
from yolo_prune.cli.registry import COMMANDS
from yolo_prune.errors import ConfigError, YoloPruneError, sentence_of
from yolo_prune.extras import missing_extra
from yolo_prune.options.fields import option_fields, parse_overrides
from yolo_prune.progress import log_to_console
from yolo_prune.runs.configure import make_config

OK, FAILED, STOPPED = 0, 2, 130
_TASKS = ("detect", "segment", "pose", "obb", "classify")
_SWITCHES = ("resume", "exist_ok", "cos_lr", "rect", "single_cls", "plots", "save_json", "cache")
_HELP = ("-h", "--help", "help")
_VERSION = ("-V", "--version", "version")
_UNEXPECTED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process when None.

    Returns:
        0, or 2 after an error, or 130 after Ctrl-C; 1 where a check is not met.
    """
    # Before torch is imported: spinning OpenMP threads make a shared machine tens of times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        _complain(f"stopped: {stop}" if str(stop) else _where_it_stopped(words))
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: that is no error
        return OK
    except (YoloPruneError, OSError, *_UNEXPECTED) as error:
        if any(_wants_debug(word) for word in words):
            traceback.print_exception(error)
        _complain(f"error: {sentence_of(error)}")
        return FAILED


def _dispatch(words: list[str]) -> int:
    """Answer a question about the program, or run a command."""
    if not words:
        say(welcome())
        return OK
    if words[0] in _HELP:
        asked = words[1:2] if words[0] == "help" else []
        say(command_help(_command_name(asked[0])) if asked else general_help())
        return OK
    if words[0] in _VERSION:
        say(version_text())
        return OK
    name, rest = _command_name(words[0]), words[1:]
    if any(word in _HELP[:2] for word in rest):
        say(command_help(name))
        return OK
    command = COMMANDS[name]
    spoken = {"train": _host_words, "report": _run_words, "completion": _shell_words}.get(name)
    rest = spoken(rest) if spoken else rest
    config = make_config(command.kind, parse_overrides(rest))
    log_to_console(config.verbose)
    with plain_stderr(), answers_alone_on_stdout():
        try:
            return command.call(config) or OK
        except ModuleNotFoundError as error:
            missing = _missing(error, name, config)
            if missing is None:
                raise
            raise missing from error


def _missing(error: ModuleNotFoundError, command: str, config: Any) -> YoloPruneError | None:
    """Say which extra installs what a command could not import; None where none does."""
    model = getattr(config, "model", None)
    first = model[0] if isinstance(model, tuple) else model
    own = find_host(PLAIN_CHECKPOINT if first is None else first).packages[0]
    return missing_extra(error, f"'{command}'", [name for host in hosts() for name in host.packages], own)


def _host_words(words: Sequence[str]) -> list[str]:
    """Give the bare words that ``yolo`` understands their keys: ``detect`` is a task, ``resume`` means true."""
    keys = {**dict.fromkeys(_TASKS, "task={}"), **dict.fromkeys(_SWITCHES, "{}=true")}
    spoken = []
    for before, word in zip(["", *words], words, strict=False):
        follows_key = before.startswith("--") and "=" not in before
        spoken.append(word if follows_key else keys.get(word, "{}").format(word))
    return spoken


def _run_words(words: Sequence[str]) -> list[str]:
    """Give bare words the key of what a report is of: run folders."""
    before = ["", *words]
    bare = [
        index
        for index, word in enumerate(words)
        if "=" not in word
        and not word.startswith("-")
        and not (before[index].startswith("--") and "=" not in before[index])
    ]
    folders = ",".join(f'"{words[index]}"' if "," in words[index] else words[index] for index in bare)
    kept = [word for index, word in enumerate(words) if index not in bare]
    return [*kept, f"run={folders}"] if bare else kept


def _shell_words(words: Sequence[str]) -> list[str]:
    """Give a first bare word the key of the shell."""
    bare = words[:1] if words and "=" not in words[0] and not words[0].startswith("-") else []
    return [*(f"shell={word}" for word in bare), *words[len(bare) :]]


def _command_name(word: str) -> str:
    """Return the command that a word names.

    Raises:
        ConfigError: There is no such command.
    """
    if word in COMMANDS:
        return word
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else f" Commands: {', '.join(COMMANDS)}."
    raise ConfigError(f"unknown command '{word}'.{hint}")


def _wants_debug(word: str) -> bool:
    key, _, value = word.removeprefix("--").partition("=")
    return key == "debug" and value.lower() in ("", "true", "1", "yes", "on")


def _where_it_stopped(words: Sequence[str]) -> str:
    """Name the folder of the runs, where the stage that was stopped could not name its own."""
    if words and words[0] in COMMANDS:
        project = option_fields(COMMANDS[words[0]].kind).get("project")
        folder = dict(word.split("=", 1) for word in words if "=" in word).get("project")
        if project is not None:
            return f"stopped: what was finished is under {folder or project.default}"
    return "stopped"


def _complain(message: str) -> None:
    sys.stderr.write(f"yolo-prune: {message}\n")
