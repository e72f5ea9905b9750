"""Two real processes: their record is that of one process with the whole batch, and the same on both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from integration import ranked
from integration.by_hand import train_by_hand
from integration.nets import seed
from integration.processes import Processes

from lightning_gradwatch.rules import DeadUnits

pytestmark = pytest.mark.slow

LAST_STEP = DeadUnits(observations=12, batch_elements=12)
"""A window that a step of both ranks just fills, and that of one alone doesn't."""
DATA_PARALLEL = ["ddp", "ddp_find_unused_parameters_true", "fsdp2"]


@pytest.fixture(scope="module")
def processes():
    """Two of them, started once for the tests of this file; anew after one that left them unusable."""
    running = []

    def run(function=ranked.fit, **arguments):
        if not running:
            running.append(Processes(2))
        try:
            answers = running[0].run(function, **arguments)
        except Exception:
            running.pop().kill()
            raise
        errors = [answer for answer in answers if not isinstance(answer, dict)]
        if errors:
            running.pop().kill()
            pytest.fail(f"raised on {len(errors)} of 2 ranks:\n{errors[0]}")
        return answers

    yield run
    for each in running:
        each.kill()


def reference(net, **settings):
    seed()
    return train_by_hand(ranked.NETS[net](), ranked.OPTIMIZERS["sgd"], **settings)


def columns(answer, record, kind, metric):
    names = [column["name"] for column in answer["info"][kind]]
    return dict(zip(names, record["metrics"].get(metric, record.get(metric)), strict=True))


def compare(answer, expected, *, tolerance=1e-5):
    """Compare each record with what was computed by hand."""
    assert len(answer["records"]) == len(expected) > 0
    for record, step in zip(answer["records"], expected, strict=True):
        assert record["loss"] == pytest.approx(step["loss"], rel=tolerance)
        assert record["global_grad_norm"] == pytest.approx(step["global_grad_norm"], rel=tolerance)
        assert record["clip_factor"] == pytest.approx(step["clip_factor"], rel=tolerance, nan_ok=True)
        assert set(record["layer_state"]) == {1}
        for metric in ("grad_norm", "grad_rms", "weight_rms", "update_ratio"):
            found = columns(answer, record, "layers", metric)
            assert found == pytest.approx({name: each[metric] for name, each in step["layers"].items()}, rel=tolerance)
        metrics = ("signal_norm", "activation_gain", "inactive_share", "dead_fraction", "saturated_fraction")
        for metric in metrics:
            found = columns(answer, record, "sites", metric)
            wanted = {name: each[metric] for name, each in step["sites"].items()}
            assert found == pytest.approx(wanted, rel=tolerance, nan_ok=True), metric
        rms = dict(zip(found, record["forward_rms"], strict=True))
        assert rms == pytest.approx({name: each["forward_rms"] for name, each in step["sites"].items()}, rel=tolerance)
        sites = list(step["sites"].values())
        gains = [earlier["arriving"] / later["signal_norm"] for earlier, later in zip(sites, sites[1:], strict=False)]
        assert record["metrics"]["weight_gain"] == pytest.approx([math.nan, *gains], rel=tolerance, nan_ok=True)


def same(one, other):
    """Whether two values that came from two processes are equal, NaN being itself."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)  # noqa: PLR0124 - NaN


def agree(answers):
    for key in ("records", "info", "findings", "coverage"):
        assert same(answers[0][key], answers[1][key]), key


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}], ids=["plain", "accumulated-clipped"])
@pytest.mark.parametrize("strategy", DATA_PARALLEL)
def test_the_record_is_that_of_the_whole_batch_on_each_rank(strategy, settings, processes):
    count = settings.get("accumulate_grad_batches", 1)
    answers = processes(
        strategy=strategy, watch={"rules": [DeadUnits(observations=12 * count, batch_elements=12 * count)]}, **settings
    )
    expected = reference("deep", steps=4, rows=12 * count, clip=settings.get("gradient_clip_val"))
    agree(answers)
    compare(answers[0], expected)
    assert any(
        alone != together["sites"][name]["dead_fraction"]
        for together in expected
        for name, ranks in together["dead_on_ranks"].items()
        for alone in ranks
    ), "no unit is dead on one rank only: the test shows nothing"
    assert {record["world_size"] for record in answers[0]["records"]} == {2} == {answers[0]["info"]["world_size"]}
    assert answers[0]["coverage"] == []
    assert all(answer["warnings"] == [] for answer in answers)
