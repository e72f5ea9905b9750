"""The pytest plugin: fails a test whose Trainers a rule objects to. Costs an import of three small modules until used.

pytest loads it in every session of everyone who has this package installed: no torch, no Lightning, no numpy here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from lightning_gradwatch.testing.plugin.options import OptionError, Options, add_options, read_markers, read_options

if TYPE_CHECKING:
    from collections.abc import Generator

    from lightning_gradwatch.fit.callback import GradWatch
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.testing.plugin.watched import WatchedTest

_OPTIONS = pytest.StashKey[Options]()
_WATCHED = pytest.StashKey["WatchedTest"]()
_ERROR = pytest.StashKey[str]()
_SECTION = pytest.StashKey[str]()

_MARKER = (
    "gradwatch(fail_on='warning', rules=(), ignore=(), every_n_steps=1, enabled=True): watch every Trainer that the test "
    "fits, and fail the test for a finding of severity fail_on ('warning' or 'error') or above, or if nothing was "
    "measured. rules and ignore as for GradWatch. enabled=False leaves the test out of --gradwatch."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the options and declare the marker."""
    config.addinivalue_line("markers", _MARKER)
    try:
        config.stash[_OPTIONS] = read_options(config, os.environ)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from error


class GradWatchFixture:
    """Makes callbacks for a test's Trainers: ``Trainer(callbacks=[gradwatch()])``. Checked when the test has run."""

    def __init__(self, watched: WatchedTest) -> None:
        self._watched = watched

    def __call__(self, **arguments: Any) -> GradWatch:
        """Return a callback; `every_n_steps`, `rules` and `ignore` as for GradWatch, by default as the options say."""
        return self._watched.make_watch(**arguments)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of the fits that have ended, of any severity."""
        return self._watched.findings


@pytest.fixture
def gradwatch(request: pytest.FixtureRequest) -> GradWatchFixture:
    """Callbacks for this test's Trainers, whose findings are checked when it has run; `.findings` holds them."""
    return GradWatchFixture(request.node.stash[_WATCHED])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch a test with its fixtures."""
    watched = _watch(item)
    if watched is None:
        return (yield)
    item.stash[_WATCHED] = watched
    with watched.watching():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start afresh, for plugins that run a test again."""
    if _ERROR in item.stash:
        pytest.fail(item.stash[_ERROR], pytrace=False)
    if _WATCHED in item.stash:
        item.stash[_WATCHED].restart()
        item.stash[_SECTION] = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that passed; what a test raises itself goes through untouched."""
    result = yield
    watched = item.stash.get(_WATCHED, None)
    if watched is not None:
        from lightning_gradwatch.testing.plugin.report import failure, section  # noqa: PLC0415 - numpy

        item.stash[_SECTION] = section(watched)
        reason = failure(watched)
        if reason:
            pytest.fail(reason, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the section with the findings."""
    report = yield
    text = item.stash.get(_SECTION, "")
    if report.when == "call" and text:
        report.sections.append(("gradwatch", text))
    return report


def _watch(item: pytest.Item) -> WatchedTest | None:
    """Return the watch of a test that is to have one."""
    options = item.config.stash[_OPTIONS]
    markers = list(item.iter_markers("gradwatch"))
    asked = "gradwatch" in cast("list[str]", getattr(item, "fixturenames", ()))
    if markers:
        try:
            options = read_markers(markers, options)
        except OptionError as error:
            item.stash[_ERROR] = str(error)
            return None
    if not options.enabled and not asked:
        return None
    from lightning_gradwatch.testing.plugin.watched import WatchedTest  # noqa: PLC0415 - only where something is watched

    required = asked or (bool(markers) and options.enabled)
    return WatchedTest(options, required=required, every_trainer=options.enabled)
