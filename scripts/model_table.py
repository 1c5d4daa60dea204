"""Prune networks of torchvision and timm, which no adapter knows, and write what works to docs/models.md.

    python scripts/model_table.py                  # all of them, about a quarter of an hour on one core
    python scripts/model_table.py hrnet dla        # prints the rows of those whose name contains a word

A row is a random network whose BatchNorm statistics are measured and then disturbed, pruned to half of its
multiply-accumulates (or as far as its frozen parts allow) by ``prune_module`` without data. It passes when the cut is
exact, a fresh network that is cut by the saved plan and takes the weights computes the same to the bit, and the ONNX
export computes the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from support_matrix import shares
from torch import Tensor, nn

from yolo_prune import __version__, prune_module, restore
from yolo_prune.cut.proven import Anatomy
from yolo_prune.errors import YoloPruneError
from yolo_prune.graph import ModuleRule, ModuleRules
from yolo_prune.graph.decisions import Positions

DOC = Path(__file__).resolve().parents[1] / "docs" / "models.md"
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError)
KEEP = 0.5
CLASSIFIERS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121"),
    *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0"),
    *("efficientnet_v2_s", "shufflenet_v2_x1_0", "regnet_x_400mf", "regnet_y_400mf", "googlenet"),
    *("inception_v3", "convnext_tiny"),
)
SEGMENTERS = (
    *("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
)
DETECTORS = (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16"),
    *("ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
)
OF_TIMM = (
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "efficientnet_lite0"),
    *("tf_efficientnetv2_b0", "mixnet_s", "fbnetc_100", "lcnet_050", "rexnet_100", "ghostnet_100"),
    *("repghostnet_050", "hardcorenas_a", "semnasnet_075", "spnasnet_100", "hrnet_w18_small", "dla34"),
    *(
        "darknet53",
        "cspdarknet53",
        "cspresnet50",
        "repvgg_a0",
        "mobileone_s0",
        "resnest14d",
        "res2net50_26w_4s",
    ),
    *("skresnet18", "seresnet18", "ecaresnet26t", "dpn68", "selecsls42b", "ese_vovnet19b_dw", "nfnet_l0"),
    *(
        "xception41",
        "inception_v4",
        "starnet_s1",
        "regnety_004",
        "fastvit_t8",
        "mobilevit_xxs",
        "efficientvit_b0",
    ),
    *("convnext_atto", "edgenext_xx_small", "poolformer_s12"),
)


@dataclass(frozen=True)
class Network:
    """A network to try: ``make`` builds it from random weights, ``example`` is what it takes."""

    name: str
    kind: str
    make: Callable[[], nn.Module]
    example: Any
    exported: bool = True

    @property
    def rules(self) -> ModuleRules | None:
        """Rules for blocks of its own that bake a width into an attribute, as a user would give them."""
        return next((rules() for word, rules in RULES.items() if word in self.name), None)


def _of_mixed_convolutions() -> ModuleRules:
    from timm.layers.mixed_conv2d import MixedConv2d

    def splits(module: Any, *_: Any) -> None:
        module.splits = [conv.weight.shape[1] * conv.groups for conv in module.values()]

    return {MixedConv2d: ModuleRule(splits, follow=splits)}


def _of_cross_stages() -> ModuleRules:
    from timm.models.cspnet import CrossStage

    def halves(module: Any) -> None:
        module.expand_chs = module.conv_exp.conv.weight.shape[0]

    return {CrossStage: ModuleRule(halves)}


def _of_hierarchical_blocks() -> ModuleRules:
    from timm.models.res2net import Bottle2neck

    def width(module: Any) -> None:
        module.width = module.conv1.weight.shape[0] // module.scale

    return {Bottle2neck: ModuleRule(width)}


RULES = {"mixnet": _of_mixed_convolutions, "csp": _of_cross_stages, "res2net": _of_hierarchical_blocks}


def networks() -> Iterator[Network]:
    import timm
    from torchvision import models

    for name in CLASSIFIERS:
        side = 128 if name != "inception_v3" else 160
        aux = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield Network(
            name,
            "torchvision, classification",
            lambda name=name, aux=aux: models.get_model(name, weights=None, num_classes=20, **aux),
            torch.rand(1, 3, side, side),
        )
    for name in SEGMENTERS:
        yield Network(
            name,
            "torchvision, segmentation",
            lambda name=name: models.get_model(name, weights=None, weights_backbone=None, num_classes=20),
            torch.rand(1, 3, 64, 64),
        )
    for name in DETECTORS:
        yield Network(
            name,
            "torchvision, detection",
            lambda name=name: detector(name),
            torch.rand(1, 3, 128, 128),
            False,
        )
    for name in OF_TIMM:
        side = timm.get_pretrained_cfg(name).to_dict()["input_size"][-1] if "vit" in name else 128
        yield Network(
            name,
            "timm, classification",
            lambda name=name: timm.create_model(name, pretrained=False, num_classes=20),
            torch.rand(1, 3, side, side),
        )


def detector(name: str) -> nn.Module:
    from torchvision import models

    size = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    if "rcnn" in name:
        size |= {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 10}
    return models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **size)


def built(network: Network) -> nn.Module:
    """Return the same random network at every call, with BatchNorm statistics that matter."""
    torch.manual_seed(0)
    model = network.make().eval()
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).reshape(layer.num_features, -1)
        layer.running_mean.copy_(values.mean(1))
        if values.shape[1] > 1:
            layer.running_var.copy_(values.var(1, correction=0).clamp(min=1e-4))

    hooks = [layer.register_forward_pre_hook(measure) for layer in norms]
    with torch.no_grad():
        model(network.example)
    for hook in hooks:
        hook.remove()
    for layer in norms:
        layer.running_var *= torch.empty(layer.num_features).uniform_(0.5, 2)
        if layer.affine:
            layer.weight.data.uniform_(0.2, 1.5)
            layer.bias.data.normal_(0, 0.3)
    return model


def examine(network: Network, folder: Path) -> dict[str, Any]:
    """Prune one network and try everything that follows."""
    row: dict[str, Any] = {"name": network.name, "kind": network.kind}
    began, step = time.process_time(), "build"
    try:
        model = built(network)
        step = "trace"
        rules = network.rules
        if rules:
            row["without"] = shares(Anatomy(network.example).cost_of(model))["channels"]
        cost = Anatomy(network.example, rules=rules, positions=Positions()).cost_of(model)
        row |= shares(cost)
        step = "cut"
        keep = KEEP if row["least"] < 0.98 * KEEP else min(0.95, row["least"] + 0.1)
        plan = prune_module(model, network.example, keep_macs=keep, criterion="l1", rules=rules)
        proof = plan.equivalence
        row["kept"], row["exact"] = plan.kept_macs, proof["max_difference"] / max(proof["scale"], 1e-12)
        row["compared"], row["seconds"] = proof.get("compared"), time.process_time() - began
        step = "restore"
        row["restored"] = is_restored(network, model, plan.save(folder / "plan.json"))
        step = "export"
        row["onnx"] = exported_difference(model, network.example, folder) if network.exported else None
    except (YoloPruneError, *FAILURES) as error:
        text = " ".join(str(error).split()).replace("|", "/")
        row["failed"] = f"{step}: {type(error).__name__}: {text[:160]}"
    return row


def is_restored(network: Network, model: nn.Module, plan: Path) -> bool:
    """Tell whether a fresh network, cut by the plan and given the weights, computes the same to the bit."""
    torch.manual_seed(1)
    fresh = restore(network.make().eval(), plan, rules=network.rules)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = (list(tensors(each(network.example))) for each in (model, fresh))
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


def rendered(rows: list[dict[str, Any]]) -> str:
    import timm
    import torchvision

    good = sum(map(passed, rows))
    head = f"""# Networks outside Ultralytics

Networks that torchvision {torchvision.__version__} and timm {timm.__version__} ship, made by `scripts/model_table.py` with
yolo_prune {__version__} and PyTorch {torch.__version__}: {good} of {len(rows)} pass everything.

A random network with disturbed BatchNorm statistics is cut by `prune_module` without data to {KEEP} of its MACs, or as far
as its frozen parts allow (at 128 px; segmentation 64 px, inception_v3 160 px, transformers' own size; two-stage detectors
with 50 proposals). *channels* is the share of channels that may go, *least* the share of the MACs that stays when every
free layer is at its floor of 8 channels, *exact* the largest difference between the zeroed and the smaller model over the
output's scale, float64. *restored*: a fresh network, cut by the saved plan and given the weights, computes the same to the
bit. *ONNX* is the relative difference of the exported file; detectors were not exported.

| network | kind | GMACs | channels | least | kept | exact | restored | ONNX | CPU s | result |
|---|---|---|---|---|---|---|---|---|---|---|
"""
    ruled = [
        f"{row['name']} ({row['without']:.0%} without)" for row in rows if row.get("without") is not None
    ]
    notes = [
        "",
        f"With a rule of a few lines for a block that bakes its width into an attribute: {', '.join(ruled)}.",
    ]
    notes[-1] += " They are `RULES` in the script; [how to write one](custom_models.md)."
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
        *(row["name"], row["kind"], show("gmacs", ".2f"), show("channels", ".0%"), show("least", ".2f")),
        *(show("kept", ".2f"), show("exact", ".0e"), restored, show("onnx", ".0e"), show("seconds", ".0f")),
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
        each for each in networks() if not options.words or re.search("|".join(options.words), each.name)
    ]
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
