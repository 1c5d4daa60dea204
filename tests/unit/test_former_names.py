"""Keys that had another name: whoever types one is told the present one, what an earlier release wrote is read."""

import dataclasses
import json
from collections import defaultdict

import pytest
import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer

import yolo_prune
from yolo_prune import cli
from yolo_prune.adapters.stored import METADATA_KEY
from yolo_prune.adapters.ultralytics.training.history import RUN_KEY
from yolo_prune.cli.registry import COMMANDS
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import ConfigError
from yolo_prune.options import PruneConfig, SweepConfig, to_yaml
from yolo_prune.options.inrun import InRunSettings, make_settings, stored_settings
from yolo_prune.report import PlanSummary, RunReport
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.resume import check_resumed, options_of_run

STEPS = "cuts on the way to the budget; 12 when not given, fewer for a large model on a CPU."
KEPT = "modules that keep their channels, such as model.0,model.22."
FORMER = [
    ("prune", "rounds", "6", f"is called 'steps' now: {STEPS}"),
    ("prune", "freeze", "model.0", f"is called 'keep_layers' now: {KEPT}"),
    ("sweep", "rounds", "6", f"is called 'steps' now: {STEPS}"),
    ("train", "rounds", "2", "is called 'cuts' now: cuts on the way to the budget, spread over the run."),
]
PRUNING = {"model": "best.pt", "data": "d.yaml", "keep_macs": 0.5}
WORDS = [f"{key}={value}" for key, value in PRUNING.items()]


@pytest.mark.parametrize(("command", "key", "value", "told"), FORMER)
def test_a_former_key_on_the_command_line_is_answered_with_the_present_one(command, key, value, told, capsys):
    assert cli.main([command, *WORDS, f"{key}={value}"]) == 2
    assert capsys.readouterr().err == f"yolo-prune: error: '{key}' {told}\n"


@pytest.mark.parametrize(("command", "key", "value", "told"), FORMER)
def test_a_former_key_in_a_recipe_is_answered_with_the_present_one(
    command, key, value, told, tmp_path, capsys
):
    recipe = tmp_path / "old.yaml"
    recipe.write_text(f"{key}: {value}\n", "utf-8")
    assert cli.main([command, *WORDS, f"cfg={recipe}"]) == 2
    assert capsys.readouterr().err == f"yolo-prune: error: '{key}' in {recipe} {told}\n"


def test_a_former_keyword_from_python_is_answered_with_the_present_one():
    module = nn.Conv2d(3, 8, 1)
    host = StandIn()
    calls = [
        (lambda: yolo_prune.prune("best.pt", data="d.yaml", keep_macs=0.5, rounds=6), FORMER[0]),
        (lambda: yolo_prune.prune("best.pt", data="d.yaml", keep_macs=0.5, freeze=["0"]), FORMER[1]),
        (lambda: yolo_prune.attach(host, keep_macs=0.5, rounds=2), FORMER[3]),
        (lambda: yolo_prune.inrun_trainer(DetectionTrainer, keep_macs=0.5, rounds=2), FORMER[3]),
    ]
    for call, (_, key, _, told) in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == f"'{key}' {told}"
    with pytest.raises(ConfigError, match=r"^'freeze' is called 'keep_layers' now: module names or patterns"):
        yolo_prune.prune_module(module, torch.zeros(1, 3, 8, 8), keep_macs=0.5, freeze=["0"])


def test_words_that_mean_what_they_always_meant_stay():
    assert make_config(COMMANDS["bench"].kind, ["model=a.pt", "rounds=3"]).rounds == 3
    assert make_config(COMMANDS["train"].kind, [*WORDS, "freeze=3"]).train_args == {"freeze": 3}


@pytest.mark.parametrize(("kind", "keys"), [(PruneConfig, ("rounds", "freeze")), (SweepConfig, ("rounds",))])
def test_a_run_folder_of_an_earlier_release_is_read(kind, keys, tmp_path):
    asked = dict(zip(("steps", "keep_layers"), (5, ("model.0",)), strict=False))
    config = make_config(kind, PRUNING | {key: asked[key] for key in list(asked)[: len(keys)]})
    text = to_yaml(config)
    for key, former in zip(asked, keys, strict=False):
        text = text.replace(f"{key}:", f"{former}:")
    assert all(f"\n{former}:" in text for former in keys), "the control: the file is of the earlier release"
    (tmp_path / "args.yaml").write_text(text, "utf-8")
    assert options_of_run(tmp_path / "args.yaml", kind) == config
    check_resumed(tmp_path, config)
    with pytest.raises(ConfigError, match=r"was started with steps=5, not steps=6\. Give"):
        check_resumed(tmp_path, dataclasses.replace(config, steps=6))


class StandIn:
    """As much of a model object of the host as attaching looks at."""

    def __init__(self, settings=None):
        self.model, self.callbacks = None, defaultdict(list)
        run = {RUN_KEY: {"settings": settings}} if settings else {}
        self.ckpt = {METADATA_KEY: run, "optimizer": {}}

    def _smart_load(self, key):
        return key

    def train(self):
        pass

    def add_callback(self, event, call):
        self.callbacks[event].append(call)


def test_an_interrupted_training_of_an_earlier_release_goes_on_with_its_cuts():
    settings = InRunSettings(keep_macs=0.5, cuts=3, steps=6)
    former = {("rounds" if key == "cuts" else key): value for key, value in settings.to_dict().items()}
    assert make_settings(stored_settings(former)) == settings
    assert yolo_prune.attach(StandIn(former))._settings == settings


def test_plans_and_reports_of_an_earlier_release_are_read():
    plan = PrunePlan({}, {}, settings={"criterion": "l1", "steps": 12, "keep_layers": ["0"]})
    former = plan.to_json().replace('"steps"', '"rounds"').replace('"keep_layers"', '"freeze"')
    assert {"rounds", "freeze"} <= set(json.loads(former)["settings"]), "the control"
    assert PrunePlan.from_json(former) == plan == PrunePlan.from_json(plan.to_json())
    report = RunReport(plan=PlanSummary("keep_macs=0.5", "l1", steps=12))
    values = json.loads(report.to_json())
    values["plan"]["rounds"] = values["plan"].pop("steps")
    assert RunReport.from_dict(values) == report
