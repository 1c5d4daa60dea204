"""Tab completion: what the printed scripts offer, in the shell itself where there is one."""

import shutil
import subprocess

import pytest

from yolo_prune.cli import entry as cli
from yolo_prune.cli.completion import _SCRIPTS, completion_script, keys_of, values_of
from yolo_prune.options import CompletionConfig
from yolo_prune.options.fields import option_fields
from yolo_prune.runtimes import RUNTIMES

TRY = """
source "$1"
compopt() { :; }
line=$2
COMP_LINE=$line COMP_POINT=${#line}
spaced=${line//=/ = }; spaced=${spaced//:/ : }
COMP_WORDS=($spaced)
[[ $line == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_yolo_prune
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """What bash would put in place of the last word of a line, as it splits words: at blanks, ``=`` and ``:``."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "script.bash").write_text(completion_script("bash"))
    (folder / "files").mkdir()
    for name in ("best.pt", "a name.pt", "data.yaml"):
        (folder / "files" / name).touch()

    def ask(line):
        done = subprocess.run(
            ["bash", "-c", TRY, "bash", str(folder / "script.bash"), line],
            cwd=folder / "files",
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("yolo-prune pru", ["prune"]),
        ("yolo-prune help insp", ["inspect"]),
        ("yolo-prune completion ", ["bash", "zsh", "fish"]),
        ("yolo-prune prune keep_m", ["keep_macs="]),
        ("yolo-prune prune mosai", ["mosaic="]),
        ("yolo-prune prune --keep_m", ["--keep_macs="]),
        ("yolo-prune prune split=", ["val", "test", "train"]),
        ("yolo-prune prune split=t", ["test", "train"]),
        ("yolo-prune prune --split t", ["test", "train"]),
        ("yolo-prune prune model=best.pt keep_macs=0.5 fold=", ["true", "false"]),
        ("yolo-prune prune runtimes=torch,openv", ["torch,openvino"]),
        ("yolo-prune prune runtimes=onnxruntime:o", ["openvino"]),
        ("yolo-prune train sparsify=", ["auto", "off"]),
        ("yolo-prune prune model=b", ["best.pt"]),
        ("yolo-prune prune model=a", ["a name.pt"]),
        ("yolo-prune bench model=best.pt,a", ["best.pt,a name.pt"]),
        ("yolo-prune report da", ["data.yaml"]),
        ("yolo-prune prune steps=", []),
        ("yolo-prune prune no_such_key", []),
    ],
)
def test_bash_offers(offered, line, expected):
    assert [word for word in offered(line) if word] == expected


def test_bash_offers_every_command(offered):
    assert offered("yolo-prune ") == [*cli.COMMANDS, "help"]


@pytest.mark.parametrize("shell", _SCRIPTS)
def test_every_key_and_choice_of_every_command_is_in_the_script(shell):
    words = set(completion_script(shell).replace("'", " ").split())
    for name, command in cli.COMMANDS.items():
        assert {f"{key}=" for key in option_fields(command.kind)} <= words
        assert set(keys_of(name)) >= set(option_fields(command.kind))
    assert {*RUNTIMES, "reconstruction", "torchscript", "gentle"} <= words
    assert "no_such_choice" not in words


@pytest.mark.parametrize("shell", _SCRIPTS)
def test_a_script_is_one_that_its_shell_parses(shell, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(completion_script(shell))
    assert subprocess.run([program, "-n", str(tmp_path / "script")], check=False).returncode == 0


def test_numbers_have_no_values_and_texts_are_files():
    assert values_of("prune", "keep_macs") == ()
    assert values_of("prune", "data") == ("FILES",)
    assert values_of("prune", "recalibrate_bn") == ("auto", "true", "false")


def test_the_command_prints_the_script_of_a_bare_word(capsys):
    assert cli.main(["completion", "fish"]) == 0
    assert capsys.readouterr().out.strip() == completion_script("fish").strip()
    assert option_fields(CompletionConfig)["shell"].metadata["choices"] == tuple(_SCRIPTS)


def test_an_unknown_shell_is_a_sentence(capsys):
    assert cli.main(["completion", "basch"]) == 2
    expected = "shell must be one of 'bash', 'zsh', 'fish', got 'basch'. Did you mean 'bash'?"
    assert capsys.readouterr().err == f"yolo-prune: error: {expected}\n"
