"""The timing protocol under fake clocks: what it must cancel, and what only alternation can cancel."""

import numpy as np
import pytest

from yolo_prune.bench.clock import (
    FIELDS,
    MAX_ROUNDS,
    MIN_ROUNDS,
    Schedule,
    Step,
    alternate,
    frames_per_second,
    measure,
    midmean,
    paired_ratio,
    percentiles,
    plan_schedule,
    warm_up,
)
from yolo_prune.bench.results import compare_samples, summarise

LATENCY = FIELDS.index("latency_ms")


class Machine:
    """A machine whose slowness is a function of its own time; candidates advance that time."""

    def __init__(self, slowness=lambda _second: 1.0):
        self.now = 0.0
        self.slowness = slowness
        self.calls = []

    def clock(self):
        return self.now

    def stepper(self, name, milliseconds):
        def step(index):
            self.calls.append((name, index))
            taken = milliseconds * self.slowness(self.now)
            self.now += taken / 1e3
            return Step(taken, 0.1 * taken, 0.8 * taken, 0.1 * taken, milliseconds)

        return step


def latencies(machine, steppers, schedule, orders=None):
    turns = list(measure(steppers, schedule, orders))
    return {name: np.stack([turn[name] for turn in turns])[..., LATENCY] for name in steppers}


def drift(second):
    return 1.0 + 0.2 * second


def test_drift_hits_both_candidates_and_cancels_in_the_ratio():
    machine = Machine(drift)
    steppers = {"a": machine.stepper("a", 20.0), "b": machine.stepper("b", 10.0)}
    times = latencies(machine, steppers, Schedule(60, 3, 1))
    ratio = paired_ratio(times["a"], times["b"])
    assert ratio.low < 2.0 < ratio.high
    assert ratio.value == pytest.approx(2.0, rel=0.01)


def test_control_one_candidate_after_the_other_takes_drift_for_a_difference():
    machine = Machine(drift)
    steppers = {name: machine.stepper(name, 10.0) for name in "ab"}
    first = latencies(machine, {"a": steppers["a"]}, Schedule(60, 3, 1))
    second = latencies(machine, {"b": steppers["b"]}, Schedule(60, 3, 1))
    ratio = paired_ratio(first["a"], second["b"])
    assert not ratio.low <= 1.0 <= ratio.high


def test_control_a_fixed_order_takes_a_throttle_of_the_second_place_for_a_difference():
    """Who comes second in a round finds a hotter machine: rotation shares that, a fixed order does not."""

    def hot_second_half(machine):
        return 1.1 if len(machine.calls) % 8 > 4 or len(machine.calls) % 8 == 0 else 1.0

    results = {}
    for kind in ("rotated", "fixed"):
        machine = Machine()
        machine.slowness = lambda _second, machine=machine: hot_second_half(machine)
        steppers = {name: machine.stepper(name, 10.0) for name in "ab"}
        orders = None if kind == "rotated" else [("a", "b")] * 41
        times = latencies(machine, steppers, Schedule(41, 3, 1), orders)
        results[kind] = paired_ratio(times["a"], times["b"])
    assert results["rotated"].low <= 1.0 <= results["rotated"].high
    assert results["fixed"].high < 1.0


def test_every_candidate_sees_the_same_steps_and_takes_every_place_equally_often():
    orders = list(alternate(["a", "b", "c"], 6))
    for place in range(3):
        assert sorted(order[place] for order in orders) == list("aabbcc")
    machine = Machine()
    list(measure({name: machine.stepper(name, 1.0) for name in "abc"}, Schedule(6, 3, 1)))
    steps = {name: [index for caller, index in machine.calls if caller == name] for name in "abc"}
    assert steps["a"] == steps["b"] == steps["c"] == list(range(24))


def test_untimed_steps_are_run_and_not_counted():
    machine = Machine()
    turns = list(measure({"a": machine.stepper("a", 1.0)}, Schedule(5, 3, 2)))
    assert len(machine.calls) == 25
    assert [turn["a"].shape for turn in turns] == [(3, len(FIELDS))] * 5


def test_warm_up_ignores_a_slow_start():
    machine = Machine(lambda second: 20.0 if second < 0.15 else 1.0)
    assert warm_up(machine.stepper("a", 5.0), machine.clock) == pytest.approx(0.005)
    slow = Machine()
    warm_up(slow.stepper("a", 2000.0), slow.clock)
    assert len(slow.calls) == 3


@pytest.mark.parametrize(
    ("step_seconds", "seconds", "rounds", "expected"),
    [
        ([0.010, 0.005], 6.0, None, Schedule(200, 3, 1)),
        ([0.010], 6.0, None, Schedule(150, 3, 1)),
        ([0.5, 0.3], 6.0, None, Schedule(15, 1, 0)),
        ([3.0, 3.0], 6.0, None, Schedule(MIN_ROUNDS, 1, 0)),
        ([1e-5], 6.0, None, Schedule(MAX_ROUNDS, 3, 1)),
        ([0.0], 6.0, None, Schedule(MAX_ROUNDS, 3, 1)),
        ([0.010], 6.0, 4, Schedule(4, 3, 1)),
    ],
)
def test_the_schedule_fits_the_time_budget(step_seconds, seconds, rounds, expected):
    assert plan_schedule(step_seconds, seconds, rounds) == expected


def test_a_long_time_is_filled_with_untimed_steps_where_the_machine_is_to_work_all_of_it():
    schedule = plan_schedule([0.001], 600.0, fill=True)
    assert (schedule.rounds, schedule.timed) == (MAX_ROUNDS, 3)
    assert MAX_ROUNDS * (schedule.timed + schedule.untimed) * 0.001 == pytest.approx(600, rel=0.01)
    assert plan_schedule([0.001], 600.0).untimed == 1
    assert plan_schedule([0.1], 600.0, fill=True) == plan_schedule([0.1], 600.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        noise = generator.lognormal(0.0, 0.1, (2, 60, 3))
        ratio = paired_ratio(15.0 * noise[0], 10.0 * noise[1], resamples=400, seed=trial)
        covered += ratio.low <= 1.5 <= ratio.high
    assert covered >= 88


def test_the_ratio_inverts_when_the_candidates_swap_and_the_seed_reproduces_it():
    noise = np.random.default_rng(0).lognormal(0.0, 0.2, (2, 31, 3))
    forward, backward = paired_ratio(noise[0], noise[1]), paired_ratio(noise[1], noise[0])
    assert forward.value == pytest.approx(1 / backward.value)
    assert forward == paired_ratio(noise[0], noise[1])


def test_fps_counts_images_and_comes_from_the_median():
    steps = np.full((11, 1, len(FIELDS)), 20.0)
    steps[0] = 2000.0
    facts = {
        "runtime": "torch",
        "runtime_version": "0",
        "device": "cpu",
        "device_name": "cpu",
        "threads": 1,
        "batch": 4,
        "imgsz": 64,
        "load1": None,
    }
    timing = summarise(steps, facts)
    assert timing.fps == pytest.approx(200.0) == frames_per_second(20.0, 4)
    assert timing.latency_ms["p50"] == 20.0
    assert timing.latency_ms["p99"] > 1000.0
    assert timing.samples == 11


def test_the_midmean_forgets_the_outer_quarters():
    assert midmean(np.array([-1e9, 1.0, 2.0, 1e9])) == 1.5
    assert midmean(np.array([[3.0], [4.0]])).tolist() == [3.0, 4.0]


def test_percentiles_of_one_to_a_hundred():
    found = percentiles(np.arange(1.0, 101.0))
    assert found == pytest.approx({"p10": 10.9, "p50": 50.5, "p90": 90.1, "p99": 99.01})


def test_a_clock_too_coarse_to_see_a_step_gives_no_ratio_instead_of_infinity():
    steps = np.ones((10, 3, len(FIELDS)))
    steps[..., FIELDS.index("cpu_ms")] = 0.0
    assert set(compare_samples(steps, steps)) == {"latency", "net"}
