"""What is published of report.json and plan.json, and what a run says of its stages, is what this release does."""

import ast
import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import yolo_prune
from yolo_prune.cut.record import PrunePlan
from yolo_prune.options import PruneConfig
from yolo_prune.recover.effort import Effort
from yolo_prune.report import RunReport
from yolo_prune.report.rows import Row
from yolo_prune.runs.outline import stages_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "yolo_prune" / "schemas"


def maker():
    spec = importlib.util.spec_from_file_location("write_schemas", ROOT / "scripts" / "write_schemas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.schemas()


def validator(name):
    schema = json.loads((FOLDER / name).read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", ["report.schema.json", "plan.schema.json"])
def test_the_published_schemas_are_those_of_the_code(name):
    assert (FOLDER / name).read_text("utf-8") == maker()[name], (
        "run scripts/write_schemas.py and commit what it wrote"
    )


def test_a_report_fits_its_schema_and_what_is_none_does_not():
    check = validator("report.schema.json")
    report = RunReport(
        rows=(Row("parent", imgsz=320, ap=0.5, fps=30.0), Row("pruned", imgsz=(320, 640))),
        timing_s={"cut": 1.5},
        warnings=("one",),
    ).to_dict()
    check.validate(report)
    check.validate({"schema_version": 1, "rows": [{"model": "parent"}]})  # as an earlier release wrote it
    for key, value in (
        ("rows", [{"ap": 0.5}]),
        ("rows", [{"model": "parent", "ap": "0.5"}]),
        ("schema_version", 2),
        ("timing_s", {"cut": "long"}),
        ("no_such_key", 1),
    ):
        with pytest.raises(jsonschema.ValidationError):
            check.validate({**report, key: value})


def test_a_plan_fits_its_schema_and_what_is_none_does_not():
    check = validator("plan.schema.json")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1)).eval()
    text = yolo_prune.prune_module(net, torch.rand(1, 3, 16, 16), keep_macs=0.5).to_json()
    plan = json.loads(text)
    check.validate(plan)
    assert PrunePlan.from_json(text).to_json() == text
    for key, value in (
        ("version", 2),
        ("keep", {"0.weight[0]": ["a"]}),
        ("dropped", [1]),
        ("no_such_key", 1),
    ):
        with pytest.raises(jsonschema.ValidationError):
            check.validate({**plan, key: value})


def test_every_stage_of_a_run_is_announced_before_it_begins():
    """A stage without a line in ``runs/outline.py`` would take its time unannounced."""
    runs = ROOT / "yolo_prune" / "runs"
    files = [runs / "prune.py", runs / "recovery.py", *sorted((runs / "measure").glob("*.py"))]
    entered = {
        node.args[0].value
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "stage"
    }
    everything = PruneConfig(model="m.pt", data="d.yaml", keep_macs=0.5, epochs=1, quantize=8)
    assert {"evaluate parent", "cut", "bench"} <= entered, "the control"
    assert entered <= {stage.name for stage in stages_of(everything, "", "", Effort(96, 12))}, (
        "add it to runs/outline.py"
    )
