"""Tab completion: one script for each shell, with every key and choice of the option registry written into it.

Completions come out of the script alone: a key press starts no Python. ``key=value`` is no grammar of the usual
generators of such scripts (they read flags off an argument parser), so the scripts are written here.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import Any

from yolo_prune.cli.kinds import KINDS
from yolo_prune.options.fields import option_fields
from yolo_prune.runs.configure import rest_keys

FILES = "FILES"
"""Stands for the names of files, where a value is a text without choices."""
_YES_OR_NO = ("true", "false")


def completion_script(shell: str) -> str:
    """Return the script that completes commands, keys, choices and files in a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
    """
    return _SCRIPTS[shell]()


def keys_of(command: str) -> list[str]:
    """Return the keys that a command takes, its own before those of the host."""
    kind = KINDS[command]
    return list(dict.fromkeys([*option_fields(kind), "cfg", *rest_keys(kind)]))


def values_of(command: str, key: str) -> tuple[str, ...]:
    """Return what may stand behind a key: choices, switches, words, or :data:`FILES`; nothing for numbers.

    Example:
        >>> values_of("prune", "split"), values_of("prune", "model"), values_of("prune", "steps")
        (('val', 'test', 'train'), ('FILES',), ())
    """
    kind = KINDS[command]
    field = option_fields(kind).get(key)
    if field is None:
        return (FILES,)
    if field.metadata["choices"]:
        return tuple(
            str(one).lower() if isinstance(one, bool) else str(one) for one in field.metadata["choices"]
        )
    if field.metadata["words"]:
        return tuple(field.metadata["words"])
    hint: Any = typing.get_type_hints(kind)[key]
    kinds = {hint, *typing.get_args(hint)}
    if bool in kinds:
        return _YES_OR_NO
    texts = any(str in {each, *typing.get_args(each)} for each in kinds)
    return (FILES,) if texts else ()


def _table() -> dict[tuple[str, ...], list[str]]:
    """Return values -> ``command.key`` of all that take them, for a ``case`` of a shell."""
    found: dict[tuple[str, ...], list[str]] = {}
    for command in KINDS:
        for key in keys_of(command):
            found.setdefault(values_of(command, key), []).append(f"{command}.{key}")
    del found[(FILES,)]  # what every other key gets
    return found


def _cases(line: Callable[[str, str], str]) -> str:
    """Return the branches of a table: how a shell writes ``command.key`` words and values is up to ``line``."""
    return "\n".join(line(" ".join(names), " ".join(values)) for values, names in _table().items())


def _key_cases(line: Callable[[str, str], str]) -> str:
    return "\n".join(line(command, " ".join(f"{key}=" for key in keys_of(command))) for command in KINDS)


def _posix(names: str, setting: str, values: str) -> str:
    return f"    {names.replace(' ', '|')}) {setting}='{values}' ;;"


def _bash() -> str:
    return _filled(
        _BASH,
        _key_cases(lambda command, keys: _posix(command, "keys", keys)),
        _cases(lambda names, values: _posix(names, "values", values)),
    )


def _zsh() -> str:
    return _filled(
        _ZSH,
        _key_cases(lambda command, keys: _posix(command, "keys", keys)),
        _cases(lambda names, values: _posix(names, "values", values)),
    )


def _fish() -> str:
    def case(setting: str) -> Callable[[str, str], str]:
        return lambda names, values: f"        case {names}\n            set {setting} {values}"

    return _filled(_FISH, _key_cases(case("keys")), _cases(case("values")))


def _filled(template: str, keys: str, values: str, commands: Iterable[str] = KINDS) -> str:
    """Put the tables into a script."""
    names = " ".join([*commands, "help"])
    return template.replace("@commands@", names).replace("@keys@", keys).replace("@values@", values)


# Readline takes "=" and ":" for the end of a word and replaces only what stands behind the last of them, so what is
# offered begins there too. Where a shell's settings differ, it begins where its words do.
_BASH = """# yolo-prune in bash: eval "$(yolo-prune completion bash)", or this text in
# ~/.local/share/bash-completion/completions/yolo-prune
_yolo_prune() {
  local line=${COMP_LINE:0:COMP_POINT} word key value typed command keys values=FILES before item
  word=${line##*[[:space:]]}
  read -r _ command _ <<< "$line"
  COMPREPLY=()
  if [[ -z $command || $line =~ ^[[:space:]]*[^[:space:]]+[[:space:]]+[^[:space:]]*$ ]]; then
    COMPREPLY=($(compgen -W '@commands@' -- "$word"))
    return
  fi
  before=${line%"$word"}
  before=${before%"${before##*[![:space:]]}"}
  before=${before##*[[:space:]]}
  if [[ $command == help ]]; then
    COMPREPLY=($(compgen -W '@commands@' -- "$word"))
    return
  elif [[ $command == completion && $word != *=* ]]; then
    COMPREPLY=($(compgen -W 'bash zsh fish' -- "$word"))
    return
  elif [[ $word == *=* ]]; then
    key=${word%%=*} value=${word#*=}
  elif [[ $before == --* && $before != *=* && $word != --* ]]; then
    key=$before value=$word
  else
    case $command in
@keys@
    esac
    if [[ $word == --* ]]; then
      compopt -o nospace
      COMPREPLY=($(compgen -P -- -W "$keys" -- "${word#--}"))
    else
      COMPREPLY=($(compgen -W "$keys" -- "$word"))
      [[ $command == report ]] && COMPREPLY+=($(compgen -f -- "$word"))
      [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace
    fi
    return
  fi
  key=${key#--}
  case $command.${key//-/_} in
@values@
  esac
  item=${value##*,}
  if [[ $values == FILES ]]; then
    compopt -o filenames
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- "$item"))
  else
    COMPREPLY=($(compgen -W "$values" -- "$item"))
  fi
  # Readline replaces its own last word: put before each what that word holds beyond the item, or cut off what it lacks.
  typed=${COMP_WORDS[COMP_CWORD]}
  [[ $typed == = ]] && typed=''
  [[ $typed == *[=:] ]] && typed=''
  local shown index
  for index in "${!COMPREPLY[@]}"; do
    shown=${word%"$item"}${COMPREPLY[index]}
    COMPREPLY[index]=${shown#"${word%"$typed"}"}
  done
}
complete -F _yolo_prune yolo-prune
"""

_ZSH = """#compdef yolo-prune
# yolo-prune in zsh: source <(yolo-prune completion zsh) after compinit, or this text as
# _yolo-prune in a folder of $fpath
_yolo_prune() {
  local command=$words[2] key keys values=FILES before=$words[CURRENT-1]
  if (( CURRENT == 2 )) || [[ $command == help ]]; then
    compadd -- ${=:-@commands@}
    return
  elif [[ $command == completion && $PREFIX != *=* ]]; then
    compadd -- bash zsh fish
    return
  elif [[ $PREFIX == *=* ]]; then
    key=${PREFIX%%=*}
    compset -P 1 '*='
  elif [[ $before == --* && $before != *=* && $PREFIX != --* ]]; then
    key=$before
  else
    case $command in
@keys@
    esac
    [[ $PREFIX == --* ]] && compset -P -- --
    compadd -S '' -- ${=keys}
    [[ $command == report ]] && _files
    return
  fi
  key=${key#--}
  case $command.${key//-/_} in
@values@
  esac
  compset -P '*,'
  if [[ $values == FILES ]]; then
    _files
  else
    compadd -- ${=values}
  fi
}
(( $+functions[compdef] )) && compdef _yolo_prune yolo-prune
[[ $funcstack[1] == _yolo-prune ]] && _yolo_prune "$@"
"""

_FISH = """# yolo-prune in fish: yolo-prune completion fish | source, or this text in
# ~/.config/fish/completions/yolo-prune.fish (key=value alone: fish takes --key for an option of its own kind)
function __yolo_prune_complete
    set -l past (commandline -opc)
    set -l word (commandline -ct)
    set -l keys
    set -l values
    if test (count $past) -lt 2; or test "$past[2]" = help
        string split ' ' '@commands@'
        return
    end
    set -l command $past[2]
    if test $command = completion; and not string match -q '*=*' -- $word
        printf '%s\\n' bash zsh fish
        return
    else if not string match -q '*=*' -- $word
        switch $command
@keys@
        end
        printf '%s\\n' $keys
        test $command = report; and __fish_complete_path $word
        return
    end
    set -l key (string replace -r '=.*' '' -- $word)
    set -l start $key=
    set -l value (string replace -r '^[^=]*=' '' -- $word)
    set values FILES
    switch $command.$key
@values@
    end
    if string match -q '*,*' -- $value
        set start $start(string replace -r '[^,]*$' '' -- $value)
        set value (string replace -r '.*,' '' -- $value)
    end
    if test "$values" = FILES
        for path in (__fish_complete_path $value | string replace -r '\\t.*' '')
            echo -- $start$path
        end
    else
        for one in $values
            echo -- $start$one
        end
    end
end
complete -c yolo-prune -f -a '(__yolo_prune_complete)'
"""

_SCRIPTS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
