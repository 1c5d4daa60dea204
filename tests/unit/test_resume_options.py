"""A run that goes on is the run that was started: what differs is named, and what may differ is a list."""

import dataclasses

import pytest

from yolo_prune.errors import ConfigError
from yolo_prune.options import TARGETS, PruneConfig, to_yaml
from yolo_prune.options.fields import REST, option_fields
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.preflight import free_on_resume
from yolo_prune.runs.resume import FREE_ON_RESUME, check_resumed

WORDS = ["model=best.pt", "data=d.yaml", "keep_macs=0.5", "epochs=3", "mosaic=0.5"]
OTHER = {
    **{"model": "b.pt", "data": "e.yaml", "keep_macs": 0.25, "imgsz": 320, "seed": 7, "round_to": 4},
    **{
        "min_width": 4,
        "min_keep": 0.2,
        "criterion": "l1",
        "steps": 3,
        "keep_layers": ("model.0",),
        "epochs": 9,
    },
    **{
        "depth": True,
        "batch": 4,
        "recalibrate_bn": False,
        "fold": False,
        "calibration_images": 8,
        "recover_seconds": 60.0,
        "distill": False,
    },
    **{"lr0": 0.1, "optimizer": "SGD", "split": "test", "weights": "other.pth"},
}


@pytest.fixture
def started(tmp_path):
    (tmp_path / "args.yaml").write_text(to_yaml(make_config(PruneConfig, WORDS)), "utf-8")
    return tmp_path


def asked(**changes):
    return dataclasses.replace(make_config(PruneConfig, WORDS), **changes)


def test_the_same_options_go_on(started):
    check_resumed(
        started, asked(resume=True, name="a", project="elsewhere", device="cpu", workers=0, quantize=8)
    )


def test_every_option_is_compared_or_may_change(started):
    rest = set(option_fields(PruneConfig)) - set(OTHER) - FREE_ON_RESUME
    others = {"gmacs", "keep_params", *TARGETS}  # of which one is given instead of keep_macs
    assert rest == {*others, "runtime", "target_device", "latency"}  # which mean nothing without a target


@pytest.mark.parametrize("key", OTHER)
def test_an_option_that_differs_is_named(started, key):
    with pytest.raises(
        ConfigError, match=rf"^the run in '.*' was started with {key}=.*, not {key}=.*\. Give"
    ):
        check_resumed(started, asked(**{key: OTHER[key]}))


def test_another_kind_of_budget_and_arguments_of_the_host_are_named(started):
    with pytest.raises(ConfigError) as caught:
        check_resumed(started, asked(keep_macs=None, gmacs=2.0, **{REST: {"mosaic": 0.0, "mixup": 0.1}}))
    assert str(caught.value) == (
        f"the run in '{started}' was started with keep_macs=0.5 and gmacs=none and mosaic=0.5 and mixup=none, not "
        "keep_macs=none and gmacs=2.0 and mosaic=0.0 and mixup=0.1. Give what it was started with, or choose another "
        "name=."
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("target_speedup", 3.0), ("runtime", "openvino"), ("target_device", "cuda:0"), ("threads", 4)],
)
def test_a_run_with_a_target_goes_on_with_it_and_with_where_it_is_met(tmp_path, key, value):
    words = ["model=best.pt", "data=d.yaml", "target_speedup=2", "runtime=ncnn", "threads=1"]
    config = make_config(PruneConfig, words)
    (tmp_path / "args.yaml").write_text(to_yaml(config), "utf-8")
    check_resumed(tmp_path, config, free=free_on_resume(config))
    other = dataclasses.replace(config, **{key: value})
    with pytest.raises(ConfigError, match=rf"was started with {key}=.*, not {key}={value}\."):
        check_resumed(tmp_path, other, free=free_on_resume(other))


def test_another_way_to_write_a_path_is_the_same(started, monkeypatch):
    monkeypatch.chdir(started)
    check_resumed(started, asked(model=str(started / "best.pt"), data="./d.yaml"))


def test_keys_of_another_release_are_passed_over(started):
    file = started / "args.yaml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("depth")]
    file.write_text("\n".join([*kept, "of_tomorrow: 1"]) + "\n")
    check_resumed(started, asked())
    with pytest.raises(ConfigError, match=r"started with depth=false, not depth=true"):
        check_resumed(started, asked(depth=True))


def test_files_without_options_are_not_taken_for_a_run_and_an_empty_folder_is_none(tmp_path):
    (tmp_path / "weights").mkdir()
    check_resumed(tmp_path, asked())
    (tmp_path / "weights" / "pruned.pt").touch()
    with pytest.raises(ConfigError, match=r"holds no args\.yaml, so nothing says how its files were made"):
        check_resumed(tmp_path, asked())
    (tmp_path / "args.yaml").write_text("model: x.pt\n")
    with pytest.raises(ConfigError, match=r"args\.yaml' does not hold the options of such a run"):
        check_resumed(tmp_path, asked())
