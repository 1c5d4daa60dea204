"""The command line: help, errors in a sentence with exit code 2, and one stage called per command."""

import dataclasses
import itertools
import json
import subprocess
import sys
import types

import pytest

import yolo_prune
from yolo_prune.cli import commands, output
from yolo_prune.cli import entry as cli
from yolo_prune.cli.tables import aligned_table
from yolo_prune.criteria import CRITERIA, RECONSTRUCTION
from yolo_prune.criteria.ranking import IMAGE_SCORES
from yolo_prune.criteria.weights import SCORES
from yolo_prune.errors import BudgetError
from yolo_prune.options import PruneConfig, TrainConfig
from yolo_prune.options.common import TITLES
from yolo_prune.options.fields import is_required, option_fields
from yolo_prune.runs.configure import make_config
from yolo_prune.runtimes import RUNTIMES

PRUNE = ["prune", "model=best.pt", "data=d.yaml", "keep_macs=0.5"]


def module_with(monkeypatch, name, **contents):
    """Put a module that holds ``contents`` where the command will import its stage from."""
    fake = types.ModuleType(name)
    vars(fake).update(contents)
    monkeypatch.setitem(sys.modules, name, fake)


def run(capsys, words):
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def raising(error):
    def stage(*_, **__):
        raise error

    return stage


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(capsys, words):
    code, out, err = run(capsys, words)
    assert (code, err) == (0, "")
    for name, command in cli.COMMANDS.items():
        assert f"  {name:<10} {command.summary}" in out


def test_without_a_word_it_shows_four_commands_to_try_and_where_help_is(capsys):
    code, out, err = run(capsys, [])
    assert (code, err) == (0, "")
    shown = [line.strip() for line in out.splitlines() if line.startswith("  yolo-prune ")]
    assert [line.split()[1] for line in shown] == ["demo", "inspect", "prune", "train"]
    for line in shown:
        name, *words = line.split()[1:]
        make_config(cli.COMMANDS[name].kind, words)
    assert "All commands: yolo-prune help. Options of one: yolo-prune COMMAND -h." in out
    assert all(len(line) <= 110 for line in out.splitlines())


def titled(out):
    """Return the lines of a help by the title that they stand under."""
    found, title = {}, ""
    for line in out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line[:-1]
        found.setdefault(title, []).append(line)
    return found


def entry_of(lines, key):
    """Return what a help says of an option, on one line."""
    start = next(number for number, line in enumerate(lines) if line.startswith(f"  {key}="))
    more = itertools.takewhile(lambda line: line.startswith("   "), lines[start + 1 :])
    return " ".join(" ".join([lines[start], *more]).split())


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_command_lists_every_option_once_under_its_title(capsys, name, flag):
    code, out, _ = run(capsys, [name, flag])
    assert code == 0
    groups = titled(out)
    assert [title for title in groups if title in TITLES] == [title for title in TITLES if title in groups]
    for key, field in option_fields(cli.COMMANDS[name].kind).items():
        holders = [title for title, lines in groups.items() for line in lines if line.startswith(f"  {key}=")]
        assert holders == [field.metadata["group"]]
        said = entry_of(groups[holders[0]], key)
        assert field.metadata["help"] in said
        assert all(str(choice).lower() in said for choice in field.metadata["choices"])
        assert said.endswith("(required)") == is_required(field)
    assert all(len(line) <= 110 for line in out.splitlines() if "Example:" not in line)
    assert cli.COMMANDS[name].example in out


def test_help_shows_defaults_and_choices(capsys):
    groups = titled(run(capsys, ["prune", "-h"])[1])
    assert entry_of(groups["What to cut"], "steps").endswith(
        "12 when not given, fewer for a large model on a CPU"
    )
    assert entry_of(groups["What to cut"], "round_to").endswith("(default 8)")
    assert entry_of(groups["What to cut"], "criterion").endswith(
        "; one of auto, reconstruction, taylor, fisher, activation, svm, bn_scale, l1, l2, lamp, fpgm, random, tp:NAME (default auto)"
    )
    assert "imgsz=INT|H,W " in entry_of(groups["Model and data"], "imgsz")
    assert "split=val|test|train " in entry_of(groups["Measuring"], "split")
    listed = f"runtimes=A,B runtimes to measure on; one of {', '.join(RUNTIMES)} "
    assert entry_of(groups["Measuring"], "runtimes").startswith(listed)
    assert entry_of(groups["Measuring"], "runtimes").endswith("(default torch,onnxruntime)")
    groups = titled(run(capsys, ["train", "-h"])[1])
    assert entry_of(groups["When to cut"], "prune_at").startswith("prune_at=end|late|auto|FLOAT")
    assert entry_of(groups["Sparse epochs"], "sparsify").startswith("sparsify=auto|off|FLOAT ")


def test_the_criteria_that_the_help_lists_are_those_there_are():
    assert {RECONSTRUCTION, *IMAGE_SCORES, *SCORES} == set(CRITERIA)
    assert len(CRITERIA) == 1 + len(IMAGE_SCORES) + len(SCORES)


def test_an_option_that_several_commands_have_stands_under_one_title():
    groups = {}
    for command in cli.COMMANDS.values():
        for key, field in option_fields(command.kind).items():
            groups.setdefault(key, set()).add(field.metadata["group"])
    several = {key: found for key, found in groups.items() if len(found) > 1}
    assert several == {
        "calibration_images": {"Recovery without training", "File"},  # export makes nothing but the file
        "quantize": {"Measuring", "File"},
        "half": {"Computing", "File"},  # bench computes in it, export keeps weights in it
        "min_fps": {"Choice", "What it must reach"},  # sweep chooses by it
    }


def test_the_examples_of_the_help_are_valid():
    for name, command in cli.COMMANDS.items():
        words = command.example.split()
        assert words[:2] == ["yolo-prune", name]
        make_config(command.kind, words[2:])


def test_version_names_the_versions_in_use(capsys):
    code, out, _ = run(capsys, ["--version"])
    assert code == 0
    assert out.startswith(f"yolo-prune {yolo_prune.__version__} (Python 3.")
    assert "torch " in out
    assert "ultralytics " in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prnue"], "unknown command 'prnue'. Did you mean 'prune'?"),
        (["help", "prnue"], "unknown command 'prnue'. Did you mean 'prune'?"),
        (
            ["zzz"],
            "unknown command 'zzz'. Commands: prune, train, sweep, eval, bench, check, export, latency, inspect, report, doctor, demo, completion.",
        ),
        ([*PRUNE, "l1_strenght=1"], "unknown key 'l1_strenght'."),
        ([*PRUNE, "epoch=1"], "unknown key 'epoch'. Did you mean 'epochs'?"),
        (
            PRUNE[:-1],
            "give exactly one budget of keep_macs, gmacs, keep_params, target_speedup, target_latency_ms, target_fps; "
            "got none.",
        ),
        (
            ["eval", "best.pt"],
            "'best.pt' is not key=value. Options look like model=best.pt or --model best.pt.",
        ),
        (
            ["bench", "model=a.pt,a.pt", "imgsz=320"],
            "'a.pt' is listed twice: a comparison needs different files.",
        ),
        (["bench", "model=a.onnx"], "there is no file 'a.onnx'."),
        (["bench", "model=a.yaml"], "'a.yaml' does not say its image size: give imgsz=."),
    ],
)
def test_a_mistake_costs_one_sentence_and_exit_code_2(capsys, words, sentence):
    assert run(capsys, words) == (2, "", f"yolo-prune: error: {sentence}\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BudgetError("cannot meet 0.1 GMACs: 0.2 remain."), "cannot meet 0.1 GMACs: 0.2 remain."),
        (PermissionError(13, "Permission denied", "runs/x"), "Permission denied 'runs/x'."),
        (OSError(28, "No space left on device"), "No space left on device."),
        (
            RuntimeError("first line\nsecond"),
            "unexpected RuntimeError: first line. Add debug=true to see where it came from.",
        ),
        (KeyError(), "unexpected KeyError: no message. Add debug=true to see where it came from."),
    ],
)
def test_an_error_of_a_stage_is_one_sentence_without_a_traceback(monkeypatch, capsys, error, sentence):
    module_with(monkeypatch, "yolo_prune.runs.prune", prune_from_config=raising(error))
    assert run(capsys, PRUNE) == (2, "", f"yolo-prune: error: {sentence}\n")


@pytest.mark.parametrize("words", [["debug=true"], ["--debug"], ["--debug=true"]])
def test_debug_shows_the_traceback(monkeypatch, capsys, words):
    module_with(monkeypatch, "yolo_prune.runs.prune", prune_from_config=raising(BudgetError("no")))
    code, _, err = run(capsys, [*PRUNE, *words])
    assert code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("yolo-prune: error: no\n")


@pytest.mark.parametrize(
    ("stop", "words", "line"),
    [
        (KeyboardInterrupt("runs/prune/a is readable"), [], "stopped: runs/prune/a is readable"),
        (KeyboardInterrupt(), [], "stopped: what was finished is under runs/prune"),
        (KeyboardInterrupt(), ["project=mine"], "stopped: what was finished is under mine"),
    ],
)
def test_ctrl_c_exits_130_and_names_the_folder(monkeypatch, capsys, stop, words, line):
    module_with(monkeypatch, "yolo_prune.runs.prune", prune_from_config=raising(stop))
    assert run(capsys, [*PRUNE, *words]) == (130, "", f"yolo-prune: {line}\n")


def test_prune_hands_over_the_configuration_and_prints_table_and_report(monkeypatch, capsys, tmp_path):
    seen = []

    def stage(config):
        seen.append(config)
        return types.SimpleNamespace(report="the report", folder=tmp_path, best=tmp_path / "best.pt")

    module_with(monkeypatch, "yolo_prune.runs.prune", prune_from_config=stage)
    monkeypatch.setattr("yolo_prune.report.render_table", lambda report: f"table of {report}")
    code, out, _ = run(capsys, [*PRUNE, "epochs=3", "mosaic=0"])
    assert code == 0
    assert seen == [
        PruneConfig(model="best.pt", data="d.yaml", keep_macs=0.5, epochs=3, train_args={"mosaic": 0})
    ]
    where = f"run folder: {tmp_path}\nreport: {tmp_path / 'report.html'}\nbest: {tmp_path / 'best.pt'}\n"
    assert out == f"table of the report\n\n{where}"


def test_what_the_host_prints_stays_out_of_the_answer(monkeypatch, capsys):
    def answer(_config):
        sys.stdout.write("epoch 1/3\n")
        output.say("the table")

    command = dataclasses.replace(cli.COMMANDS["prune"], call=answer)
    monkeypatch.setitem(cli.COMMANDS, "prune", command)
    assert run(capsys, PRUNE) == (0, "the table\n", "epoch 1/3\n")


def test_train_passes_the_arguments_of_the_host_on(monkeypatch, capsys):
    seen, checked = [], {}
    module_with(monkeypatch, "yolo_prune.adapters.ultralytics.options", check_train_args=checked.update)

    def stage(config):
        seen.append(config)
        return ["one", "two"]

    module_with(monkeypatch, "yolo_prune.adapters.ultralytics.training.attach", train_from_config=stage)
    words = [
        "train",
        "segment",
        "resume",
        "model=p.pt",
        "epochs=2",
        "freeze=[0,1]",
        "keep_macs=0.5",
        "plots=false",
    ]
    code, out, _ = run(capsys, words)
    assert (code, out) == (0, "one\ntwo\n")
    host = {"task": "segment", "epochs": 2, "freeze": [0, 1], "plots": False}
    assert seen == [TrainConfig(model="p.pt", resume=True, keep_macs=0.5, train_args=host)]
    assert checked == host


def test_a_word_after_a_key_is_its_value_even_when_it_could_be_a_task(monkeypatch, capsys):
    seen = []
    module_with(monkeypatch, "yolo_prune.adapters.ultralytics.options", check_train_args=lambda args: None)
    module_with(
        monkeypatch,
        "yolo_prune.adapters.ultralytics.training.attach",
        train_from_config=lambda c: seen.append(c) or [],
    )
    run(capsys, ["train", "detect", "--name", "pose", "--model", "p.pt"])
    assert seen[0].train_args == {"task": "detect", "name": "pose"}


def test_inspect_prints_an_aligned_table_and_writes_json(monkeypatch, capsys, tmp_path):
    rows = [
        {"group": "model.0", "width": 16, "gmacs": 0.123456, "frozen": False, "why": None},
        {"group": "model.22.cv2.0", "width": 1024, "gmacs": 1.5, "frozen": True, "why": "read by 'view'"},
    ]
    blocks = [{"block": "model.2.m.0", "gmacs": 0.1, "params": 1200}]
    module_with(monkeypatch, "yolo_prune.runs.inspection", inspect_all=lambda *_, **__: (rows, blocks))
    code, out, _ = run(capsys, ["inspect", "model=best.pt", f"json={tmp_path / 'g.json'}"])
    assert code == 0
    assert out.splitlines()[:4] == [
        "group           width   gmacs  frozen  why",
        "model.0            16  0.1235      no  -",
        "model.22.cv2.0  1,024     1.5     yes  read by 'view'",
        "2 groups, 1 of them frozen",
    ]
    assert "1 residual blocks that depth=true may drop" in out
    assert json.loads((tmp_path / "g.json").read_text("utf-8")) == rows


def test_report_rebuilds_a_run_folder(monkeypatch, capsys):
    monkeypatch.setattr("yolo_prune.report.rebuild_report", lambda run: f"{run}/report.html")
    monkeypatch.setattr("yolo_prune.report.report_from_json", lambda run: run)
    monkeypatch.setattr("yolo_prune.report.render_table", lambda report: f"table of {report}")
    assert run(capsys, ["report", "run=runs/a"]) == (0, "table of runs/a\n\nreport: runs/a/report.html\n", "")


def test_report_of_a_folder_that_is_none_is_an_error(capsys, tmp_path):
    code, out, err = run(capsys, ["report", f"run={tmp_path / 'nothing'}"])
    assert (code, out) == (2, "")
    assert err.startswith("yolo-prune: error: ")
    assert err.count("\n") == 1


def test_demo_passes_its_options_on(monkeypatch, capsys, tmp_path):
    seen = {}

    def stage(**options):
        seen.update(options)
        return types.SimpleNamespace(report=None, folder=tmp_path)

    module_with(monkeypatch, "yolo_prune.runs.demo", run_demo=stage)
    monkeypatch.setattr("yolo_prune.report.render_table", lambda _: "table")
    code, _, _ = run(capsys, ["demo", "project=here", "seed=3"])
    assert code == 0
    assert (seen["project"], seen["seed"], seen["model"]) == ("here", 3, None)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.pt", "b.pt"], ["a", "b"]),
        (["run/weights/parent.pt", "run/weights/pruned.pt"], ["parent", "pruned"]),
        (["x/weights/best.pt", "y/weights/best.pt"], ["x/weights/best", "y/weights/best"]),
        (["a.pt", "a.onnx"], ["a.pt", "a.onnx"]),
    ],
)
def test_models_are_called_by_the_shortest_name_that_tells_them_apart(paths, names):
    assert commands.short_names(paths) == names


def test_a_long_list_in_a_table_is_cut_and_counted():
    text = aligned_table([{"members": [f"model.{index}.conv" for index in range(40)]}])
    assert text.endswith(", ... (40)")
    assert len(text.splitlines()[1]) < 80


def test_help_version_and_errors_in_the_options_import_no_torch():
    code = (
        "import sys; from yolo_prune.cli.entry import COMMANDS, main; main(['-h']); main(['--version']);"
        "[main([name, '-h']) for name in COMMANDS];"
        f"codes = [main([*{PRUNE}, wrong]) for wrong in ('criterion=bn_scal', 'rounds=3', 'runtimes=tensorflow')];"
        "sys.exit(codes != [2, 2, 2] or any(name in sys.modules for name in ('torch', 'numpy', 'ultralytics')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == (
        "yolo-prune: error: criterion must be one of 'auto', 'reconstruction', 'taylor', 'fisher', 'activation', 'svm', "
        "'bn_scale', 'l1', 'l2', 'lamp', 'fpgm', 'random', tp:NAME, got 'bn_scal'. Did you mean 'bn_scale'?"
    )


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "yolo_prune", "prune", "keep_masc=1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "yolo-prune: error: unknown key 'keep_masc'. Did you mean 'keep_macs'?\n"
