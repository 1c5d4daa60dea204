"""The hook in a trainer with detectron2's names and habits: wrapped convolutions, lists of them, weak references."""

import io
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron_stand_in import Detector, FrozenNorm, Trainer, loader
from torch import nn

import yolo_prune
from yolo_prune.adapters.detectron import PruningHook
from yolo_prune.cost import count_parameters
from yolo_prune.errors import ConfigError

STEPS = 16
OPTIONS = {
    **{"keep_macs": 0.5, "round_to": 4, "min_width": 4, "steps": 2, "calibration_images": 4},
    **{"parts": 8, "prune_at": 0.5},
}


def trainer_of(folder, norm=nn.BatchNorm2d, seed=0, **changes):
    torch.manual_seed(seed)
    model = Detector(norm=norm)
    if norm is FrozenNorm:  # as the first stages of a pretrained backbone are: no optimizer holds them
        model.backbone.stem.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    trainer = Trainer(model, loader(), optimizer, folder, STEPS)
    hook = PruningHook(**{**OPTIONS, **changes})
    trainer.register_hooks([hook])
    return trainer, hook


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenNorm])
def test_wrapped_convolutions_and_lists_of_them_are_cut(tmp_path, norm):
    trainer, hook = trainer_of(tmp_path, norm)
    trainer.train()
    plan, model = hook.plan, trainer.model
    assert 0.4 < plan.kept_macs <= 0.5
    assert plan.equivalence["exact"]
    assert plan.settings["criterion"] == "reconstruction"
    assert count_parameters(model) == plan.params
    pyramid = model.backbone
    assert (
        pyramid.stem.norm.weight.shape == pyramid.stem.norm.running_var.shape == pyramid.stem.weight.shape[:1]
    )
    held = {id(module) for module in pyramid.modules()}
    assert all(id(conv) in held for conv in (*pyramid.lateral_convs, *pyramid.output_convs))
    assert any(label.startswith("backbone.fpn_output") for label in plan.keep)
    again = yolo_prune.restore(Detector(norm=norm), tmp_path / "plan.json")
    again.load_state_dict(torch.load(trainer.checkpointer.get_checkpoint_file(), weights_only=True)["model"])
    example = next(iter(loader()))
    one, other = (net.eval()(example)[0]["instances"].get_fields() for net in (model, again))
    assert torch.equal(one["scores"], other["scores"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One whole training: its trainer, its hook, and where the hook was registered."""
    folder = tmp_path_factory.mktemp("run")
    trainer, hook = trainer_of(folder)
    registered = trainer._hooks.index(hook)
    trainer.train()
    return SimpleNamespace(trainer=trainer, hook=hook, registered=registered, folder=folder)


def test_the_scheduler_goes_on_with_the_optimizer_that_it_holds(run):
    optimizer = run.trainer.optimizer
    assert run.trainer._hooks[1]._optimizer is optimizer
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / STEPS)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in run.trainer.model.parameters()}


def test_the_hook_goes_first_though_it_is_registered_last(run):
    assert run.registered == len(run.trainer._hooks) - 1 == 3
    assert run.trainer._hooks[0] is run.hook
    at_the_cut = torch.load(run.folder / "model_7", weights_only=True)
    assert at_the_cut["trainer"]["hooks"]["PruningHook"]["cut_after"] == 8
    names = dict(run.trainer.model.named_parameters())
    assert (
        sum(value.numel() for name, value in at_the_cut["model"].items() if name in names)
        == run.hook.plan.params
    )


def test_what_the_hosts_evaluation_says_is_the_fitness(run):
    assert run.hook.state_dict()["session"]["state"]["best_fitness"] == 0.4


@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_training_goes_on_as_if_it_had_not_been_stopped(tmp_path, stop):
    trainer, hook = trainer_of(tmp_path, sparsify=0.5)
    trainer.train()
    (tmp_path / "last_checkpoint").write_text(f"model_{stop}")
    other, second = trainer_of(tmp_path, seed=3, sparsify=0.5)
    other.resume()
    assert other.start_iter == stop + 1
    other.train()
    assert second.plan == hook.plan
    for name, value in trainer.model.state_dict().items():
        assert torch.allclose(value, other.model.state_dict()[name], atol=1e-6), name


def test_budget_cut_and_proof_are_in_the_hosts_log_and_storage(tmp_path):
    log, stream = logging.getLogger("detectron2"), io.StringIO()
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    try:
        trainer, hook = trainer_of(tmp_path, norm=FrozenNorm)
        trainer.train()
    finally:
        log.removeHandler(handler)
    said, numbers = stream.getvalue(), trainer.storage.latest()
    assert "pruning on the way to keep_macs=0.5, from " in said
    assert "3 BatchNorms are frozen: their scales are buffers" in said
    assert f"cut after iteration 8: {hook.plan.kept_macs:.3f} of the MACs stay" in said
    assert f"the plan is in {tmp_path / 'plan.json'}" in said
    assert numbers["prune/kept_macs"] == (hook.plan.kept_macs, STEPS - 1)
    assert numbers["prune/cut_iter"][0] == hook.cut_after == 8
    assert handler not in logging.getLogger("yolo_prune").handlers


def test_several_optimizers_are_found(tmp_path):
    trainer, hook = trainer_of(tmp_path, criterion="l1", fold=False, sparsify="off")
    inner, model = trainer._trainer, trainer.model
    heads = [*model.score.parameters(), *model.delta.parameters()]
    others = [p for p in model.parameters() if all(p is not head for head in heads)]
    pair = {"body": torch.optim.SGD(others, lr=0.05), "heads": torch.optim.AdamW(heads, lr=1e-3)}

    inner.optimizer = None
    trainer.optimizers = pair
    trainer._hooks[:] = [hook]
    inner.run_step = lambda: [
        sum(model(next(iter(loader()))).values()).backward(),
        *(one.step() for one in pair.values()),
        model.zero_grad(),
    ]
    trainer.train()
    held = {id(p) for one in pair.values() for group in one.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    assert hook.plan.params == count_parameters(model)


def test_what_the_loader_of_another_kind_needs_is_said(tmp_path):
    trainer, _ = trainer_of(tmp_path)
    trainer._trainer.data_loader = [(torch.rand(2, 3, 64, 64), torch.zeros(2))]
    with pytest.raises(
        ConfigError, match=r"got a tuple of Tensor. Give example_input=, calibration= and forward="
    ):
        trainer.train()


@pytest.mark.slow
def test_two_processes_cut_alike_and_stay_alike(tmp_path):
    rank = Path(__file__).with_name("detectron_rank.py")
    call = [sys.executable, str(rank)]
    running = [subprocess.Popen([*call, str(number), str(tmp_path), repr(OPTIONS)]) for number in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    one, other = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2))
    assert one["state"] == other["state"]
    assert one["state"]["plan"]
    for name, parameter in one["model"].items():
        if "running" not in name and "tracked" not in name:  # of the images of each process
            assert torch.equal(parameter, other["model"][name]), name
    assert [(tmp_path / str(number) / "plan.json").exists() for number in range(2)] == [True, False]
