"""The cut under a running training: two processes end up with the same model; randomness is left alone."""

import copy
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_host import tiny
from torch import nn

from yolo_prune.adapters.ultralytics.anatomy import anatomy_of
from yolo_prune.adapters.ultralytics.recognise import is_cut
from yolo_prune.adapters.ultralytics.rules import block_rules
from yolo_prune.adapters.ultralytics.saliency import detection_projection
from yolo_prune.adapters.ultralytics.training import midrun
from yolo_prune.criteria.calibration import Calibration
from yolo_prune.cut.budget import Budget
from yolo_prune.cut.surgery import cut_
from yolo_prune.cut.widths import Lineage, Widths
from yolo_prune.errors import BudgetError, YoloPruneError
from yolo_prune.graph.randomness import untouched_randomness
from yolo_prune.options.inrun import InRunSettings
from yolo_prune.train import RunState, midcut
from yolo_prune.train.sparse import SparsePhase, free_scales
from yolo_prune.train.sparsify import batchnorm_scales

SETTINGS = InRunSettings(keep_macs=0.7, steps=1, round_to=4, min_width=4, prune_at="late")

TWO_PROCESSES = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import test_midrun
test_midrun.be_one_of_two(int(sys.argv[2]), *sys.argv[3:])
"""


def recovered(parent: nn.Module, keep: float = 0.7) -> midcut.Recovered:
    """Cut a copy of the parent, where it is."""
    return midcut.recover(
        parent,
        anatomy_of(parent, 64),
        Budget("keep_macs", keep),
        SETTINGS,
        "reconstruction",
        Calibration(
            [torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))],
            detection_projection(64, 0, classes=2),
        ),
        widths=Widths(SETTINGS.round_to, SETTINGS.min_width),
    )


def be_one_of_two(rank: int, meeting: str, out: str, device: str = "cpu") -> None:
    """Train a step in each of two processes, cut in the first, swap in both, and train on together."""
    from ultralytics.utils import DEFAULT_CFG

    from yolo_prune.adapters.ultralytics.training.aftercut import wrapped_again

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = tiny().to(device)
    model.args = DEFAULT_CFG
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dtype.is_floating_point)
    options = {"find_unused_parameters": True}
    wrapped = nn.parallel.DistributedDataParallel(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    _step(wrapped, optimizer, rank, device)
    with torch.no_grad():  # statistics of the two processes differ, as in the host's runs
        model.model[0].bn.running_mean += rank
    parent = midrun.average_as_saved(model)
    made = midcut.from_first_process(lambda: recovered(parent))
    midcut.swap_(model, [optimizer], made, block_rules())
    again = wrapped_again(wrapped, DEFAULT_CFG, torch.device(device))
    assert again is not wrapped
    _step(again, optimizer, rank, device)
    try:
        midcut.from_first_process(lambda: recovered(parent, keep=0.001))
    except YoloPruneError as error:
        failure = f"{type(error).__name__}: {error}"
    torch.save({"plan": made.plan, "weights": model.state_dict(), "failure": failure}, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, device: str) -> None:
    model.train()
    optimizer.zero_grad()
    outputs = model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(rank)).to(device))
    (outputs["scores"].square().mean() + outputs["boxes"].square().mean()).backward()
    optimizer.step()


def cut_in_two_processes(tmp_path: Path, device: str) -> None:
    """Let two processes cut one model between two steps, and compare what they have then."""
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", TWO_PROCESSES, here]
    both = [
        subprocess.Popen(
            [*words, str(rank), str(tmp_path / "meet"), str(tmp_path), device],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    first, second = (
        torch.load(tmp_path / f"{rank}.pt", map_location="cpu", weights_only=False) for rank in (0, 1)
    )
    assert first["plan"] == second["plan"]
    assert first["plan"].kept_macs <= 0.7
    for name, value in first["weights"].items():
        if "running_" not in name and "num_batches" not in name:  # each process keeps statistics of its own
            assert torch.equal(value, second["weights"][name]), name
    assert first["failure"].startswith("BudgetError: cannot meet")
    assert second["failure"].startswith("YoloPruneError: the first process failed: cannot meet")


def test_two_processes_have_the_same_plan_and_the_same_weights_after_the_cut(tmp_path):
    cut_in_two_processes(tmp_path, "cpu")


def test_the_floors_of_a_later_cut_are_shares_of_what_the_run_began_with():
    model = tiny()
    before = Lineage.of(anatomy_of(model, 64).cost_of(model).graph)
    made = recovered(model)
    after = cut_(copy.deepcopy(model), made.plan, rules=block_rules())
    graph = anatomy_of(after, 64).cost_of(after).graph
    state = RunState(1.0, 100, plan=made.plan.to_json(), widths=before.widths)
    resumed = RunState.from_dict(json.loads(json.dumps(state.to_dict())))
    widths, lineage = midcut.allowed_widths(replace(SETTINGS, min_keep=0.3), resumed)
    assert (widths.round_to, widths.min_width, widths.min_keep) == (4, 4, 0.3)
    found = lineage.wholes(graph)
    assert found.tolist() == before.then(made.plan).wholes(graph).tolist()
    assert sum(found) > sum(len(group.channels) for group in graph.groups)
    assert midcut.allowed_widths(SETTINGS, RunState(1.0, 100))[1] is None


def test_alone_there_is_nobody_to_ask():
    assert midcut.from_first_process(lambda: 3) == 3
    with pytest.raises(BudgetError):
        midcut.from_first_process(lambda: recovered(tiny(), keep=0.001))


def test_randomness_is_as_it_was_afterwards():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with untouched_randomness():
        draw()
        is_cut(tiny())
    assert draw() == expected


def test_the_average_is_rounded_as_a_checkpoint_is_and_the_original_is_not():
    average = tiny()
    before = copy.deepcopy(average.state_dict())
    rounded = midrun.average_as_saved(average)
    for name, value in rounded.state_dict().items():
        assert torch.equal(average.state_dict()[name], before[name])
        if value.is_floating_point():
            assert torch.equal(value, before[name].half().float())


def phase(module: nn.Module, tmp_path: Path, **settings) -> SparsePhase:
    cost = anatomy_of(module, 64, ("model.0",)).cost_of(module)
    options = InRunSettings(keep_macs=0.5, prune_at="late", **settings)
    return SparsePhase(options, RunState(1.0, 1), free_scales(cost), 0.3, tmp_path / "scales.png")


def test_only_scales_of_channels_that_may_go_are_shrunk(tmp_path):
    module = tiny()
    sparse = phase(module, tmp_path)
    scales = sparse.scales(module)
    assert "model.0.bn" not in scales
    assert 0 < len(scales) < len(batchnorm_scales(module))


def test_a_new_optimizer_gets_the_hook_and_the_steps_go_on(tmp_path):
    module = tiny()
    sparse = phase(module, tmp_path, sparsify=1.0)
    first, second = (torch.optim.SGD(module.parameters(), lr=0.01) for _ in range(2))
    sparse.attach(module, [first], steps_left=4, lr_sum=4.0, epochs=2)
    hook = sparse.sparsifier
    first.step()
    sparse.attach(module, [first], steps_left=3, lr_sum=3.0, epochs=2)
    assert sparse.sparsifier is hook
    sparse.attach(module, [second], steps_left=3, lr_sum=3.0, epochs=2)
    before = module.model[1].bn.weight.detach().clone()
    first.step()
    assert torch.equal(module.model[1].bn.weight, before)  # the old optimizer shrinks nothing any more
    second.step()
    assert (module.model[1].bn.weight < before).all()
    assert sparse.sparsifier.steps == 2
    sparse.end_epoch(module, draw=True)
    assert (tmp_path / "scales.png").is_file()
    sparse.detach()
    assert (sparse.state.sparse_steps, sparse.state.sparse_epochs, sparse.current) == (2, 1, 0.0)


def test_lambda_is_looked_for_unless_it_is_given(tmp_path):
    module = tiny()
    for given, moves in (("auto", True), (0.5, False)):
        sparse = phase(module, tmp_path, sparsify=given)
        sparse.note_fitness(0.5, 0.0, 0.0)
        sparse.attach(
            module, [torch.optim.SGD(module.parameters(), lr=0.01)], steps_left=4, lr_sum=4.0, epochs=2
        )
        first = sparse.state.strength
        sparse.note_fitness(0.4, 0.0, 0.5)
        assert (sparse.state.strength == first / 4) == moves
        assert sparse.sparsifier.strength == sparse.state.strength
        assert (sparse.state.strength == 0.5) == (not moves)


def test_a_frozen_model_and_sparsify_off_are_left_alone(tmp_path, caplog):
    module = tiny()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    off = phase(module, tmp_path, sparsify="off")
    off.attach(module, [optimizer], steps_left=4, lr_sum=4.0, epochs=2)
    assert off.sparsifier is None
    module.requires_grad_(False)
    frozen = phase(module, tmp_path)
    frozen.attach(module, [optimizer], steps_left=4, lr_sum=4.0, epochs=2)
    assert frozen.sparsifier is None
    assert "sparse training is off: no BatchNorm scale" in caplog.text
