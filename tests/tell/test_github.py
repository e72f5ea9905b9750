"""GitHub's annotations: one command a line, and no name can be a command."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tell.samples import ALL, COMPARED, FAILED, HEALTHY, HOSTILE, MISSING, hostile, steers

from lightning_gradwatch.tell.github_report import github_report


def test_a_finding_is_an_annotation_and_what_fails_comes_first():
    lines = github_report([FAILED]).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::notice", "::notice"]
    assert lines[0].startswith(
        "::error title=GW101 vanishing-gradient in logs/ill::GW101 The signal vanishes at net.0.%0A  do       Replace them.%0A"
    )
    assert "not judged in logs/ill::GW202 saturated-units: not yet" in lines[2]


def test_a_run_that_cannot_be_judged_is_an_error():
    assert github_report([MISSING]) == "::error title=gradwatch can't judge logs/none::no such run: logs/none"


def test_a_healthy_run_is_said_to_be():
    assert github_report([HEALTHY]) == "::notice title=gradwatch%3A logs/good::healthy: 1 rule judged"


def test_a_healthy_run_of_which_a_rule_could_not_be_judged_is_said_to_be_healthy_too():
    verdict = replace(HEALTHY, unjudged={"GW202": "no such site"})
    assert github_report([verdict]).splitlines() == [
        "::notice title=gradwatch%3A logs/good::healthy: 1 rule judged",
        "::notice title=not judged in logs/good::GW202 saturated-units: no such site",
    ]


def test_known_findings_are_notices_and_what_got_worse_is_a_warning():
    lines = github_report([COMPARED]).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::warning", "::notice", "::notice"]
    assert "grad_norm of net.0: 0.5" in lines[0]
    assert "%0Aloss: 0 " in lines[0]


def test_errors_come_before_warnings_over_all_runs():
    kinds = [line.split(" ")[0] for line in github_report(ALL).splitlines()]
    assert kinds == sorted(kinds, key=["::error", "::warning", "::notice"].index)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_no_command(name):
    text = github_report([hostile(name)])
    assert not steers(text)
    text.encode()
    for line in text.split("\n"):
        match = re.fullmatch(r"::(?:error|warning|notice) title=([^:,]*)::(.*)", line)
        assert match, line
        # What a runner decodes again is ours alone: each of the user's own percent signs is spelled out.
        assert not re.search(r"%(?!25|0A|3A|2C)", line)
        decoded = match[2].replace("%0A", "\n").replace("%25", "%")
        assert not any(part.startswith("::set") for part in decoded.splitlines())
