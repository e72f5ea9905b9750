"""Runs that earlier releases wrote are read to the last bit, and judged by whatever their facts allow."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from lightning_gradwatch import evaluate, read_run
from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import replay

OLDER = sorted((Path(__file__).parent / "older").iterdir())


@pytest.mark.parametrize("folder", OLDER, ids=lambda each: each.name)
def test_it_is_read_without_a_word(folder):
    run = read_run(folder)
    assert run.problems == ()
    assert len(run.records) == 7
    # Of each step its number and the net's gradient norm, as TensorBoard itself reads them.
    drawn = EventAccumulator(str(folder)).Reload()
    norms = drawn.Scalars("gradwatch/log10_grad_norm")
    assert [record.step for record in run.records] == [scalar.step for scalar in norms]
    expected = [10**scalar.value for scalar in norms]
    assert [record.global_grad_norm for record in run.records] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("folder", OLDER, ids=lambda each: each.name)
def test_its_numbers_are_those_that_tensorboard_finds_in_it(folder):
    run = read_run(folder)
    drawn = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    for name in run.records[0].metrics:
        stored = [tensor_util.make_ndarray(event.tensor_proto) for event in drawn.Tensors(f"gradwatch/{name}")]
        assert np.array_equal(np.array(stored, dtype=np.float64), run.series(name)[1], equal_nan=True), name


@pytest.mark.parametrize("folder", OLDER, ids=lambda each: each.name)
def test_it_is_judged_and_what_it_lacks_is_said(folder):
    run = read_run(folder)
    unjudged = replay(run.records, run.infos, DEFAULT_RULES).unjudged
    assert {finding.code for finding in evaluate(run)} <= {"GW101", "GW301", "GW401"}
    assert {"GW505", "GW601"} <= unjudged.keys()
    assert all(unjudged.values())
