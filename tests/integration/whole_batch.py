"""What several ranks say, against one process that computes the whole batch by hand, and against each other."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from integration import ranked
from integration.by_hand import train_by_hand
from integration.nets import seed

from lightning_gradwatch.judge.rules.dead import DeadUnits


def window(observations):
    """Have windows of so many observations: one step of both ranks, say, but not of one alone."""
    return DeadUnits(observations=observations, batch_elements=observations)


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
        gains = [earlier["arriving"] / later["signal_norm"] for earlier, later in pairwise(sites)]
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
