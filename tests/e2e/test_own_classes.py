"""Models with a layer of the user's own: every command takes them when it is told to trust, and says how when not."""

import functools
import subprocess
import sys

import pytest
import torch

from yolo_prune import bench, cli
from yolo_prune.adapters.checkpoint import load_detector, read_metadata, save_detector
from yolo_prune.adapters.ultralytics.guard import guarded
from yolo_prune.adapters.ultralytics.own import own_classes
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.options import SweepConfig
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.measure import speed
from yolo_prune.runs.sweep import trials_of

LAYERS = """
import torch
from torch import nn


class Gain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(x)))
"""
ARCHITECTURE = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Gain, [32]]
head:
  - [-1, 1, Conv, [32, 3, 2]]
  - [[2, 3], 1, Detect, [nc]]
"""
QUICK = ["steps=1", "calibration_images=8", "recover_seconds=0"]
SHORT = ["imgsz=64", "batch=8", "workers=0", "device=cpu", "round_to=4", "min_width=4", "keep_macs=0.7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "layers_of_a_user.py").write_text(LAYERS)
    (folder / "own.yaml").write_text(ARCHITECTURE)
    return folder


@pytest.fixture(scope="module")
def trusting(folder):
    return ["trust=true", f"imports={folder / 'layers_of_a_user.py'}"]


@pytest.fixture(scope="module")
def model(folder, trusting):
    """A checkpoint with random weights, written as a trusted run writes one."""
    with guarded(trust=True, imports=[str(folder / "layers_of_a_user.py")]):
        module = load_detector(folder / "own.yaml", trust=True).module
    module.names = {0: "red", 1: "blue"}
    return save_detector(
        folder / "own.pt", module, task="detect", train_args={"imgsz": 64}, meta={}, trust=True
    )


@pytest.fixture(scope="module")
def pruned(folder, trusting, model, data):
    """A run with retraining and with a measurement in the process of the benchmark."""
    words = ["prune", f"model={model}", f"data={data}", *SHORT, *trusting, *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "compare", functools.partial(bench.compare, rounds=2))
        code = cli.main([*words, "epochs=1", "plots=false", "runtimes=torch", f"project={folder}", "name=p"])
    assert code == 0
    return folder / "p"


def test_a_trusted_run_prunes_retrains_and_measures(pruned, model):
    for name in ("parent", "pruned", "best"):
        file = pruned / "weights" / f"{name}.pt"
        assert read_metadata(file, trust=True)["classes"] == ["layers_of_a_user.Gain"]
        assert own_classes(load_detector(file, trust=True).module) == ["layers_of_a_user.Gain"]
    assert '"fps"' in (pruned / "report.json").read_text()


def test_a_resumed_run_reads_its_own_files(pruned, folder, trusting, model, data, capsys):
    (pruned / "report.json").unlink()
    words = ["prune", f"model={model}", f"data={data}", *SHORT, *trusting, *QUICK]
    words += ["epochs=1", "plots=false", "bench=false", f"project={folder}", "name=p", "resume=true"]
    assert cli.main(words) == 0
    assert "going on from" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["own.yaml", "own.pt"])
def test_without_trust_a_run_ends_before_its_folder_is_made(folder, model, data, capsys, source):
    words = ["prune", f"model={folder / source}", f"data={data}", "keep_macs=0.5", f"project={folder / 'no'}"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "pass trust=true" in err
    assert not (folder / "no").exists()


def test_the_training_of_an_architecture_and_the_cut_in_a_training_know_the_class(
    folder, trusting, model, data
):
    train = [f"data={data}", *trusting, "plots=false", "amp=false", f"project={folder}", "epochs=1"]
    host = [word for word in SHORT if word.partition("=")[0] not in ("round_to", "min_width", "keep_macs")]
    assert cli.main(["train", f"model={folder / 'own.yaml'}", *host, *train, "name=plain"]) == 0
    inrun = ["epochs=2", "prune_at=1", "steps=1", "calibration_images=8", "exist_ok=true", "name=inrun"]
    assert cli.main(["train", f"model={model}", *SHORT, *train[:-1], *inrun]) == 0
    cut = load_detector(folder / "inrun" / "weights" / "best.pt", trust=True)
    assert cut.meta["classes"] == ["layers_of_a_user.Gain"]
    assert sum(p.numel() for p in cut.module.parameters()) < sum(
        p.numel() for p in load_detector(model, trust=True).module.parameters()
    )
    parent = folder / "inrun" / "weights" / "parent.pt"
    assert own_classes(load_detector(parent, trust=True).module) == ["layers_of_a_user.Gain"]


def test_a_reader_who_has_not_the_class_is_told_what_the_file_needs(pruned, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "layers_of_a_user")
    assert cli.main(["inspect", f"model={pruned / 'weights' / 'best.pt'}"]) == 2
    assert capsys.readouterr().err.endswith(
        "wants to load 'layers_of_a_user.Gain', which is not a stock class and could run any code. If you made the "
        "file yourself, pass trust=true and imports= with the Python file that holds 'Gain'.\n"
    )


def test_a_fresh_process_that_is_told_where_the_class_is_loads_the_file(pruned, trusting):
    command = [sys.executable, "-m", "yolo_prune", "inspect", f"model={pruned / 'weights' / 'best.pt'}"]
    done = subprocess.run([*command, *trusting], capture_output=True, text=True, check=False)
    assert (done.returncode, "groups" in done.stdout) == (0, True), done.stderr


def test_a_class_that_was_pickled_in_the_script_that_was_run_is_found(folder, model, monkeypatch, tmp_path):
    module = load_detector(model, trust=True).module
    gain = type(module.model[2])
    monkeypatch.setattr(gain, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Gain", gain, raising=False)
    torch.save({"model": module, "train_args": {}}, tmp_path / "script.pt")
    monkeypatch.delattr(sys.modules["__main__"], "Gain")
    monkeypatch.undo()
    loaded = load_detector(tmp_path / "script.pt", trust=True)  # what was imported stays known
    assert type(loaded.module.model[2]) is gain


def test_the_host_forgets_the_class_when_the_command_is_over(folder, model):
    from ultralytics.nn import tasks

    with guarded(trust=True, imports=[str(folder / "layers_of_a_user.py")]):
        assert tasks.Gain.__module__ == "layers_of_a_user"
    assert not hasattr(tasks, "Gain")
    with guarded(trust=True):  # a loaded model brings its classes along
        load_detector(model, trust=True)
        assert hasattr(tasks, "Gain")
    assert not hasattr(tasks, "Gain")


def test_a_class_of_the_user_s_own_that_the_host_knows_needs_trust_too(folder, monkeypatch):
    """Registered by hand, as users do: saving would refuse it hours later."""
    from ultralytics.nn import tasks

    monkeypatch.setattr(tasks, "Gain", sys.modules["layers_of_a_user"].Gain, raising=False)
    with pytest.raises(CheckpointError, match=r"names 'layers_of_a_user\.Gain', which is not a stock class"):
        load_detector(folder / "own.yaml")
    assert load_detector(folder / "own.yaml", trust=True).task == "detect"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.py", None, r"^imports names '.*gone\.py', which does not exist\.$"),
        ("broken_of_a_user.py", "1 / 0", r"cannot be imported: ZeroDivisionError: division by zero$"),
        (
            "json.py",
            "",
            r"^'.*json\.py' cannot be imported: another module is named 'json'\. Rename the file\.$",
        ),
        (
            "no_such_module_of_a_user",
            None,
            r"^'no_such_module_of_a_user' cannot be imported: ModuleNotFoundError",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    path = str(tmp_path / name) if name.endswith(".py") else name
    with pytest.raises(ConfigError, match=message), guarded(trust=True, imports=[path]):
        pass


def test_a_sweep_hands_trust_and_imports_to_its_trials(tmp_path):
    words = ["model=own.pt", "data=d.yaml", "trust=true", "imports=a.py,b"]
    trials = trials_of(make_config(SweepConfig, words), tmp_path)
    assert {(trial.trust, trial.imports) for trial in trials} == {(True, ("a.py", "b"))}
    with pytest.raises(
        ConfigError, match=r"^imports= runs the code of what it names: it needs trust=true\.$"
    ):
        make_config(SweepConfig, [*words[:2], words[3]])
