"""Prune networks that packages on PyPI ship, and write what works to docs/models.md.

    python scripts/model_table.py                  # all that is installed, about half an hour on one core
    python scripts/model_table.py hrnet dla        # prints the rows of those whose name or kind contains a word

A row is a random network whose BatchNorm statistics are measured and then disturbed, pruned to half of its
multiply-accumulates (or as far as its frozen parts allow) by ``prune_module`` without data, and another one to 0.35. It
passes when the cuts are exact, a fresh network that is cut by the saved plan and takes the weights computes the same to
the bit, and the ONNX export computes the same.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import io
import json
import os
import re
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from model_networks import PACKAGES, Network, missing, networks
from support_matrix import shares
from torch import Tensor, nn

from yolo_prune import __version__, prune_module, restore
from yolo_prune.cut.proven import Anatomy
from yolo_prune.cut.record import PrunePlan
from yolo_prune.errors import YoloPruneError
from yolo_prune.graph.decisions import Positions

DOC = Path(__file__).resolve().parents[1] / "docs" / "models.md"
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError)
KEEP, LESS = 0.5, 0.35


def built(network: Network) -> nn.Module:
    """Return the same random network at every call, with BatchNorm statistics that matter."""
    torch.manual_seed(0)
    model = network.make().eval()
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Set what this layer has seen, and disturb it at once: later, small changes would add up to infinity."""
        values = inputs[0].transpose(0, 1).reshape(layer.num_features, -1)
        layer.running_mean.copy_(values.mean(1))
        if values.shape[1] > 1:
            layer.running_var.copy_(values.var(1, correction=0).clamp(min=1e-4))
        layer.running_var *= torch.empty(layer.num_features).uniform_(0.5, 2)
        if layer.affine:
            layer.weight.data.uniform_(0.2, 1.5)
            layer.bias.data.normal_(0, 0.3)

    hooks = [layer.register_forward_pre_hook(measure) for layer in norms]
    with torch.no_grad():
        network.run(model)
    for hook in hooks:
        hook.remove()
    return model


def examine(network: Network, folder: Path) -> dict[str, Any]:
    """Prune one network and try everything that follows."""
    row: dict[str, Any] = {"name": network.name, "kind": network.kind}
    began, step = time.process_time(), "build"
    try:
        model = built(network)
        step = "trace"
        cost = Anatomy(network.example, positions=Positions()).cost_of(model)
        row |= shares(cost)
        step = "cut"
        keep = KEEP if row["least"] < 0.98 * KEEP else min(0.95, row["least"] + 0.1)
        narrow = copy.deepcopy(model)
        plan = prune_module(model, network.example, keep_macs=keep, criterion="l1")
        row["kept"], row["exact"] = plan.kept_macs, difference(plan)
        row["compared"], row["seconds"] = plan.equivalence.get("compared"), time.process_time() - began
        if row["least"] < 0.98 * LESS:
            step = f"cut to {LESS}"
            less = prune_module(narrow, network.example, keep_macs=LESS, criterion="l1")
            row["less"], row["exact"] = less.kept_macs, max(row["exact"], difference(less))
        step = "restore"
        row["restored"] = is_restored(network, model, plan.save(folder / "plan.json"))
        step = "export"
        row["onnx"] = exported_difference(model, network.example, folder) if network.exported else None
    except (YoloPruneError, *FAILURES) as error:
        text = " ".join(str(error).split()).replace("|", "/")
        row["failed"] = f"{step}: {type(error).__name__}: {text[:160]}"
    return row


def difference(plan: PrunePlan) -> float:
    """Return the largest difference that the proof met, over the scale of the tensor that it met it in."""
    return float(plan.equivalence["max_difference"]) / max(float(plan.equivalence["scale"]), 1e-12)


def is_restored(network: Network, model: nn.Module, plan: Path) -> bool:
    """Tell whether a fresh network, cut by the plan and given the weights, computes the same to the bit."""
    torch.manual_seed(1)
    fresh = restore(network.make().eval(), plan)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = (list(tensors(network.run(each))) for each in (model, fresh))
    return len(ours) == len(theirs) > 0 and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def exported_difference(model: nn.Module, example: Tensor, folder: Path) -> float:
    """Return the largest difference of the ONNX export's first output, over the largest value."""
    import onnxruntime

    file = folder / "cut.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (example,), str(file), dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: example.numpy()})[0]
    with torch.no_grad():
        ours = next(tensors(model(example))).numpy()
    return float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-12))


def passed(row: dict[str, Any]) -> bool:
    exact, onnx = row.get("exact", np.inf) < 1e-11, row.get("onnx")
    return "failed" not in row and exact and bool(row["restored"]) and (onnx is None or onnx < 1e-3)


def versions() -> str:
    """Name the packages whose networks were tried, with their versions."""
    known = importlib.metadata.packages_distributions()
    found = [package for package in PACKAGES if package not in missing()]
    return ", ".join(f"{name} {importlib.metadata.version(known[name][0])}" for name in found)


def rendered(rows: list[dict[str, Any]]) -> str:
    good = sum(map(passed, rows))
    what = textwrap.fill(
        f"Networks that packages on PyPI ship ({versions()}), made by `scripts/model_table.py` with yolo_prune "
        f"{__version__} and PyTorch {torch.__version__}: {good} of {len(rows)} pass everything.",
        120,
    )
    head = f"""# Networks outside Ultralytics

{what}

A random network with disturbed BatchNorm statistics is cut by `prune_module` without data to {KEEP} of its MACs, or as far
as its frozen parts allow, and another one to {LESS} (at 128 px; torchvision's segmentation 64 px, inception_v3 160 px, timm's
transformers their own size; two-stage detectors with 50 proposals, transformers' with fewer layers and 20 queries). *frozen*
is the share of channels that cannot go, *least* the share of the MACs that stays when every free layer is at its floor of 8
channels, *exact* the largest difference between the zeroed and the smaller model over the output's scale, float64.
*restored*: a fresh network, cut by the saved plan and given the weights, computes the same to the bit. *ONNX* is the
relative difference of the exported file; most detectors were not exported.

| network | kind | GMACs | frozen | least | at {KEEP} | at {LESS} | exact | restored | ONNX | CPU s | result |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
    notes = [
        "",
        "Blocks of timm and transformers that bake a width into an attribute have rules in the package; for one of your own",
        "[a rule is a few lines](custom_models.md#a-module-that-knows-its-own-width).",
    ]
    notes += [
        "",
        "## What stays, and why",
        "",
        "The three reasons that hold most channels, their numbers in brackets; what a model returns is left out.",
        "",
    ]
    notes += [f"* {row['name']}: {'; '.join(row['frozen'][:3])}." for row in rows if row.get("frozen")]
    return head + "\n".join([*map(line_of, rows), *notes]) + "\n"


def line_of(row: dict[str, Any]) -> str:
    def show(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    restored = {True: "yes", False: "no", None: "-"}[row.get("restored")]
    cells = [
        *(row["name"], row["kind"], show("gmacs", ".2f")),
        "-" if row.get("channels") is None else f"{1 - row['channels']:.0%}",
        *(show("least", ".2f"), show("kept", ".2f"), show("less", ".2f"), show("exact", ".0e"), restored),
        *(show("onnx", ".0e"), show("seconds", ".0f")),
        "pass" if passed(row) else row.get("failed", "a difference"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="networks whose name contains one of these words")
    parser.add_argument("--rows", type=Path, help="file that keeps finished rows, so that a run can go on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    kept = json.loads(options.rows.read_text()) if options.rows and options.rows.is_file() else []
    rows = {row["name"]: row for row in kept}
    wanted = [
        each
        for each in networks()
        if not options.words or re.search("|".join(options.words), f"{each.kind} {each.name}")
    ]
    print("not installed, left out:", ", ".join(missing()) or "none", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for network in wanted:
            if network.name not in rows:
                rows[network.name] = examine(network, Path(folder))
                print(line_of(rows[network.name]), *rows[network.name].get("frozen", [])[:3], flush=True)
                if options.rows:
                    options.rows.write_text(json.dumps(list(rows.values())))
    if not options.words:
        DOC.write_text(rendered([rows[each.name] for each in wanted]), encoding="utf-8")


if __name__ == "__main__":
    main()
