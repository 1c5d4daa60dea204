"""A run from its options to its report, on a host that makes its numbers up: what happens when, and what is left of it."""

import copy
import errno
import functools
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import randomise_
from stand_in import ONE_PIXEL_LESS, SCORES, StandIn, Tiny, Weighted

from yolo_prune.adapters import hosts
from yolo_prune.bench import Comparison, Timing
from yolo_prune.bench.clock import Ratio
from yolo_prune.bench.judged import FileAccuracy
from yolo_prune.bench.layer_table import write_table
from yolo_prune.bench.layers import LayerTimes
from yolo_prune.bench.parity import Parity
from yolo_prune.cost import count_macs
from yolo_prune.cut.proven import Traced
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import BenchmarkError, BudgetError, ConfigError, DataError, MissingRuntimeError
from yolo_prune.layers import shapes_to_time
from yolo_prune.options import PruneConfig
from yolo_prune.recover.imitate import Imitation
from yolo_prune.report import Resampled, report_from_json, write, write_json
from yolo_prune.report.deployed import Deployed
from yolo_prune.report.intervals import accuracy_interval
from yolo_prune.runs import latency, recovery
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.measure import measure_speed_again, speed
from yolo_prune.runs.measure import run as measuring
from yolo_prune.runs.preflight import check_budget, choose_criterion, size_of
from yolo_prune.runs.prune import prune_from_config
from yolo_prune.runtimes.runtime import Settings

FULL = OSError(errno.ENOSPC, "No space left on device")


def made_up_host(patch):
    host = StandIn()
    patch.setattr(hosts, "hosts", lambda: (host,))
    patch.setattr(write, "render_html", lambda *_: "the report as a page, which has tests of its own")
    return host


def stored_parent(host, folder):
    torch.manual_seed(0)
    module = randomise_(Tiny(), x=torch.zeros(1, 3, 32, 32)).eval()
    file = host.save(folder / "model.pt", module, task="detect", train_args={}, meta={})
    host.diary.entries.clear()
    return file


def short(model, folder, /, **more):
    """Options of a short run."""
    values = {
        "steps": 1,
        "calibration_images": 4,
        "round_to": 2,
        "min_width": 2,
        "bench": False,
        "keep_macs": 0.5,
    }
    place = {"model": str(model), "data": "made up", "project": str(folder / "runs"), "name": "a"}
    return make_config(PruneConfig, {**values, **place, **more})


@pytest.fixture
def host(monkeypatch):
    return made_up_host(monkeypatch)


@pytest.fixture
def model(host, tmp_path):
    """The file of a parent."""
    return stored_parent(host, tmp_path)


@pytest.fixture
def options(host, model, tmp_path):
    """Options of a short run, with others in their place: ``options(epochs=1)``."""
    host.diary.root = tmp_path / "runs" / "a"
    return functools.partial(short, model, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything in it, which nothing interrupted, and the host that it was on."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        host = made_up_host(patch)
        model = stored_parent(host, folder)
        host.diary.root = folder / "runs" / "a"
        return SimpleNamespace(
            result=prune_from_config(short(model, folder, epochs=1, quantize=8)), host=host
        )


def files_of(folder):
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "run.log" in found  # every run keeps it, however it ends
    return found - {"run.log"}


def lasting(report):
    """What of a report does not depend on when, where and how fast it was made: a file holds the path of its parent."""
    rows = tuple(replace(row, size_mb=None) for row in report.rows)
    return replace(report, created=None, timing_s={}, rows=rows)


def row_of(report, name):
    return next(row for row in report.rows if row.model == name)


# What happens when.


def test_a_run_does_one_thing_after_the_other_and_each_once(whole):
    host = whole.host
    said = [
        entry for entry in host.diary.entries if not entry.startswith(("load ", "score", "save ", "guard"))
    ]
    assert said == [
        "check the training",
        "check that it can be trained",
        "open the task",
        "check the training images",
        "evaluate parent at 64",
        "read calibration images",
        "open the scorer",
        "read calibration images",
        "evaluate pruned at 64",
        "retrain",
        "evaluate retrained at 64",
        "read calibration images",
        "export int8",
        "evaluate int8 at 64",
        "evaluate parent at 32",
        "evaluate parent at 48",
    ]
    assert [entry for entry in host.diary.entries if entry.startswith("save ")] == [
        *("save parent.pt", "save pruned.pt", "save pruned.pt", "save last.pt", "save best.pt")
    ]


def test_labels_are_read_for_a_criterion_that_needs_them_once_and_for_no_other(host, options, whole):
    found = prune_from_config(options(criterion="svm", steps=2))
    assert found.plan.settings["criterion"] == "svm"
    assert host.diary.entries.count("read labels") == 1
    assert "read labels" not in whole.host.diary.entries


def test_each_file_is_there_when_the_next_stage_begins_and_not_before(whole):
    result, seen = whole.result, whole.host.diary.files
    start = {"run.log", "args.yaml", "weights/parent.pt"}
    assert seen["evaluate parent at 64"] == start
    assert seen["open the scorer"] == start
    cut = start | {"weights/pruned.pt", "plan.json", "recovery.json"}
    assert seen["evaluate pruned at 64"] == cut
    assert seen["retrain"] == cut
    trained = cut | {"weights/last.pt", "weights/best.pt", "results.csv"}
    assert seen["evaluate retrained at 64"] == trained
    quantised = trained | {"weights/best_int8.onnx"}
    assert seen["evaluate int8 at 64"] == quantised
    assert seen["evaluate parent at 48"] == quantised
    report = {"report.json", "report.md", "report.csv", "report.html"}
    assert files_of(result.folder) | {"run.log"} == quantised | report | EXAMPLES
    assert result.best == result.folder / "weights" / "best.pt"


def test_no_image_of_the_data_is_shown_where_nobody_wants_it(host, options):
    result = prune_from_config(options())
    assert files_of(result.folder) >= EXAMPLES
    result = prune_from_config(options(pictures=False, exist_ok=True))
    assert not EXAMPLES & files_of(result.folder)
    assert "examples" not in result.report.timing_s


def test_without_retraining_the_pruned_model_is_the_result(host, options):
    result = prune_from_config(options())
    assert result.best == result.folder / "weights" / "pruned.pt"
    assert host.diary.count("retrain", "export") == 0
    assert [row.model for row in result.report.rows] == ["parent", "pruned", "control", "control"]
    assert "retrain" not in result.report.timing_s


def test_what_is_wrong_is_known_before_a_folder_is_made(host, options, tmp_path):
    for entry, error in (
        ("check the training", ConfigError("unknown argument 'lr'.")),
        ("load model.pt", ConfigError("no.")),
        ("check that it can be trained", ConfigError("it learns from masks.")),
        ("open the task", DataError("no data.")),
        ("check the training images", DataError("no images.")),
    ):
        host.diary.failing[entry] = error
        with pytest.raises(type(error)) as caught:
            prune_from_config(options(epochs=1))
        assert caught.value is error
        assert not (tmp_path / "runs").exists()
    for more, words in (
        ({"keep_macs": 0.001}, "cannot meet"),
        ({"keep_macs": None, "gmacs": 5.0}, "is no less than the model has"),
    ):
        with pytest.raises(BudgetError, match=words):
            prune_from_config(options(**more))
        assert not (tmp_path / "runs").exists()
    assert host.diary.count("evaluate") == 0


def test_a_run_leaves_the_generators_of_random_numbers_alone(host, options):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    prune_from_config(options())
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_a_run_does_not_overwrite_its_own_model(host, options, model):
    first = prune_from_config(options())
    own = first.folder / "weights" / "pruned.pt"
    before = own.read_bytes()
    with pytest.raises(
        ConfigError, match=r"^the run would overwrite its own model '.*pruned\.pt'\. Choose another"
    ):
        prune_from_config(options(model=str(own), exist_ok=True))
    assert own.read_bytes() == before


def test_nothing_of_an_earlier_run_passes_for_this_ones(host, options):
    first = prune_from_config(options(epochs=1, quantize=8))
    (first.folder / "notes.txt").write_text("mine")
    host.diary.failing["evaluate parent at 64"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        prune_from_config(options(exist_ok=True))
    assert files_of(first.folder) == {"notes.txt", "args.yaml", "weights/parent.pt"}


def test_a_retraining_gets_a_copy_of_the_pruned_model_and_the_parent_as_teacher(host, options):
    more = {"epochs": 3, "lr0": 0.01, "optimizer": "SGD", "batch": 4, "seed": 5, "workers": 1}
    config = replace(options(**more), train_args={"mosaic": 0.5})
    result = prune_from_config(config)
    (got,) = host.retrained_with
    plan = json.loads((result.folder / "plan.json").read_text())
    assert (got["epochs"], got["lr0"], got["batch"], got["seed"], got["workers"]) == (3, 0.01, 4, 5, 1)
    assert got["extra"] == {"mosaic": 0.5, "optimizer": "SGD"}
    assert (got["imgsz"], got["device"], got["run_dir"], got["resume"]) == (64, "cpu", result.folder, False)
    assert got["teacher"].role == "parent"
    assert got["teacher"].body[0].out_channels == 16
    assert got["module"].body[0].out_channels < 16
    assert got["meta"]["kept_macs"] == plan["kept_macs"]
    assert prune_from_config(options(epochs=1, distill=False, exist_ok=True)).best
    assert host.retrained_with[-1]["teacher"] is None
    assert host.retrained_with[-1]["extra"] == {}


def test_the_data_is_opened_as_the_options_say(host, options):
    prune_from_config(options(split="test", batch=2, workers=3))
    (got,) = host.opened_with
    assert got == {"source": "made up", "split": "test", "batch": 2, "device": "cpu", "workers": 3}


# Failures, and going on.

PARENT, PRUNED, RETRAINED = (f"evaluate {name} at 64" for name in ("parent", "pruned", "retrained"))
BEGUN = {"args.yaml"}
SAVED = BEGUN | {"weights/parent.pt"}
EXAMPLES = {"examples/examples.json"}
CUT = SAVED | {"weights/pruned.pt", "plan.json", "recovery.json"}
TRAINED = CUT | {"weights/last.pt", "weights/best.pt", "results.csv"}
PLACES = [
    ("save parent.pt", BEGUN, "cut"),
    (PARENT, SAVED, "cut"),
    ("read calibration images", SAVED, "cut"),
    ("open the scorer", SAVED, "cut"),
    ("score", SAVED, "cut"),
    ("save pruned.pt", SAVED, "cut"),
    (PRUNED, CUT, "retrain"),
    ("retrain", CUT, "retrain"),
    (RETRAINED, TRAINED, "retrain"),
    ("export int8", TRAINED, "retrain"),
    ("evaluate parent at 48", TRAINED | {"weights/best_int8.onnx"}, "retrain"),
]


@pytest.mark.parametrize(
    ("at", "left", "again", "error"),
    [
        *((*place, KeyboardInterrupt()) for place in PLACES),
        *(
            (*place, FULL)
            for place in PLACES
            if place[0].startswith(("save", "retrain", "evaluate parent at 48"))
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_run_that_fails_anywhere_leaves_whole_files_and_goes_on(
    host, options, whole, at, left, again, error
):
    host.diary.failing[at] = copy.copy(error)
    with pytest.raises(type(error)) as caught:
        prune_from_config(options(epochs=1, quantize=8))
    folder = host.diary.root
    if isinstance(error, KeyboardInterrupt):
        assert str(caught.value) == f"{folder} keeps what was finished; resume=true name=a goes on"
    assert files_of(folder) == left

    host.diary.entries.clear()
    host.retrained_with.clear()
    result = prune_from_config(options(epochs=1, quantize=8, resume=True))
    cut_again = host.diary.count("open the scorer", "score", "save pruned.pt")
    assert host.diary.count("read calibration") == 1 + 2 * (again == "cut"), (
        "once for the 8 bits, whatever is cut"
    )
    assert (cut_again > 0) == (again == "cut"), "what is finished is not done again"
    assert host.diary.count(PARENT) == host.diary.count(PRUNED) == 1
    assert [one["resume"] for one in host.retrained_with] == [True], "the host knows how far it came"
    assert result.plan == whole.result.plan
    expected = replace(lasting(whole.result.report), model=str(options().model))
    assert lasting(result.report) == expected
    assert {"cut", "recover"} <= set(result.report.timing_s), "times of the first attempt are kept"


def test_a_run_that_is_stopped_while_it_imitates_goes_on_from_the_folded_model(
    host, options, whole, monkeypatch
):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "recover_by_imitation", stopped)
        with pytest.raises(KeyboardInterrupt, match="resume=true name=a goes on"):
            prune_from_config(options(epochs=1, quantize=8))
    assert files_of(host.diary.root) == CUT
    host.diary.entries.clear()
    result = prune_from_config(options(epochs=1, quantize=8, resume=True))
    assert host.diary.count("save pruned.pt") == 1, "what imitates is written, and nothing is cut again"
    assert lasting(result.report) == replace(lasting(whole.result.report), model=str(options().model))


@pytest.mark.parametrize(("better", "kept"), [(True, True), (False, False)])
def test_a_model_that_imitates_is_kept_where_it_scores_more(host, options, better, kept, monkeypatch):
    def imitated(module, parent, calibration, *, seconds, score, known, **rest):
        assert seconds == 5
        return (copy.deepcopy(module) if better else module), Imitation(2.0, 1.0, 1e-4, 20, 3.0), 0.9

    monkeypatch.setattr(recovery, "recover_by_imitation", imitated)
    result = prune_from_config(options(recover_seconds=5))
    said = json.loads((result.folder / "plan.json").read_text())["settings"]["imitation"]
    assert said == {"before": 2.0, "after": 1.0, "rate": 1e-4, "steps": 20, "kept": kept}
    assert [stage.ap for stage in result.report.stages if stage.name == "imitation"] == [0.9]


def test_no_time_for_imitation_is_none(host, options):
    result = prune_from_config(options(recover_seconds=0))
    assert "imitation" not in json.loads((result.folder / "plan.json").read_text())["settings"]
    assert host.diary.count("read calibration") == 1


def test_a_run_that_is_whole_is_measured_again_and_not_cut_again(host, options):
    first = prune_from_config(options())
    plan, pruned = (
        (first.folder / "plan.json").read_bytes(),
        (first.folder / "weights/pruned.pt").read_bytes(),
    )
    host.diary.entries.clear()
    second = prune_from_config(options(resume=True))
    assert host.diary.count("read calibration", "open the scorer", "save pruned") == 0
    assert (first.folder / "plan.json").read_bytes() == plan
    assert (first.folder / "weights/pruned.pt").read_bytes() == pruned
    assert lasting(second.report) == lasting(first.report)


def test_what_a_run_goes_on_with_is_the_model_that_it_was_cut_from(host, options, model):
    prune_from_config(options())
    host.save(model, randomise_(Tiny(), seed=1), task="detect", train_args={}, meta={})
    with pytest.raises(
        ConfigError, match=r"^'.*a' was cut from another model than '.*model\.pt'\. Choose another"
    ):
        prune_from_config(options(resume=True))
    with pytest.raises(ConfigError, match=r"was started with keep_macs=0\.5, not keep_macs=0\.7"):
        prune_from_config(options(resume=True, keep_macs=0.7))


def test_the_options_of_a_run_are_to_be_run_again_and_not_resumed(host, options):
    folder = prune_from_config(options()).folder
    prune_from_config(options(resume=True))
    assert "resume: false" in (folder / "args.yaml").read_text()


# What the report says.


def test_the_numbers_of_a_report_are_those_that_the_task_gave(whole):
    report = whole.result.report
    for name, score in SCORES.items():
        row = row_of(report, name)
        assert (row.ap, row.ap50, row.imgsz) == (score, score + 0.25, 64), name
    controls = [row for row in report.rows if row.model == "control"]
    assert [(row.imgsz, row.ap) for row in controls] == [
        (size, SCORES["parent"] - (64 - size) * ONE_PIXEL_LESS) for size in (32, 48)
    ]
    parent, pruned = row_of(report, "parent"), row_of(report, "pruned")
    macs = 32 * 32 * (27 * 16 + 9 * 16 * 16 + 16 * 4)
    assert parent.gmacs == macs / 1e9
    assert [row.gmacs for row in controls] == [macs / 4 / 1e9, macs * 9 / 16 / 1e9]
    assert parent.params_m == (27 * 16 + 32 + 9 * 256 + 32 + 16 * 4 + 4) / 1e6
    assert pruned.gmacs == pytest.approx(report.plan.kept_gmacs)
    assert pruned.gmacs <= 0.5 * parent.gmacs
    assert (report.plan.parent_gmacs, report.plan.budget, report.plan.steps) == (
        pytest.approx(parent.gmacs),
        "keep_macs=0.5",
        1,
    )
    conditions = report.conditions
    assert (conditions.images, conditions.boxes, conditions.split) == (8, 21, "val")
    assert conditions.evaluator == "an evaluator that makes numbers up"
    assert conditions.ap_of is None, "it is said where there is a note on it"
    assert report.equivalence.verdict == "exact"
    assert report_from_json(whole.result.folder) == report


def test_stages_of_recovery_are_those_that_were_scored(whole, options):
    report = whole.result.report
    assert [stage.name for stage in report.stages] == [
        *("cut", "bn", "fold", "fold_bn", "imitation", "retrained")
    ]
    width = report.stages[0].ap
    assert width == 0.5 + next(one.kept for one in report.layers if one.name == "body.0") / 64
    assert {stage.ap for stage in report.stages[:5]} == {width}
    assert report.stages[-1].ap == SCORES["retrained"]
    report = prune_from_config(options(fold=False)).report
    assert [stage.name for stage in report.stages] == ["cut", "bn", "imitation"]


def test_classes_are_those_of_the_parent_with_what_the_split_has_of_them(host, options):
    host.task.changes["pruned"] = {"per_class": {"cat": 0.125}}
    report = prune_from_config(options(epochs=1)).report
    assert [
        (one.name, one.parent, one.pruned, one.retrained, one.boxes, one.images) for one in report.per_class
    ] == [
        ("cat", 0.5, 0.125, 0.4375, 11, None),
        ("dog", 0.5 - 1 / 64, None, 0.4375 - 1 / 64, 7, None),
        ("ox", 0.5 - 2 / 64, None, 0.4375 - 2 / 64, None, None),
    ]


def test_a_classifier_is_reported_by_its_accuracy_and_its_images(host, options):
    host.task.metric, host.task.counted = "top1", "images"
    report = prune_from_config(options(epochs=1)).report
    parent = row_of(report, "parent")
    assert (parent.top1, parent.ap, parent.accuracy) == (0.5, None, 0.5)
    assert report.per_class[0].images == 11
    assert report.per_class[0].boxes is None
    assert [(stage.top1, stage.ap) for stage in report.stages][-1] == (SCORES["retrained"], None)


def test_the_hosts_own_numbers_stay_apart(host, options):
    host.task.changes["pruned"] = {"host_scores": {"map": 0.3, "map50": 0.6}}
    report = prune_from_config(options()).report
    assert [(one.model, one.map, one.map50, one.imgsz) for one in report.host_map] == [
        ("pruned", 0.3, 0.6, 64)
    ]


def test_intervals_are_drawn_from_what_each_evaluation_found(host, options):
    host.task.changes["parent"] = {"sample": Weighted((1.0, 0.0, 1.0, 1.0))}
    host.task.changes["pruned"] = {"sample": Weighted((0.0, 0.0, 0.0, 0.0))}
    report = prune_from_config(options(epochs=1)).report
    found = {(one.model, one.imgsz): one.accuracies for one in report.resamples}
    assert list(found) == [("parent", 64), ("pruned", 64), ("control", 32), ("control", 48)], (
        "who has a sample"
    )
    assert found["parent", 64].mean() == pytest.approx(0.75, abs=0.05)
    assert not found["pruned", 64].any()


def test_versions_are_of_what_is_installed(whole):
    versions = whole.result.report.versions
    assert {"python", "yolo-prune", "torch", "pytest", "numpy"} <= set(versions)
    assert "a-package-that-is-not-there" not in versions
    assert versions["pytest"] == pytest.__version__


def test_without_a_lower_resolution_there_is_no_control(host, options, monkeypatch):
    monkeypatch.setattr(StandIn, "stride", lambda *_: 64)
    report = prune_from_config(options()).report
    assert [row.model for row in report.rows] == ["parent", "pruned"]
    assert host.diary.count("evaluate") == 2


# Warnings.


def test_a_note_on_the_accuracy_is_a_warning_and_says_which_boxes_count(host, options):
    host.task.changes["parent"] = {"notes": ("AP is of upright boxes.",), "ap_of": "upright boxes"}
    report = prune_from_config(options()).report
    assert report.warnings == ("AP is of upright boxes.",)
    assert report.conditions.ap_of == "upright boxes"


def test_a_budget_behind_a_cliff_is_named(host, options, monkeypatch):
    scores = iter([0.5, 0.2, *[0.2] * 10])
    scorer = host.task.scorer
    monkeypatch.setattr(host.task, "scorer", lambda size: scorer(size) and (lambda _: next(scores)))
    report = prune_from_config(options(steps=2)).report
    (warning,) = report.warnings
    assert warning.startswith("AP before training falls from 0.500 at 69 % to 0.200 at 44 %")
    assert warning.endswith("beyond that point the model lives on retraining.")


def test_no_cliff_no_warning(host, options):
    assert prune_from_config(options(steps=2)).report.warnings == ()


def test_a_shape_that_the_host_cannot_retrain_at_is_said(host, options):
    expected = (
        "Retraining was at 64 x 64 px, because the host trains on squares; every number here is at 32x64 px.",
    )
    report = prune_from_config(options(imgsz=(32, 64), epochs=1)).report
    assert report.warnings == expected
    assert {row.imgsz for row in report.rows if row.model != "control"} == {(32, 64)}
    assert prune_from_config(options(imgsz=(32, 64), exist_ok=True)).report.warnings == ()


# INT8.


@pytest.mark.parametrize(
    "error", [MissingRuntimeError("'onnx' is not installed."), FULL, BenchmarkError("it died.")]
)
def test_a_quantisation_that_fails_is_a_row_with_the_reason(host, options, error):
    host.diary.failing["export int8"] = error
    report = prune_from_config(options(epochs=1, quantize=8)).report
    row = row_of(report, "int8")
    assert row.not_measured == f"there is no INT8 model: {error}"
    assert (row.ap, row.gmacs, row.imgsz) == (None, None, 64)
    assert row_of(report, "retrained").ap == SCORES["retrained"]
    assert "int8" in (host.diary.root / "report.md").read_text()


def test_a_quantisation_that_is_a_mistake_of_ours_is_no_row(host, options):
    host.diary.failing["export int8"] = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        prune_from_config(options(quantize=8))
    assert not (host.diary.root / "report.json").exists()


def test_the_final_model_is_quantised(host, options):
    folder = prune_from_config(options(quantize=8)).folder
    prune_from_config(options(quantize=8, epochs=1, name="b"))
    assert [
        (one["checkpoint"].name, one["out"].name, len(one["batches"][0])) for one in host.quantised_with
    ] == [
        ("pruned.pt", "pruned_int8.onnx", 4),
        ("best.pt", "best_int8.onnx", 4),
    ]
    row = row_of(report_from_json(folder), "int8")
    assert row.size_mb == len("8 bits") / 1e6


def test_every_runtime_that_has_8_bits_gets_its_own_file_row_and_interval(host, options):
    more = {"quantize": 8, "epochs": 1, "runtimes": ("torch", "onnxruntime", "openvino", "opencv")}
    first = prune_from_config(options(**more))
    assert [one["out"].name for one in host.quantised_with] == ["best_int8.onnx", "best_int8_openvino_model"]
    rows = {row.runtime: row for row in first.report.rows if row.model == "int8"}
    assert rows.keys() == {"onnxruntime", "openvino"}
    assert {(row.precision, row.ap) for row in rows.values()} == {("int8", SCORES["int8"])}
    text = (first.folder / "report.md").read_text()
    assert "In INT8 for onnxruntime the" in text
    assert "In INT8 for openvino the" in text


def test_a_quantisation_that_fails_on_one_runtime_leaves_that_of_the_other(host, options):
    export = host.export_int8

    def failing(checkpoint, module, out, task, **more):
        if out.name.endswith("_openvino_model"):
            raise MissingRuntimeError("INT8 for OpenVINO needs 'nncf'.")
        return export(checkpoint, module, out, task, **more)

    host.export_int8 = failing
    report = prune_from_config(options(quantize=8, runtimes=("onnxruntime", "openvino"))).report
    found = {row.runtime: (row.ap, row.not_measured) for row in report.rows if row.model == "int8"}
    assert found == {
        "onnxruntime": (SCORES["int8"], None),
        "openvino": (None, "there is no INT8 model: INT8 for OpenVINO needs 'nncf'."),
    }


# Speed.


def timing(fps, imgsz):
    latency = dict.fromkeys(("p10", "p50", "p90", "p99"), 1000 / fps)
    values = {"pre_ms": 1.0, "net_ms": 2.0, "post_ms": 3.0, "cpu_ms": 4.0, "load1": 0.5, "samples": 12}
    place = {
        "runtime": "torch",
        "runtime_version": "1",
        "device": "cpu",
        "device_name": "a CPU",
        "threads": 1,
    }
    return Timing(latency_ms=latency, fps=fps, **values, **place, batch=1, imgsz=imgsz)


class Stopwatch:
    """In the place of ``compare``: the later a candidate comes, the faster it is."""

    def __init__(self, host):
        self.diary, self.asked, self.failing = host.diary, [], {}
        self.accuracies, self.parities, self.refused = {}, {}, {}

    def __call__(self, candidates, *, runtime, device, imgsz, **options):
        self.asked.append(
            {"candidates": candidates, "runtime": runtime, "device": device, "imgsz": imgsz, **options}
        )
        self.diary.note(f"time on {runtime}")
        timings = {
            name: replace(timing(10.0 * (1 + index), imgsz[name]), runtime=runtime)
            for index, name in enumerate(candidates)
        }
        ratios = {
            name: {"latency": Ratio(1.0 + index, 0.9 + index, 1.1 + index, 0.95, 6)}
            for index, name in enumerate(candidates)
        }
        timings |= dict.fromkeys(self.refused)
        found = {"accuracies": self.accuracies, "parities": self.parities, "refused": self.refused}
        return Comparison(next(iter(candidates)), timings, ratios, {"timed": "preprocess + network"}, **found)


@pytest.fixture
def stopwatch(host, monkeypatch):
    stopwatch = Stopwatch(host)
    monkeypatch.setattr(speed, "compare", stopwatch)
    monkeypatch.setattr(speed.torch.cuda, "is_available", lambda: False)
    return stopwatch


def test_every_model_is_timed_from_its_file_beside_the_others(host, options, stopwatch):
    result = prune_from_config(
        options(bench=True, epochs=1, quantize=8, threads=1, runtimes=("torch", "onnxruntime"))
    )
    weights = result.folder / "weights"
    files = {"parent": "parent.pt", "pruned": "pruned.pt", "retrained": "best.pt"}
    files |= {f"control at {size} px": "parent.pt" for size in (32, 48)}
    torch_run, onnx_run = stopwatch.asked
    assert torch_run["candidates"] == {name: weights / file for name, file in files.items()}
    assert onnx_run["candidates"] == torch_run["candidates"] | {"int8": weights / "best_int8.onnx"}
    assert torch_run["imgsz"] == dict.fromkeys(list(files)[:3], 64) | {
        f"control at {size} px": size for size in (32, 48)
    }
    assert (torch_run["threads"], torch_run["device"]) == (1, "cpu")
    report = result.report
    fps = {(row.model, row.runtime, row.imgsz): row.fps for row in report.rows}
    order = list(onnx_run["candidates"])
    assert fps["parent", "torch", 64] == 10.0
    assert fps["int8", "onnxruntime", 64] == 10.0 * (1 + order.index("int8"))
    assert ("int8", "torch", 64) not in fps
    found = {(one.model, one.runtime, one.imgsz): (one.ratio, one.low, one.high) for one in report.speedups}
    assert found["pruned", "torch", 64] == (2.0, 1.9, 2.1)
    assert ("parent", "torch", 64) not in found
    assert (report.conditions.timed, report.conditions.load1, report.conditions.samples) == (
        *("preprocess + network", 0.5, 12),
    )
    assert report.warnings == ("GPU speed was not measured: this machine has no CUDA device.",)
    assert host.diary.count("find images to time") == 1
    assert report.timing_s.keys() >= {"controls", "intervals", "bench"}


# A budget of time.


class Board:
    """In the place of what times layers and models: every one takes its multiply-accumulates, the parent 1 ms more."""

    def __init__(self, patch):
        self.layers, self.compared = [], []
        patch.setattr(latency, "measure_layers", self.measure_layers)
        patch.setattr(latency, "compare", self.compare)

    def measure_layers(self, layers, network, *, runtime, settings, probes=()):
        self.layers.append((runtime, settings.threads, settings.device, network.imgsz))
        assert network.file.exists()
        ms = {shape: self.ms(shape) for shape in [*shapes_to_time(layers), *probes]}
        return LayerTimes(ms, sum(map(self.ms, layers)), 1.0, {"runtime": runtime})

    def ms(self, shape):
        return shape.weights * shape.height * shape.width / 1e6

    def compare(self, candidates, *, runtime, imgsz, **options):
        self.compared.append({"runtime": runtime, "imgsz": imgsz, **options})
        times = [self.time_of(file) for file in candidates.values()]
        ratio = Ratio(times[0] / times[1], 0.99 * times[0] / times[1], 1.01 * times[0] / times[1], 0.95, 10)
        return Comparison("parent", {}, {"cut": {"latency": ratio}}, {})

    def time_of(self, file):
        module = torch.load(file, weights_only=False)["module"]
        return 1.0 + 0.9 * count_macs(module, torch.zeros(1, 3, 64, 64)) / 1e6


def fine(options, **more):
    values = {"keep_macs": None, "round_to": 1, "min_width": 1, "steps": 2, "runtime": "torch", "threads": 1}
    return options(**{**values, "target_speedup": 1.5, **more})


def test_a_run_with_a_target_says_what_was_asked_for_predicted_and_reached(host, options, monkeypatch):
    board = Board(monkeypatch)
    result = prune_from_config(fine(options))
    weights = result.folder / "weights"
    reached = board.time_of(weights / "parent.pt") / board.time_of(weights / "pruned.pt")
    assert reached == pytest.approx(1.5, rel=0.03)
    assert board.layers == [("torch", 1, "cpu", 64)]
    kept = json.loads((result.folder / "plan.json").read_text())
    assert kept["budget"] == {"target_speedup": 1.5}
    met = kept["settings"]["latency"]
    assert met["speedup"] == pytest.approx(reached)
    assert (met["runtime"], met["device"], met["threads"], met["missed"]) == ("torch", "cpu", 1, "")
    assert met["target_ms"] == pytest.approx(met["parent_ms"] / 1.5)
    plan = result.report.plan
    assert plan.budget == "target_speedup=1.5"
    assert plan.target == (
        f"target {met['target_ms']:.4g} ms an image on torch, cpu, 1 thread (the parent took {met['parent_ms']:.4g}); "
        f"predicted {met['predicted_ms']:.4g}, reached {met['measured']['ms']:.4g} [{met['measured']['low']:.4g}, "
        f"{met['measured']['high']:.4g}], {reached:.2f} times as fast"
    )
    assert report_from_json(result.folder).plan.target == plan.target
    one = board.compared[0]
    assert (one["runtime"], one["imgsz"], one["threads"], one["device"]) == ("torch", 64, 1, "cpu")


def test_a_run_with_a_target_goes_on_without_cutting_again(host, options, monkeypatch):
    board = Board(monkeypatch)
    first = prune_from_config(fine(options))
    count = len(board.compared)
    again = prune_from_config(fine(options, resume=True))
    assert lasting(again.report) == lasting(first.report)
    assert len(board.compared) == count
    with pytest.raises(ConfigError, match=r"was started with threads=1, not threads=2"):
        prune_from_config(replace(fine(options, resume=True), threads=2))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"target_speedup": 50.0},
            r"^cannot meet 0\.\d+ ms: [\d.]+ ms remain of [\d.]+, [\d.]+ times as fast",
        ),
        (
            {"target_speedup": None, "target_fps": 1.0},
            r"^target_fps=1 is met already: the model takes [\d.]+ ms",
        ),
    ],
)
def test_a_target_out_of_reach_is_refused_before_a_folder_is_made(
    host, options, monkeypatch, tmp_path, target, message
):
    Board(monkeypatch)
    with pytest.raises(BudgetError, match=message):
        prune_from_config(fine(options, **target))
    assert not (tmp_path / "runs").exists()


def test_a_target_that_is_missed_is_a_warning(host, options, monkeypatch):
    board = Board(monkeypatch)
    monkeypatch.setattr(board, "time_of", lambda file: 3.0 if "parent" in str(file) else 2.9)
    report = prune_from_config(fine(options)).report
    assert any(text.startswith("The target was missed: ") for text in report.warnings)


def test_a_table_of_a_board_takes_the_place_of_what_is_measured_here(host, options, monkeypatch, tmp_path):
    board = Board(monkeypatch)

    def layers_of(module):
        return latency.layers_of(latency.graph_at(Traced.of(module.eval(), host.anatomy(module, 64))))

    network = SimpleNamespace(file=tmp_path, imgsz=64)
    times = board.measure_layers(layers_of(Tiny()), network, runtime="ncnn", settings=Settings("cpu", 4, 1))
    facts = {"runtime": "ncnn", "device": "cpu", "device_name": "a board", "threads": 4}
    table = write_table(tmp_path / "table.json", replace(times, facts=facts), 64)
    board.layers.clear()
    result = prune_from_config(fine(options, runtime=None, latency=str(table)))
    assert (board.layers, board.compared) == ([], [])
    whole, left = (
        1.0 + sum(board.ms(layer) for layer in layers_of(torch.load(file, weights_only=False)["module"]))
        for file in (result.folder / "weights" / f"{name}.pt" for name in ("parent", "pruned"))
    )
    assert 1.5 <= whole / left < 1.6  # one channel of 16 is a few per cent
    assert result.report.plan.target == (
        f"target {whole / 1.5:.4g} ms an image on ncnn, a board, 4 threads, by the table {table} (the parent took "
        f"{whole:.4g}); predicted {left:.4g}, not measured"
    )


def test_the_runtime_chooses_the_step_of_widths_and_the_plan_says_by_what(host, options, monkeypatch):
    """A machine that takes twice as long where a width is no multiple of 4."""
    board = Board(monkeypatch)
    odd = lambda shape: any(width % 4 for width in (shape.outputs, shape.reads))  # noqa: E731
    monkeypatch.setattr(board, "ms", lambda shape: (2.0 if odd(shape) else 1.0) * shape.macs / 1e6)
    asked = {"round_to": "auto", "min_width": 1, "runtime": "torch", "threads": 1, "steps": 2}
    result = prune_from_config(options(**asked))
    plan = json.loads((result.folder / "plan.json").read_text())
    assert plan["settings"]["round_to"] == 4
    assert plan["settings"]["granularity"] == {
        **{"runtime": "torch", "device": None, "threads": None, "step": 4, "layers": 1},
        "speeds": {"1": 0.5714, "2": 0.6667, "4": 1.0, "8": 1.0, "16": 1.0, "32": 1.0},
    }
    assert all(len(kept) % 4 == 0 for label, kept in plan["keep"].items() if label.endswith("weight[0]"))
    assert board.compared == []
    assert result.report.plan.round_to == 4
    with pytest.raises(ConfigError, match=r"was started with .*round_to=auto, not .*round_to=8"):
        prune_from_config(options(**{**asked, "round_to": 8, "resume": True, "runtime": None}))


def test_a_table_without_other_widths_cannot_choose_the_step(host, options, monkeypatch, tmp_path):
    board = Board(monkeypatch)
    network = SimpleNamespace(file=tmp_path, imgsz=64)
    times = board.measure_layers([], network, runtime="ncnn", settings=Settings("cpu", 4, 1))
    table = write_table(tmp_path / "table.json", times, 64)
    with pytest.raises(BudgetError, match=r"^round_to=auto: the times hold no widths beside multiples of 8"):
        prune_from_config(options(round_to="auto", latency=str(table)))


@pytest.mark.parametrize(("load", "warned"), [(0.4, False), (11.0, True)])
def test_a_target_on_a_busy_machine_is_warned_of(host, options, monkeypatch, caplog, load, warned):
    Board(monkeypatch)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(latency, "available_cpus", lambda: 2)
    prune_from_config(fine(options))
    said = "The machine is busy: load 11.0 on 2 CPUs, of which the model uses 1."
    assert any(said in record.getMessage() for record in caplog.records) is warned


def test_the_runtime_of_a_target_is_measured_with_the_others(host, options, monkeypatch, stopwatch):
    Board(monkeypatch)
    prune_from_config(fine(options, bench=True, runtimes=("onnxruntime",)))
    assert [one["runtime"] for one in stopwatch.asked] == ["onnxruntime", "torch"]


def test_without_a_benchmark_nothing_is_timed_and_nothing_is_said_of_it(host, options, stopwatch):
    report = prune_from_config(options(bench=False)).report
    assert stopwatch.asked == []
    assert host.diary.count("find images") == 0
    assert all(row.fps is None and row.runtime is None for row in report.rows)
    assert (report.speedups, report.warnings, report.conditions.timed) == ((), (), None)
    assert "bench" not in report.timing_s


def test_a_benchmark_that_fails_costs_its_rows_and_no_accuracy(host, options, stopwatch):
    host.diary.failing["time on onnxruntime"] = MissingRuntimeError("'onnxruntime' is not installed.")
    report = prune_from_config(options(bench=True, runtimes=("torch", "onnxruntime"), threads=1)).report
    rows = {(row.model, row.runtime): row for row in report.rows if row.model in ("parent", "pruned")}
    assert rows["pruned", "torch"].fps is not None
    assert rows["pruned", "onnxruntime"].not_measured == "'onnxruntime' is not installed."
    assert rows["pruned", "onnxruntime"].ap == SCORES["pruned"]
    assert f"To measure it again: yolo-prune report run={host.diary.root} bench=true" in report.warnings[-1]


def test_files_of_parent_and_final_model_are_judged_and_rows_say_what_they_reach(host, options, stopwatch):
    stopwatch.accuracies = {
        "parent": FileAccuracy("ap", 0.4375, 0.375, 0.5, 8),
        "int8": FileAccuracy(not_measured="the file finds no boxes"),
    }
    stopwatch.parities = {"pruned": Parity(0.25, 500.0, 1e-5, 6)}
    more = {"bench": True, "epochs": 1, "quantize": 8, "runtimes": ("onnxruntime",), "threads": 1}
    report = prune_from_config(options(**more, file_images=5)).report
    (asked,) = stopwatch.asked
    assert (asked["judged"].data, asked["judged"].names) == ("5 images", ("parent", "retrained", "int8"))
    assert row_of(report, "parent").deployed == Deployed("ap", 0.4375, 0.375, 0.5, 8)
    assert row_of(report, "int8").deployed.not_measured == "the file finds no boxes"
    pruned = row_of(report, "pruned").deployed
    assert (pruned.accuracy, pruned.difference, pruned.tolerance, pruned.compared) == (None, 0.0005, 0.001, 6)
    assert row_of(report, "retrained").deployed is None
    assert row_of(report, "parent").ap == SCORES["parent"], "of the model, whatever its file reaches"
    stopwatch.accuracies = {}
    again = measure_speed_again(host.diary.root)
    assert stopwatch.asked[-1]["judged"].names == ("parent", "retrained", "int8")
    assert row_of(again, "parent").deployed is None, "what an earlier measurement found is forgotten"


def test_the_final_model_is_the_pruned_one_without_retraining_and_nobody_has_to_judge(
    host, options, stopwatch
):
    more = {"bench": True, "runtimes": ("torch",), "threads": 1}
    prune_from_config(options(**more))
    assert stopwatch.asked[-1]["judged"].names == ("parent", "pruned")
    assert stopwatch.asked[-1]["judged"].data == "500 images"
    prune_from_config(options(**more, file_images=0, exist_ok=True))
    assert stopwatch.asked[-1]["judged"] is None


def test_a_run_goes_on_with_another_number_of_judged_images(host, options, stopwatch):
    more = {"bench": True, "runtimes": ("torch",), "threads": 1}
    prune_from_config(options(**more))
    prune_from_config(options(**more, resume=True, file_images=3))
    assert stopwatch.asked[-1]["judged"].data == "3 images"


def test_a_file_that_was_refused_is_why_its_row_has_no_time(host, options, stopwatch):
    stopwatch.refused = {"pruned": "the file does not compute what its checkpoint computes: no"}
    report = prune_from_config(options(bench=True, runtimes=("onnxruntime",), threads=1)).report
    row = row_of(report, "pruned")
    assert (row.fps, row.not_measured) == (None, stopwatch.refused["pruned"])
    assert row_of(report, "parent").fps is not None
    assert any("bench=true" in text for text in report.warnings)


def test_a_benchmark_that_is_stopped_leaves_what_was_trained_and_goes_on(host, options, stopwatch):
    host.diary.failing["time on torch"] = KeyboardInterrupt()
    more = {"bench": True, "epochs": 1, "runtimes": ("torch",), "threads": 1}
    with pytest.raises(KeyboardInterrupt, match="resume=true name=a goes on"):
        prune_from_config(options(**more))
    assert files_of(host.diary.root) == TRAINED
    host.diary.entries.clear()
    report = prune_from_config(options(resume=True, **more)).report
    assert host.diary.count("read calibration", "save pruned") == 0
    assert row_of(report, "retrained").fps is not None


def test_speed_is_measured_again_from_the_files_and_the_rest_of_the_report_stays(host, options, stopwatch):
    host.diary.failing["time on torch"] = BenchmarkError("it died.")
    more = {"bench": True, "epochs": 1, "quantize": 8, "runtimes": ("torch",), "threads": 1}
    first = prune_from_config(options(**more))
    assert row_of(first.report, "pruned").not_measured == "it died."
    host.diary.entries.clear()
    again = measure_speed_again(first.folder)
    assert host.diary.count("evaluate", "read calibration", "retrain", "export") == 0
    assert row_of(again, "pruned").fps == 20.0
    assert row_of(again, "pruned").not_measured is None
    for before, after in zip(first.report.rows, again.rows, strict=False):
        assert (after.model, after.ap, after.gmacs, after.size_mb) == (
            *(before.model, before.ap, before.gmacs, before.size_mb),
        )
    assert again.warnings == ("GPU speed was not measured: this machine has no CUDA device.",)
    assert (again.created, again.plan, again.stages) == (
        *(first.report.created, first.report.plan, first.report.stages),
    )
    (first.folder / "weights" / "pruned.pt").unlink()
    without = measure_speed_again(first.folder)
    assert row_of(without, "pruned").not_measured == f"its file in {first.folder / 'weights'} is missing"
    assert row_of(without, "retrained").fps is not None


def test_an_older_report_keeps_its_intervals_when_speed_is_measured_again(host, options, stopwatch):
    """It says of no row what precision it was measured in; what is timed now is what was evaluated then."""
    first = prune_from_config(options(bench=True, epochs=1, runtimes=("torch",), threads=1))
    assert {row.precision for row in first.report.rows} == {"float32"}
    rows = tuple(replace(row, precision=None) for row in first.report.rows)
    drawn = tuple(Resampled(row.model, row.imgsz, values="0.25 0.5 0.75") for row in rows)
    write_json(replace(first.report, rows=rows, resamples=drawn), first.folder)
    again = measure_speed_again(first.folder)
    assert {row.precision for row in again.rows} == {"float32"}
    assert all(accuracy_interval(again, row) is not None for row in again.rows)
    assert row_of(again, "pruned").fps == 20.0


# Before the run.


def test_the_size_is_the_one_asked_for_else_the_models_own_rounded_up(host, options, model):
    loaded = host.load(model)
    assert size_of(options(), loaded, 32) == 64
    assert size_of(options(), replace(loaded, imgsz=100), 32) == 128
    assert size_of(options(imgsz=96), loaded, 32) == 96


def test_a_budget_that_asks_for_nothing_says_what_the_model_has(host, options, model):
    loaded = host.load(model)
    cost = host.anatomy(loaded.module, 64).cost_of(loaded.module)
    macs = 32 * 32 * (27 * 16 + 9 * 16 * 16 + 16 * 4)
    expected = (
        f"gmacs=5 is no less than the model has: {macs / 1e9:.4g} GMACs at 64 px. There is nothing to cut."
    )
    with pytest.raises(BudgetError) as caught:
        check_budget(options(keep_macs=None, gmacs=5.0), cost, 64, Widths())
    assert str(caught.value) == expected
    check_budget(options(keep_macs=0.5), cost, 64, Widths())


def test_auto_takes_the_scales_that_a_sparse_training_made(host, options, model):
    loaded = host.load(model)
    sparse = replace(loaded, meta={"sparse_training": True})
    assert choose_criterion(options(), loaded) == "reconstruction"
    assert choose_criterion(options(), sparse) == "bn_scale"
    assert choose_criterion(options(criterion="l1"), sparse) == "l1"


def test_the_criterion_that_was_chosen_is_reported(host, options):
    report = prune_from_config(options(criterion="l1")).report
    assert report.plan.criterion == "l1"
    assert report.plan.frozen_groups < report.plan.groups


def test_an_equivalence_that_is_none_is_said_as_it_is():
    class Cut:
        plan = type(
            "Plan",
            (),
            {"equivalence": {"exact": False, "tolerance": 1e-4, "max_difference": 0.5, "scale": 2}},
        )

    found = measuring.equivalence_of(Cut.plan)
    assert (found.difference, found.scale, found.verdict) == (0.5, 2.0, "differs by more than 0.0001")
    Cut.plan.equivalence = {}
    assert measuring.equivalence_of(Cut.plan) is None


@pytest.mark.parametrize("file", ["report.json", "report.md", "report.html"])
def test_a_disk_that_is_full_when_the_report_is_written_costs_no_more_than_the_report(
    host, options, monkeypatch, file
):
    text = Path.write_text

    def full(path, *args, **options):
        if path.name.startswith(".report") and path.suffix == Path(file).suffix:
            raise copy.copy(FULL)
        return text(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        prune_from_config(options())
    order = ["report.json", "report.md", "report.csv", "report.html"]
    assert files_of(host.diary.root) == CUT | EXAMPLES | set(order[: order.index(file)])
    monkeypatch.undo()
    monkeypatch.setattr(hosts, "hosts", lambda: (host,))
    host.diary.entries.clear()
    result = prune_from_config(options(resume=True))
    assert host.diary.count("read calibration", "open the scorer", "score", "save pruned.pt") == 0
    assert files_of(result.folder) == CUT | EXAMPLES | set(order)
