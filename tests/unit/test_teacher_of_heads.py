"""A teacher for detectors that return losses in training: the same places, the same random numbers, the same losses."""

import copy
import math

import pytest
import torch
from nets import Net, conv, randomise_
from torch import nn

from yolo_prune.criteria.distance import bounded_distance
from yolo_prune.criteria.heads import HeadForward
from yolo_prune.criteria.predictions import Predictions, prediction_distance
from yolo_prune.errors import ConfigError
from yolo_prune.train.imitate import HeadTeacher


def forward(net, images):
    """Learn from places that are drawn among the surest ones, as a region proposal network does."""
    maps = net.body(images)
    scores = net.score(maps).flatten(1)
    _, best = scores.topk(12)
    drawn = best[:, torch.randperm(12)[:4]]
    picked = maps.flatten(2).gather(2, drawn[:, None].expand(-1, maps.shape[1], -1)).mean(2)
    return {"loss_score": scores.square().mean(), "loss_class": net.classify(picked).square().mean()}


LAYERS = ("score", "classify")


@pytest.fixture
def detector():
    torch.manual_seed(0)
    net = Net(forward, body=conv(16, 3), score=nn.Conv2d(16, 1, 1), classify=nn.Linear(16, 3))
    randomise_(net, x=IMAGES).train()
    net.body[1].eval()  # what a teacher normalises by is its own
    return net


IMAGES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def teacher_of(net, distance=None):
    return HeadTeacher(copy.deepcopy(net), HeadForward(None, LAYERS, distance))


def learn(teacher, net):
    lesson = teacher.lesson(net)
    losses = lesson.watch(lambda: net(IMAGES))
    return losses, lesson.distance(lambda one: one(IMAGES))


def changed(net, by=0.3):
    torch.manual_seed(5)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            weight += by * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0
    return other


def test_a_model_is_at_no_distance_from_itself_and_draws_what_it_would_have_drawn(detector):
    teacher = teacher_of(detector)
    torch.manual_seed(3)
    plain, after = detector(IMAGES), torch.rand(1)
    torch.manual_seed(3)
    losses, apart = learn(teacher, detector)
    assert torch.equal(torch.rand(1), after), "the teacher draws nothing from the training's numbers"
    assert {name: float(loss.detach()) for name, loss in losses.items()} == {
        name: float(loss.detach()) for name, loss in plain.items()
    }
    assert float(apart.detach()) == 0


def test_both_look_at_the_same_places(detector):
    teacher, student = teacher_of(detector), changed(detector)
    assert not torch.equal(best_of(student), best_of(detector)), "the control: by themselves they would not"
    seen = []
    for net in (student, teacher.module):
        net.classify.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    lesson = teacher.lesson(student)
    lesson.watch(lambda: student(IMAGES))
    drawn = lesson._decided.made
    lesson.distance(lambda one: one(IMAGES))
    places = next(one.results[1] for one in drawn if one.name == "topk")
    assert torch.equal(places, best_of(student))
    maps = teacher.module.body(IMAGES).flatten(2)
    possible = torch.stack([maps[0][:, place] for place in places[0]])
    nearest = torch.linalg.lstsq(possible.T, seen[1][0][:, None]).residuals
    assert len(seen) == 2
    assert float(nearest.sum()) < 1e-6, "a mean of what the teacher has at the student's places"


def best_of(net):
    return net.score(net.body(IMAGES)).flatten(1).topk(12)[1]


def test_the_gradient_leads_a_student_back_to_its_teacher(detector):
    teacher, student = teacher_of(detector), changed(detector)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    distances = []
    for _ in range(40):
        _, apart = learn(teacher, student)
        optimizer.zero_grad()
        apart.backward()
        optimizer.step()
        distances.append(float(apart.detach()))
    assert distances[-1] < 0.3 * distances[0]
    assert all(weight.grad is None for weight in teacher.module.parameters())


def test_the_distance_counts_by_its_share(detector):
    teacher, student = teacher_of(detector), changed(detector)
    values = []
    for share in (1.0, 0.25):
        torch.manual_seed(0)
        lesson = teacher.lesson(student, share)
        lesson.watch(lambda: student(IMAGES))
        values.append(float(lesson.distance(lambda one: one(IMAGES)).detach()))
    assert values[1] == pytest.approx(values[0] / 4)


def test_a_student_that_fails_is_watched_no_more(detector):
    lesson = teacher_of(detector).lesson(detector)

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lesson.watch(fail)
    assert not detector.score._forward_hooks
    assert torch.equal(torch.ones(2).topk(1)[1], torch.zeros(1, dtype=torch.int64))


def test_heads_that_ran_another_number_of_times_are_refused(detector):
    lesson = teacher_of(detector).lesson(detector)
    lesson.watch(lambda: detector(IMAGES))
    with pytest.raises(ConfigError, match=r"the uncut model's outputs cannot be compared: .* of its teacher"):
        lesson.distance(lambda one: one(IMAGES[:1]))


def predictions(score, box):
    return Predictions(torch.tensor([[[score], [0.0]]]), torch.tensor([[[box], [5.0]]]))


def test_the_distance_of_predictions_worked_out_by_hand():
    ours, theirs = predictions(0.25, 1.0), predictions(0.5, 1.0)
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(prediction_distance([ours], [theirs])) == pytest.approx(divergence / 0.5, rel=1e-4)
    assert float(prediction_distance([theirs], [theirs])) == 0
    mean = prediction_distance([ours, theirs], [theirs, theirs])
    assert float(mean) == pytest.approx(divergence / 0.5 / 2, rel=1e-4)


def test_boxes_count_where_the_teacher_is_sure():
    theirs = Predictions(torch.tensor([[[0.9], [0.1]]]), torch.tensor([[[0.0], [1.0]]]))
    sure, unsure = (
        Predictions(theirs.scores, theirs.boxes + torch.tensor(move).view(1, 2, 1)) for move in MOVES
    )
    assert float(prediction_distance([sure], [theirs])) == pytest.approx(
        9 * float(prediction_distance([unsure], [theirs])), rel=1e-4
    )


MOVES = ([1.0, 0.0], [0.0, 1.0])


def test_predictions_of_other_shapes_are_refused():
    theirs = predictions(0.5, 1.0)
    with pytest.raises(ConfigError, match=r"the uncut model's outputs cannot be compared"):
        prediction_distance([theirs], [theirs, theirs])
    with pytest.raises(ConfigError, match=r"the uncut model's outputs cannot be compared"):
        prediction_distance([Predictions(theirs.scores, theirs.boxes[:, :1])], [theirs])


def test_an_output_that_hardly_varies_does_not_outweigh_the_others():
    still = torch.full((4, 5), 2.0)
    still[0, 0] += 1e-4
    ours = (still + 1).requires_grad_()
    apart = bounded_distance([ours, torch.eye(4)], [still, torch.eye(4)])
    apart.backward()
    assert float(apart.detach()) == pytest.approx(0.5, rel=1e-3)
    assert float(ours.grad.norm()) < 1
