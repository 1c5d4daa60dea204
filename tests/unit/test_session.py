"""Pruning in a loop of one's own: the cut under any optimizer, what goes on, what is refused, stopping and going on."""

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from nets import randomise_
from torch import nn

import yolo_prune
from yolo_prune import PruningSession
from yolo_prune.cost import count_parameters
from yolo_prune.criteria.distance import output_distance
from yolo_prune.errors import BudgetError, CheckpointError, ConfigError, PlanError
from yolo_prune.train import midcut

EPOCHS = 5
OPTIONS = {"keep_macs": 0.5, "total": EPOCHS, "min_width": 4, "round_to": 4, "steps": 2, "sparsify": 0.1}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.two(torch.relu(self.norm(self.one(x))))


def build(seed=0):
    """A small classifier with a residual block."""
    torch.manual_seed(seed)
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return randomise_(nn.Sequential(*stem, Block(16), Block(16), *head), seed)


def batches(count=3, images=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(images, 3, 12, 12, generator=generator), torch.arange(images) % 5) for _ in range(count)
    ]


def first(model, batch):
    return model(batch[0])


def make(model, optimizer, **changes):
    options = {**OPTIONS, "calibration": batches(), "forward": first, **changes}
    return PruningSession(model, optimizer, torch.rand(1, 3, 12, 12), **options)


def train_epoch(model, optimizers, session=None, scaler=None, average=None):
    for images, targets in batches():
        outputs = model(images)
        loss = nn.functional.cross_entropy(outputs, targets)
        if session is not None:
            loss = loss + session.teacher_loss((images, targets), outputs)
        (scaler.scale(loss) if scaler else loss).backward()
        for optimizer in optimizers:
            scaler.step(optimizer) if scaler else optimizer.step()
            optimizer.zero_grad()
        if scaler:
            scaler.update()
        if average is not None:
            average.update_parameters(model)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_a_loop_of_five_lines_is_cut_to_its_budget_and_goes_on():
    model = build()
    before, weights = count_parameters(model), model[3].one.weight
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    session = make(model, optimizer)
    session.before_train()
    sizes = []
    for _ in range(EPOCHS):
        train_epoch(model, [optimizer], session)
        schedule.step()
        session.after_epoch(0.5)
        sizes.append(count_parameters(model))
    plan = session.finish()
    assert 0.3 < plan.kept_macs <= 0.5
    assert sizes[0] == before > sizes[-1] == plan.params == count_parameters(model)
    assert plan.equivalence["exact"]
    assert model[3].one.weight is not weights
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(
        optimizer.state[p]["momentum_buffer"].shape == p.shape
        for p in model.parameters()
        if p in optimizer.state
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(
        0.0, abs=1e-9
    )  # the loop's own schedule, to its end


def test_scales_shrink_before_the_cut_and_not_after_it():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = make(model, optimizer, sparsify=3.0, prune_at=3, distill=False)
    session.before_train()
    means = []
    for _ in range(EPOCHS):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        session.after_epoch()
        means.append(float(model[1].weight.detach().abs().mean()))
    assert means[0] > means[1]
    assert means[3] == means[4]
    session.finish()


def test_rates_are_gentle_in_the_first_epoch_after_the_cut_and_the_schedule_never_sees_it():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    session = make(model, optimizer, prune_at=2, distill=False, sparsify="off")
    session.before_train()
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    for _ in range(4):
        train_epoch(model, [optimizer])
        assert optimizer.param_groups[0]["lr"] == 0.1
        session.after_epoch()
    assert seen[:6] == [0.1] * 6
    assert seen[6:9] == pytest.approx([0.01, 0.055, 0.1])
    assert seen[9:] == [0.1] * 3


def test_several_optimizers_a_scaler_and_an_average_go_on():
    model = build()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    scales = [p for m in norms for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not s for s in scales)]
    optimizers = [torch.optim.SGD(scales, lr=0.05), torch.optim.AdamW(others, lr=1e-3)]
    average = torch.optim.swa_utils.AveragedModel(model)
    inside = average.module
    scaler = torch.amp.GradScaler("cpu")
    session = make(model, optimizers, average=average)
    session.before_train()
    for _ in range(EPOCHS):
        train_epoch(model, optimizers, session, scaler, average)
        session.after_epoch(0.5)
    session.finish()
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert average.module is not inside
    assert count_parameters(average.module) == count_parameters(model)
    assert int(average.n_averaged) > 0
    assert all(torch.isfinite(value).all() for value in average.module.state_dict().values())


def test_the_cut_starts_from_the_average():
    model = build()
    average = torch.optim.swa_utils.AveragedModel(build(seed=3))
    session = make(
        model,
        sgd(model),
        average=average,
        prune_at=0,
        distill=False,
        sparsify="off",
        fold=False,
        criterion="l2",
    )
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        expected = yolo_prune.restore(copy.deepcopy(average.module).eval(), _plan_of(session))(images)
        assert torch.allclose(model.eval()(images), expected, atol=1e-6)
        assert not torch.allclose(
            yolo_prune.restore(build().eval(), session.plan)(images), expected, atol=1e-2
        )


def test_a_model_that_imitates_at_its_cut_begins_closer_to_the_uncut_one_and_has_the_same_plan():
    images, plans, distances = torch.cat([images for images, _ in batches(4, 8)]), [], []
    options = {"prune_at": 0, "sparsify": "off", "keep_macs": 0.3, "calibration": batches(4, 8)}
    for steps in (0, 40):
        model = build()
        with torch.no_grad():
            wanted = copy.deepcopy(model).eval()(images)
        session = make(model, sgd(model), **options, imitation_steps=steps)
        session.before_train()
        plans.append(session.plan)
        with torch.no_grad():
            distances.append(float(output_distance(model.eval()(images), wanted)))
    imitation = plans[1].settings.pop("imitation")
    assert 0 < imitation["after"] < imitation["before"]
    assert plans[0] == plans[1]
    assert distances[1] < 0.8 * distances[0]
    with pytest.raises(ConfigError, match=r"imitation_steps: .* give calibration=\."):
        make(model, sgd(model), calibration=(), imitation_steps=3)


def _plan_of(session):
    parent = copy.deepcopy(session._loop.average)
    session.before_train()
    session._loop.mean.module = parent  # as it was before the cut
    return session.plan


def test_channels_last_is_kept():
    model = build().to(memory_format=torch.channels_last)
    optimizer = sgd(model)
    session = make(model, optimizer, prune_at=1)
    session.before_train()
    train_epoch(model, [optimizer])
    session.after_epoch()
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert session.plan is not None
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_distributed_data_parallel_is_set_up_anew_around_the_cut_model(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        model = build()
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = sgd(model)
        session = make(wrapped, optimizer, prune_at=1)
        session.before_train()
        for _ in range(3):
            train_epoch(wrapped, [optimizer])
            session.after_epoch()
        assert wrapped.module is model
        assert count_parameters(wrapped) == session.plan.params
        wrapped(batches()[0][0]).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_cut_alike_and_have_the_same_weights_at_the_end(tmp_path):
    script = str(Path(__file__).with_name("session_of_two.py"))
    pair = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    said = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in pair]
    assert said[0] == said[1]
    assert said[0]["left"]
    assert said[0]["momenta"]
    assert said[0]["keep"]


def test_gradients_that_are_accumulated_over_batches_make_fewer_steps_and_the_same_cut():
    model = build()
    optimizer = sgd(model)
    session = make(model, optimizer, prune_at=2)
    session.before_train()
    factors = []
    optimizer.register_step_pre_hook(lambda *_: factors.append(optimizer.param_groups[0]["lr"]))
    for _ in range(4):
        for number, (images, targets) in enumerate(batches(4), 1):
            outputs = model(images)
            (nn.functional.cross_entropy(outputs, targets) / 2).backward()
            if number % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
        session.after_epoch()
    plan = session.finish()
    assert plan.kept_macs <= 0.5
    assert count_parameters(model) == plan.params
    # Two steps an epoch: the rate rises over those of the first epoch after the cut, and is the loop's own elsewhere.
    assert len(factors) == 8
    assert factors[4] < factors[5] <= factors[0]
    assert {factors[at] for at in (0, 1, 2, 3, 6, 7)} == {factors[0]}


def test_a_loop_that_counts_iterations_ends_its_epochs_by_itself():
    model = build()
    optimizer = sgd(model)
    session = make(model, optimizer, steps_per_epoch=2, total=4, prune_at=2)
    session.before_train()
    sizes = []
    for images, targets in [*batches(4), *batches(4)]:
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        sizes.append(count_parameters(model))
    assert [size == sizes[0] for size in sizes] == [True] * 3 + [False] * 5
    assert session.epoch == 4
    session.finish()


@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(stop):
    def run(model, optimizer, session, epochs):
        for _ in range(epochs):
            train_epoch(model, [optimizer], session)
            session.after_epoch(0.5)

    whole = build()
    optimizer = sgd(whole)
    session = make(whole, optimizer, prune_at=2)
    session.before_train()
    run(whole, optimizer, session, EPOCHS)

    stopped = build()
    optimizer = sgd(stopped)
    first_part = make(stopped, optimizer, prune_at=2)
    first_part.before_train()
    run(stopped, optimizer, first_part, stop)
    saved = copy.deepcopy([first_part.state_dict(), stopped.state_dict(), optimizer.state_dict()])

    again = build(seed=9)  # other weights: all of them come back
    optimizer = sgd(again)
    second = make(again, optimizer, prune_at=2)
    second.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[2])
    second.before_train()
    run(again, optimizer, second, EPOCHS - stop)
    assert second.finish() == session.finish()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_teacher_is_felt_after_the_cut_and_fades():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = make(model, optimizer, prune_at=1, fold=False, criterion="l1", sparsify="off")
    session.before_train()
    felt = []
    for _ in range(EPOCHS):
        batch = batches()[0]
        felt.append(float(session.teacher_loss(batch, model(batch[0])).detach()))
        optimizer.step()
        session.after_epoch()
    assert felt[0] == 0.0 < felt[-1] < felt[1]
    other = nn.Sequential(build(), nn.Linear(5, 2))
    with pytest.raises(
        ConfigError, match=r"cannot be compared: \(4, 2\) of the model, \(4, 5\) of its teacher"
    ):
        session.teacher_loss(batch, other(batch[0]))


def test_batches_that_can_be_read_once_are_still_there_at_the_cut():
    plans = []
    for calibration in (batches(), (batch for batch in batches())):
        model = build()
        session = make(model, sgd(model), calibration=calibration, prune_at=0, sparsify="off")
        session.before_train()
        plans.append(session.finish())
    assert plans[0] == plans[1]


def test_a_session_draws_nothing_from_the_random_numbers_of_the_training():
    images = torch.utils.data.TensorDataset(torch.rand(8, 3, 12, 12), torch.zeros(8))
    loader = torch.utils.data.DataLoader(images, batch_size=4, shuffle=True)
    model, example = build(), torch.rand(1, 3, 12, 12)
    options = {**OPTIONS, "calibration": loader, "forward": first, "prune_at": 0, "sparsify": "off"}
    state = torch.get_rng_state()
    session = PruningSession(model, sgd(model), example, **options)
    session.before_train()
    assert session.plan is not None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrap", [list, iter], ids=["a list", "an iterator"])
@pytest.mark.parametrize(("pooled", "looked_at"), [(True, 512), (False, 96)], ids=["classifier", "any other"])
def test_a_classifier_is_measured_on_more_images(monkeypatch, wrap, pooled, looked_at):
    model = build() if pooled else build()[:-3]
    found = []
    monkeypatch.setattr(
        midcut, "sized_for_memory", lambda images, *_: found.append(sum(map(len, images.batches))) or images
    )
    images = wrap([torch.rand(100, 3, 4, 4) for _ in range(6)])
    options = {**OPTIONS, "calibration": images, "prune_at": 0, "sparsify": "off", "keep_macs": 0.8}
    session = PruningSession(model, sgd(model), torch.rand(1, 3, 4, 4), **options)
    session.before_train()
    assert (session.plan is not None, found) == (True, [looked_at])


def test_without_images_the_scales_rank_and_nothing_is_folded():
    model = build()
    session = PruningSession(model, sgd(model), torch.rand(1, 3, 12, 12), **{**OPTIONS, "prune_at": 0})
    session.before_train()
    assert session.plan.settings["criterion"] == "bn_scale"
    assert session.plan.settings["fold"] is False


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # 2026-11: torch wants torch.export instead, and people still have such models
        return torch.jit.trace(model.eval(), torch.rand(1, 3, 12, 12))


REFUSED = {
    "other optimizer": (lambda m: {"optimizer": sgd(build())}, "none of them is or was one of this model's"),
    "no optimizer": (lambda m: {"optimizer": []}, "there is no optimizer"),
    "no budget": (lambda m: {"keep_macs": None}, "give exactly one budget"),
    "unknown option": (lambda m: {"kep_macs": 0.5}, "unknown key 'kep_macs'"),
    "no batch": (lambda m: {"calibration": []}, "calibration= yields no batch"),
    "pairs": (lambda m: {"forward": lambda n, b: n(b)}, "forward=lambda model, batch: model(batch[0])"),
    "no epoch": (lambda m: {"total": 0}, "total must be at least 1 epoch, got 0"),
    "nothing measured": (lambda m: {"forward": lambda n, b: len(b)}, "returned no floating-point tensor"),
    "images wanted": (lambda m: {"calibration": (), "criterion": "reconstruction"}, "give calibration="),
    "data parallel": (lambda m: {"model": nn.DataParallel(m)}, "train with DistributedDataParallel"),
    "scripted": (
        lambda m: {"model": scripted(m)},
        "a scripted model",
    ),
    "meta": (lambda m: {"model": copy.deepcopy(m).to("meta")}, "are on the meta device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_in_a_sentence_before_anything_changes(name):
    model = build()
    change, sentence = REFUSED[name]
    options = {"model": model, "optimizer": sgd(model), **change(model)}
    with pytest.raises(ConfigError) as caught:
        make(options.pop("model"), options.pop("optimizer"), **options)
    assert sentence in str(caught.value)


def test_calls_out_of_turn_are_refused():
    model = build()
    session = make(model, sgd(model))
    with pytest.raises(ConfigError, match=r"^call before_train\(\) first: it checks the budget"):
        session.after_epoch()
    session.before_train()
    with pytest.raises(ConfigError, match=r"^this session has begun already\.$"):
        session.before_train()
    session.finish()
    with pytest.raises(ConfigError, match=r"^this session has ended: finish\(\) was called before\.$"):
        session.finish()
    with pytest.raises(ConfigError, match=r"^this session has ended: make a new one to go on pruning\.$"):
        session.after_epoch()


def test_a_budget_that_cannot_be_met_is_said_before_the_first_epoch():
    model = build()
    before = copy.deepcopy(model.state_dict())
    session = make(model, sgd(model), keep_macs=0.01)
    with pytest.raises(BudgetError, match=r"^cannot meet"):
        session.before_train()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_state_of_another_kind_is_refused():
    model = build()
    session = make(model, sgd(model))
    session.before_train()
    state = session.state_dict()
    other = build()
    again = make(other, sgd(other))
    with pytest.raises(CheckpointError, match=r"^the session's state is of version 7, expected 1\.$"):
        again.load_state_dict({**state, "version": 7})
    changed = make(other, sgd(other), keep_macs=0.6)
    with pytest.raises(ConfigError, match=r"saved with other pruning options"):
        changed.load_state_dict(state)


# Coming back.


def test_a_fresh_network_takes_the_weights_of_a_cut_one(tmp_path):
    model = build().eval()
    images = torch.rand(2, 3, 12, 12)
    plan = yolo_prune.prune_module(model, images[:1], keep_macs=0.5, min_width=4, round_to=4)
    file = plan.save(tmp_path / "plan.json")
    fresh = yolo_prune.restore(build(seed=5).eval(), file)
    with torch.no_grad():
        assert not torch.equal(fresh(images), model(images))
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(images), model(images))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 16, 3)),
            "which this model does not have. It was made for another model.",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 24, 3, bias=False), *build()[1:]),
            "the plan expects width 16 at '0.weight[0]', the model has 24.",
        ),
        (
            lambda: nn.Sequential(*build()[:-1], nn.Linear(16, 7)),
            "parameters of the model that it was made for",
        ),
    ],
)
def test_a_plan_of_another_network_cuts_nothing(other, sentence):
    plan = yolo_prune.prune_module(build(), torch.rand(1, 3, 12, 12), keep_macs=0.5, min_width=4, round_to=4)
    network = other()
    before = count_parameters(network)
    with pytest.raises(PlanError) as caught:
        yolo_prune.restore(network, plan)
    assert sentence in str(caught.value)
    assert count_parameters(network) == before


def test_a_plan_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"gone\.json' cannot be read: No such file or directory\.$"):
        yolo_prune.restore(build(), tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PlanError, match=r"^the plan is not JSON"):
        yolo_prune.restore(build(), tmp_path / "bad.json")


AT_END = {"sparsify": "auto", "keep_macs": 0.5, "imitation_steps": 8}


def test_unless_told_else_the_model_is_cut_after_the_last_epoch_and_trained_as_if_it_were_not():
    model, alone = build(), build()
    optimizer, other = sgd(model), sgd(alone)
    session = make(model, optimizer, **AT_END)
    session.before_train()
    for epoch in range(EPOCHS):
        train_epoch(model, [optimizer], session)
        train_epoch(alone, [other])
        if epoch == EPOCHS - 1:
            assert all(map(torch.equal, model.state_dict().values(), alone.state_dict().values()))
        session.after_epoch(0.5)
        assert (session.plan is not None) == (epoch == EPOCHS - 1)
    plan = session.finish()
    assert plan.kept_macs <= 0.5
    assert count_parameters(model) == plan.params < count_parameters(alone)
    assert plan.settings["imitation"]["after"] <= plan.settings["imitation"]["before"]
    assert session._loop.teacher is None


def test_a_training_that_stops_early_is_cut_by_finish():
    model = build()
    session = make(model, sgd(model), **AT_END)
    session.before_train()
    session.after_epoch()
    assert session.finish().kept_macs <= 0.5
    assert session.cuts_left == 0


def test_a_training_killed_in_its_last_epoch_makes_the_same_cut_when_it_goes_on():
    plans, weights = [], []
    for stops in (False, True):
        model = build()
        optimizer = sgd(model)
        session = make(model, optimizer, **AT_END)
        session.before_train()
        for _ in range(EPOCHS - 1):
            train_epoch(model, [optimizer])
            session.after_epoch()
        if stops:
            state, saved = session.state_dict(), copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model = build(1)
            optimizer = sgd(model)
            session = make(model, optimizer, **AT_END)
            session.load_state_dict(state)
            model.load_state_dict(saved[0]), optimizer.load_state_dict(saved[1])
            session.before_train()
        train_epoch(model, [optimizer])
        session.after_epoch()
        plans.append(session.finish())
        weights.append(model.state_dict())
    assert plans[0] == plans[1]
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))


def test_without_images_the_cut_comes_late_for_nothing_else_would_recover_it():
    model = build()
    session = make(model, sgd(model), calibration=(), sparsify="off")
    session.before_train()
    for _ in range(EPOCHS - 1):
        session.after_epoch()
    assert session.cuts_left == 0
    with pytest.raises(ConfigError, match=r"prune_at=end: no epoch follows the cut, .* give calibration=\."):
        make(model, sgd(model), calibration=(), prune_at="end")


def test_options_that_change_nothing_are_named_before_the_training(caplog):
    model = build()
    make(model, sgd(model), **AT_END, distill=False).before_train()
    assert "without effect at prune_at=end: distill=false" in caplog.text


def test_what_cannot_be_imitated_is_cut_all_the_same_unless_imitation_was_asked_for(monkeypatch, caplog):
    from yolo_prune.recover import stages

    def refuse(*_, **__):
        raise ConfigError("the outputs are of another kind")

    monkeypatch.setattr(stages, "recover_by_imitation", refuse)
    model = build()
    session = make(model, sgd(model), sparsify="auto")
    session.before_train()
    plan = session.finish()
    assert plan.kept_macs <= 0.5
    assert "imitation" not in plan.settings
    assert "the cut model does not imitate the uncut one: the outputs are of another kind" in caplog.text
    model = build()
    session = make(model, sgd(model), **AT_END)
    session.before_train()
    with pytest.raises(ConfigError, match="the outputs are of another kind"):
        session.finish()
