"""Which widths a runtime likes: made-up machines that work on blocks of channels, and what is told of them."""

from dataclasses import replace

import pytest

from yolo_prune.cost.granularity import STEPS, liked, probes
from yolo_prune.errors import BudgetError
from yolo_prune.layers import LayerShape

LAYERS = [
    LayerShape(32, 3, (3, 3), (2, 2), (1, 1), height=64, width=64),
    LayerShape(64, 32, (3, 3), padding=(1, 1), height=32, width=32),
    LayerShape(128, 64, height=16, width=16),
    LayerShape(64, 1, (3, 3), padding=(1, 1), groups=64, height=16, width=16),
]
FACTS = {"runtime": "made up", "device": "cpu", "threads": 1, "load": 9}


def in_blocks(block, odd=1.0):
    """Time on a machine that computes whole blocks of channels; an odd width costs a factor beside."""

    def ms(shape):
        outputs, reads = (-(-width // block) * block for width in (shape.outputs, shape.reads))
        slow = odd if shape.outputs % 2 or shape.reads % 2 else 1.0
        return slow * shape.resized(outputs, reads).macs / 1e6

    return ms


def told(time_of, layers=LAYERS):
    return liked(layers, {shape: time_of(shape) for shape in probes(layers)}, FACTS)


@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_a_machine_of_small_blocks_whose_rest_is_slow_code_is_seen_through(block):
    """Where what is no multiple of the block takes twice as long, the block is the step."""

    def ms(shape):
        whole = shape.outputs % block == shape.reads % block == 0
        return shape.macs / 1e6 * (1.0 if whole else 2.0)

    found = told(ms)
    assert found.step == block
    assert [share == pytest.approx(1.0) for share in found.speeds.values()] == [s >= block for s in STEPS]


def test_padded_blocks_cost_what_they_pad():
    found = told(in_blocks(32))
    assert found.step == 32
    assert told(in_blocks(1)).step == 1  # the control


def test_a_step_that_costs_less_than_three_per_cent_is_taken():
    """Half of all whole numbers are odd: what odd widths cost counts by half."""
    assert told(in_blocks(1, odd=1.05)).step == 1
    assert told(in_blocks(1, odd=1.08)).step == 2


def test_where_coarse_steps_are_slower_the_best_step_counts_and_not_the_largest():
    """A machine that is slower at multiples of 16, and takes twice as long at odd widths."""

    def ms(shape):
        slow = 2.0 if shape.outputs % 2 else 1.3 if shape.outputs % 16 == 0 else 1.0
        return slow * shape.macs / 1e6

    found = told(ms)
    assert max(found.speeds, key=found.speeds.get) == 2
    assert found.step == 2
    assert found.speeds[32] == pytest.approx(found.speeds[16])


def test_widths_on_both_sides_are_those_of_their_step_alone():
    shapes = probes(LAYERS[1:2])
    assert [(shape.outputs, shape.reads) for shape in shapes] == [
        *((63, 63), (65, 65), (62, 62), (66, 66), (60, 60), (68, 68)),
        *((56, 56), (72, 72), (48, 48), (80, 80), (64, 64)),
    ]
    assert {replace(shape, outputs=0, reads=0) for shape in shapes} == {LAYERS[1].family}


def test_large_maps_are_made_smaller_and_small_ones_stay():
    large = replace(LAYERS[1], height=320, width=320)
    assert {shape.height for shape in probes([large])} == {40}
    assert {shape.height for shape in probes(LAYERS[1:2])} == {32}


def test_what_is_kept_says_what_was_measured_and_where():
    found = told(in_blocks(8))
    assert found.to_dict() == {
        **{"runtime": "made up", "device": "cpu", "threads": 1, "step": 8, "layers": 2},
        "speeds": {str(step): round(share, 4) for step, share in found.speeds.items()},
    }
    assert found.text.startswith("widths become multiples of 8: on made up, 2 convolutions of widths")


def test_a_network_without_wide_convolutions_cannot_tell():
    narrow = [LAYERS[0], LAYERS[3]]
    assert probes(narrow) == []
    with pytest.raises(
        BudgetError, match=r"^round_to=auto: no convolution of this model has 16 channels on both"
    ):
        liked(narrow, {}, FACTS)


def test_times_without_other_widths_are_refused():
    with pytest.raises(
        BudgetError, match=r"hold no widths beside multiples of 8, such as conv .*give round_to=8"
    ):
        liked(LAYERS, {}, FACTS)


@pytest.mark.parametrize(
    ("shape", "macs"),
    [
        (LayerShape(8, 4, (3, 3), (2, 2), (1, 1), height=9, width=8), 8 * 4 * 9 * 5 * 4),
        (LayerShape(6, 8, (2, 2), (2, 2), height=5, width=4, transposed=True), 6 * 8 * 4 * 5 * 4),
        (LayerShape(5, 8), 40),
    ],
)
def test_the_macs_of_a_layer_alone(shape, macs):
    assert shape.macs == macs
