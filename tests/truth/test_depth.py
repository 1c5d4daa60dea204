"""Dropped blocks: the model without them computes what it computes with their weights zero, and stock classes run it.

Every control must fail: weights added up at a wrong place, or not at all.
"""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_equivalence import build

from yolo_prune.adapters.checkpoint import save_detector
from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.rules import block_rules
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.plan import choose_channels, plan_drop
from yolo_prune.cut.proof import prove_equivalence
from yolo_prune.cut.proven import cut_proven_, drop_proven_, offered_blocks
from yolo_prune.cut.record import PrunePlan
from yolo_prune.cut.surgery import cut_
from yolo_prune.graph.copies import copy_as
from yolo_prune.recover.structure import prune_module

BLOCKS = {
    "yolov5n": 7,
    "yolov8n": 6,
    "yolov9t": 42,
    "yolov10n": 7,
    "yolo11n": 12,
    "yolo12n": 22,
    "yolo26n": 16,
    "yolo11n-seg": 12,
}


def chosen_drops(model, anatomy, count, seed):
    """Drop random blocks one after the other, in place, and return the composed plan."""
    random, plan = np.random.default_rng(seed), None
    for _ in range(count):
        block = random.choice(np.array(offered_blocks(model, anatomy), dtype=object))
        made, proof = drop_proven_(model, anatomy.cost_of(model), block, anatomy)
        assert proof.exact
        assert proof.dtype == "float64"
        plan = made if plan is None else plan.then(made)
    return plan


def narrowed(model, anatomy, seed):
    """Cut half of the channels of a model at random, in place."""
    cost = anatomy.cost_of(model)
    scores = np.random.default_rng(seed).random(cost.graph.channel_count)
    return cut_proven_(model, cost, choose_channels(cost, scores, Budget("keep_macs", 0.7)), anatomy)[0]


# A block is found in the graph, whatever its class: a bottleneck, one in another one, and attention in a sequence.
QUICK = ("yolov8n", "yolo11n", "yolo12n")


@pytest.mark.parametrize("name", BLOCKS)
def test_all_blocks_of_a_family_that_may_go_are_found(name):
    parent = build(name)
    assert len(offered_blocks(parent, anatomy_of(parent, 96))) == BLOCKS[name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BLOCKS]
)
def test_random_blocks_go_exactly_between_cuts_and_the_plan_replays_all(name):
    parent = build(name)
    anatomy = anatomy_of(parent, 96)
    model = copy.deepcopy(parent)
    plan = chosen_drops(model, anatomy, 2, seed=0)
    plan = plan.then(narrowed(model, anatomy, seed=1))
    plan = plan.then(chosen_drops(model, anatomy, 2, seed=2))
    plan = PrunePlan.from_json(plan.to_json())
    assert len(plan.dropped) in (3, 4)  # fewer where one block stood inside another
    again = cut_(copy.deepcopy(parent), plan, rules=block_rules()).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.allclose(tensor, again[key]) for key, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def yolov8():
    model = build("yolov8n")
    return model, anatomy_of(model, 96)


def is_exact(model, anatomy, plan):
    cost = anatomy.cost_of(model)
    return prove_equivalence(
        model,
        lambda dtype: cut_(copy_as(model, dtype), plan, rules=anatomy.rules),
        cost.graph,
        np.ones(cost.graph.channel_count, dtype=bool),
        anatomy.trace_input,
        select_outputs=anatomy.select_outputs,
        dropped=plan.dropped,
    ).exact


def test_controls_a_wrong_place_and_a_missing_addition_fail(yolov8):
    model, anatomy = yolov8
    plan = plan_drop(anatomy.cost_of(model), offered_blocks(model, anatomy)[1])
    assert is_exact(model, anatomy, plan)
    entry = plan.added[0]
    elsewhere = {**entry, "to": [index - 1 for index in entry["to"]]}
    assert not is_exact(
        model, anatomy, PrunePlan(plan.keep, plan.widths, dropped=plan.dropped, added=[elsewhere])
    )
    assert not is_exact(model, anatomy, PrunePlan(plan.keep, plan.widths, dropped=plan.dropped))


def test_control_another_block_fails(yolov8):
    model, anatomy = yolov8
    plan = plan_drop(anatomy.cost_of(model), offered_blocks(model, anatomy)[1])
    other = PrunePlan(plan.keep, plan.widths, dropped=["model.4.m.1"], added=plan.added)
    assert not is_exact(model, anatomy, other)


def test_blocks_without_a_shortcut_and_layers_that_a_host_numbers_are_not_offered(yolov8):
    model, anatomy = yolov8
    names = [block.name for block in offered_blocks(model, anatomy)]
    assert names == [f"model.{place}" for place in ("2.m.0", "4.m.0", "4.m.1", "6.m.0", "6.m.1", "8.m.0")]
    darknet = build("yolov3")
    offered = [block.name for block in offered_blocks(darknet, anatomy_of(darknet, 96))]
    assert "model.2" not in offered  # residual, but other layers count on its number
    assert "model.4.0" in offered


def test_a_dropped_model_trains_and_runs_in_a_process_that_knows_stock_classes_alone(tmp_path):
    from ultralytics.utils import DEFAULT_CFG

    model = build("yolo12n")
    anatomy = anatomy_of(model, 96)
    chosen_drops(model, anatomy, 2, seed=3)
    model.args = DEFAULT_CFG
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.zeros(2, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.4, 0.5, 0.3]]),
    }
    loss, _ = copy.deepcopy(model).train()(batch)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    file = save_detector(tmp_path / "dropped.pt", model, task="detect", train_args={}, meta={})
    code = (
        "import sys, torch; from ultralytics import YOLO; m = YOLO(sys.argv[1]).model.float().eval(); "
        "assert 'yolo_prune' not in sys.modules; x = torch.full((1, 3, 64, 64), 0.5); "
        "print(float(m(x)[0].double().sum()))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    half = copy.deepcopy(model).half().float().eval()
    with torch.no_grad():
        expected = float(half(torch.full((1, 3, 64, 64), 0.5))[0].double().sum())
    assert float(out.stdout.split()[-1]) == pytest.approx(expected, rel=1e-5)


def test_a_resnet_of_torchvision_loses_a_block_that_has_nothing_to_say():
    models = pytest.importorskip("torchvision.models")
    net, x = models.resnet18(num_classes=4).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        net.layer3[1].bn1.weight.mul_(1e-4)
    plan = prune_module(net, x, keep_macs=0.8, depth=True)
    assert "layer3.1" in plan.dropped
    assert len(net.layer3) == 1
    assert plan.equivalence["exact"]
    assert plan.kept_macs <= 0.8
    assert net(x).shape == (1, 4)
