"""Retraining through the host: what was cut stays cut, and what was recovered is not lost."""

import copy
import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_host import cut, draw, tiny
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import ModelEMA

from yolo_prune.adapters.checkpoint import save_detector
from yolo_prune.adapters.ultralytics.closeness import DistillationWeights
from yolo_prune.adapters.ultralytics.training.attach import train_from_config
from yolo_prune.adapters.ultralytics.training.distill import DistilledCriterion, distil_
from yolo_prune.adapters.ultralytics.training.train import retrain, train_pruned
from yolo_prune.adapters.ultralytics.training.trainer import TrainSettings, as_saved, prune_trainer
from yolo_prune.cost import count_parameters
from yolo_prune.errors import CheckpointError, ConfigError, DataError, RebuiltError
from yolo_prune.options import TrainConfig

NAMED_LOSSES = "label_loss_items" not in vars(DetectionTrainer)  # 8.4.0 has a fixed list of columns
QUIET = {"plots": False, "verbose": False, "mosaic": 0.0, "amp": False}


@pytest.fixture(scope="module")
def pruned():
    return cut(tiny())


def run(module, data, folder, **changes):
    arguments = {"epochs": 1, "imgsz": 64, "batch": 4, "run_dir": folder, "extra": QUIET, **changes}
    return retrain(module, data=data, **arguments)


def columns(path: Path) -> list[str]:
    with path.open(newline="") as table:
        return next(csv.reader(table))


@pytest.fixture(scope="module")
def finished(pruned, data, tmp_path_factory):
    """A whole retraining of two epochs with a teacher, in a folder where a run has its own files."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "args.yaml").write_text("keep_macs: 0.5\n")
    before = copy.deepcopy(pruned.state_dict())
    result = run(pruned, data, folder, epochs=2, teacher=tiny(), meta={"parent": "parent.pt", "kept": [1, 2]})
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())
    return result


def test_a_pruned_model_stays_pruned(finished, pruned):
    assert (
        finished.params_before == finished.params_after == count_parameters(pruned) < count_parameters(tiny())
    )
    assert finished.epochs_run == 2
    for path in (finished.best, finished.last):
        assert count_parameters(YOLO(path).model) == count_parameters(pruned)


def test_control_the_hosts_own_training_grows_it_back(pruned, data, tmp_path):
    path = save_detector(tmp_path / "p.pt", pruned, task="detect", train_args={"imgsz": 64}, meta={})
    model = YOLO(path)
    assert count_parameters(model.model) == count_parameters(pruned)
    host = {**QUIET, "project": str(tmp_path), "name": "host", "device": "cpu"}
    model.train(data=data, epochs=1, imgsz=64, batch=4, **host)
    assert count_parameters(model.model) == count_parameters(tiny())


def test_the_run_folder_has_its_files_and_keeps_what_was_there(finished):
    folder = finished.best.parent.parent
    assert (folder / "args.yaml").read_text() == "keep_macs: 0.5\n"
    assert {path.name for path in (folder / "weights").iterdir()} == {"best.pt", "last.pt"}
    assert finished.results_csv == folder / "results.csv"
    assert (folder / "train" / "args.yaml").is_file()
    assert not list(folder.rglob(".*"))  # nothing half-written is left


def test_the_teacher_is_a_column_of_the_results_and_nothing_in_the_checkpoint(finished):
    assert ("train/distill_loss" in columns(finished.results_csv)) == NAMED_LOSSES
    wanted = torch.serialization.get_unsafe_globals_in_checkpoint(finished.best)
    assert not [name for name in wanted if "yolo_prune" in name or "istill" in name]
    assert finished.best.stat().st_size < 2.5 * 2 * finished.params_after


FRESH = """
import sys
sys.modules["yolo_prune"] = None  # as if it were not installed
import torch
from ultralytics import YOLO
model = YOLO(sys.argv[1])
print(sum(p.numel() for p in model.model.parameters()), model.ckpt["yolo_prune"]["kept"])
print(len(model.predict(torch.zeros(1, 3, 64, 64), imgsz=64, device="cpu", verbose=False)))
"""


def test_best_loads_in_a_fresh_process_that_is_restricted_and_knows_no_yolo_prune(finished):
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"}
    command = [sys.executable, "-c", FRESH, str(finished.best)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{finished.params_after} [1, 2]\n" in done.stdout


def test_a_finished_run_is_not_trained_again(finished, pruned, data):
    stamp = finished.best.stat().st_mtime_ns
    again = run(pruned, data, finished.best.parent.parent, epochs=2, resume=True)
    assert again == finished
    assert finished.best.stat().st_mtime_ns == stamp


def test_an_interrupted_run_resumes_and_is_still_cut(pruned, data, tmp_path):
    def interrupt(trainer):
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pruned, data, tmp_path, epochs=3, callbacks={"on_fit_epoch_end": interrupt}, meta={"kept": [1]})
    assert (tmp_path / "train" / "weights" / "last.pt").is_file()
    result = run(pruned, data, tmp_path, epochs=3, resume=True)
    assert (result.epochs_run, result.params_after) == (3, count_parameters(pruned))
    assert result.start_fitness is not None
    assert torch.load(result.best, weights_only=False)["yolo_prune"]["kept"] == [1]


def test_an_interrupted_run_resumes_from_its_checkpoint_alone(pruned, data, tmp_path):
    def interrupt(trainer):
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pruned, data, tmp_path, epochs=2, callbacks={"on_fit_epoch_end": interrupt}, meta={"kept": [1]})
    last = tmp_path / "train" / "weights" / "last.pt"
    lines = train_from_config(TrainConfig(model=str(last), resume=True, verbose=False))
    count = f"{count_parameters(pruned):,}"
    assert lines[0] == f"parameters: {count} before, {count} after training"
    assert lines[2].splitlines()[0] == "epochs: 2"
    assert torch.load(last, weights_only=False)["yolo_prune"]["kept"] == [1]
    with pytest.raises(CheckpointError) as caught:
        train_pruned(last, data=data, resume=True)
    assert str(caught.value) == f"'{last}' is of a training that ended: leave out resume to train it on."


def test_missing_data_is_an_error_before_there_is_a_run_folder(pruned, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.yaml"):
        run(pruned, tmp_path / "nowhere.yaml", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_first_epoch_ended_starts_again(pruned, data, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pruned, data, tmp_path, callbacks={"on_train_batch_end": interrupt})
    assert run(pruned, data, tmp_path, resume=True).epochs_run == 1


def trainer(base, module, data, folder, settings=None, **changes):
    overrides = {"data": str(data), "imgsz": 64, "batch": 4, "epochs": 2, "device": "cpu", "model": "x.pt"}
    overrides |= {**QUIET, "project": str(folder), "name": "host", **changes}
    made = prune_trainer(base, settings)(overrides=overrides)
    made.model = made.get_model(weights=module)
    return made


class RebuildsAtStart(DetectionTrainer):
    """A host that ignores the module it was handed, like its own setup from yaml."""

    def setup_model(self):
        self.model = tiny()


class RebuildsTheAverage(DetectionTrainer):
    """A host that forgets the cut in the middle of the run."""

    def run_callbacks(self, event):
        super().run_callbacks(event)
        if event == "on_train_epoch_end":
            self.ema = ModelEMA(tiny())


@pytest.mark.parametrize("base", [RebuildsAtStart, RebuildsTheAverage])
def test_a_rebuilt_model_is_an_error_with_both_numbers(base, pruned, data, tmp_path):
    with pytest.raises(RebuiltError) as caught:
        trainer(base, pruned, data, tmp_path, TrainSettings(judge_start=False)).train()
    assert str(caught.value) == (
        f"the host rebuilt the model: {count_parameters(pruned):,} parameters went into training, "
        f"{count_parameters(tiny()):,} came out. Train it through yolo_prune."
    )


class GetsWorse(DetectionTrainer):
    """A training whose every epoch is worse than the one before."""

    def validate(self):
        metrics, _ = super().validate()
        fitness = 0.5 - 0.1 * (self.epoch + 1)
        self.best_fitness = max(fitness, self.best_fitness or 0.0)
        return metrics, fitness


@pytest.mark.parametrize("judge_start", [True, False])
def test_the_recovered_weights_stay_best_when_training_makes_them_worse(judge_start, pruned, data, tmp_path):
    made = trainer(GetsWorse, pruned, data, tmp_path, TrainSettings(judge_start=judge_start), lr0=0.1)
    made.train()
    best = torch.load(made.best, weights_only=False)
    assert best["yolo_prune"]["retrain"]["epoch"] == (0 if judge_start else 1)
    before, after = pruned.state_dict(), best["model"].state_dict()
    same = all(
        torch.equal(value.half(), after[name]) for name, value in before.items() if value.is_floating_point()
    )
    assert same == judge_start


@pytest.mark.parametrize(("threshold", "keep"), [(0.0, True), (0.5, False), (None, False)])
def test_a_start_that_works_keeps_its_batchnorm_statistics(threshold, keep, pruned, data, tmp_path):
    settings = TrainSettings(keep_statistics_from=threshold)  # the start's fitness is 0
    # AdamW moves whatever has a gradient at all; the optimizer that 8.4.0 chooses does not in two steps.
    made = trainer(DetectionTrainer, pruned, data, tmp_path, settings, epochs=1, optimizer="AdamW")
    made.train()
    before, after = pruned.model[0].bn, made.model.model[0].bn
    assert torch.equal(before.running_mean, after.running_mean) == keep
    assert not torch.equal(before.weight, after.weight)


def test_data_with_other_classes_is_refused(pruned, tmp_path):
    with pytest.raises(DataError) as caught:
        run(pruned, draw(tmp_path / "data", classes=3), tmp_path / "run")
    assert str(caught.value) == (
        "the model tells 2 classes apart, the data has 3. Train on data with the model's own classes, "
        "or train the parent on the new data, then prune it."
    )


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_every_task_stays_cut(task, tmp_path):
    module = cut(tiny(task))
    result = run(module, draw(tmp_path / "data", task), tmp_path / "run", teacher=tiny(task))
    assert result.params_after == count_parameters(module)
    assert ("train/distill_loss" in columns(result.results_csv)) == NAMED_LOSSES


def test_a_pruned_checkpoint_goes_on_training_by_its_path(pruned, data, tmp_path):
    meta = {"parent": "parent.pt"}
    path = save_detector(tmp_path / "p.pt", pruned, task="detect", train_args={"imgsz": 64}, meta=meta)
    host = {
        **QUIET,
        "project": str(tmp_path),
        "name": "on",
        "device": "cpu",
        "optimizer": "auto",
        "lr0": None,
    }
    result = train_pruned(path, data=data, epochs=1, batch=4, **host)
    assert result.best == tmp_path / "on" / "weights" / "best.pt"
    assert result.params_after == count_parameters(pruned)
    saved = torch.load(result.best, weights_only=False)
    assert saved["yolo_prune"]["parent"] == "parent.pt"
    assert (saved["train_args"]["optimizer"], saved["train_args"]["imgsz"]) == ("AdamW", 64)


def test_the_users_own_yolo_train_line_stays_cut_with_our_trainer_class(pruned, data, tmp_path):
    path = save_detector(tmp_path / "p.pt", pruned, task="detect", train_args={"imgsz": 64}, meta={})
    model = YOLO(path)
    host = {**QUIET, "project": str(tmp_path), "name": "own", "device": "cpu"}
    model.train(trainer=prune_trainer(DetectionTrainer), data=data, epochs=1, imgsz=64, batch=4, **host)
    assert count_parameters(model.model) == count_parameters(pruned)


def test_an_unknown_recipe_or_task_is_said_in_a_sentence(pruned, data, tmp_path):
    with pytest.raises(ConfigError, match=r"^unknown recipe 'fast'\. Use gentle or host\.$"):
        train_pruned("x.pt", data=data, recipe="fast")
    known = "detect, segment, pose, obb, classify"
    with pytest.raises(ConfigError, match=rf"^cannot retrain a model for 'depth'\. Known tasks: {known}\.$"):
        run(pruned, data, tmp_path, task="depth")


def test_a_copied_or_pickled_criterion_is_the_hosts_own():
    own = nn.BCELoss(reduction="sum")
    wrapped = DistilledCriterion(own, tiny(), TrainSettings().weights)
    assert wrapped.reduction == "sum"
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert type(twin) is nn.BCELoss
        assert twin.reduction == "sum"


def test_weights_are_judged_as_they_are_saved_and_come_back_exactly():
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 1 / 3)
    exact = layer.weight.item()
    with as_saved(layer):
        assert layer.weight.item() == torch.tensor(1 / 3).half().item() != exact
    assert layer.weight.item() == exact
    with as_saved(layer):
        layer.half().float()  # as older hosts do to validate on a GPU; the tensors are new ones then
        assert layer.weight.item() != exact
    assert layer.weight.item() == exact


@pytest.mark.filterwarnings("ignore")
def test_training_in_8_bits_keeps_the_cut(pruned, data, tmp_path):
    """The host's quantisation-aware training, whose library is heavy and seldom installed."""
    pytest.importorskip("modelopt.torch.quantization")
    path = save_detector(tmp_path / "p.pt", pruned, task="detect", train_args={"imgsz": 64}, meta={})
    host = {**QUIET, "project": str(tmp_path), "name": "on", "device": "cpu", "quantize": 8}
    result = train_pruned(path, data=data, epochs=1, batch=4, **host)
    assert result.params_after == count_parameters(pruned)
    assert torch.load(result.best, weights_only=False)["modelopt"]


class SaysSomethingElse(nn.Module):
    """A teacher whose outputs cannot be compared place by place, as those of RT-DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images.sum((2, 3)), (images, images)


def test_a_teacher_that_cannot_be_understood_is_said_and_not_needed(pruned, data, tmp_path, caplog):
    with pytest.raises(ConfigError, match="does not know the outputs"):
        distil_(copy.deepcopy(pruned), SaysSomethingElse(), DistillationWeights())
    result = run(pruned, data, tmp_path, teacher=SaysSomethingElse())
    assert result.epochs_run == 1
    assert "it learns from the labels alone" in caplog.text
