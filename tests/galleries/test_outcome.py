"""Scores, which decide what a run truly is, against independent computations."""

from __future__ import annotations

import pytest
import sklearn.metrics
import torch

from benchmarks.galleries.cases import CASES
from benchmarks.galleries.losses import energy_distance
from benchmarks.galleries.outcome import Outcome, outcome
from benchmarks.galleries.training import prepare


@pytest.mark.parametrize("name", ["small-data/iris", "one-unit/softmax-xor", "plain/dropout-3-adam"])
def test_the_score_of_classes_is_their_accuracy(name):
    prepared = prepare(CASES[name], seed=0)
    prepared.module.eval()
    outputs = prepared.module.net(prepared.examples.inputs)
    answers = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).long()
    how = outcome(prepared)
    assert how.score == pytest.approx(sklearn.metrics.accuracy_score(prepared.examples.targets, answers))
    assert how.chance == pytest.approx(max(torch.bincount(prepared.examples.targets)) / len(prepared.examples.targets))
    assert how.needed == pytest.approx(how.chance + 0.8 * (1 - how.chance))


@pytest.mark.parametrize("name", ["small-data/diabetes", "targets/sines-raw-momentum"])
def test_the_score_of_numbers_is_the_variance_that_is_explained(name):
    prepared = prepare(CASES[name], seed=0)
    with torch.no_grad():
        outputs = prepared.module.net(prepared.examples.inputs)
    reference = sklearn.metrics.r2_score(prepared.examples.targets, outputs)
    assert outcome(prepared).score == pytest.approx(reference, rel=1e-5)


def test_weights_that_are_not_finite_have_not_learned():
    assert Outcome(score=1.0, chance=0.1, needed=0.8, finite=True).learned
    assert not Outcome(score=1.0, chance=0.1, needed=0.8, finite=False).learned
    assert not Outcome(score=0.79, chance=0.1, needed=0.8, finite=True).learned
    prepared = prepare(CASES["small-data/iris"], seed=0)
    with torch.no_grad():
        prepared.module.net.head.bias.fill_(torch.nan)
    assert not outcome(prepared).finite


def test_the_energy_distance_is_the_mean_over_pairs():
    first, second = torch.randn(5, 2), torch.randn(7, 2) + 1

    def mean(left, right):
        return sum(float((a - b).norm()) for a in left for b in right) / (len(left) * len(right))

    by_hand = 2 * mean(first, second) - mean(first, first) - mean(second, second)
    assert energy_distance(first, second) == pytest.approx(by_hand, rel=1e-5)
    assert energy_distance(first, first) == pytest.approx(0, abs=1e-6)
