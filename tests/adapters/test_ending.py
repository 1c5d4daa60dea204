"""A training that is cut after its last epoch: the host's own until then, its best model cut, and a kill survived."""

import shutil

import pytest
import torch
from inrun_host import HOST, again, run, saved, table
from tiny_host import draw, tiny
from ultralytics import YOLO
from ultralytics.models import yolo
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_prune import cli
from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.training import ending, inrun
from yolo_prune.adapters.ultralytics.training.history import RUN_KEY, read_result
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import CutError
from yolo_prune.train import midcut

END = {"prune_at": "end", "imitation_steps": 6}
TASKS = {"detect": "DetectionTrainer", "segment": "SegmentationTrainer", "pose": "PoseTrainer"}
TASKS |= {"obb": "OBBTrainer", "classify": "ClassificationTrainer"}


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.float(), b.float()) for a, b in pairs)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("finished"), pruning=END)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    host = DetectionTrainer(
        overrides={**HOST, "data": str(data), "model": "x.pt", "project": str(folder), "name": "host"}
    )
    host.model = host.get_model(weights=tiny(), cfg=tiny().yaml)
    host.train()
    return host


def test_until_its_end_it_is_the_host_s_own_training(finished, plain):
    ours, theirs = table(finished), table(plain)
    same = [key for key in theirs[0] if key.startswith(("train/", "lr/"))]  # files are validated, rounded
    assert [[row[key] for key in same] for row in ours] == [[row[key] for key in same] for row in theirs]
    assert "train/distill_loss" not in ours[0]
    assert not list(finished.wdir.glob("exact-*.pt"))


def test_its_best_model_is_what_is_cut(finished, plain):
    result = read_result(finished.save_dir)
    assert same_weights(saved(result.parent), saved(plain.best))
    assert ([record.epoch for record in result.cuts], result.plan.kept_macs <= 0.6) == ([4], True)
    assert result.cuts[0].fitness is not None
    for name in ("best.pt", "last.pt"):
        assert count_parameters(YOLO(finished.wdir / name).model) == result.params_after
    assert same_weights(saved(finished.best), saved(finished.last))
    assert result.params_after < result.params_before == count_parameters(saved(plain.best))
    assert PrunePlan.from_json((finished.save_dir / "plan.json").read_text()) == result.plan
    assert sorted(path.name for path in finished.wdir.iterdir()) == ["best.pt", "last.pt", "parent.pt"]


def test_what_recovered_is_chosen_by_validation_and_noted(finished):
    settings = read_result(finished.save_dir).plan.settings
    stages, imitation = settings["recovery"], settings["imitation"]
    assert set(stages) == {"parent", "cut", "bn", "fold", "fold_bn", "imitation"}
    assert (stages["imitation"] is None) == (imitation["steps"] == 0)
    assert read_result(finished.save_dir).cuts[0].fitness == pytest.approx(
        max(
            score
            for name, score in stages.items()
            if name not in ("parent", "cut", "bn") and score is not None
        ),
        abs=1e-3,
    )


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_every_task_ends_cut(tmp_path, task):
    data = draw(tmp_path / "data", task)
    trainer = run(data, tmp_path, getattr(getattr(yolo, task), TASKS[task]), task=task, epochs=1, pruning=END)
    result = read_result(trainer.save_dir)
    assert result.plan.kept_macs < 0.7
    assert count_parameters(YOLO(result.best).model) == result.params_after < result.params_before


def test_early_stopping_ends_it_and_the_best_epoch_is_cut(data, tmp_path):
    class Falling(DetectionTrainer):
        def validate(self):
            metrics, _ = super().validate()
            fitness = 1.0 / (self.epoch + 1)
            self.best_fitness = max(self.best_fitness or 0.0, fitness)
            return metrics, fitness

    trainer = run(data, tmp_path, Falling, patience=1, epochs=6, pruning=END)
    result = read_result(trainer.save_dir)
    assert [record.epoch for record in result.cuts] == [2]
    assert torch.load(result.parent, weights_only=False)[METADATA_KEY]["role"] == "parent"
    assert result.params_after < result.params_before


@pytest.mark.parametrize("where", ["in the cut", "between the files", "before the evaluation"])
def test_a_kill_in_the_end_loses_nothing(data, tmp_path, monkeypatch, finished, where):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if where == "in the cut":
            patch.setattr(midcut, "cut_in_steps", kill)
        else:
            patch.setattr(inrun._PrunesInRun, "final_eval", kill)
        with pytest.raises(Killed):
            run(data, tmp_path / "first", pruning=END)
    folder = tmp_path / "first" / "run"
    if where == "between the files":
        shutil.copy(folder / "weights" / "parent.pt", folder / "weights" / "best.pt")
    last = again(folder, tmp_path)
    resumed = run(data, tmp_path, pruning=END, resume=last)
    result, whole = read_result(resumed.save_dir), read_result(finished.save_dir)
    assert result.plan.keep == whole.plan.keep
    assert same_weights(saved(result.best), saved(whole.best))
    assert torch.load(result.best, weights_only=False)["epoch"] == -1  # the host has finished with it
    assert len(table(resumed)) == 4


def test_ctrl_c_in_the_cut_says_how_to_go_on(data, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    stock, more = (
        tmp_path / "stock.pt",
        ["epochs=1", "imgsz=64", "batch=4", "workers=0", "device=cpu", "plots=false"],
    )
    torch.save({"model": tiny(), "epoch": -1}, stock)
    words = [
        "train",
        f"model={stock}",
        f"data={data}",
        *more,
        "keep_macs=0.6",
        "steps=1",
        "round_to=4",
        "min_width=4",
    ]
    monkeypatch.setattr(midcut, "cut_in_steps", stop)
    assert cli.main([*words, f"project={tmp_path}", "name=run"]) == 130
    last = tmp_path / "run" / "weights" / "last.pt"
    assert f"stopped: 'yolo-prune train resume model={last}' goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(["train", "resume", f"model={last}"]) == 0
    assert read_result(last.parents[1]).plan.kept_macs <= 0.65


def test_a_cut_that_fails_says_how_the_finished_training_goes_on(data, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr(midcut, "cut_in_steps", fail)
    with pytest.raises(CutError, match=r"Nothing of the training is lost: .* resume model=.*last\.pt"):
        run(data, tmp_path, pruning=END)
    assert saved(tmp_path / "run" / "weights" / "best.pt") is not None
    assert torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)[METADATA_KEY][RUN_KEY]


def test_a_fitness_is_that_of_the_host_and_changes_nothing(finished):
    before = (finished.ema.ema, finished.best_fitness, finished.fitness, finished.metrics)
    fitness = ending.fitness_of(finished, saved(finished.best).float())
    assert fitness == pytest.approx(read_result(finished.save_dir).cuts[0].fitness, abs=1e-6)
    assert (finished.ema.ema, finished.best_fitness, finished.fitness, finished.metrics) == before
