"""A cut network imitates the one that it was cut from, and is never further from it afterwards."""

import copy

import pytest
import torch
from nets import Net, conv
from torch import nn
from torch.nn import functional as F

from yolo_prune import prune_module
from yolo_prune.criteria.calibration import Calibration, call
from yolo_prune.criteria.distance import output_distance, relative_distance
from yolo_prune.errors import ConfigError
from yolo_prune.recover import imitate, muon
from yolo_prune.recover.imitate import imitate_


def images(count, seed=0, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def detector(width=16):
    """Scores of two classes and four numbers of a box at every location, shape (B, 6, locations)."""
    torch.manual_seed(0)

    def forward(net, x):
        maps = net.head(net.body(net.stem(x))).flatten(2)
        return torch.cat([maps[:, :4] * 20, (maps[:, 4:] - 1).sigmoid()], 1)

    net = Net(forward, stem=conv(width, 3, stride=2), body=conv(width, width), head=nn.Conv2d(width, 6, 1))
    return net.eval()


def disturbed(net, amount=0.2):
    torch.manual_seed(1)
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.data += amount * torch.randn_like(parameter) * parameter.std()
    return other


def apart(student, teacher, batch):
    with torch.no_grad():
        return float(output_distance(student(batch), teacher(batch)))


def learn(student, teacher, batches=None, **options):
    return imitate_(student, teacher, Calibration([images(24)] if batches is None else batches), **options)


def test_the_distance_is_zero_of_equal_outputs_and_grows_with_a_score_and_with_a_box():
    outputs = detector()(images(2)).detach()
    assert output_distance(outputs, outputs) == 0
    for channel in (0, 5):
        distances = []
        for amount in (0.01, 0.05):
            other = outputs.clone()
            other[:, channel] += amount
            distances.append(float(output_distance(other, outputs)))
        assert 0 < distances[0] < distances[1]


def test_the_distance_of_class_logits_is_a_divergence_and_of_anything_else_relative_to_the_teachers_variance():
    ours, theirs = torch.randn(4, 5), torch.randn(4, 5)
    divergence = F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")
    assert torch.isclose(output_distance(ours, theirs), divergence)
    ours, theirs = 3 + 9 * torch.randn(2, 4, 6, 6), 3 + 9 * torch.randn(2, 4, 6, 6)
    assert torch.isclose(
        output_distance(ours, theirs), (ours - theirs).square().mean() / theirs.var(correction=0)
    )
    assert torch.isclose(output_distance(10 * ours, 10 * theirs), output_distance(ours, theirs))


@pytest.mark.parametrize(("least", "more"), [(0.3, 0.5), (0.02, 0.15)])
def test_an_objectness_multiplies_the_scores_beside_it_however_sure_classes_are_of_background(least, more):
    torch.manual_seed(0)
    boxes = 50 * torch.rand(2, 400, 4)
    objectness = torch.where(torch.rand(2, 400, 1) < 0.05, 0.9, 0.01)
    theirs = torch.cat([boxes, objectness, least + more * torch.rand(2, 400, 3)], -1)
    empty = (objectness < 0.5)[..., 0]
    each = []
    for at in (empty, ~empty):
        other = theirs.clone()
        other[..., 5:][at] *= 0.5
        each.append(float(output_distance(other, theirs)) / int(at.sum()))
    assert each[0] < 0.05 * each[1]


@pytest.mark.parametrize("distance", [output_distance, relative_distance])
def test_outputs_of_other_shapes_or_none_at_all_are_a_sentence(distance):
    for ours, theirs in ((torch.rand(2, 3), torch.rand(2, 4)), (torch.ones(3).long(), torch.ones(3).long())):
        with pytest.raises(
            ConfigError, match=r"outputs cannot be compared: .* of the model, .* of its teacher"
        ):
            distance(ours, theirs)


def test_a_map_of_features_that_a_cut_made_narrower_is_left_out_and_other_widths_are_not():
    ours, theirs = torch.rand(2, 6, 40), torch.rand(2, 6, 40)
    alone = output_distance(ours, theirs)
    assert output_distance((ours, torch.rand(2, 8, 4, 4)), (theirs, torch.rand(2, 16, 4, 4))) == alone
    with pytest.raises(ConfigError, match="outputs cannot be compared"):
        output_distance((ours, torch.rand(2, 8, 4, 4)), (theirs, torch.rand(2, 16, 5, 4)))
    with pytest.raises(ConfigError, match="outputs cannot be compared"):
        output_distance((ours,), (theirs, torch.rand(2, 16, 5, 4)))


def test_a_disturbed_network_comes_closer_to_its_teacher_on_images_that_it_never_saw():
    teacher = detector()
    student = disturbed(teacher)
    unseen = images(16, seed=9)
    before = apart(student, teacher, unseen)
    result = learn(student, teacher, steps=60)
    after = apart(student, teacher, unseen)
    assert result.after < 0.5 * result.before
    assert result.rate > 0
    assert 0 < result.steps <= 60
    assert after < 0.6 * before


def test_rates_are_relative_to_weights_so_that_how_large_they_are_makes_no_difference():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for layer in teacher[::2]:
        layer.bias.data.zero_()
    ends = []
    for factor in (1, 8):  # the same function: what one layer gains, the next one loses
        for layer, times in ((teacher[0], 8), (teacher[2], 1 / 8)) if factor > 1 else ():
            layer.weight.data *= times
        student = disturbed(teacher)
        ends.append(learn(student, teacher, steps=20))
    assert ends[0].after < ends[0].before
    assert ends[1].before == pytest.approx(ends[0].before, rel=1e-3)
    assert ends[1].after == pytest.approx(ends[0].after, rel=0.05)


def test_what_is_equal_already_and_what_every_rate_ruins_stays_as_it_was():
    teacher = detector()
    twin = copy.deepcopy(teacher)
    result = learn(twin, teacher, steps=20)
    assert (result.before, result.after, result.steps, result.rate) == (0.0, 0.0, 0, 0.0)
    assert all(map(torch.equal, twin.state_dict().values(), teacher.state_dict().values()))
    student = disturbed(teacher)
    kept = copy.deepcopy(student.state_dict())
    assert learn(student, teacher, steps=20, rates=(1e9,)).steps == 0
    assert all(map(torch.equal, student.state_dict().values(), kept.values()))


@pytest.fixture
def courses(monkeypatch):
    """Rates, and how far from its teacher each is after some steps; what was learnt of them, in order, and for how long."""
    far, taken = {}, []

    def averages(self, rate, steps):
        taken.append([rate, 0])
        for step in range(steps):
            if far[rate](step) is None:
                return
            taken[-1][1] += 1
            yield {}

    def reached(self, average, rate, step):
        return imitate._Reached(far[rate](step), rate, step, self.student.state_dict())

    def set_courses(**each):
        far.update({int(name[1:]): course for name, course in each.items()})
        return taken

    monkeypatch.setattr(imitate, "_PASSES", 1000)
    monkeypatch.setattr(imitate._Lesson, "_averages", averages)
    monkeypatch.setattr(imitate._Lesson, "_reached", reached)
    monkeypatch.setattr(imitate._Lesson, "distance", lambda self: 1.0)
    return set_courses


def test_the_highest_rate_that_came_closer_in_time_gets_the_whole_and_the_others_are_given_up(
    courses, caplog
):
    caplog.set_level("INFO")
    taken = courses(r3=lambda step: 1.8, r2=lambda step: 90 / (step + 40), r1=lambda step: 0.1)
    result = learn_with(steps=240, rates=(3, 2, 1))
    assert taken == [[3, 60], [2, 240]]
    assert (result.rate, result.steps, result.after) == (2, 240, 90 / 280)
    assert "the rate 3e+00 leads away from the parent and is given up" in caplog.text
    assert "2e+00" not in caplog.text


def test_where_every_rate_leads_away_at_first_the_one_that_does_it_least_gets_the_whole(courses):
    taken = courses(
        r3=lambda step: 1.9,
        r2=lambda step: 1.8 if step < 100 else 0.6,
        r1=lambda step: 2.7 if step < 100 else 0.1,
    )
    result = learn_with(steps=240, rates=(3, 2, 1))
    assert taken == [[3, 60], [2, 60], [1, 60], [2, 240]]
    assert (result.rate, result.after) == (2, 0.6)
    assert 100 <= result.steps < 120


def test_a_rate_is_given_up_where_it_is_too_far_away_for_what_is_left_of_it(courses):
    """It falls: what a high rate has learnt shows at its end."""
    taken = courses(
        r4=lambda step: 3 - step / 100,
        r3=lambda step: 1.9 - step / 200 + 0.1 * (step == 60),
        r2=lambda step: 1.6,
        r1=lambda step: 0.5,
    )
    assert learn_with(steps=240, rates=(3, 1)).rate == 3
    assert taken == [[3, 240]]
    taken.clear()
    assert learn_with(steps=240, rates=(4, 2, 1)).rate == 1
    assert taken == [[4, 60], [2, 100], [1, 240]]


@pytest.mark.parametrize(("steps", "first"), [(80, 0.03), (79, 0.01)])
def test_few_steps_begin_at_a_lower_rate(courses, monkeypatch, steps, first):
    tried = []

    def learn(self, rate, *_, **__):
        tried.append(rate)
        return imitate._Reached(0.5, rate, steps, self.student.state_dict())

    courses()
    monkeypatch.setattr(imitate._Lesson, "learn", learn)
    assert learn_with(steps=steps).rate == first
    assert learn_with(steps=steps, rates=(0.1, 0.05)).rate == 0.1, "the user's own"
    assert tried == [first, 0.1]


def test_a_rate_that_had_the_whole_does_not_get_it_again(courses):
    taken = courses(r2=lambda step: max(1.01, 1.99 - step / 240), r1=lambda step: 1.95)
    assert learn_with(steps=240, rates=(2, 1)).steps == 0
    assert taken == [[2, 240], [1, 60]]


@pytest.mark.parametrize("later", [None, 5.0])
def test_a_rate_that_diverges_is_given_up_although_it_had_come_closer(courses, later):
    taken = courses(r2=lambda step: 0.9 if step < 50 else later, r1=lambda step: 0.5)
    assert learn_with(steps=240, rates=(2, 1)).rate == 1
    assert [rate for rate, _ in taken] == [2, 1]
    taken.clear()
    courses(r1=lambda step: 1.9)
    result = learn_with(steps=240, rates=(2, 1))
    assert (result.rate, result.after) == (2, 0.9)  # still the nearest of all


def test_where_nothing_ever_comes_closer_nothing_is_kept(courses):
    taken = courses(r2=lambda step: 1.9, r1=lambda step: 1.8)
    result = learn_with(steps=100, rates=(2, 1))
    assert taken == [[2, 25], [1, 25], [1, 100]]
    assert (result.rate, result.steps, result.after) == (0.0, 0, 1.0)


def test_a_short_time_makes_the_whole_shorter_and_the_patience_with_a_rate(courses, monkeypatch):
    monkeypatch.setattr(imitate._Lesson, "_seconds_of_a_step", lambda self: 1e4)
    taken = courses(r2=lambda step: 1.9, r1=lambda step: 0.5)
    learn_with(steps=400, seconds=809_000, rates=(2, 1))  # the tests themselves take none of it
    assert taken == [[2, 20], [1, 80]]


def learn_with(**options):
    teacher = detector()
    return learn(disturbed(teacher), teacher, **options)


def test_modes_flags_statistics_and_the_teacher_are_left_as_they_were():
    teacher = detector()
    student = disturbed(teacher).train()
    student.stem.requires_grad_(False)  # and not cut
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    flags = [p.requires_grad for p in student.parameters()]
    learn(student, teacher, steps=20)
    assert student.training
    assert not teacher.training
    assert [p.requires_grad for p in student.parameters()] == flags
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(map(torch.equal, teacher.state_dict().values(), before[0].values()))
    for name, tensor in student.state_dict().items():
        stays = name.startswith("stem.") or "running" in name or "batches" in name
        assert torch.equal(tensor, before[1][name]) == stays, name


def test_it_is_the_same_again_and_a_time_limit_ends_it():
    teacher = detector()
    states = []
    for _ in range(2):
        student = disturbed(teacher)
        learn(student, teacher, steps=20)
        states.append(student.state_dict())
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    assert learn(disturbed(teacher), teacher, steps=1000, seconds=0).steps == 1


def test_weights_of_sixteen_bits_learn_in_full_precision_and_are_rounded_once():
    teacher = detector()
    student = disturbed(teacher).bfloat16()
    result = learn(student, copy.deepcopy(teacher).bfloat16(), steps=40)
    assert result.after < result.before
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    unseen = images(8, seed=9)
    float_student = copy.deepcopy(student).float()
    assert apart(float_student, teacher, unseen) < result.before


@pytest.mark.parametrize("sizes", [[24], [1], [1, 1, 1], [5, 5], [16, 3], [40, 1]])
def test_some_images_are_held_out_whatever_the_batches_and_none_is_lost(sizes):
    batches = [images(size, seed=index) for index, size in enumerate(sizes)]
    learnt, held_out = imitate._divided(batches)
    every = {tuple(image.flatten().tolist()) for batch in batches for image in batch}
    parts = [
        {tuple(image.flatten().tolist()) for batch in part for image in batch} for part in (learnt, held_out)
    ]
    assert parts[0] | parts[1] == every
    if sum(sizes) > 1:
        assert all(parts)
        assert not parts[0] & parts[1]


def test_prune_module_imitates_and_a_validation_that_falls_keeps_the_folded_weights():
    def closeness(other):
        return -apart(other, teacher, unseen)

    teacher, unseen, batches = detector(32), images(16, seed=9), [images(12, seed) for seed in range(4)]
    options = {"keep_macs": 0.5, "steps": 1, "calibration": batches}
    made = {}
    for name, more in {
        "folded": {"imitation_steps": 0},
        "imitated": {"imitation_steps": 60},
        "refused": {"imitation_steps": 60, "validate": lambda module: 0.0},
    }.items():
        made[name] = copy.deepcopy(teacher)
        plan = prune_module(made[name], images(1), **options, **more)
        assert ("imitation" in plan.settings) == (more["imitation_steps"] > 0)
    assert plan.settings["imitation"]["after"] < plan.settings["imitation"]["before"]
    assert closeness(made["imitated"]) > closeness(made["folded"])
    refused, folded = made["refused"].state_dict(), made["folded"].state_dict()
    assert all(map(torch.equal, refused.values(), folded.values()))


def test_batches_that_are_pairs_learn_through_forward():
    teacher = detector()
    student = disturbed(teacher)
    batches = [(images(12), torch.zeros(12)), (images(12, 1), torch.zeros(12))]
    calibration = Calibration(batches, forward=lambda model, batch: call(model, batch[0]))
    assert (
        imitate_(student, teacher, calibration, steps=20).after
        < imitate_(disturbed(teacher), teacher, calibration, steps=1).before
    )


def test_matrices_are_moved_by_muon_in_every_step(monkeypatch):
    teacher, moved = detector(), []
    step = muon.Muon.step
    monkeypatch.setattr(muon.Muon, "step", lambda self: (moved.append(len(self.param_groups)), step(self))[1])
    learn(disturbed(teacher), teacher, steps=8, rates=(1e-3,))
    assert moved == [3] * 8
