"""Marker, command line, environment, ini: each beats the next, and an error says where a value came from."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

ANY = """
def test_it():
    pass
"""


@pytest.fixture
def effective(pytester, suite, monkeypatch):
    """Return a function that says which `every_n_steps` a watched test gets."""

    def run(*arguments, environment=None, ini=None, marker=""):
        if environment:
            monkeypatch.setenv("PYTEST_GRADWATCH_EVERY_N_STEPS", environment)
        if ini:
            pytester.makeini(f"[pytest]\ngradwatch_every_n_steps = {ini}")
        result = suite(
            f"""
@pytest.mark.gradwatch({marker})
def test_it(gradwatch):
    watch = gradwatch()
    fit(watch)
    print("effective", watch.info.every_n_steps)
""",
            "-s",
            *arguments,
        )
        result.assert_outcomes(passed=1)
        return next(int(line.split()[-1]) for line in result.outlines if "effective" in line)

    return run


def test_every_step_is_measured_by_default(effective):
    assert effective() == 1


def test_environment_beats_ini(effective):
    assert effective(ini="2") == 2
    assert effective(ini="2", environment="3") == 3


def test_command_line_beats_environment(effective):
    assert effective("--gradwatch-every-n-steps=4", environment="3", ini="2") == 4


def test_marker_beats_all(effective):
    assert effective("--gradwatch-every-n-steps=4", environment="3", ini="2", marker="every_n_steps=5") == 5


def test_closest_marker_wins_argument_by_argument(suite):
    suite("""
@pytest.mark.gradwatch(fail_on="error", rules=[WARNING])
class TestIt:
    def test_of_the_class(self):
        fit()

    @pytest.mark.gradwatch(fail_on="warning")
    def test_its_own(self):
        fit()
""").assert_outcomes(passed=1, failed=1)


@pytest.mark.judges
@pytest.mark.parametrize("where", ["flag", "environment", "ini"])
def test_level_and_ignored_rules_come_from_each_place(suite, pytester, monkeypatch, where):
    arguments = []
    if where == "flag":
        arguments = ["--gradwatch", "--gradwatch-fail-on=error", "--gradwatch-ignore=GW101,GW201,GW3"]
    elif where == "environment":
        monkeypatch.setenv("PYTEST_GRADWATCH", "1")
        monkeypatch.setenv("PYTEST_GRADWATCH_FAIL_ON", "error")
        monkeypatch.setenv("PYTEST_GRADWATCH_IGNORE", "GW101,GW201,GW3")
    else:
        pytester.makeini("[pytest]\ngradwatch = true\ngradwatch_fail_on = error\ngradwatch_ignore = GW101 GW201 GW3")
    own = "GradWatch(rules=[rule], every_n_steps=1)"
    suite(
        f"""
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", [WARNING, ERROR])
def test_it(rule):
    fit({own})

@pytest.mark.gradwatch
def test_ignores(gradwatch):
    watch = gradwatch()
    fit(watch)
    assert set(watch.info.rules) == {{"GW102", "GW103", "GW104", "GW105", "GW106", "GW202", "GW401", "GW501", "GW502", "GW503", "GW504", "GW505", "GW506", "GW601"}}
""",
        *arguments,
    ).assert_outcomes(passed=2, failed=1)


def test_environment_can_take_back_what_ini_asks_for(suite, pytester, monkeypatch):
    pytester.makeini("[pytest]\ngradwatch = true")
    monkeypatch.setenv("PYTEST_GRADWATCH", "0")
    suite("""
def test_it():
    assert fit().callbacks == []
""").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--gradwatch-fail-on=fatal", "*fail_on='fatal' (from --gradwatch-fail-on): must be one of 'warning', 'error'"),
        ("PYTEST_GRADWATCH_FAIL_ON=info", "*'info' (from environment variable PYTEST_GRADWATCH_FAIL_ON)*"),
        ("gradwatch_fail_on = x", "*fail_on='x' (from gradwatch_fail_on in *tox.ini): must be*"),
        ("gradwatch = maybe", "*gradwatch='maybe' (from gradwatch in *tox.ini): must be true or false"),
        ("--gradwatch-every-n-steps=0", "*every_n_steps='0' (from --gradwatch-every-n-steps): must be an integer*"),
        ("--gradwatch-every-n-steps=1.5", "*every_n_steps='1.5'*"),
        ("--gradwatch-ignore=GW9", "*(from --gradwatch-ignore): ignore: no rule's code starts with 'GW9'*"),
    ],
)
def test_option_that_cannot_be_used_ends_the_session_at_once(suite, pytester, monkeypatch, given, message):
    if given.startswith("PYTEST_"):
        monkeypatch.setenv(*given.split("="))
    elif not given.startswith("--"):
        pytester.makeini(f"[pytest]\n{given}")
    result = suite(ANY, *([given] if given.startswith("--") else []))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fail_no='error'", "*has no argument 'fail_no'; the nearest is 'fail_on'*"),
        ("'error'", "*takes keyword arguments only, not 'error'*"),
        ("fail_on='info'", "*fail_on='info' (from @pytest.mark.gradwatch): must be one of*"),
        ("every_n_steps=True", "*every_n_steps=True*"),
        ("ignore=['nope']", "*(from @pytest.mark.gradwatch): ignore: no rule's code starts with 'nope'*"),
        ("rules=[SaturatedUnits]", "*(from @pytest.mark.gradwatch): rules[[]0[]] is the class SaturatedUnits*"),
        ("rules=[SaturatedUnits()], ignore='GW2'", "*rules has SaturatedUnits (GW202) and ignore has 'GW2'*"),
    ],
)
def test_marker_that_cannot_be_used_fails_its_test(suite, arguments, message):
    result = suite(f"""
@pytest.mark.gradwatch({arguments})
def test_it():
    pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])


def test_marker_and_fixture_are_documented(suite):
    suite(ANY, "--markers", "--strict-markers").stdout.fnmatch_lines(["@pytest.mark.gradwatch(fail_on='warning'*"])
    suite(ANY, "--fixtures").stdout.fnmatch_lines(["gradwatch -- *"])
    suite(ANY, "--help").stdout.fnmatch_lines(["*--gradwatch-fail-on=FAIL_ON*"])
