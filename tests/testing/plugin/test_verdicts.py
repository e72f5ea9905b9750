"""Which watched test fails, and what it says: at the exact boundaries."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("rule", "level", "passes"),
    [
        ("INFO", "warning", True),
        ("WARNING", "warning", False),
        ("ERROR", "warning", False),
        ("INFO", "error", True),
        ("WARNING", "error", True),
        ("ERROR", "error", False),
    ],
)
def test_finding_at_or_above_the_level_fails_the_test(suite, rule, level, passes):
    result = suite(f"""
@pytest.mark.gradwatch(fail_on="{level}", rules=[{rule}])
def test_it():
    fit()
""")
    result.assert_outcomes(passed=int(passes), failed=int(not passes))


def test_failure_says_rule_cause_and_remedy_in_a_section(suite):
    result = suite("""
@pytest.mark.gradwatch(rules=[ERROR])
def test_it():
    fit()
""")
    result.stdout.fnmatch_lines(
        [
            "GradWatch: GW202 saturated-units at *",
            "(1 finding of severity warning or above; see the section gradwatch)",
            "*- gradwatch -*",
            "GW202 saturated-units at *",
            "  do       the remedy",
            "  why      the cause*",
            "  rule     saturated-units, error since step 0, last seen at step 3*",
            "FAILED test_it.py::test_it - Failed: GradWatch: GW202 saturated-units*",
        ]
    )
    assert "warnings summary" not in result.stdout.str()  # told once


@pytest.mark.parametrize("package", ["pl", "lp"])
def test_both_lightning_packages_are_watched(suite, package):
    suite(f"""
@pytest.mark.gradwatch(rules=[ERROR])
def test_it():
    fit(package={package})
""").assert_outcomes(failed=1)


def test_unmarked_test_is_not_watched(suite):
    suite("""
@pytest.mark.gradwatch(rules=[ERROR])
def test_marked():
    fit()

def test_it():
    assert fit().callbacks == []
""").assert_outcomes(passed=1, failed=1)


def test_every_fit_of_a_test_counts(suite):
    suite("""
@pytest.mark.gradwatch(rules=[rule_at(Severity.ERROR, since=4)])
def test_it():
    fit(max_steps=5)
    fit(max_steps=4)
""").assert_outcomes(failed=1)


def test_fit_in_a_fixture_counts(suite):
    suite("""
@pytest.fixture
def trained():
    return fit()

@pytest.mark.gradwatch(rules=[ERROR])
def test_it(trained):
    pass
""").assert_outcomes(failed=1)


def test_failed_test_stays_as_it_was(suite):
    result = suite("""
@pytest.mark.gradwatch(rules=[ERROR])
def test_it():
    fit()
    assert 1 == 2, "its own reason"
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: its own reason"])
    assert "Failed: GradWatch" not in result.stdout.str()


def test_skipped_and_expected_failures_stay_what_they_are(suite):
    suite("""
@pytest.mark.gradwatch
def test_skips():
    pytest.skip()

@pytest.mark.gradwatch(rules=[ERROR])
@pytest.mark.xfail(strict=True)
def test_known_ill():
    fit()
""").assert_outcomes(skipped=1, xfailed=1)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("pass", "*nothing was measured: no Trainer was fitted*"),
        ("with pytest.raises(TypeError): pl.Trainer(**QUIET).fit(3)", "*nothing was measured: no optimizer step*"),
        ("pl.Trainer(**QUIET, max_steps=0).fit(make(pl), data())", "*nothing was measured: no optimizer step*"),
    ],
)
def test_marked_test_that_measures_nothing_fails(suite, body, why):
    result = suite(f"""
@pytest.mark.gradwatch
def test_it():
    {body}
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([why])


def test_marked_test_in_which_no_rule_can_judge_fails(suite):
    result = suite("""
@pytest.mark.gradwatch(ignore=["GW102", "GW103", "GW104", "GW105", "GW106", "GW3", "GW5", "GW6"])
def test_it():
    fit()
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing was judged: GW101 can't judge: a signal over depth needs 3 hidden*"])


def test_whole_suite_is_watched_on_request_and_tests_without_a_trainer_pass(suite):
    body = """
def test_healthy():
    fit()

def test_without():
    pass

@pytest.mark.gradwatch(enabled=False)
def test_left_out():
    assert fit().callbacks == []

@pytest.mark.gradwatch(rules=[ERROR])
def test_ill():
    fit()
"""
    suite(body, "--gradwatch").assert_outcomes(passed=3, failed=1)


def test_unittest_case_is_watched(suite):
    suite("""
import unittest

@pytest.mark.gradwatch(rules=[ERROR])
class TestIt(unittest.TestCase):
    def test_it(self):
        fit()
""").assert_outcomes(failed=1)


@pytest.mark.judges
def test_fixture_watches_the_trainers_that_it_is_given_to(suite):
    result = suite("""
def test_ill(gradwatch):
    fit(gradwatch(rules=[ERROR]))
    assert [finding.code for finding in gradwatch.findings] == ["GW202"]

def test_healthy(gradwatch):
    fit(gradwatch())
    assert gradwatch.findings == ()

def test_info_only(gradwatch):
    fit(gradwatch(rules=[INFO]))
    assert [finding.severity for finding in gradwatch.findings] == [Severity.INFO]

def test_another_trainer(gradwatch):
    fit(gradwatch())
    assert fit().callbacks == []

def test_unused(gradwatch):
    fit()
""")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["*no Trainer was fitted in this test's own process with a callback of the fixture*"])


def test_fixture_in_a_marked_test_measures_once(suite):
    suite("""
@pytest.mark.gradwatch(rules=[INFO])
def test_it(gradwatch):
    fit(gradwatch())
    assert len(gradwatch.findings) == 1
    fit()
    assert len(gradwatch.findings) == 2
""").assert_outcomes(passed=1)


@pytest.mark.slow
def test_right_under_xdist(suite):
    """Each worker watches its own tests, and the sections arrive."""
    result = suite(
        """
@pytest.mark.parametrize("rule", [ERROR, INFO, WARNING, INFO])
def test_it(rule, gradwatch):
    fit(gradwatch(rules=[rule]))

@pytest.mark.gradwatch(rules=[ERROR])
def test_marked():
    fit()
""",
        "-n",
        "2",
        subprocess=True,
    )
    result.assert_outcomes(passed=2, failed=3)
    assert result.stdout.str().count("- gradwatch -") == 3
