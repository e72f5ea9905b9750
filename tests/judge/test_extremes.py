"""No number that a record can hold, from 0 over denormals to 1e308, infinity and NaN, makes a rule fail or numpy warn."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.record.metrics import METRICS

EXTREMES = np.array(
    [0.0, 1e-320, 1e-310, 1e-45, 1e-30, 1e-9, 1e-3, 0.5, 1.0, 2.0, 1e10, 1e38, 1e154, 1e200, 1e308, np.inf, np.nan]
)
SHARES = ("dead_fraction", "saturated_fraction", "inactive_share")


@pytest.mark.parametrize("seed", range(40))
def test_every_rule_takes_every_number(runs, seed):
    random = np.random.default_rng(seed)
    info = runs.stack(planned_steps=300, optimizers=(["SGD", "Adam"][seed % 2],))
    evaluator = Evaluator(DEFAULT_RULES)
    usual = {metric: random.choice(EXTREMES) for metric in METRICS}
    wild = random.choice([0.1, 0.9])
    for step in (*range(20), 50, 99):
        metrics = {}
        for metric in METRICS:
            columns = len(info.names(metric))
            values = np.where(random.random(columns) < wild, random.choice(EXTREMES, columns), usual[metric])
            metrics[metric] = (
                np.where(np.isfinite(values), np.clip(values, 0, 1), np.nan) if metric in SHARES else values
            )
        record = runs.measure(
            info,
            step,
            loss=random.choice([2.3, random.choice(EXTREMES)]),
            norm=random.choice([1.0, random.choice(EXTREMES)]),
            outputs=random.choice([1.0, random.choice(EXTREMES)]),
        )
        evaluator.feed(
            dataclasses.replace(record, metrics=metrics, clip_factor=random.choice([np.nan, 1.0, 0.1])), info
        )
        assert all(finding.message and finding.cause for finding in evaluator.findings)
        json.dumps(evaluator.state_dict())
