"""The claim that everything rests on: the cut model computes what the parent computes when nobody reads what was cut.

Stock architectures with random weights and BatchNorm statistics, a third of the channels removed at random. Every
control must fail: one wrong index, one attribute that was not kept right, another set of channels.
"""

import copy

import numpy as np
import pytest
import torch
from nets import randomise_

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.rules import block_rules
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, make_plan
from yolo_prune.cut.proof import prove_equivalence
from yolo_prune.cut.proven import cut_proven_
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Widths
from yolo_prune.errors import EquivalenceError
from yolo_prune.graph import ModuleRule

FAMILIES = ("yolov3-tiny", "yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
TASKS = ("yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo11n-cls")


def build(name):
    from ultralytics import YOLO
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    model = YOLO(f"{name}.yaml").model
    LOGGER.setLevel(level)
    return randomise_(model, x=torch.zeros(1, 3, 96, 96))


def chosen(name, share=0.5, widths=None, kind="keep_macs"):
    model = build(name)
    anatomy = anatomy_of(model, 96)
    cost = anatomy.cost_of(model)
    scores = np.random.default_rng(1).random(cost.graph.channel_count)
    return model, anatomy, cost, choose_channels(cost, scores, Budget(kind, share), widths=widths)


@pytest.mark.parametrize("name", [*FAMILIES, *TASKS])
def test_zeroed_readers_and_cut_model_agree(name):
    model, anatomy, cost, keep = chosen(name)
    plan, proof = cut_proven_(model, cost, keep, anatomy)
    assert proof.exact
    assert proof.dtype == "float64"
    assert proof.max_difference <= 1e-10 * max(proof.scale, 1.0)
    assert plan.kept_macs <= 0.5
    assert not cost.graph.unknown.keys() & {"split", "cat", "bmm"}


@pytest.fixture(scope="module")
def yolo11():
    return chosen("yolo11n", kind="keep_params")


def prove(case, cut, keep=None):
    model, anatomy, cost, choice = case
    return prove_equivalence(
        model,
        cut,
        cost.graph,
        choice if keep is None else keep,
        anatomy.trace_input,
        select_outputs=anatomy.select_outputs,
    )


def test_control_one_wrong_index_in_one_reader_fails(yolo11):
    model, _, cost, keep = yolo11
    plan = make_plan(cost, keep)
    label = next(label for label in plan.keep if label.endswith("weight[1]"))
    gone = sorted(set(range(plan.widths[label])) - set(plan.keep[label]))
    plan.keep[label][0] = gone[0]
    assert not prove(yolo11, cut_(copy.deepcopy(model), plan, rules=block_rules())).exact


def test_control_another_set_of_channels_fails(yolo11):
    model, _, cost, keep = yolo11
    group = next(
        g for g in cost.graph.groups if not g.frozen and 0 < keep[g.channels].sum() < len(g.channels)
    )
    other = keep.copy()
    other[group.channels] = keep[group.channels][::-1]
    assert (other != keep).any()
    assert not prove(
        yolo11, cut_(copy.deepcopy(model), make_plan(cost, keep), rules=block_rules()), other
    ).exact


def test_control_an_attribute_that_was_not_kept_right_fails(yolo11):
    model, _, cost, keep = yolo11
    with pytest.raises(EquivalenceError, match=r"^the cut model "):
        prove(yolo11, cut_(copy.deepcopy(model), make_plan(cost, keep), rules={}))


def test_an_attribute_that_was_not_kept_right_is_blamed_on_its_module(yolo11):
    from ultralytics.nn.modules.block import C2PSA

    model, anatomy, cost, keep = yolo11
    broken = {**block_rules(), C2PSA: ModuleRule(lambda module: None)}
    with pytest.raises(EquivalenceError, match=r"\(first seen in 'model\.10'\)\.$") as caught:
        cut_proven_(copy.deepcopy(model), cost, keep, type(anatomy)(**{**vars(anatomy), "rules": broken}))
    assert any(name.startswith("model.10.") for name in caught.value.freeze)


def test_a_cut_to_single_channels_is_exact_too():
    model, anatomy, cost, keep = chosen("yolov8n", 0.1, Widths(round_to=1, min_width=1))
    _, proof = cut_proven_(model, cost, keep, anatomy)
    assert proof.exact


def test_other_images_than_the_proof_saw_agree_as_well(yolo11):
    model, anatomy, cost, keep = yolo11
    from yolo_prune.cut.proof import zero_removed_

    cut = copy.deepcopy(model)
    cut_proven_(cut, cost, keep, anatomy)
    zeroed = zero_removed_(copy.deepcopy(model), cost.graph, keep)
    x = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        expected, got = zeroed.eval()(x)[0], cut.eval()(x)[0]
    assert torch.allclose(expected, got, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
