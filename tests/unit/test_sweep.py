"""Sweeps: every budget with every criterion, one failure stops nothing, and the choice follows the constraint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BudgetError, ConfigError
from yolo_prune.files import write_text
from yolo_prune.options import PruneConfig, SweepConfig, to_yaml
from yolo_prune.options.fields import option_fields
from yolo_prune.report import Row, RunReport
from yolo_prune.report.rows import Speedup, write_json
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.sweep import Trial, choose, pareto_front, run_sweep
from yolo_prune.runs.trials import SweepResult, render_sweep


def report_of(keep: float, ap: float, fps: float) -> RunReport:
    timed = {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "batch": 1, "imgsz": 64}
    return RunReport(
        rows=(
            Row("parent", gmacs=2.0, params_m=1.0, ap=0.6, fps=fps, **timed),
            Row("pruned", gmacs=2.0 * keep, params_m=keep, ap=ap, fps=fps / keep, **timed),
        ),
        speedups=(Speedup("pruned", 1.0 / keep, runtime="onnxruntime", device="cpu", threads=1, imgsz=64),),
    )


@pytest.fixture
def pruned(monkeypatch):
    """A fake ``prune`` whose accuracy falls with the budget, on a machine that is slow now and then."""
    calls = []

    def stage(config):
        calls.append(config)
        Path(config.project, config.name).mkdir(exist_ok=True)
        if config.keep_macs < 0.3:
            raise BudgetError("cannot meet it.")
        ap = 0.6 - 0.2 * (1 - config.keep_macs) ** 2 - (0.1 if config.criterion == "l1" else 0.0)
        folder = Path(config.project, config.name)
        write_text(folder / "args.yaml", to_yaml(config))
        write_json(report_of(config.keep_macs, ap, 100.0 if len(calls) % 2 else 60.0), folder)

    monkeypatch.setattr("yolo_prune.runs.prune.prune_from_config", stage)
    return calls


def options(folder: Path, **changes) -> SweepConfig:
    values = {"model": "best.pt", "data": "d.yaml", "keep_macs": "0.8,0.5,0.2", "criterion": "auto,l1"}
    return make_config(SweepConfig, {**values, "project": str(folder), "name": "s", **changes})


def test_every_budget_is_tried_with_every_criterion_and_a_failure_stops_nothing(pruned, tmp_path):
    result = run_sweep(options(tmp_path, max_ap_drop=0.055))
    assert [config.name for config in pruned] == [
        "auto_0.8",
        "auto_0.5",
        "auto_0.2",
        "l1_0.8",
        "l1_0.5",
        "l1_0.2",
    ]
    assert [trial.error for trial in result.trials] == [
        "",
        "",
        "",
        "cannot meet it.",
        "",
        "",
        "cannot meet it.",
    ]
    assert result.front == ("parent", "auto_0.8", "auto_0.5")
    assert result.chosen == "auto_0.5"
    assert {path.name for path in result.folder.glob("sweep.*")} == {"sweep.json", "sweep.md", "sweep.png"}
    assert json.loads((result.folder / "sweep.json").read_text())["chosen"] == "auto_0.5"


def test_speeds_of_trials_are_compared_through_the_parent(pruned, tmp_path):
    result = run_sweep(options(tmp_path))
    assert [trial.fps for trial in result.trials] == pytest.approx([80, 100, 160, None, 100, 160, None])


def test_floors_are_those_of_every_trial(pruned, tmp_path):
    run_sweep(options(tmp_path, min_width="16", min_keep="0.4", round_to="4"))
    assert {(config.min_width, config.min_keep, config.round_to) for config in pruned} == {(16, 0.4, 4)}


def test_what_prune_takes_every_trial_takes_but_for_what_a_sweep_decides(pruned, tmp_path):
    given = {
        "calibration_images": 32,
        "split": "test",
        "epochs": 2,
        "lr0": 0.001,
        "optimizer": "SGD",
        "distill": False,
        "keep_layers": ("model.0",),
    }
    run_sweep(options(tmp_path, **given))
    assert len(pruned) == 6
    assert all(getattr(config, key) == value for config in pruned for key, value in given.items())
    lacking = set(option_fields(PruneConfig)) - set(option_fields(SweepConfig))
    one_run = {"gmacs", "keep_params", "latency", "depth", "fold", "recalibrate_bn"}
    of_the_chosen = {"bench", "file_images", "pictures", "quantize", "runtimes"}
    assert lacking == one_run | of_the_chosen


def test_rates_of_a_retraining_that_there_is_not_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^lr0, optimizer: for retraining, and epochs=0 asks for none\."):
        options(tmp_path, lr0=0.001, optimizer="SGD")


def test_a_sweep_goes_on_where_it_was(pruned, tmp_path):
    first = run_sweep(options(tmp_path))
    again = run_sweep(options(tmp_path, resume=True))
    assert again == first
    assert [config.name for config in pruned[6:]] == ["auto_0.2", "l1_0.2"]  # those without a report
    assert len(pruned) == 8


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"seed": 1}, ("seed=0", "seed=1")),
        ({"data": "other.yaml"}, ("data=d.yaml", "data=other.yaml")),
        ({"epochs": 3, "model": "b.pt"}, ("model=best.pt and epochs=0", "model=b.pt and epochs=3")),
        ({"threads": 2}, ("threads=none", "threads=2")),
    ],
)
def test_a_resumed_sweep_takes_no_report_that_was_made_with_other_options(pruned, tmp_path, changes, differs):
    run_sweep(options(tmp_path))
    with pytest.raises(ConfigError) as caught:
        run_sweep(options(tmp_path, resume=True, **changes))
    assert str(caught.value) == (
        f"the run in '{tmp_path / 's' / 'auto_0.8'}' was started with {differs[0]}, not {differs[1]}. Give what it "
        "was started with, or choose another name=."
    )
    run_sweep(options(tmp_path, resume=True, device="cpu", workers=0, keep_macs="0.8,0.7", max_ap_drop=0.1))


def test_a_report_that_nobody_knows_the_options_of_is_not_taken(pruned, tmp_path):
    write_json(report_of(0.8, 0.9, 1.0), tmp_path / "s" / "auto_0.8")
    with pytest.raises(
        ConfigError, match=r"^'.*auto_0\.8' holds no args\.yaml, so nothing says how its files"
    ):
        run_sweep(options(tmp_path, resume=True))


def test_a_sweep_into_a_folder_that_exists_runs_its_trials_anew(pruned, tmp_path):
    run_sweep(options(tmp_path))
    run_sweep(options(tmp_path, exist_ok=True))
    assert len(pruned) == 12
    assert not any(config.resume for config in pruned)


def test_the_options_of_a_sweep_are_kept_to_run_it_again(pruned, tmp_path):
    config = options(tmp_path)
    run_sweep(config)
    run_sweep(options(tmp_path, resume=True))
    assert make_config(SweepConfig, [f"cfg={tmp_path / 's' / 'args.yaml'}"]) == config


def test_a_sweep_without_a_success_says_why(pruned, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^no trial of the sweep succeeded; the first says: cannot meet it\.$"
    ):
        run_sweep(options(tmp_path, keep_macs="0.2,0.1"))


PARENT = Trial("parent", 1.0, "", kept_macs=1.0, ap=0.6, fps=100.0)
HALF = Trial("half", 0.5, "auto", kept_macs=0.5, ap=0.58, fps=160.0)
THIRD = Trial("third", 0.3, "auto", kept_macs=0.3, ap=0.5, fps=200.0)
WORSE = Trial("worse", 0.5, "l1", kept_macs=0.5, ap=0.55, fps=150.0)


@pytest.mark.parametrize(
    ("min_fps", "max_ap_drop", "expected"),
    [
        (None, None, None),
        (140, None, "half"),
        (180, None, "third"),
        (300, None, None),
        (None, 0.03, "half"),
        (None, 0.2, "third"),
        (None, 0.0, "parent"),
        (140, 0.01, None),
        (140, 0.2, "half"),
    ],
)
def test_the_choice_follows_the_constraint(min_fps, max_ap_drop, expected):
    chosen = choose([PARENT, HALF, THIRD, WORSE], min_fps=min_fps, max_ap_drop=max_ap_drop)
    assert (chosen.name if chosen else None) == expected


def test_the_front_holds_what_nothing_else_beats():
    assert pareto_front([PARENT, WORSE, THIRD, HALF]) == ("parent", "half", "third")
    untimed = [
        Trial(t.name, t.keep_macs, "", kept_macs=t.kept_macs, ap=t.ap) for t in (PARENT, WORSE, THIRD, HALF)
    ]
    assert pareto_front(untimed) == ("parent", "half", "third")


def test_the_table_marks_front_and_choice(tmp_path):
    half = replace(HALF, change_low=-0.031, change_high=-0.008)
    text = render_sweep(SweepResult(tmp_path, (PARENT, half, WORSE), ("parent", "half"), "half"))
    blank = "not measured"
    assert (
        f"| >* | half | 0.500 | {blank} | {blank} | 0.5800 | -0.0310 to -0.0080 | {blank} | 160.0 |" in text
    )
    assert f"| 0.5500 | no interval | {blank} | 150.0 |" in text
    assert "|  | worse |" in text


# Budgets of time.


@pytest.fixture
def timed(monkeypatch):
    """A fake ``prune`` that is asked for times, of a parent that takes 10 ms; what is reached is 2 % off."""
    calls = []

    def stage(config):
        calls.append(config)
        folder = Path(config.project, config.name)
        keep = config.keep_macs or 0.9 / config.target_speedup
        write_text(folder / "args.yaml", to_yaml(config))
        write_json(report_of(keep, 0.4 + 0.2 * keep, 100.0), folder)
        target = 10.0 / (config.target_speedup or 1.0)
        met = {
            "target_ms": target,
            "parent_ms": 10.0,
            "predicted_ms": 1.1 * target,
            "measured": {"ms": 1.02 * target},
        }
        settings = {"latency": met} if config.target_speedup else {}
        PrunePlan({}, {}, settings=settings).save(folder / "plan.json")

    monkeypatch.setattr("yolo_prune.runs.prune.prune_from_config", stage)
    return calls


def test_targets_are_tried_beside_shares_on_the_runtime_whose_fps_count(timed, tmp_path):
    words = {"keep_macs": "0.5", "target_speedup": "1.5,2", "criterion": "auto", "runtime": "ncnn"}
    result = run_sweep(options(tmp_path, **words, threads="2", target_device="cuda:0"))
    assert [trial.name for trial in result.trials] == ["parent", "auto_0.5", "auto_1.5x", "auto_2x"]
    assert [(one.runtime, one.target_device, one.threads) for one in timed] == [
        (None, "cpu", 2),
        ("ncnn", "cuda:0", 2),
        ("ncnn", "cuda:0", 2),
    ]
    half, _, twice = result.trials[1:]
    assert (half.keep_macs, half.target_ms, half.reached_ms) == (0.5, None, None)
    assert (twice.keep_macs, twice.target_ms, twice.parent_ms) == (None, 5.0, 10.0)
    assert (twice.predicted_ms, twice.reached_ms) == (pytest.approx(5.5), pytest.approx(5.1))
    assert (
        json.loads((result.folder / "sweep.json").read_text())["trials"][-1]["reached_ms"] == twice.reached_ms
    )
    text = (result.folder / "sweep.md").read_text()
    assert "| speed-up | FPS | target (ms) | predicted (ms) | reached (ms) |" in text
    assert "| 5.0 (2.00x) | 5.5 (1.82x) | 5.1 (1.96x) |" in text
    assert next(line for line in text.splitlines() if "auto_0.5" in line).endswith("|  |  |  |")
    assert (result.folder / "sweep.png").stat().st_size > 0
    again = run_sweep(options(tmp_path, **words, threads="2", target_device="cuda:0", resume=True))
    assert (again, len(timed)) == (result, 3)


def test_a_sweep_without_targets_has_no_columns_for_them(timed, tmp_path):
    text = render_sweep(run_sweep(options(tmp_path, keep_macs="0.5", criterion="auto")))
    assert "target" not in text


def test_what_a_table_predicted_was_not_measured(tmp_path):
    trial = Trial("a", None, "auto", kept_macs=0.5, ap=0.5, target_ms=5.0, parent_ms=10.0, predicted_ms=5.0)
    text = render_sweep(SweepResult(tmp_path, (PARENT, trial), ("parent",), None))
    assert "| 5.0 (2.00x) | 5.0 (2.00x) | not measured |" in text


def test_the_chart_shows_what_was_asked_for_and_predicted(timed, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes, **_: drawn.extend(axes.get_lines()))
    run_sweep(options(tmp_path, keep_macs="0.5", target_speedup="2", criterion="auto"))
    marks = {line.get_label(): line.get_xydata().tolist() for line in drawn}
    assert marks["asked for"] == [[pytest.approx(200.0), pytest.approx(0.49)]]
    assert marks["predicted"] == [[pytest.approx(100.0 / 0.55), pytest.approx(0.49)]]


def test_widths_that_the_runtime_likes_are_asked_of_it_in_every_trial(timed, tmp_path):
    run_sweep(options(tmp_path, keep_macs="0.5", criterion="auto", round_to="auto", runtime="openvino"))
    assert [(one.round_to, one.runtime) for one in timed] == [("auto", "openvino")]
