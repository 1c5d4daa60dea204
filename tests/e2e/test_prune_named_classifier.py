"""A classifier by its library's name: trained by the package's own loop, pruned, retrained, reported, resumed."""

import json
import shutil

import pytest
import torch

pytest.importorskip("timm")

from tests.boards import Board, time_of
from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.runs.prune import prune

NAME = "timm:test_resnet"
TRAIN = ["imgsz=64", "epochs=8", "batch=12", "workers=0", "lr0=0.03", "device=cpu", "seed=1"]
PRUNE = [
    "keep_macs=0.6",
    "steps=2",
    "calibration_images=32",
    "batch=12",
    "workers=0",
    "bench=false",
    "device=cpu",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bars):
    folder = tmp_path_factory.mktemp("named")
    assert (
        cli.main(["train", f"model={NAME}", f"data={bars}", *TRAIN, f"project={folder}", "name=parent"]) == 0
    )
    return folder / "parent"


@pytest.fixture(scope="module")
def finished(trained, bars):
    """The state dict alone goes in, as a user of the library has it."""
    stored = torch.load(trained / "weights" / "best.pt", weights_only=True)
    torch.save({"model": stored["state_dict"]}, trained / "checkpoint.pth")
    words = [f"model={NAME}", f"weights={trained / 'checkpoint.pth'}", f"data={bars}", *PRUNE]
    where = ["imgsz=64", "epochs=2", f"project={trained.parent}", "name=run"]
    assert cli.main(["prune", *words, *where]) == 0
    return trained.parent / "run"


def rows_of(folder):
    report = json.loads((folder / "report.json").read_text())
    return {row["model"]: row for row in report["rows"]}


def lines_of(folder):
    return [line.split(",") for line in (folder / "results.csv").read_text().splitlines()]


def test_the_loop_learns(trained):
    header, *lines = lines_of(trained)
    assert header == ["epoch", "seconds", "rate", "loss", "top1"]
    assert len(lines) == 8
    assert float(lines[-1][3]) < float(lines[0][3])
    assert max(float(line[4]) for line in lines) > 0.6, "chance is 0.33"
    rates = [float(line[2]) for line in lines]
    assert max(rates) == rates[0] > rates[-1], "it warms up for an epoch and falls"


def test_the_cut_is_exact_in_the_budget_and_stays(finished):
    report, rows = json.loads((finished / "report.json").read_text()), rows_of(finished)
    assert report["equivalence"]["verdict"] == "exact"
    assert rows["pruned"]["gmacs"] <= 0.6 * rows["parent"]["gmacs"] * 1.0001
    counts = {n: count_parameters(load_detector(finished / "weights" / f"{n}.pt").module) for n in FILES}
    assert counts["best"] == counts["last"] == counts["pruned"] < counts["parent"]
    assert rows["retrained"]["params_m"] == counts["best"] / 1e6


FILES = ("parent", "pruned", "best", "last")


def test_the_rows_say_top1_of_all_and_of_the_control(finished, trained):
    rows = rows_of(finished)
    assert list(rows) == ["parent", "pruned", "retrained", "control"]
    best = max(float(line[4]) for line in lines_of(trained)[1:])
    assert rows["parent"]["top1"] == pytest.approx(best, abs=1e-5), "read back from the state dict"
    assert rows["parent"]["top5"] == 1.0
    assert rows["pruned"]["top1"] > 0.45
    report = json.loads((finished / "report.json").read_text())
    assert [entry["name"] for entry in report["per_class"]] == ["across", "both", "down"]
    assert "timm" in report["versions"]
    assert "top-1" in (finished / "report.html").read_text()


def test_an_object_of_the_library_is_pruned_as_its_file_is(finished, trained, bars, tmp_path):
    import timm

    net = timm.create_model("test_resnet", num_classes=3)
    net.load_state_dict(torch.load(trained / "weights" / "best.pt", weights_only=True)["state_dict"])
    short = {"keep_macs": 0.6, "steps": 1, "calibration_images": 8, "batch": 12, "workers": 0}
    short |= {"imgsz": 64, "bench": False, "device": "cpu", "project": str(tmp_path), "name": "object"}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = prune(net, data=bars, **short)
    assert rows_of(result.folder)["parent"]["top1"] == rows_of(finished)["parent"]["top1"]
    assert result.plan.kept_macs <= 0.6
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    again = prune(net, data=bars, **short, resume=True)
    assert again.plan.to_json() == result.plan.to_json()


def test_the_file_holds_name_plan_and_classes_as_plain_values(finished):
    stored = torch.load(finished / "weights" / "best.pt", weights_only=True)
    assert (stored["architecture"], stored["outputs"], stored["imgsz"]) == (NAME, 3, 64)
    assert stored["names"] == ["across", "both", "down"]
    plan = PrunePlan.from_json(stored["plan"])
    assert plan.keep == PrunePlan.from_json((finished / "plan.json").read_text()).keep
    assert stored["yolo_prune"]["role"] == "retrained"


def test_eval_and_inspect_and_bench_take_it(finished, bars, tmp_path, capsys):
    best = finished / "weights" / "best.pt"
    out = tmp_path / "eval.json"
    assert cli.main(["eval", f"model={best}", f"data={bars}", "workers=0", f"json={out}"]) == 0
    assert json.loads(out.read_text())["top1"] == rows_of(finished)["retrained"]["top1"]
    assert (
        cli.main(["inspect", f"model={NAME}", f"weights={finished.parent / 'parent' / 'checkpoint.pth'}"])
        == 0
    )
    assert "groups" in capsys.readouterr().out
    files = f"model={finished}/weights/parent.pt,{best}"
    assert (
        cli.main(["bench", files, "runtimes=torch", "rounds=2", "seconds=0.2", f"json={tmp_path}/b.json"])
        == 0
    )
    for comparison in json.loads((tmp_path / "b.json").read_text()):
        assert comparison["conditions"]["timed"].startswith("centre crop")
        assert comparison["ratios"]["best"]["latency"]["value"] > 0


def test_an_exported_file_computes_what_its_checkpoint_does(finished, bars, tmp_path, capsys):
    file = tmp_path / "best.onnx"
    assert cli.main(["export", f"model={finished}/weights/best.pt", f"out={file}"]) == 0
    difference = float(capsys.readouterr().out.split("outputs differ by up to ")[1].split()[0])
    assert difference < 1e-5
    out = tmp_path / "eval.json"
    assert cli.main(["eval", f"model={file}", f"data={bars}", "workers=0", f"json={out}"]) == 0
    assert json.loads(out.read_text())["top1"] == rows_of(finished)["retrained"]["top1"]
    assert cli.main(["eval", f"model={file}", f"data={bars}", "workers=0", "imgsz=32"]) == 2
    assert "takes 1 images of 64 px at once, got 1 of 32 px." in capsys.readouterr().err


def test_a_retraining_that_was_killed_goes_on_to_the_same_weights(
    finished, trained, bars, tmp_path, monkeypatch
):
    from yolo_prune.adapters.torchvision.training.loop import Training

    whole, step = Training._train_epoch, []

    def stopping(self):
        if len(step) == 1:
            raise KeyboardInterrupt
        step.append(1)
        whole(self)

    words = [f"model={NAME}", f"weights={trained / 'checkpoint.pth'}", f"data={bars}", *PRUNE]
    words += ["imgsz=64", "epochs=2", f"project={tmp_path}", "name=run"]
    monkeypatch.setattr(Training, "_train_epoch", stopping)
    assert cli.main(["prune", *words]) == 130
    monkeypatch.setattr(Training, "_train_epoch", whole)
    assert cli.main(["prune", *words, "resume=true"]) == 0
    first, second = (
        torch.load(folder / "weights" / "last.pt", weights_only=True)["state_dict"]
        for folder in (finished, tmp_path / "run")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
def test_a_pruned_file_can_be_pruned_again(finished, bars, tmp_path):
    words = [f"model={finished}/weights/best.pt", f"data={bars}", *PRUNE, f"project={tmp_path}", "name=again"]
    assert cli.main(["prune", *words]) == 0
    rows = rows_of(tmp_path / "again")
    assert rows["pruned"]["gmacs"] < 0.61 * rows["parent"]["gmacs"]
    assert rows["parent"]["gmacs"] == pytest.approx(rows_of(finished)["retrained"]["gmacs"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([f"model={NAME}", "keep_macs=0.5"], "an untrained network has no accuracy to keep: give weights="),
        (["model=timm:test_resnett", "keep_macs=0.5"], "Did you mean 'timm:test_resnet'?"),
        (
            [f"model={NAME}", "keep_macs=0.5", "epochs=2", "mosaic=0"],
            "'mosaic' is no option of this host's training.",
        ),
    ],
)
def test_prune_says_in_a_sentence_what_is_wrong(words, text, bars, tmp_path, capsys):
    assert cli.main(["prune", *words, f"data={bars}", f"project={tmp_path}"]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_data_of_other_classes_is_refused(finished, bars, tmp_path, capsys):
    shutil.copytree(bars, tmp_path / "four")
    for split in ("train", "val"):
        shutil.copytree(tmp_path / "four" / split / "down", tmp_path / "four" / split / "up")
    best = finished / "weights" / "best.pt"
    assert cli.main(["prune", f"model={best}", f"data={tmp_path / 'four'}", "keep_macs=0.5"]) == 2
    assert f"the model has 3 classes and {tmp_path / 'four'} has 4." in capsys.readouterr().err
    checkpoint = finished.parent / "parent" / "checkpoint.pth"
    words = [f"model={NAME}", f"weights={checkpoint}", f"data={tmp_path / 'four'}", "keep_macs=0.5"]
    assert cli.main(["prune", *words]) == 2
    assert "the weights tell 3 classes apart" in capsys.readouterr().err


def test_training_says_in_a_sentence_what_is_wrong(bars, tmp_path, capsys):
    base = ["train", f"model={NAME}", f"data={bars}", f"project={tmp_path}", "workers=0", "imgsz=32"]
    for words, text in (
        (["epochs=0"], "epochs must be at least 1, got 0."),
        (["optimizer=Adamm"], "unknown optimizer 'Adamm'; this host's training has SGD, AdamW."),
        (["epochs=1", "lr0=1e9"], "the training diverged. Give a lower lr0 than 1e+09."),
        (["epochs=1", "cuts=2"], "cuts: for pruning in the training, and no budget is given"),
    ):
        assert cli.main([*base, *words]) == 2
        assert text in capsys.readouterr().err


def train_words(data, folder, *more):
    budget = ["keep_macs=0.6", "prune_at=0.5", "steps=2", "calibration_images=32", "epochs=4"]
    return [
        "train",
        f"model={NAME}",
        f"data={data}",
        *TRAIN[:1],
        *TRAIN[2:],
        *budget,
        f"project={folder}",
        *more,
    ]


TARGET = {
    **{"keep_macs": None, "target_speedup": 1.3, "runtime": "torch", "target_threads": 1, "round_to": 1},
    **{"min_width": 2, "criterion": "l1", "fold": "false", "epochs": 3, "prune_at": 2},
}


@pytest.fixture(scope="module")
def pruned_in_training(tmp_path_factory, bars):
    folder = tmp_path_factory.mktemp("session")
    assert cli.main(train_words(bars, folder, "name=whole")) == 0
    return folder / "whole"


def test_a_training_with_a_budget_ends_with_a_cut_network(pruned_in_training, trained):
    best = load_detector(pruned_in_training / "weights" / "best.pt")
    parent = load_detector(trained / "weights" / "best.pt")
    assert count_parameters(best.module) < count_parameters(parent.module)
    stored = torch.load(pruned_in_training / "weights" / "best.pt", weights_only=True)
    assert PrunePlan.from_json(stored["plan"]).kept_macs <= 0.6
    assert stored["yolo_prune"]["epoch"] > 2, "the best network before the cut is no result"
    assert len(lines_of(pruned_in_training)) == 5


@pytest.mark.parametrize("epochs_done", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_killed_training_goes_on_to_the_same_cut_and_weights(
    pruned_in_training, bars, tmp_path, monkeypatch, capsys, epochs_done
):
    from yolo_prune.adapters.torchvision.training.loop import Training

    whole = Training._train_epoch

    def stopping(self):
        if self.progress.epoch == epochs_done:
            raise KeyboardInterrupt
        whole(self)

    monkeypatch.setattr(Training, "_train_epoch", stopping)
    assert cli.main(train_words(bars, tmp_path, "name=run")) == 130
    monkeypatch.setattr(Training, "_train_epoch", whole)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert cli.main(["train", f"model={last}", "resume=true", "epochs=9"]) == 2
    assert "epochs: a training that goes on does so as it began." in capsys.readouterr().err
    assert cli.main(["train", f"model={last}", "resume=true"]) == 0
    first, second = (
        torch.load(folder / "weights" / "last.pt", weights_only=True)
        for folder in (pruned_in_training, tmp_path / "run")
    )
    assert first["plan"] == second["plan"]
    assert all(torch.equal(t, second["state_dict"][name]) for name, t in first["state_dict"].items())


def words_to_the_end(data, folder, *more):
    words = [word for word in train_words(data, folder, *more) if not word.startswith("prune_at")]
    return [*words, "imitation_steps=4"]


def weights_of(file):
    return torch.load(file, weights_only=True)["state_dict"]


def is_same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_by_default_the_best_network_of_the_whole_training_is_cut_and_a_kill_changes_nothing(
    bars, tmp_path, monkeypatch, capsys
):
    from yolo_prune.adapters.torchvision.training.loop import Training

    plain = [*TRAIN[:1], "epochs=4", *TRAIN[2:], f"project={tmp_path}", "name=plain"]
    assert cli.main(["train", f"model={NAME}", f"data={bars}", *plain]) == 0
    whole, stopped = tmp_path / "whole" / "weights", tmp_path / "stopped" / "weights"
    assert cli.main(words_to_the_end(bars, tmp_path, "name=whole")) == 0
    stored = torch.load(whole / "best.pt", weights_only=True)
    assert PrunePlan.from_json(stored["plan"]).kept_macs <= 0.6
    assert is_same(weights_of(whole / "parent.pt"), weights_of(tmp_path / "plain" / "weights" / "best.pt"))
    assert is_same(weights_of(whole / "last.pt"), weights_of(whole / "best.pt"))

    epoch = Training._train_epoch

    def stopping(self):
        if self.progress.epoch == 3:
            raise KeyboardInterrupt
        epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train_epoch", stopping)
        assert cli.main(words_to_the_end(bars, tmp_path, "name=stopped")) == 130
    assert (
        f"stopped: 'yolo-prune train resume model={stopped / 'last.pt'}' goes on" in capsys.readouterr().err
    )
    assert cli.main(["train", f"model={stopped / 'last.pt'}", "resume=true"]) == 0
    assert torch.load(stopped / "best.pt", weights_only=True)["plan"] == stored["plan"]
    assert is_same(weights_of(stopped / "best.pt"), weights_of(whole / "best.pt"))


def test_a_training_that_stops_early_is_cut_too(bars, tmp_path, monkeypatch):
    from yolo_prune.adapters.torchvision.training.loop import Training

    monkeypatch.setattr(Training, "_is_patient_no_more", lambda self: self.progress.epoch == 2)
    assert cli.main(words_to_the_end(bars, tmp_path, "name=early")) == 0
    for name in ("best.pt", "last.pt"):
        stored = torch.load(tmp_path / "early" / "weights" / name, weights_only=True)
        assert PrunePlan.from_json(stored["plan"]).kept_macs <= 0.6


def test_a_training_is_cut_to_a_time_and_goes_on_where_its_measuring_was_killed(bars, tmp_path, monkeypatch):
    words = [word for word in train_words(bars, tmp_path, "name=run") if word.split("=")[0] not in TARGET]
    board = Board(monkeypatch, dies_at=2)
    assert cli.main([*words, *(f"{key}={value}" for key, value in TARGET.items() if value)]) == 130
    assert [asked[:3] for asked in board.asked] == [("torch", 1, 64)]
    folder = tmp_path / "run"
    assert len(json.loads((folder / "latency_measured.json").read_text())) == 1
    goes_on = Board(monkeypatch, measured=1)
    assert cli.main(["train", f"model={folder / 'weights' / 'last.pt'}", "resume=true"]) == 0
    assert goes_on.asked == []  # the layers have the times that the training began with
    stored = torch.load(folder / "weights" / "best.pt", weights_only=True)
    met = PrunePlan.from_json(stored["plan"]).settings["latency"]
    assert met["speedup"] == pytest.approx(1.3, rel=0.03)
    assert goes_on.measured == len(met["looks"])  # the first one was read
    reached = time_of(folder / "weights" / "parent.pt") / time_of(folder / "weights" / "best.pt")
    assert reached == pytest.approx(1.3, rel=0.08)


def test_a_pruned_file_is_trained_on_and_stays_pruned(finished, bars, tmp_path):
    best = finished / "weights" / "best.pt"
    words = ["epochs=1", "batch=12", "workers=0", "device=cpu", f"project={tmp_path}", "name=on"]
    assert cli.main(["train", f"model={best}", f"data={bars}", *words]) == 0
    after = load_detector(tmp_path / "on" / "weights" / "best.pt").module
    assert count_parameters(after) == count_parameters(load_detector(best).module)


def test_weights_of_other_classes_begin_a_training_without_their_scores(trained, bars, tmp_path, caplog):
    two = tmp_path / "two"
    for split in ("train", "val"):
        for kind in ("across", "down"):
            shutil.copytree(bars / split / kind, two / split / kind)
    words = [f"weights={trained / 'weights' / 'best.pt'}", "epochs=1", "lr0=0", *TRAIN[2:4], "imgsz=64"]
    caplog.set_level("INFO", "yolo_prune")
    assert cli.main(["train", f"model={NAME}", f"data={two}", *words, f"project={tmp_path}", "name=x"]) == 0
    assert "the weights tell other classes apart: fc.bias, fc.weight begin anew." in caplog.text
    ours = torch.load(tmp_path / "x" / "weights" / "last.pt", weights_only=True)["state_dict"]
    theirs = torch.load(trained / "weights" / "best.pt", weights_only=True)["state_dict"]
    assert torch.equal(ours["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
