"""Pruning by a hook, live in mayaku's trainer: the cut on the way, what goes on, what is saved, what is refused."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mayaku")

from mayaku.engine.callbacks import EvalHook, MetricsPrinter, PeriodicCheckpointer
from mayaku.engine.ema import EMAHook, ModelEMA
from mayaku.engine.evaluator import COCOEvaluator, inference_on_dataset
from mayaku.engine.trainer import SimpleTrainer
from tiny_mayaku import build, loader, trainer_of, write_truth
from torch import nn

import yolo_prune
from yolo_prune.adapters.detectron import PruningHook
from yolo_prune.adapters.detectron.batches import RecentImages, images_of
from yolo_prune.cost import count_parameters
from yolo_prune.cut.budget import BUDGETS, TARGETS
from yolo_prune.errors import BudgetError, CheckpointError, ConfigError, PlanError

KINDS = ", ".join((*BUDGETS, *TARGETS))

OPTIONS = {
    **{"keep_macs": 0.5, "round_to": 4, "min_width": 4, "steps": 2, "calibration_images": 8},
    **{"parts": 20, "sparsify": 0.05},
}
QUICK = {"criterion": "l1", "fold": False, "parts": 6, "sparsify": "off", "prune_at": 0.5, "steps": 1}


def make(**changes):
    return PruningHook(**{**OPTIONS, **changes})


class Seeded:
    """Makes what an iteration draws at random a matter of its number alone."""

    trainer = None

    def before_step(self):
        torch.manual_seed(self.trainer.iter)

    def before_train(self): ...

    def after_step(self): ...

    def after_train(self): ...


def ap_of(model, truth):
    shown = [[record] for batch in loader() for record in batch]
    return inference_on_dataset(model, shown, COCOEvaluator(truth), progress_period=0)["bbox"]["AP"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One whole training with everything that mayaku puts around it; what a step saw is kept."""
    folder = tmp_path_factory.mktemp("mayaku")
    truth = write_truth(folder / "truth.json")
    steps, model, hook = 140, build(), make()
    untrained = ap_of(build(), truth)
    scales = [model.backbone.bottom_up.res2[1].weight.detach().abs().mean().item()]
    seen = []

    class Watch(Seeded):
        def after_step(self):
            trainer = self.trainer
            seen.append(
                (dict(trainer.storage), count_parameters(model), trainer.optimizer.param_groups[0]["lr"])
            )
            if trainer.iter == 97:
                scales.append(model.backbone.bottom_up.res2[1].weight.detach().abs().mean().item())

    written = PeriodicCheckpointer(model, folder, 70, metadata={"class_names": ["square"]})
    around = [Watch(), written, MetricsPrinter(period=10), EvalHook(0, COCOEvaluator(truth), model, [])]
    around[-1].eval_after_train = False
    trainer = trainer_of(model, [*around, hook], steps=steps)
    log, said = logging.getLogger("yolo_prune"), []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    log.addHandler(listener)
    trainer.train(0, steps)
    log.removeHandler(listener)
    return SimpleNamespace(**locals())


@pytest.fixture(scope="module")
def short():
    """A short training that has ended: its hook and its trainer."""
    hook = make(**QUICK)
    trainer = trainer_of(build(), [hook])
    trainer.train(0, 12)
    return hook, trainer


def test_a_training_is_sparsified_cut_on_the_way_and_trained_on(run):
    plan, sizes = run.hook.plan, [size for _, size, _ in run.seen]
    assert 0.4 < plan.kept_macs <= 0.5
    assert plan.equivalence["exact"]
    assert plan.equivalence["compared"] > 10
    assert plan.settings["criterion"] == "reconstruction"
    assert sizes.index(plan.params) == 97
    assert set(sizes[:97]) == {92309}
    assert set(sizes[97:]) == {plan.params}
    assert run.scales[1] < 0.95 * run.scales[0]
    assert {"roi_heads.box_head.convs.0.weight[0]", "roi_heads.box_head.fcs.0.weight[0]"} <= plan.keep.keys()


def test_the_heads_of_both_stages_are_cut():
    model, hook = build(), make(**{**QUICK, "min_keep": 0, "keep_macs": 0.65, "keep_layers": ["backbone"]})
    trainer_of(model, [hook]).train(0, 12)
    kept = {label: len(indices) for label, indices in hook.plan.keep.items() if label.endswith("weight[0]")}
    assert {"rpn.head.conv.weight[0]", "roi_heads.box_head.convs.0.weight[0]"} <= kept.keys()
    assert not any(label.startswith("backbone") for label in kept)
    assert hook.plan.equivalence["exact"]


def test_the_cut_model_learns_what_there_is_to_see(run):
    assert run.untrained < 0.05
    assert ap_of(run.model, run.truth) > 0.3


def test_the_optimizer_and_its_schedule_go_on(run):
    optimizer = run.trainer.optimizer
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in run.model.parameters()
    }
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in run.model.parameters())
    rates = [rate for *_, rate in run.seen]
    assert rates == pytest.approx(
        [
            0.01 * (1 + torch.tensor(step / run.steps * torch.pi).cos().item())
            for step in range(1, run.steps + 1)
        ],
        abs=1e-6,
    )


def test_budget_cut_and_proof_are_in_the_hosts_storage(run):
    first, last = run.seen[0][0], run.seen[-1][0]
    assert "total_loss" in first
    assert first["prune/params"] == 92309
    assert "prune/cut_iter" not in run.seen[96][0]
    assert run.seen[97][0]["prune/cut_iter"] == 98
    assert last["prune/kept_macs"] == run.hook.plan.kept_macs
    assert last["prune/difference"] == run.hook.plan.equivalence["max_difference"]
    assert last["prune/gmacs"] == pytest.approx(0.5 * first["prune/gmacs"], rel=0.2)


def test_what_was_saved_comes_back_by_the_plan_beside_it(run):
    saved = torch.load(run.folder / "model_final.pth", weights_only=True)
    again = yolo_prune.restore(build(seed=5), run.folder / "plan.json")
    again.load_state_dict(saved["model"])
    assert ap_of(again, run.truth) == ap_of(run.model, run.truth)
    assert saved["mayaku"]["class_names"] == ["square"]
    early = torch.load(run.folder / "model_iter_0000070.pth", weights_only=True)
    assert early["mayaku"]["pruning"]["session"]["state"]["plan"] == ""
    assert saved["mayaku"]["pruning"]["session"]["state"]["plan"] != ""


def test_the_hook_says_it_in_the_log(run):
    said, plan = "\n".join(run.said), run.hook.plan
    gmacs = run.seen[0][0]["prune/gmacs"]
    assert (
        f"on the way to keep_macs=0.5, from {gmacs:.4g} GMACs and 92,309 parameters, after iteration 98"
        in said
    )
    assert f"cut after iteration 98: {plan.kept_macs:.3f} of the MACs stay" in said
    assert f"the proof compared {plan.equivalence['compared']} tensors" in said
    assert f"the plan is in {run.folder / 'plan.json'}" in said


def test_without_a_logger_it_is_printed_as_mayaku_prints(capsys, monkeypatch):
    logger = logging.getLogger("yolo_prune")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [])  # the command line may have run in this process before
    level, handlers = logger.level, list(logger.handlers)
    trainer_of(build(), [make(**QUICK)]).train(0, 12)
    assert "[prune] cut after iteration 6:" in capsys.readouterr().out
    assert (logger.level, logger.handlers) == (level, handlers)


def resumed(folder, stop, length, options):
    """The model, optimizer and hook of a training that goes on from a checkpoint."""
    saved = torch.load(folder / f"model_iter_{stop:07d}.pth", weights_only=True)
    model, hook = build(seed=9), make(**options)
    trainer = trainer_of(model, [Seeded(), hook], steps=length)
    hook.load_state_dict(saved["mayaku"]["pruning"])
    model.load_state_dict(saved["model"])
    trainer.optimizer.load_state_dict(saved["optimizer"])
    trainer.hooks[0].scheduler.last_epoch = saved["iteration"]
    trainer.train(saved["iteration"], length)
    return model, trainer.optimizer, hook


@pytest.mark.parametrize("stop", [8, 20])
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, stop):
    """Before the cut in the middle of a part, and after it."""
    options = {"parts": 4, "prune_at": 0.5, "sparsify": 0.3, "steps": 1, "calibration_images": 4}
    model, hook, length = build(), make(**options), 24
    assert stop % 4 == 0  # the loader begins anew
    trainer = trainer_of(model, [Seeded(), hook], steps=length)
    trainer.register_hooks([PeriodicCheckpointer(model, tmp_path, stop, optimizer=trainer.optimizer)])
    trainer.train(0, length)
    again, optimizer, other = resumed(tmp_path, stop, length, options)
    assert other.plan == hook.plan
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert optimizer.param_groups[0]["lr"] == trainer.optimizer.param_groups[0]["lr"]


def test_a_resumed_training_is_refused_without_its_weights_or_with_another_length(short):
    state = copy.deepcopy(short[0].state_dict())
    other = build(seed=3)
    second = make(**QUICK)
    trainer = trainer_of(other, [second])
    second.load_state_dict(state)
    with pytest.raises(
        ConfigError,
        match=r"^the weights are not those of the checkpoint: .* Load the hook's state first, and then",
    ):
        trainer.train(10, 12)
    third = make(**QUICK)
    trainer = trainer_of(build(), [third])
    third.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"^the training was saved with max_iter=12 and goes on with 18: "):
        trainer.train(10, 18)
    with pytest.raises(CheckpointError, match=r"^expected the state of a PruningHook"):
        unbegun = make(**QUICK)
        trainer_of(build(), [unbegun])
        unbegun.load_state_dict({"iteration": 4})


def test_an_average_of_the_weights_is_cut_with_the_model():
    model, hook = build(), make(**QUICK)
    ema = ModelEMA(model, decay=0.5, tau=1.0)
    shadow = ema.shadow
    trainer_of(model, [EMAHook(ema, model), hook]).train(0, 12)
    assert ema.shadow is shadow
    assert count_parameters(shadow) == hook.plan.params == count_parameters(model)
    assert not any(parameter.requires_grad for parameter in shadow.parameters())
    shadow.eval()(loader()[0])


def test_frozen_norms_are_cut_along_and_said_not_to_be_made_sparse(caplog):
    caplog.set_level(logging.INFO, "yolo_prune")
    model, hook = build(frozen=True), make(**{**QUICK, "sparsify": 0.1, "criterion": "bn_scale"})
    conv, norm = model.backbone.bottom_up.stem[:2]
    norm.weight[::2] = 0.01
    trainer_of(model, [hook]).train(0, 12)
    assert type(norm).__name__ == "FrozenBatchNorm2d"
    assert hook.plan.keep["backbone.bottom_up.stem.0.weight[0]"] == list(range(1, 32, 2))
    assert norm.weight.shape == conv.weight.shape[:1] < (32,)
    assert "3 BatchNorms are frozen: their scales are buffers, which are cut along and cannot be made sparse, and rank"
    assert "and rank as they are (criterion=bn_scale)" in caplog.text
    assert "no BatchNorm scale of a layer that may be cut is trained" in caplog.text


def test_distributed_data_parallel_is_set_up_anew(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        model, hook = build(), make(**QUICK)
        trainer = trainer_of(model, [hook])
        trainer.model = wrapped = nn.parallel.DistributedDataParallel(model)
        trainer.train(0, 12)
        assert trainer.model is wrapped
        assert wrapped.module is model
        assert count_parameters(wrapped) == hook.plan.params
    finally:
        torch.distributed.destroy_process_group()


def test_the_loader_is_read_by_the_training_and_once_for_an_example():
    class Counting(list):
        readers = 0

        def __iter__(self):
            self.readers += 1
            return super().__iter__()

    batches, hook = (
        Counting(loader(20)),
        make(**{**QUICK, "criterion": "auto", "fold": True, "prune_at": 0.5}),
    )
    trainer = SimpleTrainer(model := build(), batches, torch.optim.SGD(model.parameters(), lr=0.01))
    trainer.register_hooks([hook])
    trainer.train(0, 12)
    assert batches.readers == 2
    assert hook.plan.settings["criterion"] == "reconstruction"


def test_the_latest_images_are_kept_and_no_targets():
    recent = RecentImages(3, images_of(loader()[0]))
    assert [len(batch) for batch in recent] == [2]
    for batch in loader(4):
        recent.feed(batch)
    assert len(recent) == 4
    kept = [item for batch in recent for item in batch]
    assert torch.equal(kept[-1]["image"], loader(4)[-1][-1]["image"])
    assert {key for item in kept for key in item} == {"image"}


class Kept:
    """Keeps what the latest step lost."""

    def __init__(self):
        self.losses = []

    def before_train(self): ...

    def before_step(self): ...

    def after_step(self):
        self.losses.append({name: v for name, v in self.trainer.storage.items() if name.startswith("loss")})

    def after_train(self): ...


def test_the_uncut_model_teaches_after_the_cut_and_fades(tmp_path):
    kept, model = Kept(), build()
    hook = make(**QUICK, distill=True, output_dir=tmp_path)
    trainer_of(model, [Seeded(), hook, kept], rate=0.0).train(0, 12)
    taught = [losses.get("loss_distill") for losses in kept.losses]
    assert taught[:6] == [None] * 6
    assert all(value > 0 for value in taught[6:])
    shares = [1, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3]
    apart = [value / share for value, share in zip(taught[6:], shares, strict=True)]
    assert max(apart) < 1.5 * min(apart), "at a rate of zero the distance stays, and its share falls"
    assert not model._forward_hooks
    assert set(model(loader()[0])) == set(kept.losses[0]), "its losses are its own again"


def test_a_model_that_returns_no_dict_of_losses_is_refused_in_its_first_step():
    model = build()
    model.register_forward_hook(
        lambda module, batch, losses: list(losses.values()) if module.training else None
    )
    trainer = trainer_of(model, [make(**QUICK)])
    with pytest.raises(ConfigError, match=r"expected a dict of them, got list. Use distill=false."):
        trainer.train(0, 12)


def test_without_a_teacher_the_losses_are_the_model_s_own(tmp_path):
    kept = Kept()
    hook = make(**QUICK, distill=False, output_dir=tmp_path)
    trainer_of(build(), [Seeded(), hook, kept]).train(0, 12)
    assert not any("loss_distill" in losses for losses in kept.losses)


def broken(**parts):
    """A trainer of which something is missing."""
    trainer = trainer_of(build())
    vars(trainer).update(parts)
    return trainer


def of_another():
    return torch.optim.SGD(build().parameters(), lr=0.1)


REFUSED = {
    "no optimizer": (
        lambda: broken(optimizer=None),
        {},
        "has no optimizer: expected one as trainer.optimizer, got None",
    ),
    "no model": (lambda: broken(model=None), {}, "has no model: expected one as trainer.model, got NoneType"),
    "no loader": (
        lambda: broken(data_loader=None),
        {},
        "has no data loader: expected one as trainer.data_loader",
    ),
    "an empty loader": (
        lambda: broken(data_loader=[]),
        {},
        "the data loader of SimpleTrainer yields no batch.",
    ),
    "a model that it does not train": (lambda: broken(optimizer=of_another()), {}, "the optimizer"),
    "batches of tensors": (
        *(lambda: broken(data_loader=[torch.rand(2, 3, 64, 64)]), {}),
        "expected batches that are a list of dicts with an 'image' of shape .* got a Tensor",
    ),
    "a cut at the end": (lambda: broken(), {"prune_at": 12}, "prune_at=12 leaves no iteration after the cut"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_trainer_that_cannot_be_pruned_is_refused_before_it_trains(case):
    make_trainer, changes, sentence = REFUSED[case]
    trainer = make_trainer()
    trainer.register_hooks([make(**{**QUICK, **changes})])
    with pytest.raises(ConfigError, match=sentence):
        trainer.train(0, 12)
    assert trainer.last_loss == 0.0


def test_a_budget_that_cannot_be_met_is_refused_before_it_trains():
    trainer = trainer_of(build(), [make(**{**QUICK, "min_keep": 0.95})])
    with pytest.raises(BudgetError, match=r"^cannot meet "):
        trainer.train(0, 12)
    assert trainer.last_loss == 0.0


def test_nothing_to_train_is_refused():
    with pytest.raises(
        ConfigError, match=r"has no iteration to go: it starts at 0 and max_iter is 0. Train longer."
    ):
        trainer_of(build(), [make(**QUICK)]).train(0, 0)


@pytest.mark.parametrize("both", [True, False])
def test_a_hook_that_is_registered_twice_is_refused(both):
    hook = make(**QUICK)
    trainer = trainer_of(build(), [hook, hook if both else make(**QUICK)])
    with pytest.raises(ConfigError, match=r"^2 PruningHooks are registered: a training has one."):
        trainer.train(0, 12)


def test_a_hook_prunes_one_training(short):
    _, trainer = short
    with pytest.raises(ConfigError, match=r"^this PruningHook has ended with its training"):
        trainer.train(0, 12)


def test_a_hook_without_a_trainer_says_so():
    with pytest.raises(ConfigError, match=r"^this PruningHook has no trainer: register it first"):
        make(**QUICK).load_state_dict({})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep_macs": None}, f"give exactly one budget of {KINDS}; got none"),
        ({"keep_mac": 0.5}, "unknown key 'keep_mac'"),
        ({"parts": 0}, "parts must be at least 1, got 0."),
        (
            {"keep_macs": None, "target_speedup": 2},
            "target_speedup: the models of a loop of your own are in no file that a runtime could be timed on. Give "
            "one of keep_macs, gmacs, keep_params and a number as round_to=.",
        ),
        ({"round_to": "auto"}, "round_to=auto: the models of a loop of your own are in no file"),
    ],
)
def test_a_wrong_option_is_refused_when_the_hook_is_made(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(**options)


def test_a_state_of_another_network_is_refused(short):
    wider = build()
    wider.rpn.head.conv = nn.Conv2d(32, 48, 3, padding=1)
    wider.rpn.head.objectness_logits, wider.rpn.head.anchor_deltas = nn.Conv2d(48, 3, 1), nn.Conv2d(48, 12, 1)
    other = make(**QUICK)
    trainer_of(wider, [other])
    with pytest.raises(PlanError, match=r"rpn\.head\.conv"):
        other.load_state_dict(short[0].state_dict())


def test_by_default_the_cut_comes_in_the_last_iteration_and_the_last_checkpoint_holds_it(tmp_path):
    hook, model = make(sparsify="auto", imitation_steps=2, parts=4), build()
    sizes = []

    class Watch(Seeded):
        def after_step(self):
            sizes.append(count_parameters(model))

    trainer = trainer_of(model, [PeriodicCheckpointer(model, tmp_path, 6), Watch(), hook], steps=12)
    trainer.train(0, 12)
    assert hook.plan.kept_macs <= 0.5
    assert hook.cut_after == 12
    assert set(sizes[:-1]) == {92309}
    assert sizes[-1] == hook.plan.params == count_parameters(model)
    newest = max(tmp_path.glob("*.pth"), key=lambda file: file.stat().st_mtime)
    weights = torch.load(newest, map_location="cpu", weights_only=False)["model"]
    assert sum(weights[name].numel() for name, _ in model.named_parameters()) == hook.plan.params


def test_without_images_to_measure_on_the_cut_leaves_iterations_behind_it():
    hook = make(calibration=(), sparsify="off", parts=6, steps=1)
    trainer = trainer_of(build(), [hook])
    trainer.train(0, 12)
    assert 0 < hook.cut_after < 12
