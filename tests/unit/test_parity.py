"""Whether a file computes what its checkpoint computes: on several images, in every layout, and by its precision."""

from dataclasses import replace

import numpy as np
import pytest

from yolo_prune.bench.parity import TOLERANCE, Parity, Reference, parity_of, stored_parity
from yolo_prune.errors import BenchmarkError

CLASSES = 3


def outputs(layout, seed):
    """One output of a model of three classes."""
    generator = np.random.default_rng(seed)
    if layout == "classes":
        return generator.random((1, CLASSES)).astype(np.float32)
    boxes = generator.random((1, 40, 4)) * 300
    if layout == "ranked":
        scores = np.sort(generator.random((1, 40, 1)), axis=1)[:, ::-1]
        return np.concatenate([boxes, scores, np.ones((1, 40, 1))], 2).astype(np.float32)
    whole = np.concatenate([boxes, generator.random((1, 40, CLASSES))], 2).astype(np.float32)
    return whole if layout == "queries" else whole.transpose(0, 2, 1)


class Known:
    """A runtime that answers with given outputs, one after the other."""

    def __init__(self, answers):
        self.answers, self.asked = list(answers), []

    def infer(self, batch):
        self.asked.append(batch.copy())
        return self.answers[len(self.asked) - 1].repeat(len(batch), 0), None

    def as_array(self, output):
        return output


def reference(layout, images=5):
    pixels = np.random.default_rng(0).random((images, 3, 8, 8), dtype=np.float32)
    return Reference(pixels, tuple(outputs(layout, seed) for seed in range(images)), CLASSES)


LAYOUTS = pytest.mark.parametrize("layout", ["anchors", "classes", "queries", "ranked"])


@LAYOUTS
def test_the_same_outputs_agree_and_those_of_another_model_do_not(layout):
    ours = reference(layout)
    runtime = Known(ours.outputs)
    same = parity_of(runtime, ours, "float32", batch=2)
    assert (same.relative, same.images, same.agrees) == (0.0, 5, True)
    assert [each.shape for each in runtime.asked] == [(2, 3, 8, 8)] * 5, "a fixed batch is filled"
    assert np.array_equal(runtime.asked[3][1], ours.pixels[3])
    other = parity_of(Known(outputs(layout, seed + 100) for seed in range(5)), ours, "float32")
    assert not other.agrees
    assert other.relative > 0.05


@pytest.mark.parametrize(
    ("layout", "agrees"), [("anchors", False), ("classes", False), ("ranked", True), ("queries", True)]
)
def test_one_image_decides_where_a_network_decides_nothing_itself_and_else_most_do(layout, agrees):
    ours = reference(layout)
    one = [*ours.outputs[:4], outputs(layout, 99)]
    assert parity_of(Known(one), ours, "float32").agrees == agrees
    most = [*ours.outputs[:2], *(outputs(layout, seed) for seed in (97, 98, 99))]
    assert not parity_of(Known(most), ours, "float32").agrees


@LAYOUTS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_whatever_the_other_images_say(layout, value):
    ours = reference(layout)
    broken = ours.outputs[2].copy()
    broken.flat[2] = value
    found = parity_of(Known([*ours.outputs[:2], broken, *ours.outputs[3:]]), ours, "float32")
    assert not found.agrees
    with pytest.raises(
        BenchmarkError,
        match=r"^the file does not compute what its checkpoint computes: its outputs have another shape than the "
        r"checkpoint's, or hold values that are not finite\.$",
    ):
        found.check("the file")


def test_ranks_and_queries_of_nearly_the_same_score_may_swap():
    for layout in ("ranked", "queries"):
        ours = reference(layout, images=1)
        swapped = ours.outputs[0][:, np.random.default_rng(1).permutation(40)]
        assert parity_of(Known([swapped]), ours, "float32").relative < 1e-6, layout
        moved = swapped + np.float32(5) * (np.arange(swapped.shape[2]) == 0)
        assert not parity_of(Known([moved]), ours, "float32").agrees, "the control"


def test_what_16_bits_change_is_allowed_in_16_bits_alone():
    ours = reference("classes")
    rounded = [each + np.float32(5e-3) for each in ours.outputs]
    assert parity_of(Known(rounded), ours, "float16").agrees
    assert not parity_of(Known(rounded), ours, "float32").agrees
    assert not parity_of(Known([each + np.float32(0.03) for each in ours.outputs]), ours, "float16").agrees
    assert "int8" not in TOLERANCE, "its accuracy says what it costs"


@pytest.mark.parametrize(("device", "agrees"), [("cpu", False), ("cuda:0", True)])
def test_whoever_compares_with_a_stored_reference_allows_a_gpu_its_bits(tmp_path, device, agrees):
    ours = reference("classes")
    runtime = Known(each + np.float32(5e-3) for each in ours.outputs)
    runtime.facts = {"device": device}
    found = stored_parity(runtime, ours.save(tmp_path / "r.npz"), "float32")
    assert found.agrees is agrees
    assert found.refusal("the file").startswith("" if agrees else "the file does not compute what")
    assert bool(found.refusal("the file")) is not agrees
    assert stored_parity(runtime, tmp_path / "r.npz", "int8") is None
    assert stored_parity(runtime, None, "float32") is None


def test_images_in_which_the_checkpoint_finds_nothing_prove_nothing():
    ours = reference("ranked")
    nothing = np.zeros((1, 0, 6), np.float32)
    some = replace(ours, outputs=(nothing, nothing, nothing, *ours.outputs[3:]))
    wrong = parity_of(Known([nothing] * 3 + [outputs("ranked", 98), outputs("ranked", 99)]), some, "float32")
    assert (wrong.images, wrong.agrees) == (2, False)
    empty = parity_of(Known([nothing] * 5), replace(ours, outputs=(nothing,) * 5), "float32")
    assert (empty.images, empty.agrees) == (0, True)
    assert empty.sentence == "its checkpoint finds nothing in the images that it was to be compared on"
    seen = parity_of(Known([ours.outputs[0]] * 5), replace(ours, outputs=(nothing,) * 5), "float32")
    assert not seen.agrees, "the file finds something there"


def test_numbers_of_any_kind_are_compared_by_their_scale():
    ours = Reference(np.zeros((1, 3, 8, 8), np.float32), (np.full((1, 9), 500, np.float32),), 0)
    assert parity_of(Known([ours.outputs[0] + 0.25]), ours, "float32") == Parity(0.25, 500.0, 0.0)
    assert not parity_of(Known([ours.outputs[0] + 1]), ours, "float32").agrees


def test_a_reference_is_read_as_it_was_written(tmp_path):
    ours = reference("ranked", images=2)
    ours = replace(ours, outputs=(ours.outputs[0], np.zeros((1, 0, 6), np.float32)))
    read = Reference.read(ours.save(tmp_path / "a.npz"))
    assert read.classes == CLASSES
    assert np.array_equal(read.pixels, ours.pixels)
    assert all(np.array_equal(*pair) for pair in zip(read.outputs, ours.outputs, strict=True))
