"""A report on modules that no host knows."""

import copy
import json
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from nets import Net, conv
from torch import nn

from yolo_prune import prune_module, report_modules
from yolo_prune.errors import BenchmarkError, ConfigError
from yolo_prune.runtimes.tracing import trace_to_onnx

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def made():
    torch.manual_seed(0)
    net = Net(
        lambda m, x: {"maps": m.head(m.stem(x)), "index": torch.zeros(1).long()},
        stem=conv(32, 3, stride=2),
        head=nn.Conv2d(32, 4, 1),
    )
    return net.train()


@pytest.fixture(scope="module")
def models():
    parent = made()
    pruned = copy.deepcopy(parent)
    plan = prune_module(pruned, X, keep_macs=0.5)
    return {"parent": parent, "pruned": pruned}, plan


def accuracy(module):
    assert not module.training
    return {"ap": 0.5 if module.stem[0].out_channels == 32 else 0.4375, "ap50": 0.75}


def test_cost_accuracy_speed_plan_and_proof_are_reported_and_modes_stay(models, tmp_path):
    models, plan = models
    report_modules(models, X, tmp_path / "run", accuracy=accuracy, plan=plan, data="squares", seconds=0.2)
    found = json.loads((tmp_path / "run/report.json").read_text())
    parent, pruned = found["rows"]
    assert (parent["ap"], pruned["ap"]) == (0.5, 0.4375)
    assert pruned["gmacs"] == pytest.approx(plan.gmacs)
    assert pruned["fps"] > 0
    assert [one["model"] for one in found["speedups"]] == ["pruned"]
    assert found["equivalence"]["verdict"] == "exact"
    assert found["plan"]["budget"] == "keep_macs=0.5"
    assert found["conditions"]["data"] == "squares"
    assert all(module.training for module in models.values())
    assert "squares" in (tmp_path / "run/report.md").read_text()
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "run/weights/pruned.onnx")
    with torch.no_grad():
        expected = copy.deepcopy(models["pruned"]).eval()(X)["maps"].reshape(1, -1)
    assert torch.allclose(torch.from_numpy(session.run(None, {"images": X.numpy()})[0]), expected, atol=1e-4)


def test_a_module_that_no_exporter_takes_is_reported_without_speed_and_says_why(models, tmp_path):
    class Odd(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.stem = net.stem

        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("not while it is traced\nand more")
            return self.net(x)

    odd = {name: Odd(module) for name, module in models[0].items()}
    report = report_modules(odd, X, tmp_path, accuracy=accuracy, seconds=0.2)
    assert all(row.fps is None and "not while it is traced" in row.not_measured for row in report.rows)
    assert [row.ap for row in report.rows] == [0.5, 0.4375]
    assert report_modules(models[0], X, tmp_path, accuracy=accuracy, bench=False).rows[0].fps is None


def test_an_operator_that_no_exporter_knows_is_a_sentence_and_no_graph_on_the_screen(tmp_path, capfd):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.logaddexp(x, x)

    with pytest.raises(BenchmarkError, match=r"^it cannot be exported to ONNX: .*logaddexp"):
        trace_to_onnx(Odd(), X, tmp_path / "a.onnx", what="it")
    print("still there")  # noqa: T201
    assert capfd.readouterr().out == "still there\n"
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Odd(), (X,), str(tmp_path / "a.onnx"), dynamo=False)
    assert "aten::logaddexp" in capfd.readouterr().out  # what torch writes when it is left alone


def test_a_result_with_a_sample_gives_intervals(models, tmp_path):
    @dataclass
    class Found:
        scores: dict[str, float]
        sample: Any
        images: int = 4
        boxes: int = 9
        evaluator: str = "counted by hand"

    from stand_in import Weighted

    report = report_modules(
        models[0],
        X,
        tmp_path,
        accuracy=lambda module: Found({"ap": 0.5}, Weighted((0.0, 1.0, 1.0, 0.0))),
        bench=False,
    )
    assert [one.model for one in report.resamples] == ["parent", "pruned"]
    assert (report.conditions.images, report.conditions.boxes) == (4, 9)


@pytest.mark.parametrize(
    ("names", "image", "scores", "text"),
    [
        (("parent",), X, {"ap": 1.0}, "expected models of the names parent and pruned, .* got parent"),
        (("parent", "pruned", "other"), X, {"ap": 1.0}, "got parent, pruned, other"),
        (("parent", "pruned"), X[0], {"ap": 1.0}, r"expected one image of shape \(1, .* got \(3, 32, 32\)"),
        (("parent", "pruned"), X, {"recall": 1.0}, "accuracy= returned recall: a report compares top1, "),
    ],
)
def test_other_names_shapes_and_scores_are_a_sentence(names, image, scores, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        report_modules(dict.fromkeys(names, made()), image, tmp_path / "run", accuracy=lambda module: scores)
