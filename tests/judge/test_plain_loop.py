"""Records of a plain loop, which a probe measured: judged as a Trainer's are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch import DEFAULT_RULES, Probe, Run, RunError, VanishingGradient, evaluate
from lightning_gradwatch.judge.selection import settings_of


def trained(depth=12, steps=24, *, every=1, anew=False, numbered=True):
    """Train a deep sigmoid net; return what its probe measured, and the description."""
    torch.manual_seed(0)
    layers = [each for _ in range(depth) for each in (nn.Linear(16, 16), nn.Sigmoid())]
    net = nn.Sequential(*layers, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    probe = Probe(net, optimizer)
    records = []
    for step in range(steps):
        x = torch.randn(32, 16)
        if step % every == 0:
            if anew:
                probe = Probe(net, optimizer)
            if numbered:
                probe.step = step
            with probe:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), x[:, :4].argmax(1)).backward()
                optimizer.step()
            records.append(probe.record)
    return records, probe.info


def test_records_of_a_plain_loop_are_judged_with_their_description():
    records, info = trained()
    found = evaluate(records, info=info)
    assert found[0].code == "GW101"
    run = Run.from_records(records, info)
    assert evaluate(run) == found
    steps, values = run.series("grad_norm")
    np.testing.assert_array_equal(steps, range(24))
    assert values.shape == (24, len(run.names("grad_norm")))
    assert run.info.rules == settings_of(DEFAULT_RULES)


def test_other_rules_can_be_given():
    records, info = trained()
    assert evaluate(records, [VanishingGradient(ratio=1e-30)], info=info) == ()
    assert [each.code for each in evaluate(records, rules=[VanishingGradient()], info=info)] == ["GW101"]


def test_a_probe_takes_the_loops_own_steps():
    records, info = trained(steps=60, every=5, anew=True)
    assert [record.step for record in records] == [*range(0, 60, 5)]
    (finding,) = evaluate(records, [VanishingGradient()], info=info)
    assert finding.first_step % 5 == 0


def test_steps_that_do_not_rise_are_numbered_in_order():
    """A new probe a step begins at 0 each time."""
    records, info = trained(steps=6, anew=True, numbered=False)
    assert {record.step for record in records} == {0}
    assert [record.step for record in Run.from_records(records, info).records] == [*range(6)]


def test_a_run_that_changes_takes_a_description_of_each_layout():
    records, info = trained(steps=3)
    others, other = trained(depth=3, steps=3)
    later = [replace(record, step=record.step + 3) for record in others]
    run = Run.from_records([*records, *later], [info, other])
    assert set(run.infos) == {info.layout, other.layout}
    assert run.info.layout == other.layout
    with pytest.raises(
        ValueError, match=r"step 3 was measured with other layers or sites than info describes.*info=probe.infos"
    ):
        Run.from_records([*records, *later], info)


@pytest.mark.parametrize(
    ("error", "match", "judge"),
    [
        (TypeError, r"evaluate\(records, info=probe.info\)", lambda records, info: evaluate(records)),
        (TypeError, "a run has its own", lambda records, info: evaluate(Run.from_records(records, info), info=info)),
        (TypeError, "what was measured.*3", lambda records, info: evaluate([3], info=info)),
        (TypeError, "what was measured", lambda records, info: Run.from_records(None, info)),
        (TypeError, "what describes the records.*'info'", lambda records, info: Run.from_records(records, "info")),
        (ValueError, "no record to judge", lambda records, info: evaluate([], info=info)),
        (
            ValueError,
            "where the layout has 3 columns",
            lambda records, info: evaluate([replace(records[0], layer_state=np.zeros(1, np.uint8))], info=info),
        ),
    ],
)
def test_what_can_not_be_judged_is_told(error, match, judge):
    records, info = trained(depth=2, steps=1)
    with pytest.raises(error, match=match):
        judge(records, info)


def test_a_threshold_out_of_range_is_told():
    records, info = trained(depth=2, steps=1)
    with pytest.raises(RunError, match="ratio must be between"):
        evaluate(records, info=replace(info, rules={"GW101": {"ratio": 7}}))
