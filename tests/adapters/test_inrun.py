"""Pruning inside a training of the host: the cut, the five doors through which a host grows a model back, resume."""

import copy
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import cloudpickle
import pytest
import torch
from inrun_host import HOST, again, make, run, saved, stop_in, table
from tiny_host import cut, draw, tiny
from ultralytics import YOLO
from ultralytics.models import yolo
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import ModelEMA

from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.rules import block_rules
from yolo_prune.adapters.ultralytics.training import inrun
from yolo_prune.adapters.ultralytics.training.distill import DistilledCriterion
from yolo_prune.adapters.ultralytics.training.history import RUN_KEY, read_result
from yolo_prune.cost import count_parameters
from yolo_prune.criteria import ranking, svm
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.errors import BudgetError, ConfigError, RebuiltError
from yolo_prune.train import session

TASKS = {"segment": "SegmentationTrainer", "pose": "PoseTrainer", "obb": "OBBTrainer"}
TASKS |= {"classify": "ClassificationTrainer"}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A whole run: a dense and a sparse epoch, the cut, two epochs of retraining."""
    seen = {}

    def watch(trainer):
        model = trainer.model
        seen.setdefault("schedulers", set()).add(id(trainer.scheduler))
        if trainer.epoch == 2 and "momenta" not in seen:
            parameters = dict(model.named_parameters())
            states = trainer.optimizer.state
            seen["momenta"] = all(
                states[p]["momentum_buffer"].shape == p.shape for p in parameters.values() if p in states
            )
            seen["states"] = sum(p in states for p in parameters.values())
            seen["grouped"] = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
            seen["own"] = {id(p) for p in parameters.values()}
            seen["teacher"] = isinstance(model.criterion, DistilledCriterion)

    folder = tmp_path_factory.mktemp("finished")
    trainer = run(data, folder, pruning={"sparsify": 0.5}, callbacks={"on_train_epoch_start": watch})
    trainer.seen = seen
    return trainer


def test_a_run_is_cut_to_its_budget_and_stays_cut(finished):
    result = read_result(finished.save_dir)
    assert result.params_before == count_parameters(tiny())
    assert result.params_after == count_parameters(finished.model) < 0.9 * result.params_before
    assert 0.5 < result.plan.kept_macs <= 0.6
    assert (result.plan.budget, [record.epoch for record in result.cuts]) == ({"keep_macs": 0.6}, [2])
    for name in ("best.pt", "last.pt"):
        assert count_parameters(YOLO(finished.wdir / name).model) == result.params_after
    assert PrunePlan.from_json((finished.save_dir / "plan.json").read_text()) == result.plan
    assert count_parameters(YOLO(result.parent).model) == result.params_before


def test_the_optimizer_and_its_schedule_go_on(finished):
    seen = finished.seen
    assert seen["momenta"]
    assert seen["states"] == len(seen["own"]) - 1  # all but the fixed weights of the box decoder
    assert seen["own"] == seen["grouped"]
    assert len(seen["schedulers"]) == 1
    assert seen["teacher"]


def test_results_have_the_same_columns_from_the_first_line_on(finished):
    lines = finished.csv.read_text().splitlines()
    assert len({line.count(",") for line in lines}) == 1
    rows = table(finished)
    assert [row["prune/params"] for row in rows[1:3]] == [
        f"{count_parameters(tiny()):g}",
        f"{count_parameters(finished.model):g}",
    ]
    assert [float(row["prune/lambda"]) > 0 for row in rows] == [False, True, False, False]
    assert [float(row["train/distill_loss"]) > 0 for row in rows] == [False, False, True, True]
    assert float(rows[0]["prune/gmacs"]) > float(rows[3]["prune/gmacs"]) > 0


def test_rates_rise_from_a_tenth_after_the_cut(data, tmp_path):
    rates = []
    run(
        data,
        tmp_path,
        pruning={"sparsify": "off", "distill": False},
        callbacks={
            "on_train_batch_end": lambda t: rates.append(t.optimizer.param_groups[0]["lr"] / t.lf(t.epoch))
        },
    )
    assert rates == pytest.approx([0.01] * 4 + [0.001, 0.01] + [0.01] * 2)


def test_before_the_cut_the_host_trains_as_it_would_without_us(data, tmp_path):
    pruned = run(data, tmp_path, pruning={"sparsify": 0.5, "exact_resume": False})
    host = DetectionTrainer(
        overrides={**HOST, "data": str(data), "model": "x.pt", "project": str(tmp_path), "name": "host"}
    )
    host.model = host.get_model(weights=tiny(), cfg=tiny().yaml)
    host.train()
    losses = ("train/box_loss", "train/cls_loss", "train/dfl_loss")
    ours, theirs = table(pruned), table(host)
    assert [ours[0][name] for name in losses] == [theirs[0][name] for name in losses]
    assert [ours[2][name] for name in losses] != [theirs[2][name] for name in losses]


def test_what_is_written_loads_in_the_restricted_mode_of_a_plain_host(finished):
    code = (
        "import sys; sys.modules['yolo_prune'] = None\n"
        "from ultralytics import YOLO\n"
        "print([sum(p.numel() for p in YOLO(path).model.parameters()) for path in sys.argv[1:]])"
    )
    files = [str(finished.wdir / name) for name in ("best.pt", "last.pt", "parent.pt")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files],
        capture_output=True,
        text=True,
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
        check=False,
    )
    after = count_parameters(finished.model)
    assert str([after, after, count_parameters(tiny())]) in done.stdout, done.stderr


# The five doors.


class GrowsBack(DetectionTrainer):
    """A host that builds the model anew when it resumes, as its own trainer does."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        return super().get_model(cfg=cfg, weights=None, verbose=verbose)


def test_door_train_a_cut_checkpoint_is_not_rebuilt(data, tmp_path):
    guarded = make(data, tmp_path)
    small = cut(tiny())
    assert count_parameters(guarded.get_model(weights=small, cfg=small.yaml)) == count_parameters(small)
    control = DetectionTrainer(overrides={**guarded.args.__dict__, "name": "host"})
    assert count_parameters(control.get_model(weights=small, cfg=small.yaml)) == count_parameters(tiny())


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """A run that was interrupted in its last epoch, after the cut."""
    folder = tmp_path_factory.mktemp("killed")
    trainer = make(data, folder, pruning={"sparsify": 0.5}, callbacks={"on_train_batch_end": stop_in(3)})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer.save_dir


def test_door_resume_after_the_cut_goes_on_with_the_cut_model(data, tmp_path, killed, finished):
    last = again(killed, tmp_path)
    checkpoint = torch.load(last, map_location="cpu", weights_only=False)
    settings = checkpoint[METADATA_KEY][RUN_KEY]["settings"]
    settings["rounds"] = settings.pop("cuts")  # as an earlier release wrote it
    torch.save(checkpoint, last)
    trainer = run(data, tmp_path, resume=last, pruning={"sparsify": 0.5})
    assert trainer.pruning.cuts == 1
    assert count_parameters(trainer.model) == count_parameters(finished.model)
    assert (trainer.save_dir / "plan.json").read_text() == (finished.save_dir / "plan.json").read_text()
    assert [row["epoch"] for row in table(trainer)] == ["1", "2", "3", "4"]
    assert float(table(trainer)[3]["train/distill_loss"]) > 0  # the teacher is back


def test_control_resume_through_a_host_that_rebuilds_is_an_error(data, tmp_path, killed, monkeypatch):
    monkeypatch.setattr(inrun, "is_cut", lambda module, record: False)
    with pytest.raises((RebuiltError, RuntimeError)):
        run(data, tmp_path, GrowsBack, resume=again(killed, tmp_path))


class OutOfMemory(DetectionTrainer):
    """A device that is too small for the first batch."""

    failed = False

    def preprocess_batch(self, batch):
        if not self.failed and not self.busy:
            self.failed = True
            raise RuntimeError("CUDA out of memory")
        return super().preprocess_batch(batch)


class OutOfMemoryAndBuiltAnew(OutOfMemory):
    """An older host, which sets everything up again after that."""

    def _build_train_pipeline(self):
        super()._build_train_pipeline()
        if self.failed:
            self.model = tiny()
            self.ema = ModelEMA(self.model)


@pytest.mark.parametrize(
    ("base", "outcome"),
    [(OutOfMemory, nullcontext()), (OutOfMemoryAndBuiltAnew, pytest.raises(RebuiltError))],
)
def test_door_a_smaller_batch_after_the_cut_keeps_the_model_cut(base, outcome, data, tmp_path):
    trainer = make(data, tmp_path, base, pruning={"prune_at": 0}, epochs=2)
    with outcome:
        trainer.train()
        assert trainer.batch_size == 2
        assert count_parameters(saved(trainer.best)) == read_result(trainer.save_dir).cuts[0].params


def test_a_smaller_batch_keeps_the_hook_on_the_scales(data, tmp_path):
    first = make(data, tmp_path, callbacks={"on_train_batch_end": stop_in(1)}, pruning={"sparsify": 0.5})
    with pytest.raises(KeyboardInterrupt):
        first.train()
    last = again(first.save_dir, tmp_path / "copy")
    trainer = run(data, tmp_path / "copy", OutOfMemory, resume=last, pruning={"sparsify": 0.5})
    assert trainer.batch_size == 2
    assert float(table(trainer)[1]["prune/lambda"]) > 0
    assert trainer.state.sparse_steps == 2  # two batches a step now, as the host accumulates them


def lose_the_loss(trainer):
    if trainer.epoch == 2 and not getattr(trainer, "lost", False):
        trainer.lost, trainer.loss = True, torch.tensor(float("nan"))


@pytest.mark.parametrize("guarded", [True, False])
def test_door_a_lost_loss_right_after_the_cut_recovers_the_cut_model(guarded, data, tmp_path):
    trainer = make(data, tmp_path, callbacks={"on_train_epoch_end": lose_the_loss})
    if not guarded:  # the control: last.pt is still the uncut model when the loss is lost
        save, kind = trainer.save_model, type(trainer)
        trainer.__class__ = type("ControlTrainer", (kind,), {"save_model": lambda self: self.busy or save()})
        with pytest.raises(RuntimeError, match="size mismatch"):
            trainer.train()
        return
    trainer.train()
    assert trainer.lost
    assert count_parameters(saved(trainer.best)) == read_result(trainer.save_dir).cuts[0].params
    assert len(table(trainer)) == 4


CHILD = """
import sys, torch
state = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
trainer = state["trainer"](overrides=state["args"], _callbacks=state["callbacks"])
trainer.model = state["model"]
trainer.train()
print("child", sum(p.numel() for p in trainer.model.parameters()), trainer.pruning.keep_macs)
"""


def test_door_the_child_of_a_distributed_run_is_handed_class_settings_and_model(data, tmp_path):
    """As the host starts its processes: everything pickled by value, read where nothing of this test is known."""
    trainer = make(data, tmp_path, epochs=2, pruning={"prune_at": 1})
    state = {"trainer": type(trainer), "args": vars(trainer.args), "model": trainer.model}
    state["callbacks"] = trainer.callbacks
    torch.save(state, tmp_path / "state.pt", pickle_module=cloudpickle)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "state.pt")], capture_output=True, text=True, check=False
    )
    assert "child" in done.stdout, done.stderr
    count, keep = done.stdout.rsplit("child", 1)[1].split()
    assert (int(count) < count_parameters(tiny()), keep) == (True, "0.6")


# Killed and resumed.


@pytest.mark.parametrize("where", ["planning", "swapping", "saving"])
def test_a_run_killed_in_the_middle_of_the_cut_cuts_the_same_again(
    where, data, tmp_path, finished, monkeypatch
):
    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "saving":
            patch.setattr(PrunePlan, "save", lambda self, path: (path.write_text("{"), die()))
        else:
            patch.setattr(session, {"planning": "recover", "swapping": "swap_"}[where], die)
        trainer = make(data, tmp_path, pruning={"sparsify": 0.5})
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert count_parameters(saved(trainer.last)) == count_parameters(tiny())  # the old one, and whole
    trainer = run(data, tmp_path, resume=trainer.last, pruning={"sparsify": 0.5})
    assert (trainer.save_dir / "plan.json").read_text() == (finished.save_dir / "plan.json").read_text()
    assert count_parameters(trainer.model) == count_parameters(finished.model)


def test_a_run_killed_while_sparse_resumes_to_the_same_plan_every_time(data, tmp_path):
    trainer = make(data, tmp_path / "first", callbacks={"on_train_batch_end": stop_in(1)})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    results = []
    for name in ("a", "b"):
        last = again(trainer.save_dir, tmp_path / name)
        results.append(read_result(run(data, tmp_path / name, resume=last).save_dir))
    assert results[0].plan == results[1].plan
    assert 0.5 < results[0].plan.kept_macs <= 0.6
    assert results[0].params_after == results[1].params_after == results[0].cuts[0].params


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_inrun
from pathlib import Path
test_inrun.session.swap_ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
test_inrun.torch.set_num_threads(1)
test_inrun.run(Path(sys.argv[2]), Path(sys.argv[3]), pruning={"sparsify": 0.5})
"""


def test_kill_9_in_the_middle_of_the_cut(data, tmp_path, finished):
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(data), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    trainer = run(data, tmp_path, resume=tmp_path / "run" / "weights" / "last.pt")
    assert (trainer.save_dir / "plan.json").read_text() == (finished.save_dir / "plan.json").read_text()
    assert not [
        path for path in trainer.save_dir.rglob(".*") if path.suffix == ".pt" and "parent" not in path.name
    ]


# Other ways to train.


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_pruned_in_its_run(task, tmp_path):
    base = getattr(getattr(yolo, task), TASKS[task])
    pruning = {"prune_at": 1, "keep_macs": 0.8}
    trainer = run(draw(tmp_path / "data", task), tmp_path, base, task=task, pruning=pruning, epochs=2)
    result = read_result(trainer.save_dir)
    assert result.params_after < result.params_before
    assert result.plan.kept_macs <= 0.8
    assert count_parameters(YOLO(result.best).model) == result.params_after


def test_rounds_come_to_the_budget_in_several_cuts(data, tmp_path):
    trainer = run(data, tmp_path, pruning={"prune_at": 1, "cuts": 2})
    result = read_result(trainer.save_dir)
    assert [record.epoch for record in result.cuts] == [1, 3]
    assert 0.8 - 0.1 < result.cuts[0].gmacs / trainer.state.gmacs <= 0.8
    assert 0.5 < result.plan.kept_macs <= 0.6
    replayed = cut_(tiny(), result.plan, rules=block_rules())  # one plan from start to end
    assert count_parameters(replayed) == result.params_after


@pytest.mark.parametrize(
    "host",
    [
        {"optimizer": "MuSGD", "multi_scale": 0.5},
        {"optimizer": "AdamW", "nbs": 8, "val": False},
        {"optimizer": "auto", "time": 0.0012, "warmup_epochs": 3},
    ],
    ids=["musgd and multi_scale", "accumulation without validation", "limited by time"],
)
def test_other_ways_to_train(host, data, tmp_path):
    trainer = run(data, tmp_path, pruning={"prune_at": 0.4}, **host)
    result = read_result(trainer.save_dir)
    assert result.params_after == result.cuts[0].params < result.params_before
    assert all(torch.isfinite(value).all() for value in saved(result.best).state_dict().values())


def test_layers_that_are_not_trained_keep_their_channels(data, tmp_path):
    trainer = run(data, tmp_path, freeze=3, pruning={"keep_layers": ("model.3",), "keep_macs": 0.8})
    plan = read_result(trainer.save_dir).plan
    made = {label for label in plan.keep if label.endswith("[0]")}
    assert made
    assert not [label for label in made if label.split(".")[1] in ("0", "1", "2", "3")]


class GetsWorse(DetectionTrainer):
    """A training whose every epoch is worse than the one before."""

    def validate(self):
        metrics, _ = super().validate()
        self.best_fitness = max(0.5 - 0.01 * self.epoch, self.best_fitness or 0.0)
        return metrics, 0.5 - 0.01 * self.epoch


def test_early_stopping_waits_for_the_cut_and_works_after_it(data, tmp_path):
    trainer = run(data, tmp_path, GetsWorse, patience=2, epochs=9, pruning={"prune_at": 4})
    assert read_result(trainer.save_dir).cuts[0].epoch == 4
    assert len(table(trainer)) == 7


@pytest.mark.parametrize(
    ("pruning", "host", "kind", "message"),
    [
        ({"keep_macs": 0.01}, {}, BudgetError, "cannot meet"),
        ({"prune_at": 9}, {}, ConfigError, "prune_at=9.0 leaves no epoch after the cut"),
        (
            {"criterion": "magic"},
            {},
            ConfigError,
            "criterion must be one of 'auto', 'reconstruction', 'taylor'",
        ),
        (
            {},
            {"distill_model": "x.pt"},
            ConfigError,
            "distill_model= and pruning in the run exclude each other",
        ),
    ],
)
def test_what_cannot_work_is_said_before_the_first_epoch(
    pruning, host, kind, message, data, tmp_path, monkeypatch
):
    with pytest.raises(kind, match=message):
        trainer = make(data, tmp_path, pruning=pruning)
        for key, value in host.items():
            monkeypatch.setattr(trainer.args, key, value, raising=False)
        monkeypatch.setattr(type(trainer), "_setup_train", patched_setup(type(trainer), host))
        trainer.train()
    assert not list(tmp_path.rglob("results.csv"))


def patched_setup(cls, host):
    """The host's set-up without a teacher of its own, which would have to be downloaded."""
    original = cls._setup_train

    def setup(self):
        given = {key: getattr(self.args, key, None) for key in host}
        for key in host:
            setattr(self.args, key, None)
        original(self)
        for key, value in given.items():
            setattr(self.args, key, value)

    return setup


def test_the_state_in_a_checkpoint_is_plain(finished):
    checkpoint = torch.load(finished.last, map_location="cpu", weights_only=False)
    text = json.dumps(checkpoint[METADATA_KEY]["in_run"])
    assert json.loads(text)["state"]["cuts"][0]["epoch"] == 2
    buffer = io.BytesIO()
    torch.save(checkpoint[METADATA_KEY], buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)


def test_where_reconstruction_falls_short_the_scales_do(data, tmp_path, monkeypatch, caplog):
    """Layers that died in training move no output: no reconstruction can rank them."""
    real, asked = session.recover, []

    def short_of_the_budget(*args, **options):
        asked.append(args[4])
        if asked[-1] == "reconstruction":
            raise BudgetError("cannot meet gmacs=0.006 by reconstruction.")
        return real(*args, **options)

    monkeypatch.setattr(session, "recover", short_of_the_budget)
    trainer = run(data, tmp_path, epochs=3)
    assert asked == ["reconstruction", "bn_scale"]
    assert [record.criterion for record in trainer.state.cuts] == ["bn_scale"]
    assert "Cutting by the scales instead" in caplog.text
    with pytest.raises(BudgetError):
        run(data, tmp_path / "asked for", epochs=3, pruning={"criterion": "reconstruction"})


def test_a_cut_by_svm_reads_the_labels_of_the_images_that_are_trained_on(data, tmp_path, monkeypatch):
    seen, real = [], svm.score_by_svm

    def watched(module, graph, calibration):
        seen.append((torch.cat(list(calibration.batches)), calibration.labels()))
        return real(module, graph, calibration)

    monkeypatch.setitem(ranking.IMAGE_SCORES, "svm", watched)
    trainer = run(data, tmp_path, epochs=3, pruning={"criterion": "svm"})
    assert [record.criterion for record in trainer.state.cuts] == ["svm"]
    images, labels = seen[0]
    assert len(images) == len(labels) > 1
    assert {int(kind) for label in labels for kind in label.classes} <= set(trainer.data["names"])
    assert all(0 <= value <= 1 for label in labels for box in label.boxes for value in box)


def test_the_cut_begins_with_the_weights_that_the_file_of_the_parent_has(data, tmp_path, monkeypatch):
    began, recover = {}, session.recover

    def watched(parent, *args, **options):
        began["cut"] = copy.deepcopy(parent.state_dict())
        began["average"] = copy.deepcopy(trainer.ema.ema.state_dict())
        return recover(parent, *args, **options)

    monkeypatch.setattr(session, "recover", watched)
    trainer = make(data, tmp_path, epochs=2, pruning={"prune_at": 1, "criterion": "l2"})
    trainer.train()
    kept = load_detector(trainer.wdir / "parent.pt").module.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in began["cut"].items())
    assert not all(torch.equal(kept[name], value.float()) for name, value in began["average"].items())
