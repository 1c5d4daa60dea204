"""The whole ``prune`` command: every file and number that it promises, and files that every other command reads."""

import csv
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml

import yolo_prune
from yolo_prune import cli
from yolo_prune.adapters.checkpoint import fingerprint, load_detector, read_metadata
from yolo_prune.cost import count_parameters
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import BudgetError
from yolo_prune.options import PruneConfig
from yolo_prune.recover.effort import Effort
from yolo_prune.runs import recovery as recovery_of_run
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.outline import stages_of
from yolo_prune.runs.resume import options_of_run

FILES = (
    *(
        "weights/parent.pt",
        "weights/pruned.pt",
        "weights/best.pt",
        "weights/last.pt",
        "weights/best_int8.onnx",
    ),
    *("plan.json", "args.yaml", "results.csv", "report.json", "report.md", "report.html", "report.csv"),
    "run.log",
)
ROW = (
    *("model", "gmacs", "params_m", "size_mb", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("latency_ms", "fps", "pre_ms", "net_ms", "post_ms", "runtime", "device", "threads", "batch", "imgsz"),
)


@pytest.fixture(scope="session")
def folder(finished) -> Path:
    return finished[0]


@pytest.fixture(scope="session")
def report(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def row_of(report: dict, model: str, runtime: str = "torch") -> dict:
    return next(row for row in report["rows"] if (row["model"], row["runtime"]) == (model, runtime))


def test_the_run_ends_well_and_says_where_everything_is(finished):
    folder, code, out = finished
    assert code == 0
    assert out.splitlines()[-3:] == [
        f"run folder: {folder}",
        f"report: {folder / 'report.html'}",
        f"best: {folder / 'weights/best.pt'}",
    ]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("| p")] == [
        "parent",
        "pruned",
        "parent",
    ] * 2


@pytest.mark.parametrize("name", FILES)
def test_the_run_folder_holds(folder, name):
    assert (folder / name).stat().st_size > 0


def test_no_temporary_file_is_left(folder):
    assert not list(folder.rglob(".*"))


def test_every_row_has_every_column(report):
    assert all(set(ROW) <= set(row) for row in report["rows"])
    assert all(set(row["latency_ms"]) == {"p10", "p50", "p90", "p99"} for row in report["rows"])


def test_there_is_a_row_for_every_model_and_runtime(report):
    found = [(row["model"], row["runtime"], row["imgsz"]) for row in report["rows"]]
    models = [("parent", 64), ("pruned", 64), ("retrained", 64), ("int8", 64), ("control", 32)]
    every = [(model, runtime, size) for runtime in ("torch", "onnxruntime") for model, size in models]
    assert found == [row for row in every if row[:2] != ("int8", "torch")]


def test_the_int8_file_still_finds_the_squares(report, folder):
    whole, quantised = (row_of(report, name, "onnxruntime") for name in ("retrained", "int8"))
    assert quantised["ap"] > 0.8 * whole["ap"]
    assert quantised["size_mb"] == pytest.approx((folder / "weights/best_int8.onnx").stat().st_size / 1e6)
    assert "In INT8 for onnxruntime the retrained model has AP" in (folder / "report.md").read_text()


def test_the_numbers_of_the_rows_are_measured(report):
    for row in report["rows"]:
        assert all(row[key] is not None for key in ROW if key not in ("ap_small", "ap_medium", "ap_large"))
        assert row["fps"] == pytest.approx(1000 / row["latency_ms"]["p50"], rel=0.01)


def test_the_parent_is_worth_pruning(report):
    """Otherwise every comparison below would compare zero with zero."""
    assert row_of(report, "parent")["ap"] > 0.4


def test_the_budget_is_met_and_accuracy_is_kept(report):
    parent, pruned, best = (row_of(report, name) for name in ("parent", "pruned", "retrained"))
    assert pruned["gmacs"] <= 0.6 * parent["gmacs"] * 1.0001
    assert pruned["gmacs"] >= 0.5 * parent["gmacs"]
    assert best["params_m"] == pruned["params_m"] < parent["params_m"]
    assert pruned["ap"] > 0.5 * parent["ap"]
    assert best["ap"] >= pruned["ap"]
    assert pruned["size_mb"] < parent["size_mb"]


def test_the_report_has_everything_else_that_it_promises(report):
    assert report["equivalence"]["verdict"] == "exact"
    assert report["equivalence"]["scale"] > 0
    assert report["seed"] == 0
    assert {"python", "torch", "ultralytics", "yolo-prune"} <= set(report["versions"])
    stages = {"evaluate parent", "cut", "recover", "retrain", "evaluate retrained", "controls", "bench"}
    assert stages <= set(report["timing_s"])
    assert all(seconds >= 0 for seconds in report["timing_s"].values())
    assert [stage["name"] for stage in report["stages"]] == ["cut", "bn", "fold", "fold_bn", "retrained"]
    assert {one["name"] for one in report["per_class"]} == {"red", "blue"}
    assert report["conditions"]["images"] == 8
    assert report["plan"]["budget"] == "keep_macs=0.6"
    assert sum(report["bn_scales"]["after"]) < sum(report["bn_scales"]["before"])


def test_the_run_said_before_it_began_what_it_then_did(folder, report):
    config = options_of_run(folder / "args.yaml", PruneConfig)
    expected = [stage.name for stage in stages_of(config, "keep_macs=0.6", "reconstruction", Effort(96, 12))]
    assert list(report["timing_s"]) == expected
    said = (folder / "run.log").read_text("utf-8")
    first, *rest = said.splitlines()
    assert " pruning " in first
    assert [line[2:].partition("  ")[0] for line in rest[: len(expected)]] == expected
    assert said.index("to keep_macs=0.6 in 2 steps by reconstruction") < said.index(
        "evaluating the parent ..."
    )


@pytest.mark.parametrize("name", ["report", "plan"])
def test_what_the_run_wrote_fits_the_published_schemas(folder, name):
    schema = json.loads(
        (Path(yolo_prune.__file__).parent / "schemas" / f"{name}.schema.json").read_text("utf-8")
    )
    written = json.loads((folder / f"{name}.json").read_text("utf-8"))
    check = jsonschema.Draft202012Validator(schema)
    check.validate(written)
    assert not check.is_valid({**written, "of_another_release": 1})
    assert set(written) == set(schema["properties"]), "every key is written"


def test_the_log_holds_what_was_said_and_nothing_that_moves_a_cursor(folder):
    said = (folder / "run.log").read_bytes().decode("utf-8")
    assert "retraining for " in said
    assert "Logging results to" in said, "the host's own words"
    assert not set(said) & {chr(code) for code in range(32)} - {"\n", "\t"}


def test_every_model_has_an_interval_and_a_paired_one_against_the_parent(folder, report):
    drawn = {(one["model"], one["imgsz"]): one for one in report["resamples"]}
    assert set(drawn) == {(row["model"], row["imgsz"]) for row in report["rows"]}
    parent = row_of(report, "parent")
    one = drawn["parent", 64]
    assert one["low"] <= parent["ap"] <= one["high"]
    assert len(one["values"].split()) == 1000
    table = (folder / "report.md").read_text()
    assert f"| {parent['ap']:.3f} [{one['low']:.3f}, {one['high']:.3f}] |" in table
    assert "on the same images for both models" in table
    lines = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    assert all(float(line["change_low"]) <= float(line["change_high"]) for line in lines[1:4])


@pytest.fixture(scope="module")
def bare(folder):
    """The parent cut by the run's plan, with nothing folded."""
    from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
    from yolo_prune.cut.surgery import cut_

    plan = PrunePlan.from_json((folder / "plan.json").read_text())
    module = load_detector(folder / "weights" / "parent.pt").module
    return cut_(module, plan, rules=anatomy_of(module, 64).rules)


def test_folding_gives_back_what_the_bare_cut_lost(words, tmp_path, data, bare):
    """By the class probabilities on the validation images: AP on eight images is too coarse to tell.

    With the statistics that were folded: those estimated anew take a briefly trained model elsewhere.
    """
    import cv2
    import torch

    assert (
        cli.main([*words, "recalibrate_bn=false", "bench=false", f"project={tmp_path}", "name=folded"]) == 0
    )
    files = sorted(data.parent.glob("images/val/*.png"))
    pixels = np.stack([cv2.imread(str(file))[..., ::-1].transpose(2, 0, 1) for file in files])
    parent, folded = (
        load_detector(tmp_path / "folded" / "weights" / f"{name}.pt").module for name in ("parent", "pruned")
    )
    assert {p.shape for p in folded.parameters()} == {p.shape for p in bare.parameters()}
    with torch.no_grad():
        images = torch.from_numpy(pixels).float() / 255
        truth, cut, mended = (module.eval()(images)[0][:, 4:] for module in (parent, bare, folded))
    assert len(files) == 8
    assert (mended - truth).square().mean() < 0.1 * (cut - truth).square().mean()


def test_layers_of_the_report_are_those_of_the_checkpoint(report, folder):
    modules = dict(load_detector(folder / "weights" / "pruned.pt").module.named_modules())
    assert report["layers"]
    assert all(modules[layer["name"]].out_channels == layer["kept"] for layer in report["layers"])
    assert any(layer["kept"] < layer["parent"] for layer in report["layers"])
    assert all(layer["kept"] == layer["parent"] for layer in report["layers"] if layer["frozen"])


def test_widths_are_multiples_of_eight(report):
    cut = [layer["kept"] for layer in report["layers"] if layer["kept"] != layer["parent"]]
    assert cut
    assert all(width % 8 == 0 for width in cut)


def test_the_plan_gives_the_pruned_model_s_shapes(folder, bare):
    pruned = load_detector(folder / "weights" / "pruned.pt").module.state_dict()
    assert {n: t.shape for n, t in bare.state_dict().items()} == {n: t.shape for n, t in pruned.items()}
    assert PrunePlan.from_json((folder / "plan.json").read_text()).equivalence["exact"]


def test_the_arguments_read_back_to_the_same_options(folder):
    values = yaml.safe_load((folder / "args.yaml").read_text())
    config = make_config(PruneConfig, values)
    assert (config.keep_macs, config.steps, config.epochs) == (0.6, 2, 1)
    assert config.train_args == {"plots": False}


def test_the_host_s_table_of_epochs_is_there(folder):
    with (folder / "results.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 1
    assert any(key.strip() == "epoch" for key in rows[0])


def test_checkpoints_say_where_they_come_from(folder, parent):
    roles = {
        name: read_metadata(folder / "weights" / f"{name}.pt")["role"]
        for name in ("parent", "pruned", "best")
    }
    assert roles == {"parent": "parent", "pruned": "pruned", "best": "retrained"}
    assert read_metadata(folder / "weights" / "pruned.pt")["parent"] == str(parent)


def test_the_images_where_the_models_differ_are_in_the_page_and_not_in_the_json(folder):
    shown = json.loads((folder / "examples" / "examples.json").read_text())
    page, size = (folder / "report.html").read_text(), (folder / "report.json").stat().st_size
    assert "Where parent and retrained model differ most" in page
    if shown["left_out"] is None:
        assert shown["columns"] == ["truth", "parent", "retrained"]
        assert page.count("data:image/jpeg;base64,") == sum(len(each["files"]) for each in shown["images"])
    else:
        assert shown["left_out"] in page
    assert "base64" not in (folder / "report.json").read_text()
    assert size < 200_000


def test_the_page_is_whole_and_loads_nothing(folder):
    found = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(value for key, value in attrs if key in ("src", "href") and value)

    page = (folder / "report.html").read_text()
    Links().feed(page)
    assert page.rstrip().endswith("</html>")
    assert not [link for link in found if link.startswith(("http", "//"))]
    files = [link for link in found if not link.startswith(("data:", "#"))]
    assert all((folder / link).is_file() for link in files)
    assert "weights/best.pt" in files


STOCK = """
import json, sys
sys.modules["yolo_prune"] = None  # as if it were not installed
import numpy as np, torch
torch.set_num_threads(1)
from ultralytics import YOLO
found = {}
for name in sys.argv[2:]:
    model = YOLO(name)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    model.predict(image, imgsz=64, verbose=False)
    metrics = YOLO(name).val(data=sys.argv[1], imgsz=64, batch=8, workers=0, plots=False, verbose=False)
    exported = YOLO(name).export(format="onnx", imgsz=64, dynamic=False, simplify=False, verbose=False)
    import onnxruntime
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        expected = model.model.float().eval()(x)[0].numpy()
    found[name] = {
        "map": float(metrics.box.map),
        "parameters": sum(p.numel() for p in YOLO(name).model.parameters()),
        "difference": float(np.abs(got - expected).max()),
        "scale": float(np.abs(expected).max()),
    }
print("RESULT " + json.dumps(found))
"""


@pytest.fixture(scope="session")
def stock(folder, data, tmp_path_factory) -> dict:
    """What a plain host says of copies of the run's files, in a process of its own under the restricted loader."""
    import os
    import shutil

    place = tmp_path_factory.mktemp("stock")
    for name in ("pruned.pt", "best.pt"):
        shutil.copy(folder / "weights" / name, place / name)
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(data), "pruned.pt", "best.pt"],
        cwd=place,
        env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1", "YOLO_AUTOINSTALL": "false", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize(("file", "model"), [("pruned.pt", "pruned"), ("best.pt", "retrained")])
def test_a_plain_host_gets_the_same_accuracy(stock, report, file, model):
    expected = next(one["map"] for one in report["host_map"] if one["model"] == model)
    assert stock[file]["map"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.2


@pytest.mark.parametrize("file", ["pruned.pt", "best.pt"])
def test_a_plain_host_exports_what_the_checkpoint_computes(stock, report, file):
    assert stock[file]["difference"] < 1e-3 * stock[file]["scale"]
    assert stock[file]["parameters"] / 1e6 == pytest.approx(row_of(report, "pruned")["params_m"])


def test_training_goes_on_without_losing_the_cut(folder, data, tmp_path, capsys):
    pruned = folder / "weights" / "pruned.pt"
    options = ["epochs=1", "batch=8", "workers=0", "plots=false", f"project={tmp_path}", "name=more"]
    code, out, _ = run(capsys, "train", f"model={pruned}", f"data={data}", *options)
    assert code == 0
    count = count_parameters(load_detector(pruned).module)
    assert f"parameters: {count:,} before, {count:,} after training" in out
    assert count_parameters(load_detector(tmp_path / "more" / "weights" / "best.pt").module) == count


def test_eval_gives_the_report_s_accuracy(folder, data, report, tmp_path, capsys):
    out_file = tmp_path / "ap.json"
    code, out, _ = run(
        capsys, "eval", f"model={folder / 'weights' / 'best.pt'}", f"data={data}", f"json={out_file}"
    )
    assert code == 0
    assert json.loads(out_file.read_text())["coco"]["ap"] == pytest.approx(row_of(report, "retrained")["ap"])
    assert "ap of red" in out


def test_bench_compares_the_run_s_files(folder, capsys):
    files = f"model={folder / 'weights' / 'parent.pt'},{folder / 'weights' / 'best.pt'}"
    code, out, _ = run(capsys, "bench", files, "threads=1", "rounds=3", "runtimes=torch")
    assert code == 0
    assert "parent" in out
    assert "best" in out


def test_inspect_reads_a_pruned_model(folder, report, capsys):
    code, out, _ = run(capsys, "inspect", f"model={folder / 'weights' / 'pruned.pt'}")
    assert code == 0
    assert f"{report['plan']['groups']} groups" in out


def test_the_report_can_be_written_again(folder, capsys):
    before = {name: (folder / name).read_bytes() for name in ("report.md", "report.html", "report.csv")}
    (folder / "report.md").unlink()
    code, out, _ = run(capsys, "report", f"run={folder}")
    assert code == 0
    assert out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_pruned_model_can_be_pruned_again(folder, data, tmp_path):
    result = yolo_prune.prune(
        folder / "weights" / "best.pt",
        data=data,
        keep_params=0.8,
        steps=1,
        calibration_images=8,
        batch=8,
        bench=False,
        verbose=False,
        project=str(tmp_path),
    )
    assert result.plan.kept_params <= 0.8
    assert result.best == tmp_path / "prune" / "weights" / "pruned.pt"
    assert result.report.rows[0].model == "parent"
    assert result.report.rows[0].fps is None


def test_the_cut_begins_with_the_weights_that_were_evaluated(data, parent, tmp_path, monkeypatch):
    """Random weights have more digits than a checkpoint keeps: what is written, evaluated and cut must be one."""
    seen = []

    def stop(whole, *_, **__):
        seen.append(fingerprint(whole.module))
        raise BudgetError("far enough")

    monkeypatch.setattr(recovery_of_run, "cut_in_steps", stop)
    description = parent.parents[2] / "tiny.yaml"
    options = {"keep_macs": 0.6, "imgsz": 64, "workers": 0, "calibration_images": 4, "project": str(tmp_path)}
    with pytest.raises(BudgetError, match="far enough"):
        yolo_prune.prune(description, data=data, name="a", **options)
    assert seen == [fingerprint(load_detector(tmp_path / "a/weights/parent.pt").module)]
    assert seen != [fingerprint(load_detector(description).module)]
