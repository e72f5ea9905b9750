"""Findings that a test itself deals with don't fail it; warnings are told once, and nobody's else are lost."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

OURS = "rules=[ERROR]"
OWN = "GradWatch(rules=[ERROR], every_n_steps=1)"


@pytest.mark.parametrize("own", ["", OWN])
@pytest.mark.parametrize(
    "expecting",
    ["pytest.warns(SaturatedUnitsWarning)", "pytest.warns(UserWarning)", "warnings.catch_warnings(record=True)"],
)
def test_finding_whose_warning_the_test_takes_does_not_fail_it(suite, own, expecting):
    result = suite(
        f"""
@pytest.mark.gradwatch({OURS})
def test_it():
    with {expecting}:
        fit({own})
""",
        "-rP",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*- gradwatch -*", "(the test took the warning itself)"])


@pytest.mark.parametrize("own", ["", OWN])
def test_warning_that_pytest_warns_was_not_asked_for_fails_it(suite, own):
    suite(f"""
@pytest.mark.gradwatch({OURS})
def test_it():
    with pytest.warns(DeprecationWarning):
        warnings.warn("old", DeprecationWarning)
        fit({own})
""").assert_outcomes(failed=1, warnings=1 if own else 0)


@pytest.mark.parametrize("own", ["", OWN])
def test_a_second_fit_is_judged_by_itself(suite, own):
    suite(f"""
@pytest.mark.gradwatch({OURS})
def test_it():
    with pytest.warns(SaturatedUnitsWarning):
        fit({own})
    fit({own})
""").assert_outcomes(failed=1, warnings=1 if own else 0)


@pytest.mark.parametrize("own", ["", OWN])
@pytest.mark.parametrize("scope", ["mark", "inside"])
def test_filter_that_ignores_does_not_make_it_pass(suite, own, scope):
    """Silence isn't consent: `ignore=` of the marker is."""
    mark, inside = (
        ('@pytest.mark.filterwarnings("ignore")', "") if scope == "mark" else ("", 'warnings.simplefilter("ignore")')
    )
    suite(f"""
{mark}
@pytest.mark.gradwatch({OURS})
def test_it():
    with warnings.catch_warnings():
        {inside or "pass"}
        fit({own})
""").assert_outcomes(failed=1)


def test_ignored_rule_does_not_fail_the_test_whoever_measures(suite):
    suite(f"""
@pytest.mark.gradwatch(ignore=["GW202"])
def test_ours():
    fit()

@pytest.mark.gradwatch(ignore=["GW202"])
def test_own():
    fit({OWN})
""").assert_outcomes(passed=2, warnings=1)


def test_suite_that_makes_warnings_errors_is_judged_by_the_level_alone(suite):
    """The watch wasn't the test's idea: its warnings don't end a fit, neither above the level nor below."""
    result = suite(
        """
@pytest.mark.gradwatch(fail_on="error", rules=[WARNING])
def test_below():
    fit()

@pytest.mark.gradwatch(rules=[WARNING])
def test_at():
    fit()
    print("the fit went on")
""",
        "-W",
        "error::UserWarning",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["the fit went on"])


@pytest.mark.parametrize(
    ("raised", "own"),
    [
        ("GradWatchError", "GradWatch(rules=[ERROR], every_n_steps=1, fail_on='error')"),
        ("SaturatedUnitsWarning", OWN),
    ],
)
def test_exception_of_an_own_callback_that_the_test_expects_does_not_fail_it(suite, raised, own):
    suite(f"""
@pytest.mark.filterwarnings("error::lightning_gradwatch.SaturatedUnitsWarning" if "{raised}" != "GradWatchError" else "ignore")
@pytest.mark.gradwatch
def test_it():
    with pytest.raises({raised}):
        fit({own})
""").assert_outcomes(passed=1)


def test_own_callback_is_the_one_that_measures(suite):
    suite(f"""
@pytest.mark.gradwatch
def test_it():
    watch = {OWN}
    with pytest.warns(SaturatedUnitsWarning) as told:
        assert fit(watch).callbacks == [watch]
    assert [each.category for each in told].count(SaturatedUnitsWarning) == 1

class Module(type(make(pl))):
    def configure_callbacks(self):
        self.watch = {OWN}
        return [self.watch]

@pytest.mark.gradwatch
def test_of_the_module():
    module = Module()
    trainer = pl.Trainer(**QUIET, max_steps=4)
    with pytest.warns(SaturatedUnitsWarning) as told:
        trainer.fit(module, data())
    assert trainer.callbacks == [module.watch]
    assert len(module.watch.records) == 4
    assert [each.category for each in told].count(SaturatedUnitsWarning) == 1
""").assert_outcomes(passed=2)


@pytest.mark.judges
def test_other_warnings_arrive_as_ever(suite):
    result = suite("""
@pytest.mark.gradwatch
def test_it():
    warnings.warn("something of the user's", RuntimeWarning)
    fit()

@pytest.mark.gradwatch(rules=[INFO])
def test_recorded(recwarn):
    fit()
    warnings.warn("taken", RuntimeWarning)
    assert str(recwarn.pop(RuntimeWarning).message) == "taken"

@pytest.fixture
def late():
    yield
    warnings.warn("from a teardown", RuntimeWarning)

@pytest.mark.gradwatch
def test_late(recwarn, late):
    fit()
""")
    result.assert_outcomes(passed=3, warnings=1)
    result.stdout.fnmatch_lines(["*test_it.py:*: RuntimeWarning: something of the user's"])
