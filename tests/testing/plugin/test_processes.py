"""Trainers that train in processes of their own: their findings come back, and none passes for want of being seen."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

BODY = """
FORKED = dict(strategy="ddp_fork", devices=2)


@pytest.mark.gradwatch(rules=[WARNING])
def test_marked():
    fit(**FORKED)


@pytest.mark.gradwatch(rules=[WARNING])
def test_that_expects_it():
    with pytest.warns(SaturatedUnitsWarning, match="GW202"):
        fit(**FORKED)


@pytest.mark.gradwatch(rules=[INFO])
def test_healthy():
    fit(**FORKED)


def test_of_the_suite():
    fit(GradWatch(rules=[WARNING], every_n_steps=1), **FORKED)


def test_with_the_fixture(gradwatch):
    fit(gradwatch(rules=[ERROR]), **FORKED)


@pytest.mark.gradwatch
def test_that_ends_with_an_error():
    with pytest.raises(Exception, match="GW202"):
        fit(GradWatch(rules=[ERROR], fail_on="error", every_n_steps=1), **FORKED)
"""


@pytest.mark.slow
def test_findings_of_forked_processes_fail_their_tests(suite):
    result = suite(BODY, "--gradwatch", "-rA", subprocess=True)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED test_it.py::test_marked - Failed: GradWatch: GW202*",
            "PASSED test_it.py::test_that_expects_it",
            "PASSED test_it.py::test_healthy",
            "FAILED test_it.py::test_of_the_suite - Failed: GradWatch: GW202*",
            "FAILED test_it.py::test_with_the_fixture - Failed: GradWatch: GW202*",
            "PASSED test_it.py::test_that_ends_with_an_error",
        ]
    )
