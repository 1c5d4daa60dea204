"""Recovery of any module on images of its own: whatever its batches and outputs are, and better than without."""

import copy
import warnings

import pytest
import torch
from nets import randomise_
from torch import nn

from yolo_prune import prune_module
from yolo_prune.criteria.calibration import images_in, part_of
from yolo_prune.criteria.projection import output_projection
from yolo_prune.errors import BudgetError, ConfigError, DataError

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CUT = {"keep_macs": 0.5, "min_width": 4, "round_to": 4, "imitation_steps": 0}


def images(seed, count=8):
    """Smooth images, whose channels say something of each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=16, mode="bilinear")


def backbone():
    layers = []
    for makes, reads in ((24, 3), (32, 24), (32, 32)):
        layers += [nn.Conv2d(reads, makes, 3, padding=1, bias=False), nn.BatchNorm2d(makes), nn.SiLU()]
    return layers


class Detector(nn.Module):
    """Returns what a detector of a hundred lines returns, in the form that it is told."""

    def __init__(self, form):
        super().__init__()
        self.form, self.body, self.head = form, nn.Sequential(*backbone()), nn.Conv2d(32, 4 + 5, 1)

    def forward(self, x):
        x = torch.stack(x) if isinstance(x, list) else x
        x = x["image"] if isinstance(x, dict) else x
        raw = self.head(self.body(x))
        boxes, scores = raw.flatten(2).split([4, 5], 1)
        decoded = torch.cat([boxes * 20, scores.sigmoid()], 1)
        forms = {
            "one tensor": decoded,
            "locations first": decoded.transpose(1, 2),
            "beside raw maps": (decoded, [raw]),
            "a dict": {"boxes": boxes, "scores": scores.sigmoid()},
            "raw": [raw],
        }
        return forms[self.form]


def made(form="one tensor"):
    torch.manual_seed(0)
    return randomise_(Detector(form), x=IMAGE).eval()


def error_of(module, parent):
    """Return the error of the scores and boxes on images that nothing was measured on, relative to the parent's."""
    with torch.no_grad():
        found, right = (each.head(each.body(images(99, 16))) for each in (module, parent))
    return float((found - right).square().mean() / right.var())


FORMS = ("one tensor", "locations first", "beside raw maps", "a dict", "raw")


@pytest.mark.parametrize("form", FORMS)
def test_images_bring_back_most_of_what_a_cut_loses(form):
    parent = made(form)
    bare, recovered = copy.deepcopy(parent), copy.deepcopy(parent)
    prune_module(bare, IMAGE, criterion="l2", min_keep=0, **CUT)
    plan = prune_module(recovered, IMAGE, calibration=[images(1), images(2)], steps=3, **CUT)
    assert plan.kept_macs <= 0.5
    assert plan.equivalence["exact"]
    assert (plan.settings["criterion"], plan.settings["steps"]) == ("reconstruction", 3)
    assert error_of(recovered, parent) < 0.3 * error_of(bare, parent)


BATCHES = {
    "tensors": ([images(1), images(2)], None),
    "lists of images": ([list(images(1)), list(images(2))], None),
    "dicts": ([{"image": images(1)}, {"image": images(2)}], None),
    "pairs": ([(images(1), torch.zeros(8)), (images(2), torch.zeros(8))], lambda m, b: m(b[0])),
    "a loader": (
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat([images(1), images(2)]), torch.zeros(16)), batch_size=8
        ),
        lambda m, b: m(b[0]),
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_are_whatever_the_module_takes(kind):
    module, expected = made(), made()
    batches, forward = BATCHES[kind]
    given = {} if forward is None else {"forward": forward}
    plan = prune_module(module, IMAGE, calibration=batches, steps=2, **given, **CUT)
    alike = prune_module(expected, IMAGE, calibration=[images(1), images(2)], steps=2, **CUT)
    assert plan.keep == alike.keep
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_only_so_many_images_are_looked_at():
    seen = []

    def forward(module, batch):
        seen.append(len(batch))
        return module(batch)

    prune_module(
        made(),
        IMAGE,
        calibration=[images(1), images(2)],
        calibration_images=10,
        steps=1,
        forward=forward,
        **CUT,
    )
    assert seen[:2] == [1, 1]  # whether it runs, and whether it filters what it finds
    assert {sum(seen[2 + at : 4 + at]) for at in range(0, len(seen) - 2, 2)} == {10}


def test_of_a_classifier_more_images_are_looked_at():
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)]
    nets = (nn.Sequential(*backbone()), nn.Sequential(*backbone(), *head))
    looked_at = []
    for net in nets:
        read = []
        batches = (read.append(100) or images(seed, 100) for seed in range(6))
        prune_module(randomise_(net, x=IMAGE).eval(), IMAGE, calibration=batches, steps=1, **CUT)
        looked_at.append(sum(read))
    assert looked_at == [300, 600], "256 and 512, of batches of 100"


def test_statistics_are_estimated_again_where_that_validates_better():
    parent = made()
    kept, again = copy.deepcopy(parent), copy.deepcopy(parent)
    options = {"calibration": [images(1), images(2)], "steps": 2, **CUT}
    means = [m.running_mean.clone() for m in parent.modules() if isinstance(m, nn.BatchNorm2d)]

    def unlike_the_parent(module):
        """Better where the statistics are others: what is validated decides, not what is true."""
        return float(module.body[1].running_mean.sum())

    prune_module(kept, IMAGE, validate=lambda m: -unlike_the_parent(m), **options)
    prune_module(again, IMAGE, validate=unlike_the_parent, **options)
    assert unlike_the_parent(again) > unlike_the_parent(kept)
    assert len(means) == 3


REFUSED = {
    "pairs": ({"calibration": [(images(1), torch.zeros(8))]}, "forward=lambda model, batch: model(batch[0])"),
    "another size": ({"calibration": [torch.rand(2, 7, 16, 16)]}, "a tensor of shape (2, 7, 16, 16)"),
    "nothing": ({"calibration": []}, "calibration= yields no batch"),
    "no image": (
        {"criterion": "reconstruction"},
        "criterion=reconstruction measures on images: give calibration=",
    ),
    "unknown criterion": ({"criterion": "l3", "calibration": [images(1)]}, "unknown criterion 'l3'"),
    "filtered": (
        {"calibration": [images(1)], "forward": lambda m, b: m(b).detach()},
        "no output of the model has a gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_said_and_changes_nothing(name):
    options, sentence = REFUSED[name]
    module = made()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ConfigError) as caught:
        prune_module(module, IMAGE, **options, **CUT)
    assert sentence in str(caught.value)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_a_budget_out_of_reach_changes_nothing():
    module = made()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(BudgetError, match=r"^cannot meet"):
        prune_module(module, IMAGE, keep_macs=0.01, calibration=[images(1)], min_width=4, round_to=4)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


# What the task feels.


def gradient_of(outputs):
    """Return what the default projection feels of one output, by its gradient."""
    outputs = outputs.clone().requires_grad_(True)
    output_projection(0)(outputs).backward()
    return outputs.grad


def test_background_is_felt_only_where_it_could_become_a_detection():
    boxes, scores = torch.rand(1, 4, 50) * 200, torch.full((1, 3, 50), 0.001)
    scores[0, 1, 7] = 0.9
    felt = gradient_of(torch.cat([boxes, scores], 1))[0]
    assert felt[:4, 7].abs().min() > 100 * felt[:4, [0, 30]].abs().max()
    assert set(felt[4:].abs().unique().tolist()) == {1.0}


def test_boxes_are_felt_four_times_as_much_as_scores():
    boxes, scores = torch.rand(1, 4, 50) * 200, torch.full((1, 3, 50), 0.5)
    felt = gradient_of(torch.cat([boxes, scores], 1))[0].abs()
    spread = boxes[0].var(1, correction=0, keepdim=True).sqrt()
    torch.testing.assert_close(felt, torch.cat([(4 * 0.5 / spread).expand(4, 50), torch.ones(3, 50)]))


def test_an_objectness_multiplies_the_classes():
    generator = torch.Generator().manual_seed(0)
    boxes, classes = torch.rand(1, 50, 4) * 200, torch.rand(1, 50, 6, generator=generator)
    objects = torch.full((1, 50, 1), 0.01)
    objects[0, 3] = 0.95
    felt = gradient_of(torch.cat([boxes, objects, classes], 2))[0]
    assert torch.allclose(felt[:, 5:].abs(), objects[0].expand(-1, 6))


def test_raw_maps_beside_predictions_do_not_count_and_alone_they_do():
    raw = torch.randn(2, 9, 4, 4, requires_grad=True)
    decoded = torch.cat([torch.rand(2, 4, 16) * 50, torch.rand(2, 5, 16)], 1).requires_grad_(True)
    output_projection(0)((decoded, [raw])).backward()
    assert raw.grad is None
    output_projection(0)([raw]).backward()
    spread = raw.detach().var((0, 2, 3), correction=0).sqrt()
    assert torch.allclose(raw.grad.abs(), (1 / spread)[None, :, None, None].expand_as(raw))


def test_class_scores_are_felt_as_probabilities():
    logits = torch.randn(6, 4)
    probabilities = logits.softmax(1)
    felt = gradient_of(probabilities)
    assert felt.sum(1).abs().max() == 0
    assert gradient_of(logits).sum(1).abs().max() < 1e-6  # a softmax does not feel a shift


def test_images_in_a_batch_are_counted_and_divided():
    pair = (images(1), torch.arange(8))
    assert [images_in(b) for b in (images(1), list(images(1)), {"image": images(1)}, pair, list(pair))] == [
        8
    ] * 5
    assert part_of(pair, slice(0, 3))[1].tolist() == [0, 1, 2]
    assert len(part_of(list(images(1)), slice(0, 3))) == 3
    assert [len(part) for part in part_of(list(pair), slice(0, 3))] == [3, 3]
    assert len(part_of({"image": images(1)}, slice(0, 3))["image"]) == 3


def quantised():
    layer = torch.ao.nn.quantized.dynamic.Linear(192, 8)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 192), layer)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: torch.jit.script(nn.Sequential(*backbone())),
            "a scripted model cannot be cut: prune the module",
        ),
        (lambda: nn.DataParallel(made()), r"DataParallel copies the model anew .* hand over model\.module"),
        (quantised, "a quantised model cannot be cut: prune first, then quantise"),
    ],
)
def test_what_cannot_be_cut_in_place_is_a_sentence_before_anything_runs(make, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of both
        module = make()
    with pytest.raises(ConfigError, match=text):
        prune_module(module, IMAGE, **CUT)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("imitation_steps", -1), ("calibration_images", 0)]
)
def test_numbers_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be at least {value + 1}, got {value}"):
        prune_module(made(), IMAGE, calibration=[images(1)], **{**CUT, name: value})


def test_images_that_are_no_numbers_are_named_with_the_layer_that_reads_them():
    broken = images(1)
    broken[3, 0, 2, 2] = float("nan")
    module = made()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        DataError, match=r"what 'body\.3\.weight' reads .* is infinite or NaN\. Look for such numbers"
    ):
        prune_module(module, IMAGE, calibration=[broken], steps=1, **CUT)
    assert all(map(torch.equal, module.state_dict().values(), before.values()))
