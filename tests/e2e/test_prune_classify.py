"""The whole run on a classifier: exact, still cut after retraining, stock, and with the host's own top-1."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_prune import cli
from yolo_prune.adapters.checkpoint import load_detector
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan

# The host's head has 1280 channels; round_to=32 chooses them by the dozen.
ARCHITECTURE = """
nc: 3
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C3k2, [32, True, 0.5]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, C2PSA, [128]]
head:
  - [-1, 1, Classify, [nc]]
"""
FRESH = """
import json, sys
sys.modules["yolo_prune"] = None
from ultralytics import YOLO
said = {}
for file in sys.argv[3:]:
    model = YOLO(file)
    parameters = sum(p.numel() for p in model.model.parameters())
    found = model.val(data=sys.argv[1], device="cpu", workers=0, plots=False, verbose=False, project=sys.argv[2])
    said[file] = parameters, found.top1, found.top5
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def data(bars) -> Path:
    return bars


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A tiny classifier from the host's trainer, pruned with one epoch of retraining."""
    from ultralytics import YOLO

    folder = tmp_path_factory.mktemp("classifier")
    (folder / "tiny-cls.yaml").write_text(ARCHITECTURE)
    model = YOLO(str(folder / "tiny-cls.yaml"), task="classify")
    quick = {"workers": 0, "plots": False, "verbose": False, "val": False, "amp": False, "device": "cpu"}
    still = {"auto_augment": None, "erasing": 0.0, "scale": 0.1, "fliplr": 0.5}
    recipe = {"batch": 12, "nbs": 12, "optimizer": "AdamW", "lr0": 0.005, "warmup_epochs": 0, "epochs": 12}
    model.train(
        data=str(data), imgsz=64, project=str(folder), name="parent", seed=0, **quick, **still, **recipe
    )
    parent = folder / "parent" / "weights" / "last.pt"
    words = ["keep_macs=0.6", "epochs=1", "steps=2", "calibration_images=32", "batch=12", "workers=0"]
    words += ["plots=false", "bench=false", "quantize=8", "round_to=32", f"project={folder}", "name=run"]
    assert cli.main(["prune", f"model={parent}", f"data={data}", *words]) == 0
    return folder / "run"


def rows_of(folder: Path) -> dict[str, dict]:
    report = json.loads((folder / "report.json").read_text())
    return {row["model"]: row for row in report["rows"]}


def test_the_cut_is_exact_and_in_the_budget(finished):
    report, rows = json.loads((finished / "report.json").read_text()), rows_of(finished)
    assert report["equivalence"]["verdict"] == "exact"
    assert report["equivalence"]["scale"] > 0
    assert rows["pruned"]["gmacs"] <= 0.6 * rows["parent"]["gmacs"] * 1.0001
    assert PrunePlan.from_json((finished / "plan.json").read_text()).equivalence["exact"]


def test_parameters_stay_cut_after_retraining(finished):
    counts = {
        name: count_parameters(load_detector(finished / "weights" / f"{name}.pt").module)
        for name in ("parent", "pruned", "best", "last")
    }
    assert counts["best"] == counts["last"] == counts["pruned"] < counts["parent"]


def test_the_rows_say_top1_and_no_ap(finished):
    rows = rows_of(finished)
    assert list(rows) == ["parent", "pruned", "retrained", "int8", "control"]
    assert all(row["top1"] is not None and row["top5"] is not None for row in rows.values())
    assert {row[key] for row in rows.values() for key in ("ap", "ap50", "ap_small")} == {None}
    assert rows["parent"]["top1"] > 0.45, "the control: comparing chance with chance proves nothing"
    assert rows["pruned"]["top1"] > rows["parent"]["top1"] - 0.2


def test_the_reports_speak_of_top1(finished):
    table = (finished / "report.md").read_text()
    assert " top-1 change | top-5 |" in table
    assert "COCO" not in table
    assert "AP" not in (finished / "report.html").read_text().split("</style>")[1]
    assert json.loads((finished / "report.json").read_text())["per_class"][0]["images"] == 12


@pytest.fixture(scope="module")
def fresh(finished, data, tmp_path_factory):
    """What a plain host in a process of its own says of the run's files: parameters, top-1 and top-5 of each."""
    folder, files = (
        tmp_path_factory.mktemp("fresh"),
        [f"{finished}/weights/{name}.pt" for name in ("pruned", "best")],
    )
    command = [sys.executable, "-c", FRESH, str(data), str(folder), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["pruned", "best"])
def test_a_fresh_stock_host_loads_it_and_finds_the_same_top1(finished, fresh, data, tmp_path, name, capsys):
    file, out = finished / "weights" / f"{name}.pt", tmp_path / "eval.json"
    parameters, top1, top5 = fresh[str(file)]
    assert cli.main(["eval", f"model={file}", f"data={data}", "workers=0", f"json={out}"]) == 0
    ours = json.loads(out.read_text())
    row = rows_of(finished)["pruned" if name == "pruned" else "retrained"]
    assert (ours["top1"], ours["top5"]) == (top1, top5) == (row["top1"], row["top5"])
    assert parameters == count_parameters(load_detector(file).module)
    assert "top1 of across" in capsys.readouterr().out


def test_an_exported_classifier_has_the_checkpoint_s_top1(finished, data, tmp_path, capsys):
    from yolo_prune.adapters.ultralytics.export import export_onnx

    file, out = tmp_path / "best.onnx", tmp_path / "eval.json"
    export_onnx(finished / "weights" / "best.pt", file, imgsz=64)
    assert cli.main(["eval", f"model={file}", f"data={data}", "workers=0", f"json={out}"]) == 0
    found, rows = json.loads(out.read_text()), rows_of(finished)
    assert (found["top1"], found["top5"]) == (rows["retrained"]["top1"], rows["retrained"]["top5"])
    assert found["low"] <= found["top1"] <= found["high"]
    assert "95 % interval of top1: " in capsys.readouterr().out


def test_bench_and_inspect_take_it(finished, tmp_path, capsys):
    files = f"model={finished}/weights/parent.pt,{finished}/weights/pruned.pt"
    assert cli.main(["bench", files, "rounds=2", "seconds=0.2", "threads=1", f"json={tmp_path}/b.json"]) == 0
    for comparison in json.loads((tmp_path / "b.json").read_text()):
        assert comparison["conditions"]["timed"].startswith("centre crop")
        assert comparison["ratios"]["pruned"]["latency"]["value"] > 0
    assert cli.main(["inspect", f"model={finished}/weights/pruned.pt"]) == 0
    assert "groups" in capsys.readouterr().out


def test_pruning_inside_a_training(finished, data, tmp_path, capsys):
    parent = finished / "weights" / "parent.pt"
    words = ["keep_macs=0.6", "epochs=3", "prune_at=0.4", "imgsz=64", "batch=12", "workers=0", "steps=2"]
    words += [
        "plots=false",
        "device=cpu",
        "calibration_images=32",
        "round_to=32",
        f"project={tmp_path}",
        "name=run",
    ]
    assert cli.main(["train", f"model={parent}", f"data={data}", *words]) == 0
    best = tmp_path / "run" / "weights" / "best.pt"
    assert count_parameters(load_detector(best).module) < count_parameters(load_detector(parent).module)
    assert f"best: {best}" in capsys.readouterr().out
    assert cli.main(["eval", f"model={best}", f"data={data}", "workers=0"]) == 0


def test_the_int8_file_still_tells_the_bars_apart(finished):
    rows = rows_of(finished)
    assert rows["int8"]["top1"] > rows["retrained"]["top1"] - 0.15
    assert (finished / "weights" / "best_int8.onnx").is_file()
