"""The command line: ``yolo-prune COMMAND key=value ...``, in the grammar of ``yolo``."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import os
import platform
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_prune import __version__
from yolo_prune import options as configs
from yolo_prune.adapters.hosts import hosts
from yolo_prune.cli import commands
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.options.fields import REST, is_required, option_fields, parse_overrides
from yolo_prune.progress import log_to_console

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


@dataclass(frozen=True)
class Command:
    """A word of the command line: its options, what it calls, and what the help says of it."""

    kind: type[Any]
    call: Callable[[Any], None]
    summary: str
    example: str


COMMANDS = {
    "prune": Command(
        configs.PruneConfig,
        commands.prune,
        "cut a model to a budget, recover its accuracy, prove and measure what it cost",
        "yolo-prune prune model=best.pt data=data.yaml keep_macs=0.5 epochs=20",
    ),
    "train": Command(
        configs.TrainConfig,
        commands.train,
        "train like yolo train, and prune inside the training; go on with a pruned model",
        "yolo-prune train model=yolo11n.pt data=data.yaml epochs=100 imgsz=640 keep_macs=0.5",
    ),
    "sweep": Command(
        configs.SweepConfig,
        commands.sweep,
        "prune to many budgets, draw accuracy against speed, pick the model under a constraint",
        "yolo-prune sweep model=best.pt data=data.yaml keep_macs=0.8,0.65,0.5 epochs=20 max_ap_drop=0.01",
    ),
    "eval": Command(
        configs.EvalConfig,
        commands.evaluate,
        "COCO AP of a detector beside the host's own number; top-1 and top-5 of a classifier",
        "yolo-prune eval model=best.pt data=data.yaml split=test",
    ),
    "bench": Command(
        configs.BenchConfig,
        commands.bench,
        "latency and FPS of models against each other",
        "yolo-prune bench model=parent.pt,pruned.pt imgsz=320 threads=1",
    ),
    "export": Command(
        configs.ExportConfig,
        commands.export,
        "an ONNX file, in 32 or 8 bits, and how far it is from its checkpoint",
        "yolo-prune export model=best.pt data=data.yaml quantize=8",
    ),
    "inspect": Command(
        configs.InspectConfig,
        commands.inspect,
        "which channels belong together, what they cost, and what is frozen and why",
        "yolo-prune inspect model=best.pt",
    ),
    "report": Command(
        configs.ReportConfig,
        commands.report,
        "write the report of a run again",
        "yolo-prune report run=runs/prune/prune",
    ),
    "demo": Command(
        configs.DemoConfig,
        commands.demo,
        "train, prune and retrain a small detector on a data set that the package draws itself",
        "yolo-prune demo",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process when None.

    Returns:
        0, or 2 after an error, or 130 after Ctrl-C.
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
        _complain(f"error: {_sentence(error)}")
        return FAILED


def _sentence(error: BaseException) -> str:
    """Say what went wrong; an error that nobody raised on purpose also says how to see where."""
    if isinstance(error, YoloPruneError):
        return str(error)
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return f"{error.strerror or error}{where}."
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"unexpected {type(error).__name__}: {first}. Add debug=true to see where it came from."


def _dispatch(words: list[str]) -> int:
    """Answer a question about the program, or run a command."""
    if not words or words[0] in _HELP:
        asked = words[1:2] if words and words[0] == "help" else []
        commands.say(command_help(_command_name(asked[0])) if asked else general_help())
        return OK
    if words[0] in _VERSION:
        commands.say(version_text())
        return OK
    name, rest = _command_name(words[0]), words[1:]
    if any(word in _HELP[:2] for word in rest):
        commands.say(command_help(name))
        return OK
    command = COMMANDS[name]
    rest = _host_words(rest) if name == "train" else rest
    config = configs.make_config(command.kind, parse_overrides(rest))
    log_to_console(config.verbose)
    with commands.answers_alone_on_stdout():
        command.call(config)
    return OK


def _host_words(words: Sequence[str]) -> list[str]:
    """Give the bare words that ``yolo`` understands their keys: ``detect`` is a task, ``resume`` means true."""
    keys = {**dict.fromkeys(_TASKS, "task={}"), **dict.fromkeys(_SWITCHES, "{}=true")}
    spoken = []
    for before, word in zip(["", *words], words, strict=False):
        follows_key = before.startswith("--") and "=" not in before
        spoken.append(word if follows_key else keys.get(word, "{}").format(word))
    return spoken


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


def version_text() -> str:
    """Return the package's version and those that its numbers depend on, without importing them."""
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", *(package for host in hosts() for package in host.packages)):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"yolo-prune {__version__} ({', '.join(found)})"


def general_help() -> str:
    """Return the commands, one a line, and how to go on."""
    lines = [f"  {name:<8} {command.summary}" for name, command in COMMANDS.items()]
    examples = [f"  {COMMANDS[name].example}" for name in ("prune", "demo")]
    return "\n".join(
        [
            "yolo-prune COMMAND key=value ...   (--key value means the same)",
            "",
            "Commands:",
            *lines,
            "",
            "Examples:",
            *examples,
            "",
            "yolo-prune COMMAND -h lists the options of a command; cfg=FILE.yaml reads them from a recipe.",
            "Commas separate the items of a list; quotes keep one in an item: model='\"a,b.pt\",c.pt'.",
            "yolo-prune --version names the versions in use.",
        ]
    )


def command_help(name: str) -> str:
    """Return the options of a command, made from the documentation of its fields."""
    command = COMMANDS[name]
    hints = typing.get_type_hints(command.kind)
    fields = option_fields(command.kind)
    required = {key: field for key, field in fields.items() if is_required(field)}
    optional = {key: field for key, field in fields.items() if key not in required}
    width = max(len(f"{key}={_type_name(hints[key], field)}") for key, field in fields.items())
    lines = [f"yolo-prune {name}: {command.summary}", ""]
    for title, group in (("Required:", required), ("Options:", optional)):
        if group:
            lines += [title, *(_option_line(key, field, hints[key], width) for key, field in group.items())]
    lines.append(f"  {'cfg=FILE':<{width}}  recipe with any of these keys; the command line wins")
    if any(field.name == REST for field in dataclasses.fields(command.kind)):
        lines += [
            "",
            "Training arguments of the host that are passed on:",
            *_wrapped(configs.rest_keys(command.kind)),
        ]
    return "\n".join([*lines, "", f"Example: {command.example}"])


def _option_line(key: str, field: dataclasses.Field[Any], hint: Any, width: int) -> str:
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    quiet = is_required(field) or default is None or shown == ""
    note = "" if quiet else f" (default {shown})"
    return f"  {f'{key}={_type_name(hint, field)}':<{width}}  {field.metadata['help']}{note}"


def _type_name(hint: Any, field: dataclasses.Field[Any]) -> str:
    """Return the placeholder of a value: its choices where there are few, else its type."""
    choices = field.metadata["choices"]
    if choices:
        return "|".join(
            str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices
        )
    text = str(hint)
    kinds = (
        ("tuple[int, int]", "INT|H,W"),
        ("tuple", "A,B"),
        ("float", "FLOAT"),
        ("bool", "BOOL"),
        ("int", "INT"),
    )
    for kind, name in kinds:
        if kind in text:
            return name
    return "TEXT"


def _wrapped(words: Sequence[str]) -> list[str]:
    lines = ["  "]
    for word in words:
        if len(lines[-1]) + len(word) > 100:
            lines.append("  ")
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
