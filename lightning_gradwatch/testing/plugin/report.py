"""What a watched test tells: why it failed, and the section with all that was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.terminal import warning_text

if TYPE_CHECKING:
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.testing.plugin.watched import WatchedTest


def failure(watched: WatchedTest) -> str:
    """Return why a test fails, in a line a finding; empty where it doesn't."""
    if watched.why_nothing:
        return escape(f"GradWatch: {watched.why_nothing}")
    failing = watched.failing
    if not failing:
        return ""
    headlines = [warning_text(finding, width=_ONE_LINE).splitlines()[0] for finding in _led(watched)]
    # The code comes first: pytest's summary shows the beginning only.
    rest = (
        f"{counted(len(failing), 'finding')} of severity {watched.options.fail_on} or above; see the section gradwatch"
    )
    return "\n".join((f"GradWatch: {headlines[0]}", *(f"  {headline}" for headline in headlines[1:]), f"({rest})"))


def section(watched: WatchedTest) -> str:
    """Return all findings of a test as text, those that fail it first, led by their roots; empty where there are none."""
    dealt_with, failing = watched.dealt_with, _led(watched)
    others = [each for each in watched.findings if each not in failing and each not in dealt_with]
    parts = [warning_text(finding) for finding in failing]
    parts += [f"(the test took the warning itself)\n{warning_text(finding)}" for finding in dealt_with]
    parts += [f"(doesn't fail the test)\n{warning_text(finding)}" for finding in others]
    return "\n\n".join(parts)


def _led(watched: WatchedTest) -> list[Finding]:
    """Return the findings that fail a test, and before them their roots, which may be milder."""
    failing = watched.failing
    wanted = {finding.consequence_of for finding in failing}
    led: list[Finding] = []
    for fitted in watched.fits:
        roots = [each for each in fitted.findings if not each.consequence_of and each.code in wanted]
        own = [each for each in fitted.findings if each in failing]
        led += [*(each for each in roots if each not in own), *own] if own else []
    return led


_ONE_LINE = 10_000
