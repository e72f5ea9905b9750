"""Rolling windows against a naive recount over stored observations."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.measure.units.silence import WindowEntry
from lightning_gradwatch.measure.units.window import Window, fractions


def chunk(inactive, saturated, batch_elements):
    """Count booleans [observations, units]."""
    return WindowEntry(
        inactive=inactive.sum(0).astype(np.int64),
        saturated=None if saturated is None else saturated.sum(0).astype(np.int64),
        observations=len(inactive),
        batch_elements=batch_elements,
    )


def all_inactive(observations, batch_elements, units=3):
    return chunk(np.ones((observations, units), bool), None, batch_elements)


def dead_fraction(window):
    return fractions([window])[0].item()


def saturated_fraction(window):
    return fractions([window])[1].item()


class Naive:
    """Keeps every step and looks back over as few as hold enough."""

    def __init__(self, observations, batch_elements):
        self.observations, self.batch_elements = observations, batch_elements
        self.steps = []

    def fractions(self):
        taken, observations, batch_elements = [], 0, 0
        for step in reversed(self.steps):
            taken.append(step)
            observations += len(step[0])
            batch_elements += step[2]
            if observations >= self.observations and batch_elements >= self.batch_elements:
                break
        else:
            return math.nan, math.nan
        inactive = np.concatenate([step[0] for step in taken])
        dead = inactive.all(0)
        if taken[0][1] is None:
            return dead.mean(), math.nan
        saturated = np.concatenate([step[1] for step in taken])
        # In integers: at least 95 of 100.
        often = np.array([100 * int(unit.sum()) >= 95 * len(unit) for unit in saturated.T])
        return dead.mean(), (often & ~dead).mean()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_fractions_are_those_of_the_fewest_recent_steps_that_are_enough(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    needed = data.draw(st.integers(1, 200), "observations"), data.draw(st.integers(1, 40), "batch elements")
    window, naive = Window(*needed), Naive(*needed)
    units, judged = data.draw(st.integers(1, 6), "units"), data.draw(st.booleans(), "can be saturated")
    for _ in range(data.draw(st.integers(1, 12), "steps")):
        observations = data.draw(st.integers(16, 80), "observations of a step")
        batch_elements = data.draw(st.integers(1, 20), "batch elements of a step")
        rate = generator.choice([0.0, 0.5, 0.95, 1.0], size=(2, units))
        inactive, saturated = generator.random((2, observations, units)) < rate[:, None]
        step = (inactive, saturated if judged else None, batch_elements)
        window.add(chunk(*step))
        naive.steps.append(step)
        dead, often = naive.fractions()
        assert window.full is not math.isnan(dead)
        np.testing.assert_array_equal([dead_fraction(window), saturated_fraction(window)], [dead, often])
        held = sum(len(step[0]) for step in naive.steps), sum(step[2] for step in naive.steps)
        assert window.fill == min(1.0, held[0] / needed[0], held[1] / needed[1])


def test_each_of_many_windows_has_its_own_fractions():
    """Of several sizes, full and not, judged and not, and sites without any."""
    generator = np.random.default_rng(0)
    windows = []
    for units in generator.integers(0, 4, size=60):
        if units == 3:
            windows.append(None)
            continue
        window = Window(40, 1)
        judged = generator.random() < 0.5
        for _ in range(generator.integers(1, 5)):
            inactive, saturated = generator.random((2, 20, units)) < generator.choice([0.0, 0.97, 1.0], (2, 1, units))
            window.add(chunk(inactive, saturated if judged else None, 1))
        windows.append(window)
    together = fractions(windows)
    alone = [
        (math.nan, math.nan) if window is None else (dead_fraction(window), saturated_fraction(window))
        for window in windows
    ]
    np.testing.assert_array_equal(np.transpose(together), alone)
    assert (np.nan_to_num(together).max(1) > 0).all()
    assert all(np.isnan(vector).any() for vector in together)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=80))
def test_tiny_steps_may_share_a_chunk_but_the_window_holds_enough_and_hardly_more(steps):
    window = Window(40, 1)
    seen = []
    for observations, inactive in steps:
        window.add(chunk(np.full((observations, 1), inactive), None, observations))
        seen += [inactive] * observations
        assert window.full is (len(seen) >= 40)
        if window.full:
            dead = dead_fraction(window) == 1.0
            assert dead <= all(seen[-40:])  # never dead when one of the last 40 was alive
            assert dead >= all(seen[-40 - 36 :])  # and dead at the latest when the chunks before it are gone
    assert len(window.chunks) <= 1 + 40 // 16 + 1 + 16  # the newest ones stay apart


@pytest.mark.parametrize(
    ("steps", "full"),
    [
        ([(1023, 32)], False),
        ([(1024, 31)], False),
        ([(1024, 32)], True),
        ([(512, 16), (512, 15)], False),
        ([(512, 16), (512, 16)], True),
        ([(64, 1)] * 31, False),
        ([(64, 1)] * 32, True),
    ],
)
def test_it_is_full_with_1024_observations_of_32_batch_elements(steps, full):
    window = Window(1024, 32)
    for step in steps:
        window.add(all_inactive(*step))
    assert window.full is full
    assert (window.fill == 1.0) is full
    assert math.isnan(dead_fraction(window)) is not full
    assert math.isnan(saturated_fraction(window))  # not applicable, full or not


@pytest.mark.parametrize(
    ("steps", "fill"),
    [([(255, 32)], 255 / 256), ([(256, 31)], 31 / 32), ([(256, 32)], 1.0), ([(2048, 16)], 0.5), ([(2048, 32)], 1.0)],
)
def test_full_is_from_256_observations_on_though_1024_are_wanted(steps, fill):
    window = Window(1024, 32, 256)
    for step in steps:
        window.add(all_inactive(*step))
    assert (window.full, window.fill) == (fill == 1.0, fill)
    assert math.isnan(dead_fraction(window)) is (fill < 1)


def test_a_full_window_goes_on_growing_to_what_is_wanted():
    window = Window(1024, 32, 256)
    for _ in range(20):
        window.add(all_inactive(64, 64))
    assert window.total.observations == 1024


def test_it_is_empty_at_first():
    window = Window(10, 1)
    assert (window.full, window.fill) == (False, 0.0)
    assert math.isnan(dead_fraction(window))
    assert math.isnan(saturated_fraction(window))


@pytest.mark.parametrize(
    ("observations", "saturated", "often"),
    [(100, 95, True), (100, 94, False), (20, 19, True), (20, 18, False), (101, 96, True), (101, 95, False), (60, 57, True), (60, 56, False)],
)  # fmt: skip
def test_saturated_is_from_exactly_95_of_100_on(observations, saturated, often):
    window = Window(20, 1)
    marks = (np.arange(observations) < saturated)[:, None]
    window.add(chunk(np.zeros_like(marks), marks, 1))
    assert saturated_fraction(window) == float(often)


def test_a_dead_unit_is_not_also_saturated():
    window = Window(20, 1)
    ones = np.ones((20, 2), bool)
    alive_once = ones.copy()
    alive_once[7, 1] = False
    window.add(chunk(alive_once, ones, 1))
    assert dead_fraction(window) == 0.5
    assert saturated_fraction(window) == 0.5


def test_one_live_observation_keeps_a_unit_alive_until_it_leaves_the_window():
    window = Window(64, 1)
    alive = np.ones((32, 4), bool)
    alive[5, 2] = False
    window.add(chunk(alive, None, 1))
    window.add(all_inactive(32, 1, units=4))
    assert dead_fraction(window) == 0.75
    window.add(all_inactive(32, 1, units=4))
    assert dead_fraction(window) == 1.0


def test_a_step_that_is_enough_by_itself_pushes_all_others_out():
    window = Window(64, 8)
    window.add(chunk(np.zeros((64, 2), bool), None, 8))
    window.add(all_inactive(64, 7, units=2))
    assert dead_fraction(window) == 0.0
    window.add(all_inactive(64, 8, units=2))
    assert dead_fraction(window) == 1.0


def test_other_units_start_a_new_window():
    window = Window(16, 1)
    window.add(all_inactive(16, 1, units=3))
    window.add(chunk(np.zeros((16, 5), bool), None, 1))
    assert dead_fraction(window) == 0.0
    assert window.fill == 1.0


def test_what_was_added_is_not_changed():
    window = Window(16, 1)
    first = all_inactive(4, 1)
    window.add(first)
    for _ in range(5):
        window.add(all_inactive(20, 1))
    assert (first.inactive.tolist(), first.observations) == ([4, 4, 4], 4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_window_goes_on_after_a_checkpoint_as_if_nothing_had_been(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    judged = data.draw(st.booleans(), "can be saturated")
    steps = []
    for _ in range(data.draw(st.integers(0, 10), "steps")):
        observations = data.draw(st.integers(1, 60), "observations")
        inactive, saturated = generator.random((2, observations, 4)) < generator.choice([0.9, 1.0], size=(2, 1, 4))
        steps.append((inactive, saturated if judged else None, data.draw(st.integers(1, 9), "batch")))
    cut = data.draw(st.integers(0, len(steps)), "saved after")
    straight, before, after = Window(100, 10), Window(100, 10), Window(100, 10)
    for step in steps[:cut]:
        straight.add(chunk(*step))
        before.add(chunk(*step))
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    for step in [None, *steps[cut:]]:
        if step is not None:
            straight.add(chunk(*step))
            after.add(chunk(*step))
        np.testing.assert_array_equal(
            [after.fill, dead_fraction(after), saturated_fraction(after)],
            [straight.fill, dead_fraction(straight), saturated_fraction(straight)],
        )


def test_loading_replaces_what_was_there():
    window = Window(16, 1)
    window.add(all_inactive(16, 1))
    window.load_state_dict(Window(16, 1).state_dict())
    assert (window.fill, window.full) == (0.0, False)
