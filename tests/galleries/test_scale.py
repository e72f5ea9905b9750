"""The unit that a loss is measured in changes no verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.galleries.cases import CASES
from benchmarks.galleries.training import prepare, quiet, train
from lightning_gradwatch import GradWatch, Severity

pytestmark = pytest.mark.judges

SCALES = (1e-6, 1e-2, 1e6)
NAMES = [
    "vanishing-activation/sigmoid-8-iris",
    "vanishing-start/tanh-8-small-sgd",
    "exploding/relu-8-unit-normal-wine",
    "dying/bias-4",
    "saturation/softsign-wine-raw",
    "rate-small/wine-momentum",
    "cut/spirals",
    "plain/relu-6-sgd",
    "small-data/cancer",
]


def verdicts(case, scale):
    training = replace(case.training, optimizer="SGD", rate=case.training.rate / scale, loss_scale=scale)
    watch = GradWatch()
    with quiet():
        train(prepare(replace(case, training=training), seed=0), [watch], logger=False)
    assert not watch._faults.reasons
    # Information about the unit itself (GW102: a loss in the millions) is no verdict.
    told = (finding for finding in watch.findings if finding.severity >= Severity.WARNING)
    return [(finding.code, finding.severity, finding.layers) for finding in told]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_loss_changes_no_verdict(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = replace(CASES[name], training=replace(CASES[name].training, steps=100))
    plain = verdicts(case, 1.0)
    assert {scale: verdicts(case, scale) for scale in SCALES} == dict.fromkeys(SCALES, plain)
