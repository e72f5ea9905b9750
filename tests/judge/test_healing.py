"""What has healed is taken back; what grows worse is said once."""

from __future__ import annotations

import json

import pytest
from judge.scripted import ERROR, INFO, WARNING, Fades, Stalls

from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rule import Rule
from lightning_gradwatch.record.finding import Finding


def fed(runs, says, *, steps=8, rules=None):
    info = runs.stack()
    return runs.feed(rules or (Fades(says=says),), [runs.measure(info, step) for step in range(steps)], info)


def test_a_finding_that_has_healed_is_information_and_says_what_shows_it(runs):
    finding = fed(runs, ((1, ERROR), (2, ERROR), (5, "net.0 has had a gradient since step 4"))).only
    assert (finding.severity, finding.first_step, finding.last_step, finding.healed_step) == (INFO, 1, 2, 5)
    assert finding.message.endswith("Reported always. It has healed: net.0 has had a gradient since step 4.")
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


def test_what_was_never_seen_or_is_seen_at_the_same_time_does_not_heal(runs):
    assert not fed(runs, ((1, "gone"),)).findings


def test_what_comes_back_starts_anew_and_is_not_told_again(runs):
    run = fed(runs, ((1, ERROR), (2, "gone"), (5, WARNING), (6, WARNING)))
    assert [len(told) for told in run.told] == [0, 1, 0, 0, 0, 0, 0, 0]
    finding = run.only
    assert (finding.severity, finding.first_step, finding.last_step, finding.healed_step) == (WARNING, 5, 6, None)


def test_healing_twice_keeps_the_first_step_of_it(runs):
    assert fed(runs, ((1, ERROR), (2, "gone"), (3, "gone for long"))).only.healed_step == 2


def test_it_is_told_when_new_and_when_it_becomes_a_warning_and_never_for_getting_worse(runs):
    run = fed(runs, ((1, INFO), (2, INFO), (3, WARNING), (4, ERROR), (5, ERROR)))
    assert [[finding.severity for finding in told] for told in run.told] == [[], [INFO], [], [WARNING], [], [], [], []]
    assert run.only.severity == ERROR


def test_what_rose_is_known_so_that_a_run_can_be_ended_by_it(runs):
    info = runs.stack()
    evaluator = Evaluator((Fades(says=((1, WARNING), (2, WARNING), (3, ERROR), (4, "gone"), (5, ERROR))),))
    risen = []
    for step in range(6):
        evaluator.feed(runs.measure(info, step), info)
        risen.append(evaluator.risen)
    assert risen == [None, WARNING, None, ERROR, None, None]


def test_what_has_healed_explains_nothing_any_more(runs):
    rules = Fades(says=((1, ERROR), (4, "gone"))), Stalls(says=((2, WARNING), (5, WARNING)))
    assert [(each.code, each.consequence_of) for each in fed(runs, (), rules=rules, steps=4).findings] == [
        ("GW101", ""),
        ("GW301", "GW101"),
    ]
    stalled, faded = fed(runs, (), rules=rules).findings
    assert (stalled.code, stalled.consequence_of, faded.severity) == ("GW301", "", INFO)
    assert stalled.remedy.actions


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_resumed_run_knows_what_had_healed_and_what_was_told(runs, cut):
    info = runs.stack()
    records = [runs.measure(info, step) for step in range(8)]
    rules = (Fades(says=((1, INFO), (2, ERROR), (4, "gone"), (6, ERROR))),)
    whole = runs.feed(rules, records, info)
    first, second = runs.feed(rules, records[:cut], info), Evaluator(rules)
    second.load_state_dict(json.loads(json.dumps(first.evaluator.state_dict())))
    assert second.findings == first.findings
    assert first.told + [second.feed(record, info) for record in records[cut:]] == whole.told
    assert second.findings == whole.findings


class Looks(Fades):
    """Whose verdicts pass through the rule base, as those of a rule do that leaves `judge` alone."""

    judge = Rule.judge
    look = Fades.judge


def test_the_rule_base_remembers_what_was_reported_how_bad_it_was_and_whether_it_has_healed(runs):
    info, state, seen = runs.stack(), {}, []
    rule = Looks(says=((1, WARNING), (2, INFO), (3, "gone"), (5, INFO)))
    for step in range(6):
        seen.append((dict(rule.reported(state)), rule.still_reported(state, "it")))
        rule.judge(runs.measure(info, step), info, state)
    assert (
        seen
        == [({}, False), ({}, False), ({"it": WARNING}, True), ({"it": WARNING}, True)] + [({"it": WARNING}, False)] * 2
    )
    assert (rule.reported(state), rule.still_reported(state, "it")) == ({"it": WARNING}, True)
    assert json.loads(json.dumps(state)) == state
