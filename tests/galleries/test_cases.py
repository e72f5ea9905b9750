"""The lists of cases are what the galleries' figures rest on: whole, split by rule, buildable."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks.galleries.cases import CASES, HALF_OF
from benchmarks.galleries.data import TASKS
from benchmarks.galleries.healthy import HEALTHY
from benchmarks.galleries.ill import ILL
from benchmarks.galleries.losses import LOSSES
from benchmarks.galleries.spec import SEEDS
from benchmarks.galleries.training import prepare
from lightning_gradwatch.judge.catalog import RULE_BY_CODE


def test_both_galleries_are_large_and_no_name_is_there_twice():
    assert len(ILL) >= 30
    assert len(HEALTHY) >= 30
    assert len(CASES) == len(ILL) + len(HEALTHY)
    assert len(SEEDS) == 5
    assert all(case.ill for case in ILL)
    assert not any(case.ill for case in HEALTHY)


def test_the_halves_alternate_within_each_family():
    for family in {case.family for case in CASES.values()}:
        halves = [HALF_OF[name] for name, case in CASES.items() if case.family == family]
        assert halves == (["calibration", "report"] * len(halves))[: len(halves)]
    assert all(count >= 60 for count in Counter(HALF_OF.values()).values())


@pytest.mark.parametrize("code", sorted({code for case in ILL for code in case.roots}))
def test_a_built_in_root_cause_is_a_rule(code, request):
    if code not in RULE_BY_CODE:
        request.applymarker(pytest.mark.xfail(strict=True, reason="awaits the rule"))
    assert code in RULE_BY_CODE


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_examples_in_the_shape_it_promises(task):
    inputs, targets = TASKS[task].load()
    assert len(inputs) == len(targets) >= 100
    assert inputs.dim() == 2
    if TASKS[task].kind == "classification":
        assert sorted(set(targets.tolist())) == list(range(int(targets.max()) + 1))
    sequence = TASKS[task].sequence
    if sequence is not None and inputs.is_floating_point():
        assert sequence[0] * sequence[1] == inputs.shape[1]


@pytest.mark.parametrize("family", sorted({case.family for case in CASES.values()}))
def test_each_net_takes_its_examples_and_its_loss_their_targets(family):
    for case in (case for case in CASES.values() if case.family == family and not case.training.pretrained):
        prepared = prepare(case, seed=0)
        if not hasattr(prepared.module, "net"):
            continue
        shown = prepared.examples
        outputs = prepared.module.net(shown.inputs[:8])
        loss = LOSSES[case.training.loss or shown.task.loss].compute(outputs, shown.targets[:8])
        assert outputs.shape[0] == 8
        assert loss.shape == torch.Size([])
