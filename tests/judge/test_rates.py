"""What the first steps should change, by how long the run is and how its optimizer steps."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_gradwatch.judge.rates import aimed_update, rate_factor
from lightning_gradwatch.record.step import OptimizerInfo


@pytest.mark.parametrize(
    ("planned", "aim"), [(10, 1e-2), (300, 1e-2), (1000, 3e-3), (3000, 1e-3), (10**6, 1e-3), (None, math.sqrt(1e-5))]
)
def test_a_layer_changes_by_three_times_itself_in_a_run(runs, planned, aim):
    assert aimed_update(runs.stack(optimizers=("Adam",), planned_steps=planned)) == pytest.approx(aim)


def test_the_first_steps_of_plain_sgd_are_its_largest(runs):
    info = runs.stack(planned_steps=1000)
    assert aimed_update(info) == pytest.approx(9e-3)
    momentum = (OptimizerInfo("SGD", {"lr": 0.1, "momentum": 0.9}),)
    assert aimed_update(dataclasses.replace(info, optimizers=momentum)) == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("update", "factor"), [(3e-3, 1), (0.3, 0.01), (1.4, 2e-3), (2e-7, 2e4), (0, 1e6), (1e30, 1e-6)]
)
def test_the_factor_has_one_digit(runs, update, factor):
    assert rate_factor(runs.stack(optimizers=("Adam",), planned_steps=1000), update) == factor
