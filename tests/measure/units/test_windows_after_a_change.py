"""What windows say before and after units die, at the steps that a fit with the default schedule looks at.

By simulation: units are active at random, independently of each other, each at a rate of its own, until some die. What a
window says is recounted from all that was drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_gradwatch.fit.schedule import Schedule
from lightning_gradwatch.measure.units.silence import WindowEntry
from lightning_gradwatch.measure.units.window import Window, fractions
from lightning_gradwatch.measure.units.windows import Windows

BATCHES = [4, 8, 16, 64, 1024]
EVERY = 50


@dataclass
class Layers:
    """Layers of as many units each, shape [S, U], and what was seen of them."""

    rates: np.ndarray
    batch: int
    seed: int = 0
    role: str = "hidden"

    def __post_init__(self):
        self.generator = np.random.default_rng(self.seed)
        self.windows, self.schedule = Windows(1024, 32, 256), Schedule(EVERY)
        units = self.rates.shape[1]
        self.sites = [SimpleNamespace(name=f"{place}", units=units, role=self.role) for place in range(len(self.rates))]
        self.looks = []
        """Of each step that was looked at the step, and which units were inactive in all of it, shape [S, U]."""
        self.further = self.step = 0

    def kill(self, dying):
        self.rates = np.where(dying, 0.0, self.rates)

    def run(self, steps):
        """Go on for so many steps; yield the windows at each that is due."""
        for step in range(self.step, self.step + steps):
            due = self.schedule.due(step, confirming=False)
            if due or self.watched(step):
                held = self.look(step, due=due)
                if due:
                    yield held
        self.step += steps

    def watched(self, step):
        if not self.windows.full and self.schedule.fills_windows():
            return True
        looks = self.schedule.looks(step, self.windows.wanted)
        if looks:
            self.windows.look()
            self.further += 1
        return looks

    def look(self, step, *, due):
        active = self.generator.binomial(self.batch, self.rates)
        self.looks.append((step, active == 0))
        chunks = [WindowEntry(self.batch - each, None, self.batch, self.batch) for each in active]
        return self.windows.take(self.sites, chunks, due=due)

    def held(self, window):
        """Which looks a window holds, the oldest first: by its size alone, all being as large."""
        count, rest = divmod(window.total.observations, self.batch)
        assert rest == 0
        return self.looks[-count:]

    def recounted(self, held):
        """The dead fraction of each window, counted again; NaN where it isn't full."""
        return np.array(
            [
                np.all([silent[place] for _, silent in self.held(window)], axis=0).mean() if window.full else np.nan
                for place, window in enumerate(held)
            ]
        )


def a_half(generator, shape):
    """Which half of each layer's units die."""
    return np.argsort(generator.random(shape), axis=1) < shape[1] // 2


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", [(1, 10_000), (625, 16)])
def test_the_death_of_half_of_the_units_shows_within_200_steps(shape, batch):
    """10,000 units that are active in a quarter to three quarters of observations, in one layer and in layers of 16."""
    generator = np.random.default_rng(batch)
    layers = Layers(generator.uniform(0.25, 0.75, shape), batch)
    for held in layers.run(300 + int(generator.integers(EVERY))):
        found = fractions(held)[0]
        np.testing.assert_array_equal(found, layers.recounted(held))
    assert found.max() == 0
    dying, died = a_half(generator, shape), layers.step
    layers.kill(dying)
    for held in layers.run(200):
        found = fractions(held)[0]
        np.testing.assert_array_equal(found, layers.recounted(held))
        assert (np.isnan(found) | (abs(found - 0.5) <= 0.1) | (found == 0)).all()
    right = abs(found - 0.5) <= 0.1
    assert right.mean() > 0.99
    for window in (held[place] for place in np.flatnonzero(right)):
        assert window.total.observations >= 256
        assert window.total.batch_elements >= 32
        assert layers.held(window)[0][0] >= died
    assert layers.further <= 64


@pytest.mark.parametrize("batch", [4, 8, 16, 64])
def test_it_shows_in_a_small_layer_alone(batch):
    """Here 16 units of one layer are all the evidence; where that doesn't do in time, the number is absent, not wrong."""
    generator = np.random.default_rng(batch)
    right = []
    for fit in range(20):
        layers = Layers(generator.uniform(0.2, 0.8, (1, 16)), batch, seed=fit)
        list(layers.run(300 + int(generator.integers(EVERY))))
        layers.kill(a_half(generator, (1, 16)))
        *_, held = layers.run(200)
        found = fractions(held)[0].item()
        right.append(abs(found - 0.5) <= 0.1)
        assert right[-1] or np.isnan(found)
        assert layers.further <= 64 + 3
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("batch", [4, 8, 16, 64])
@pytest.mark.parametrize("gap", [1, 7, 30, 60])
def test_units_that_die_one_half_after_the_other_are_all_counted(batch, gap):
    """The window must begin when the last of them died, not when the first did."""
    layers = Layers(np.full((1, 16), 0.5), batch)
    list(layers.run(310))
    layers.kill(np.arange(16)[None] < 4)
    list(layers.run(gap))
    layers.kill(np.arange(16)[None] < 10)
    for held in layers.run(200 + (EVERY if batch == 4 else 0)):
        found = fractions(held)[0].item()
    assert found == 10 / 16


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", [(1, 10_000), (625, 16)])
def test_a_unit_that_is_active_in_2_of_100_observations_is_seldom_called_dead(shape, batch):
    """In less than one window of a hundred; and 228 observations would do: 0.98 ** 228 = 0.00999."""
    assert 0.98**228 < 0.01 < 0.98**227
    layers = Layers(np.full(shape, 0.02), batch)
    wrong = [fractions(held)[0] for held in layers.run(1000)]
    wrong = [each for each in wrong if not np.isnan(each).all()]
    assert len(wrong) > 15
    assert max(np.nanmean(each) for each in wrong) < 0.01


@pytest.mark.parametrize("batch", BATCHES)
def test_nor_is_it_where_other_units_die_and_its_window_begins_anew(batch):
    """The window then is as short as it gets."""
    rates = np.full((1, 10_000), 0.5)
    rates[0, 5000:] = 0.02
    layers = Layers(rates, batch)
    list(layers.run(300))
    dying = np.zeros((1, 10_000), dtype=bool)
    dying[0, :5000] = True
    layers.kill(dying)
    wrong = [fractions(held)[0].item() - 0.5 for held in layers.run(400)]
    wrong = [2 * each for each in wrong if each >= 0]
    assert len(wrong) > 3
    assert 0 < max(wrong) < 0.01 or batch == 1024


@pytest.mark.parametrize(("batch", "rate"), [(4, 0.5), (4, 0.1), (16, 0.05), (64, 0.02)])
def test_without_a_change_hardly_a_step_is_watched(batch, rate):
    layers = Layers(np.full((8, 16), rate), batch)
    found = np.array([fractions(held)[0] for held in layers.run(10_000)])
    assert layers.further <= 0.005 * 10_000
    assert np.isnan(found[20:]).mean() < 0.01


def test_units_that_are_alike_cost_no_more_than_the_schedule_has():
    """All units of a batch follow one element: evidence as it would be of many is of one."""

    class Alike(Layers):
        def look(self, step, *, due):
            rates = self.rates
            self.rates = np.broadcast_to(self.generator.choice([0.0, 0.6], (len(rates), 1), p=[0.4, 0.6]), rates.shape)
            try:
                return super().look(step, due=due)
            finally:
                self.rates = rates

    layers = Alike(np.full((4, 16), 0.5), 8)
    found = np.array([fractions(held)[0] for held in layers.run(20_000)])
    assert layers.further <= 192
    assert np.isnan(found[-100:]).mean() < 0.1
    assert np.nanmax(found) == 0


def test_batches_that_come_sorted_are_soon_known_to_be_no_death():
    """200 steps of one kind, then of the other, and each kind lets half of the units sleep: what dies is up again later."""
    rates = np.full((1, 16), 0.5)
    layers = Layers(rates, 16)
    found = []
    list(layers.run(200))
    for stretch in range(100):
        layers.rates = np.where((np.arange(16) < 8) == (stretch % 2), 0.0, rates)
        found.append([fractions(held)[0].item() for held in layers.run(200)])
    first, last = np.array(found[:15]), np.array(found[-25:])
    assert layers.further <= 192
    assert np.mean(first > 0) > 0.1  # at first each stretch looks like a death
    assert np.mean(last > 0) < 0.05
    assert np.isnan(last).mean() < 0.1


def test_the_other_roles_windows_ask_for_nothing_and_still_let_go():
    layers = Layers(np.full((1, 16), 0.5), 32, role="output")
    list(layers.run(300))
    layers.kill(np.arange(16)[None] < 8)
    numbers = [fractions(held)[0].item() for held in layers.run(500)]
    assert layers.further == 0
    assert not np.isnan(numbers).any()
    assert (numbers[0], numbers[-1]) == (0, 0.5)


def test_saturation_is_followed_as_death_is():
    windows, site = Windows(1024, 32, 256), SimpleNamespace(name="a", units=4, role="hidden")

    def take(saturated, steps):
        counts = np.array(saturated, dtype=np.int64)
        for _ in range(steps):
            (window,) = windows.take([site], [WindowEntry(np.zeros_like(counts), counts, 16, 16)])
        return fractions([window])[1].item()

    assert take([2, 2, 2, 2], 64) == 0
    assert np.isnan(take([16, 16, 2, 2], 1))
    assert np.isnan(take([16, 16, 2, 2], 14))
    assert take([16, 16, 2, 2], 1) == 0.5


@pytest.mark.parametrize("saved_after", [0, 1, 7, 40])
def test_a_suspicion_survives_a_checkpoint(saved_after):
    def run(saves):
        layers = Layers(np.full((3, 16), 0.4), 8, seed=3)
        list(layers.run(320))
        layers.kill(np.arange(16)[None] < np.array([[8], [0], [16]]))
        found = []
        for part in (30 + saved_after, 400):
            found += [fractions(held)[0] for held in layers.run(part)]
            if saves:
                file = io.BytesIO()
                torch.save([layers.windows.state_dict(), layers.schedule.state_dict()], file)
                file.seek(0)
                layers.windows, layers.schedule = Windows(1024, 32, 256), Schedule(EVERY)
                for each, state in zip(
                    (layers.windows, layers.schedule), torch.load(file, weights_only=True), strict=True
                ):
                    each.load_state_dict(state)
        return np.array(found), [step for step, _ in layers.looks], layers.windows.state_dict()

    straight, cut = run(saves=False), run(saves=True)
    np.testing.assert_array_equal(straight[0], cut[0])
    assert straight[1] == cut[1]
    assert str(straight[2]) == str(cut[2])
    assert straight[0][-1].tolist() == [0.5, 0, 1]


def test_a_state_of_a_release_without_suspicions_is_read():
    layers = Layers(np.full((1, 16), 0.4), 8)
    *_, (window,) = layers.run(200)
    old = {"chunks": window.state_dict()["chunks"]}
    read = Window(1024, 32, 256)
    read.load_state_dict(old)
    assert (read.fill, read.suspicion, fractions([read])[0]) == (1.0, None, fractions([window])[0])


def test_memory_is_bounded_while_a_suspicion_is_open():
    """Batches of one: it takes hundreds of steps to settle, and the chunks are put together meanwhile."""
    layers = Layers(np.full((1, 16), 0.7), 1)
    list(layers.run(20_000))
    layers.kill(np.arange(16)[None] < 8)
    longest = 0
    for (window,) in layers.run(11_000):
        longest = max(longest, len(window.chunks))
        assert window.full is (window.suspicion is None)
    assert longest <= 64 + 16 + 3
    assert layers.further <= 192
