"""One line added to a training that the user already has: attach, and yolo-prune train."""

import copy
import csv
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from tiny_host import cut, draw, tiny
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

import yolo_prune
from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics.evaluate import evaluate_detector
from yolo_prune.adapters.ultralytics.training.attach import train_from_config
from yolo_prune.adapters.ultralytics.training.final import accuracy_line
from yolo_prune.adapters.ultralytics.training.history import read_result, run_state
from yolo_prune.adapters.ultralytics.training.inrun import inrun_trainer
from yolo_prune.cost import count_parameters
from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.options import TrainConfig
from yolo_prune.runs.configure import make_config

KINDS = ", ".join((*BUDGETS, *TARGETS))

HOST = {"imgsz": 64, "batch": 4, "nbs": 4, "epochs": 2, "device": "cpu", "mosaic": 0.0, "amp": False}
HOST |= {"plots": False, "optimizer": "SGD", "warmup_epochs": 0, "seed": 1}
PRUNING = {
    "keep_macs": 0.7,
    "prune_at": 1,
    "round_to": 4,
    "min_width": 4,
    "steps": 1,
    "calibration_images": 4,
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    path = tmp_path_factory.mktemp("stock") / "stock.pt"
    return save_detector(path, tiny(), task="detect", train_args={"imgsz": 64}, meta={})


def train(model, data, folder, name="run", **host):
    return model.train(
        **{**HOST, "data": data, "project": str(folder), "name": name, "verbose": False, **host}
    )


def losses(folder: Path) -> list[list[str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [[row[key] for key in row if key != "time"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def attached(stock, data, tmp_path_factory):
    """The user's own line, with pruning attached to the object before it."""
    model = YOLO(stock)
    handle = yolo_prune.attach(model, **PRUNING)
    folder = tmp_path_factory.mktemp("attached")
    train(model, data, folder)
    return model, handle, folder


def test_the_users_own_line_prunes(attached):
    model, handle, _ = attached
    result = handle.result
    assert (
        count_parameters(model.model)
        == result.params_after
        < result.params_before
        == count_parameters(tiny())
    )
    assert result.plan.kept_macs <= 0.7
    assert result == read_result(Path(model.trainer.save_dir))


def test_nothing_but_the_object_knows_of_it(attached, stock, data, tmp_path):
    other = YOLO(stock)
    assert other._smart_load("trainer") is DetectionTrainer
    train(other, data, tmp_path, epochs=1)
    assert count_parameters(other.model) == count_parameters(tiny())


def test_a_removed_attachment_leaves_the_hosts_own_trainer(stock):
    model = YOLO(stock)
    before = {event: list(found) for event, found in model.callbacks.items()}
    handle = yolo_prune.attach(model, **PRUNING)
    assert handle.active
    assert model._smart_load("trainer") is not DetectionTrainer
    assert model._smart_load("validator") is YOLO(stock)._smart_load("validator")
    handle.remove()
    handle.remove()
    assert not handle.active
    assert model._smart_load("trainer") is DetectionTrainer
    assert {event: list(found) for event, found in model.callbacks.items()} == before
    with pytest.raises(CheckpointError, match=r"^nothing was trained yet: call model\.train"):
        _ = handle.result


def test_a_trainer_of_the_users_own_is_not_silently_trained_without_pruning(stock, data, tmp_path):
    model = YOLO(stock)
    yolo_prune.attach(model, **PRUNING)
    with pytest.raises(ConfigError, match=r"^model\.train\(trainer=\.\.\.\) leaves out the attached pruning"):
        train(model, data, tmp_path, trainer=DetectionTrainer)
    ours = inrun_trainer(type("UsersTrainer", (DetectionTrainer,), {}), **PRUNING)
    train(model, data, tmp_path, "own", trainer=ours)
    assert count_parameters(model.model) < count_parameters(tiny())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, f"give exactly one budget of {KINDS}; got none."),
        ({"keep_macs": 0.5, "round": 3}, "unknown key 'round'. Did you mean 'round_to'?"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message, stock):
    with pytest.raises(ConfigError) as caught:
        yolo_prune.attach(YOLO(stock), **options)
    assert str(caught.value) == message


def test_what_is_no_yolo_object_or_is_attached_already_is_refused(stock):
    with pytest.raises(ConfigError, match=r"^expected a YOLO object, got DetectionModel\.$"):
        yolo_prune.attach(tiny(), keep_macs=0.5)
    model = YOLO(stock)
    yolo_prune.attach(model, keep_macs=0.5)
    with pytest.raises(ConfigError, match="attached to this object already"):
        yolo_prune.attach(model, keep_macs=0.5)


def test_a_pruned_model_stays_pruned_when_nothing_more_is_asked_for(data, tmp_path):
    path = save_detector(tmp_path / "p.pt", cut(tiny()), task="detect", train_args={"imgsz": 64}, meta={})
    model = YOLO(path)
    yolo_prune.attach(model)
    train(model, data, tmp_path, epochs=1)
    assert count_parameters(model.model) == count_parameters(cut(tiny()))


def test_an_interrupted_run_resumes_with_the_options_it_began_with(stock, data, tmp_path):
    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    model = YOLO(stock)
    yolo_prune.attach(model, **PRUNING)
    model.add_callback("on_train_batch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, tmp_path)
    last = Path(model.trainer.last)
    lines = train_from_config(TrainConfig(model=str(last), resume=True, verbose=False))
    result = read_result(last.parent.parent)
    assert lines[0] == (
        f"parameters: {result.params_before:,} before, {result.params_after:,} after training"
    )
    assert result.params_after == result.cuts[0].params < result.params_before
    assert len(losses(last.parent.parent)) == 2


def test_a_model_that_was_never_in_a_training_is_not_resumed_into_a_new_one(stock, data):
    for budget in ({}, {"keep_macs": 0.5}):
        with pytest.raises(CheckpointError) as caught:
            train_from_config(TrainConfig(model=str(stock), data=str(data), resume=True, **budget))
        assert str(caught.value) == (
            f"'{stock}' is of a training that ended: leave out resume to train it on."
        )


def test_a_budget_needs_data_and_takes_none_that_the_checkpoint_names(stock):
    with pytest.raises(
        ConfigError, match=r"^'data' is missing: the data set to train and to prune on\. Give"
    ):
        train_from_config(TrainConfig(model=str(stock), keep_macs=0.5))


def test_without_a_budget_the_command_trains_exactly_like_the_host(stock, data, tmp_path):
    model = YOLO(stock)
    train(model, data, tmp_path, "host")
    host = {**HOST, "project": str(tmp_path), "name": "command"}
    train_from_config(TrainConfig(model=str(stock), data=str(data), verbose=False, train_args=host))
    assert losses(tmp_path / "command") == losses(tmp_path / "host")
    ours, theirs = (
        YOLO(tmp_path / name / "weights/last.pt").model.state_dict() for name in ("command", "host")
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_with_a_budget_the_command_prunes(stock, data, tmp_path, attached):
    host = {**HOST, "project": str(tmp_path), "name": "command"}
    config = TrainConfig(model=str(stock), data=str(data), verbose=False, train_args=host, **PRUNING)
    lines = train_from_config(config)
    assert lines[1].startswith("accuracy: COCO AP 0.")
    assert lines[2] == f"run folder: {tmp_path / 'command'}\nbest: {tmp_path / 'command/weights/best.pt'}"
    assert losses(tmp_path / "command") == losses(
        attached[2] / "run"
    )  # the command and the attachment are one


@pytest.mark.parametrize(
    ("task", "title"),
    [("segment", "mask AP"), ("pose", "keypoint AP"), ("obb", "oriented AP (the host's)")],
)
def test_it_ends_with_the_accuracy_that_the_task_is_judged_by(tmp_path, task, title):
    data, model = draw(tmp_path / "data", task), tiny(task)
    model.names = {0: "kind0", 1: "kind1"}
    stock = save_detector(tmp_path / "p.pt", model, task=task, train_args={"imgsz": 64}, meta={})
    host = {**HOST, "project": str(tmp_path), "name": "command"}
    config = TrainConfig(model=str(stock), data=str(data), verbose=False, train_args=host, **PRUNING)
    _, line, _ = train_from_config(config)
    best = load_detector(tmp_path / "command" / "weights" / "best.pt")
    scores = evaluate_detector(best.module, data, imgsz=64).scores
    second = "upright box AP" if task == "obb" else "box AP"
    own = next(iter(scores.values()))
    assert line.startswith(f"accuracy: {title} {own:.4f}, {second} {scores['ap']:.4f} (8 images, 64 px; ")


def test_an_accuracy_that_cannot_be_measured_at_the_end_costs_a_line_and_not_the_run(tmp_path):
    stock = save_detector(tmp_path / "p.pt", tiny(), task="detect", train_args={"imgsz": 64}, meta={})
    line = accuracy_line(stock, {"data": str(tmp_path / "gone.yaml")}, trust=False)
    assert line.startswith(f"accuracy: not measured: cannot use the data {tmp_path / 'gone.yaml'}: ")


def test_the_hosts_own_file_of_options_is_a_recipe_and_takes_the_pruning_keys(
    stock, data, tmp_path, attached
):
    """What ``yolo copy-cfg`` writes: every key of the host, with those of this run changed."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    host = {**HOST, "project": str(tmp_path), "name": "recipe", "model": str(stock), "data": str(data)}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({**DEFAULT_CFG_DICT, **host, **PRUNING, "verbose": False}))
    train_from_config(make_config(TrainConfig, [f"cfg={recipe}"]))
    assert losses(tmp_path / "recipe") == losses(attached[2] / "run")


def test_a_pruned_model_without_a_budget_goes_on_as_pruned(data, tmp_path):
    path = save_detector(tmp_path / "p.pt", cut(tiny()), task="detect", train_args={"imgsz": 64}, meta={})
    host = {**HOST, "epochs": 1, "project": str(tmp_path), "name": "on"}
    lines = train_from_config(TrainConfig(model=str(path), data=str(data), verbose=False, train_args=host))
    count = f"{count_parameters(cut(tiny())):,}"
    assert lines[0] == f"parameters: {count} before, {count} after training"
    with pytest.raises(ConfigError, match=r"^'data' is missing: the data set to train the pruned model on"):
        train_from_config(TrainConfig(model=str(path)))


def test_once_the_budget_is_met_the_object_trains_what_it_has(stock, data, tmp_path, caplog):
    caplog.set_level("INFO", "yolo_prune")
    model = YOLO(stock)
    handle = yolo_prune.attach(model, **PRUNING)
    train(model, data, tmp_path, "first")
    met = handle.result
    for name in ("second", "third"):
        caplog.clear()
        train(model, data, tmp_path, name, epochs=1)
        assert count_parameters(model.model) == met.params_after
        assert caplog.messages[0].startswith(
            f"the budget is met: training goes on with the {met.params_after:,} parameters that are left. To cut "
        )
        again = handle.result
        assert (again.plan, again.cuts, again.folder) == (met.plan, met.cuts, tmp_path / name)
    with pytest.raises(ConfigError, match=r"^pretrained=False would replace the pruned model"):
        train(model, data, tmp_path, pretrained=False)
    with pytest.raises(
        CheckpointError, match="is of a training that ended"
    ):  # and not the run that cut, resumed
        last = tmp_path / "third/weights/last.pt"
        train_from_config(TrainConfig(model=str(last), data=str(data), resume=True, verbose=False))


def test_a_further_cut_is_asked_for_and_counts_from_the_present_model(stock, data, tmp_path, caplog):
    caplog.set_level("INFO", "yolo_prune")
    model = YOLO(stock)
    yolo_prune.attach(model, **PRUNING).remove()
    path = save_detector(tmp_path / "p.pt", cut(tiny()), task="detect", train_args={"imgsz": 64}, meta={})
    for train_on in (
        lambda: train_attached(YOLO(path), data, tmp_path),
        lambda: train_from_config(
            TrainConfig(
                model=str(path),
                data=str(data),
                verbose=False,
                train_args={**HOST, "project": str(tmp_path), "name": "command"},
                **PRUNING,
            )
        ),
    ):
        caplog.clear()
        train_on()
        said = [message for message in caplog.messages if message.startswith("the model was pruned before")]
        count = count_parameters(cut(tiny()))
        assert len(said) == 1
        assert said[0].startswith("the model was pruned before: keep_macs=0.7 is of what is left of it, ")
        assert said[0].endswith(f" GMACs and {count:,} parameters.")
    result = read_result(tmp_path / "command")
    assert result.params_before == count
    assert result.plan.kept_macs <= 0.7


def train_attached(model, data, folder):
    yolo_prune.attach(model, **PRUNING)
    return train(model, data, folder)


def test_a_run_that_ended_between_its_cuts_goes_on_to_the_same_budget(stock, data, tmp_path):
    def stop(trainer):
        trainer.stop = trainer.epoch == 1  # one of two cuts is made

    model = YOLO(stock)
    handle = yolo_prune.attach(model, **{**PRUNING, "cuts": 2, "prune_at": 1})
    model.add_callback("on_train_epoch_end", stop)
    train(model, data, tmp_path, "first", epochs=4)
    first = handle.result
    assert len(first.cuts) == 1
    assert first.plan.kept_macs > 0.75
    model.clear_callback("on_train_epoch_end")
    train(model, data, tmp_path, "second", epochs=3)
    second = handle.result
    assert second.params_before == first.params_after
    assert 0.6 < first.plan.kept_macs * second.plan.kept_macs <= 0.7001


@pytest.mark.parametrize("ray", [False, True])
def test_tuning_an_attached_object_is_refused_before_anything_starts(ray, stock, data, monkeypatch):
    model = YOLO(stock)
    handle = yolo_prune.attach(model, keep_macs=0.5)
    started = []
    monkeypatch.setattr("ultralytics.engine.tuner.Tuner.__init__", lambda *_, **__: started.append(1))
    with pytest.raises(ConfigError) as caught:
        model.tune(data=str(data), use_ray=ray, iterations=1)
    assert str(caught.value) == (
        "model.tune() trains in processes of its own, which the attached pruning does not reach. Tune before "
        "attach(...), or after remove() on the handle, and prune with what it found; yolo-prune sweep tries budgets."
    )
    assert not started
    handle.remove()
    assert model.tune.__func__ is YOLO.tune
    assert model.train.__func__ is YOLO.train


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_attached_object_prunes_itself(copied, stock):
    model = YOLO(stock)
    yolo_prune.attach(model, **PRUNING)
    other = copied(model)
    assert other.train.__self__._model is other
    assert other._smart_load("trainer").pruning == model._smart_load("trainer").pruning
    with pytest.raises(ConfigError, match=r"^model\.tune\(\) trains in processes"):
        other.tune()


def test_a_class_of_trainer_is_refused_where_callbacks_are_cleared_or_run_elsewhere(stock, data):
    model = YOLO(stock)
    yolo_prune.attach(model, **PRUNING)
    model.reset_callbacks()
    with pytest.raises(ConfigError, match=r"^model\.train\(trainer=\.\.\.\) leaves out the attached pruning"):
        model.train(
            trainer=DetectionTrainer, data=str(data), device="0,1"
        )  # there the parent runs no callback
    with pytest.raises(ConfigError, match="leaves out the attached pruning"):
        YOLO.train(model, trainer=DetectionTrainer, data=str(data), epochs=1, imgsz=64)


def test_several_data_sets_are_each_trained_with_pruning(stock, data, tmp_path):
    model = YOLO(stock)
    yolo_prune.attach(model, **PRUNING)
    model.reset_callbacks()  # or the host would start its own command line
    other = draw(tmp_path / "other")
    train(model, [data, str(other)], tmp_path)
    best = sorted((tmp_path / "multitrain").glob("*/weights/best.pt"))
    assert len(best) == 2
    for path in best:
        assert len(run_state(torch.load(path, weights_only=False)["yolo_prune"]).cuts) == 1
