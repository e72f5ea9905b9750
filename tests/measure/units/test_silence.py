"""The evidence that units have died, against plain Python and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.measure.units.silence import WindowEntry, bar, bits, evidence, unpacked


def by_hand(active, silent, observations, before, since):
    """One site, unit by unit, in plain numbers."""
    total = 0.0
    for count, quiet in zip(active, silent, strict=True):
        if not count:
            continue
        if not quiet:
            total += math.log(2 / 3)
            continue
        chance = (1 + since / before) ** -(count / observations * before + 0.5)
        total += math.log(2 / 3 + 1 / 3 / chance)
    return total


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_it_is_the_ratio_of_the_likelihoods_unit_by_unit(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    sites, units = data.draw(st.integers(1, 4), "sites"), data.draw(st.integers(1, 20), "units")
    before = generator.integers(1, 300, size=(sites, 1))
    observations = before * generator.integers(1, 20, size=(sites, 1))
    active = np.minimum(generator.integers(0, 400, size=(sites, units)), observations)
    silent = (generator.random((sites, units)) < 0.5) & (active > 0)
    since = generator.integers(0, 60, size=(sites, 1))
    found = evidence(active, silent, observations, before, since)
    expected = [
        by_hand(*each)
        for each in zip(
            active.tolist(),
            silent.tolist(),
            observations[:, 0],
            before[:, 0].tolist(),
            since[:, 0].tolist(),
            strict=True,
        )
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_it_holds_for_units_that_are_never_silent():
    """A chance of 1e-4000 is no number of float64, its logarithm is."""
    found = evidence(*np.array([[[10**6] * 4], [[1] * 4]]), *np.array([[[10**6]], [[10**6]], [[10**4]]]))
    assert found == pytest.approx(4 * (10**6 + 0.5) * math.log(1.01) - 4 * math.log(3), rel=1e-9)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("batch", [4, 16, 64])
@pytest.mark.parametrize("sites", [1, 20])
def test_chance_seldom_reaches_the_bar(rate, batch, sites):
    """Over all sites, if nothing has changed and units are independent; what is known of them comes from 256 observations."""
    generator = np.random.default_rng(0)
    looks = 4000 // sites
    active = generator.binomial(256, rate, size=(looks * sites, 16))
    silent = (generator.binomial(batch, rate, size=active.shape) == 0) & (active > 0)
    each = np.ones((looks * sites, 1), dtype=np.int64)
    found = evidence(active, silent, 256 * each, 256 * each, batch * each).reshape(looks, sites)
    assert np.mean(found.max(axis=1) >= bar(sites)) < 0.1


@pytest.mark.parametrize(("batch", "rate"), [(4, 0.5), (8, 0.3), (16, 0.15), (64, 0.05)])
def test_a_half_of_16_units_that_died_reaches_it_at_the_first_look(batch, rate):
    generator = np.random.default_rng(0)
    active = generator.binomial(256, rate, size=(1000, 16))
    silent = (generator.binomial(batch, rate, size=active.shape) == 0) | (np.arange(16) < 8)
    each = np.ones((1000, 1), dtype=np.int64)
    found = evidence(active, silent & (active > 0), 256 * each, 256 * each, batch * each)
    assert np.mean(found >= bar(1)) > 0.95


def test_positions_of_one_element_are_no_more_than_one_observation():
    """The same share of active positions, over as many elements: as much evidence."""
    alone = evidence(*np.array([[[128] * 4], [[1] * 4]]), *np.array([[[256]], [[256]], [[8]]]))
    tokens = evidence(*np.array([[[128 * 50] * 4], [[1] * 4]]), *np.array([[[256 * 50]], [[256]], [[8]]]))
    assert alone == pytest.approx(tokens)


@given(st.integers(1, 4), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_masks_are_numbers_of_bits_and_back(rows, units, seed):
    masks = np.random.default_rng(seed).random((rows, units)) < 0.3
    numbers = bits(masks)
    assert [number.bit_count() for number in numbers] == masks.sum(axis=1).tolist()
    np.testing.assert_array_equal(unpacked(numbers, units), masks)
    both = numbers[0] & numbers[-1]
    np.testing.assert_array_equal(unpacked([both], units)[0], masks[0] & masks[-1])


def test_a_step_is_silent_where_a_unit_was_never_otherwise():
    counts = WindowEntry(np.array([4, 3, 0, 4]), np.array([0, 1, 4, 4]), 4, 4)
    assert unpacked([counts.silent], 4)[0].tolist() == [True, False, True, True]
    assert unpacked([WindowEntry(np.array([4, 3, 0, 4]), None, 4, 4).silent], 4)[0].tolist() == [
        True,
        False,
        False,
        True,
    ]
