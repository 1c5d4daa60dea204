"""Prune every architecture that the installed Ultralytics ships, and write what works to docs/support.md.

    python scripts/support_matrix.py                     # all of them, under 30 minutes on two cores
    python scripts/support_matrix.py yolo11 --keep 0.7   # those whose name contains a word

A row is a random network whose BatchNorm statistics are measured and then disturbed. One of its residual blocks is
dropped, if it has any, and its channels are cut at random to half of its multiply-accumulates (or as far as its frozen
parts allow). It passes when both are exact, one step of training gives finite numbers, the file loads in a fresh process
of the plain host with the same outputs, and its ONNX export computes the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["YOLO_VERBOSE"] = "false"

import numpy as np
import torch
from host_batches import training_step
from torch import nn

from yolo_prune import __version__
from yolo_prune.adapters.checkpoint import load_detector, save_detector
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.export import export_onnx
from yolo_prune.bench.parity import file_parity
from yolo_prune.cost import CostModel
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, least_channels
from yolo_prune.cut.proof import Equivalence
from yolo_prune.cut.proven import Anatomy, cut_proven_, drop_proven_, offered_blocks
from yolo_prune.errors import YoloPruneError

ROOT = Path(__file__).resolve().parent.parent
LARGER = (
    "yolov5x",
    "yolov6l",
    "yolov8x",
    "yolov8l-world",
    "yolov8m-worldv2",
    "yolo11x",
    "yolo11m-seg",
    "yolo12x",
)
LARGER += ("yolo26x", "yolov8m-ghost", "yolo11l-pose", "yolo26m-obb")
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError)

FRESH = """
import sys, json, torch
sys.modules["yolo_prune"] = None
from ultralytics import YOLO, RTDETR
for file in sys.argv[1:]:
    try:
        model = (RTDETR if "rtdetr" in file else YOLO)(file).model.float().eval()
        stored = torch.load(file + ".out", weights_only=True)
        with torch.no_grad():
            out = model(stored["x"])
        while not isinstance(out, torch.Tensor):
            out = out[0] if isinstance(out, (tuple, list)) else next(iter(out.values()))
        print(json.dumps({"file": file, "difference": float((out - stored["y"]).abs().max())}))
    except Exception as error:
        print(json.dumps({"file": file, "error": f"{type(error).__name__}: {error}"[:200]}))
"""


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(2)
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    names = [n for n in architectures() if not options.words or any(word in n for word in options.words)]
    rows = json.loads(options.rows.read_text("utf-8")) if options.rows and options.rows.is_file() else []
    rows = [row for row in rows if "loaded" in row or "failed" in row]
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in names if name not in {row["name"] for row in rows}):
            started = time.monotonic()
            row = examine(name, options.keep, Path(folder))
            row["seconds"] = time.monotonic() - started
            rows.append(row)
            print(f"{len(rows)}/{len(names)} {name}: {verdict(row)}", flush=True)
            if len(rows) % 12 == 0 or len(rows) == len(names):
                load_in_a_fresh_process(rows, Path(folder))
            if options.rows:
                options.rows.write_text(json.dumps(rows), "utf-8")
    rows.sort(key=lambda row: names.index(row["name"]))
    text = document(rows, options.keep)
    print(text)
    if not options.words:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "support.md").write_text(text, "utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="only architectures whose name contains one of these")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of the MACs that stays")
    parser.add_argument(
        "--rows", type=Path, help="JSON file that keeps the rows done, to go on after an interruption"
    )
    return parser.parse_args()


def architectures() -> list[str]:
    """Name every YAML of the installed host, and some larger scales."""
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return sorted({path.stem for path in folder.rglob("*.yaml")} | set(LARGER))


def build(name: str) -> nn.Module:
    from ultralytics import RTDETR, YOLO
    from ultralytics.nn.tasks import ClassificationModel, yaml_model_load

    if "resnet18" in name:  # its weights would be downloaded
        description = yaml_model_load(f"{name}.yaml")
        for layer in description["backbone"]:
            layer[3] = [None if value == "DEFAULT" else value for value in layer[3]]
        return ClassificationModel(description, verbose=False)
    return (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml").model


def examine(name: str, keep: float, folder: Path) -> dict[str, object]:
    """Run one architecture through everything that needs this process."""
    row: dict[str, object] = {"name": name}
    step = "build"
    try:
        model = build(name)
        row["task"] = model_task(model)
        randomise_(model)
        step = "trace"
        anatomy = anatomy_of(model, 224 if row["task"] == "classify" else 640)
        started = time.process_time()
        cost = anatomy.cost_of(model)
        row.update(shares(cost))
        row["plan_seconds"] = time.process_time() - started
        step = "drop"
        drop_one(model, cost, anatomy, row)
        step = "cut"
        cut(model, cost, anatomy, keep, row)
        step = "train"
        row["loss"] = training_step(model, str(row["task"]), anatomy.trace_input)
        step = "save"
        row["file"] = save(model, name, row, folder)
        step = "onnx"
        row["onnx"] = onnx_difference(Path(str(row["file"])), name)
    except (YoloPruneError, *FAILURES) as error:
        text = " ".join(str(error).replace(f"{folder}/", "").split())
        row["failed"] = f"{step}: {type(error).__name__}: {text[:240]}"
    return row


def model_task(model: nn.Module) -> str:
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils.torch_utils import unwrap_model  # noqa: F401 - a host that is too old fails here

    return guess_model_task(model)


def randomise_(model: nn.Module) -> None:
    """Measure BatchNorm statistics on noise, then disturb them, so that every layer matters."""
    torch.manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).reshape(layer.num_features, -1)
        layer.running_mean.copy_(values.mean(1))
        layer.running_var.copy_(values.var(1, correction=0).clamp(min=1e-4))

    hooks = [layer.register_forward_pre_hook(measure) for layer in norms]
    with torch.no_grad():
        model.eval()(torch.rand(2, 3, 128, 128))
    for hook in hooks:
        hook.remove()
    for layer in norms:
        layer.running_mean += 0.3 * layer.running_var.sqrt() * torch.randn(layer.num_features)
        layer.running_var *= torch.empty(layer.num_features).uniform_(0.5, 2)
        layer.weight.data.uniform_(0.2, 1.5)
        layer.bias.data.normal_(0, 0.3)


def shares(cost: CostModel) -> dict[str, object]:
    """Say how much can be pruned and what holds the rest."""
    graph = cost.graph
    made = np.unique(np.concatenate([group.channels for group in graph.groups if group.producers]))
    free = float((~graph.frozen[made]).mean())
    everything = cost.everything
    floor = cost.macs(least_channels(cost)) / cost.macs(everything)
    told = (graph.reasons[int(c)] for c in made if int(c) in graph.reasons)
    why = Counter(reason.rpartition(" in '")[0] or reason for reason in told)
    expected = ("is an output", "reads a tensor of fixed width")
    held = [
        f"{reason.rstrip(',')} ({count})" for reason, count in why.most_common() if reason not in expected
    ]
    return {"channels": free, "least": floor, "frozen": held, "gmacs": cost.macs(everything) / 1e9}


def drop_one(model: nn.Module, cost: CostModel, anatomy: Anatomy, row: dict[str, object]) -> None:
    """Count the residual blocks that may go, and drop one of them, in place."""
    blocks = offered_blocks(model, anatomy)
    row["blocks"] = len(blocks)
    if blocks:
        block = blocks[np.random.default_rng(0).integers(len(blocks))]
        row["drop"] = relative(drop_proven_(model, cost, block, anatomy)[1])


def cut(model: nn.Module, before: CostModel, anatomy: Anatomy, keep: float, row: dict[str, object]) -> None:
    """Cut channels at random, in place, to a share of what the model cost before."""
    least = float(str(row["least"]))
    target = keep if least < 0.98 * keep else min(0.95, least + 0.1)
    cost = anatomy.cost_of(model) if row["blocks"] else before
    started = time.process_time()
    scores = np.random.default_rng(0).random(cost.graph.channel_count)
    budget = Budget("keep_macs", target).absolute(before)
    plan, proof = cut_proven_(model, cost, choose_channels(cost, scores, budget), anatomy)
    row["plan_seconds"] = float(str(row["plan_seconds"])) + time.process_time() - started
    row["kept"] = 1e9 * plan.gmacs / before.macs(before.everything)
    row["exact"] = max(float(str(row.get("drop", 0.0))), relative(proof))


def relative(proof: Equivalence) -> float:
    return proof.max_difference / max(proof.scale, 1e-12)


def save(model: nn.Module, name: str, row: dict[str, object], folder: Path) -> str:
    file = folder / f"cut-{name}.pt"  # the host takes some bare names for files to download
    imgsz = input_size(name)
    save_detector(file, model, task=str(row["task"]), train_args={"imgsz": imgsz}, meta={"name": name})
    stored = torch.load(file, weights_only=False)["model"].float().eval()
    x = torch.rand(1, 3, imgsz, imgsz)
    with torch.no_grad():
        out = stored(x)
    while not isinstance(out, torch.Tensor):
        out = out[0] if isinstance(out, (tuple, list)) else next(iter(out.values()))
    torch.save({"x": x, "y": out}, f"{file}.out")
    return str(file)


def input_size(name: str) -> int:
    return 192 if "rtdetr" in name or "world" in name else 128


def onnx_difference(file: Path, name: str) -> float:
    with contextlib.redirect_stdout(io.StringIO()):  # PyTorch prints whole graphs when it cannot export
        exported = export_onnx(file, file.with_suffix(".onnx"), imgsz=input_size(name))
    dense = name.endswith(("-sem", "-depth"))
    difference = (
        dense_difference(file, exported, input_size(name))
        if dense
        else file_parity(load_detector(file), exported, input_size(name)).relative
    )
    exported.unlink()
    return difference


def dense_difference(file: Path, exported: Path, imgsz: int) -> float:
    """Compare maps, which the export enlarges: depths relatively, classes by the share of pixels that differ."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, imgsz, imgsz)
    theirs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    module = load_detector(file).module.eval()
    module.model[-1].export, module.model[-1].format = True, "onnx"
    with torch.no_grad():
        ours = module(x)
    if not theirs.is_floating_point():
        ours = ours if not ours.is_floating_point() else ours.argmax(1)
        return float((ours.long() != theirs.long()).float().mean())
    return float((ours - theirs).abs().max() / ours.abs().max())


def load_in_a_fresh_process(rows: list[dict[str, object]], folder: Path) -> None:
    """Load the files saved since the last call where yolo_prune cannot be imported, and delete them."""
    waiting = {str(row["file"]): row for row in rows if "file" in row and "loaded" not in row}
    if not waiting:
        return
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *waiting], capture_output=True, text=True, env=environment, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            result = json.loads(line)
            waiting[result["file"]]["loaded"] = result.get("error", result.get("difference"))
    for file, row in waiting.items():
        row.setdefault("loaded", done.stderr.strip()[-160:] or "no answer")
        if not isinstance(row["loaded"], float):
            row.setdefault("failed", f"load: {row['loaded']}")
        Path(file).unlink()


def verdict(row: dict[str, object]) -> str:
    return f"FAILED {row['failed']}" if "failed" in row else f"exact to {row['exact']:.1e}"


def passed(row: dict[str, object]) -> bool:
    small = all(
        isinstance(row.get(k), float) and row[k] < limit for k, limit in (("exact", 1e-11), ("onnx", 1e-3))
    )
    return "failed" not in row and small and isinstance(row.get("loaded"), float) and row["loaded"] < 1e-5


def document(rows: list[dict[str, object]], keep: float) -> str:
    import ultralytics

    good = sum(passed(row) for row in rows)
    exact = sum("exact" in row for row in rows)
    head = f"""# What can be pruned

Every architecture that Ultralytics {ultralytics.__version__} ships, made by `scripts/support_matrix.py` with yolo_prune
{__version__} and PyTorch {torch.__version__}. {exact} of {len(rows)} are cut exactly, {good} of {len(rows)} pass
everything; those that do not are listed with the reason.

A random network with disturbed BatchNorm statistics is cut at random to {keep} of its MACs at 640 px (classification
224 px), or as far as its frozen parts allow. *channels* is the share of channels that may go, *least* the share of the
MACs that stays when every free layer is at its floor of 8 channels. *blocks* is how many residual blocks can be dropped
as a whole; one of them, drawn at random, is dropped before the cut, so that whatever follows holds for a model without
it. *exact* is the largest difference between the zeroed and the smaller model over the output's scale, float64, of the
drop or the cut. *loss* is one step of training: the host's own loss, or
*sum* where that needs more than images and labels. *loaded* is the difference of the outputs after saving and loading
in a fresh process of the plain host in its restricted mode; *ONNX* the relative difference of the exported file.

By what models of each task are judged: [tasks.md](tasks.md).

| architecture | task | GMACs | channels | least | blocks | kept | exact | loss | loaded | ONNX | plan, CPU s | result |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""
    lines = [line_of(row) for row in rows]
    notes = ["", "## What stays, and why", ""]
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault("; ".join(row.get("frozen", [])), []).append(str(row["name"]))
    notes += [f"* {', '.join(names)}: {reason}." for reason, names in by_reason.items() if reason]
    notes += ["", "Besides: what a model returns, and what reads its input."]
    return head + "\n".join([*lines, *notes]) + "\n"


def line_of(row: dict[str, object]) -> str:
    def show(key: str, form: str) -> str:
        value = row.get(key)
        return "-" if value is None else format(value, form) if isinstance(value, float) else str(value)

    result = "pass" if passed(row) else str(row.get("failed", "a difference")).replace("|", "/")
    cells = [
        *(str(row["name"]), str(row.get("task", "-")), show("gmacs", ".2f"), show("channels", ".0%")),
        *(
            show("least", ".2f"),
            show("blocks", ""),
            show("kept", ".2f"),
            show("exact", ".0e"),
            show("loss", ""),
        ),
        *(show("loaded", ".0e"), show("onnx", ".0e"), show("plan_seconds", ".1f"), result),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
