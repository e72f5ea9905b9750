"""The report as JUnit XML: a suite a run, a case a rule, so that a CI server lists what was judged and what wasn't."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring  # only written: no XML is ever parsed here

from lightning_gradwatch.report.escape import Place, escape
from lightning_gradwatch.report.terminal import change_text, warning_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.findings import Finding
    from lightning_gradwatch.verdict import RunVerdict


def junit_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as JUnit XML: a failure is a finding that fails the check, skipped is what couldn't be judged."""
    suites = Element("testsuites", name="gradwatch")
    for verdict in verdicts:
        suites.append(_suite(verdict))
    for count in ("tests", "failures", "errors", "skipped"):
        suites.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(suites, encoding="unicode")


def _suite(verdict: RunVerdict) -> Element:
    suite = Element("testsuite", name=_safe(verdict.path), time="0")
    if verdict.settings_file:
        properties = SubElement(suite, "properties")
        SubElement(properties, "property", name="settings", value=_safe(verdict.settings_file))
    if verdict.failure:
        error = SubElement(_case(suite, verdict, "can be judged"), "error", type="cannot-judge")
        error.set("message", _safe(verdict.failure))
        error.text = _safe(verdict.failure)
    for rule in verdict.rules:
        case = _case(suite, verdict, rule)
        found = [finding for finding in verdict.findings if finding.code == rule.partition(" ")[0]]
        _tell(case, verdict, found)
    for rule, reason in verdict.unjudged.items():
        SubElement(_case(suite, verdict, rule), "skipped", message=_safe(reason))
    if verdict.comparison is not None and not verdict.comparison.failure:
        case = _case(suite, verdict, f"no worse than {verdict.comparison.baseline}")
        if verdict.comparison.changes:
            lines = [_safe(change_text(change)) for change in verdict.comparison.changes]
            tag = "failure" if verdict.changes_fail else "system-out"
            told = SubElement(case, tag)
            if tag == "failure":
                told.set("message", lines[0])
                told.set("type", "worse-than-baseline")
            told.text = "\n".join(lines)
    if verdict.problems:
        SubElement(suite, "system-err").text = _safe_lines(verdict.problems)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(sum(case.find(tag) is not None for case in cases)))
    return suite


def _tell(case: Element, verdict: RunVerdict, found: Sequence[Finding]) -> None:
    failing = [finding for finding in found if verdict.fails(finding)]
    if failing:  # one element a case: several confuse the servers that read this
        failure = SubElement(case, "failure", type=failing[0].severity.label)
        failure.set("message", _safe(failing[0].message))
        failure.text = "\n\n".join(map(_text, failing))
    others = [finding for finding in found if not verdict.fails(finding)]
    if others:
        SubElement(case, "system-out").text = "\n\n".join(map(_text, others))


def _case(suite: Element, verdict: RunVerdict, name: str) -> Element:
    return SubElement(suite, "testcase", classname=_safe(verdict.path), name=_safe(name), time="0")


def _text(finding: Finding) -> str:
    return _safe_lines(warning_text(finding).split("\n"))


def _safe_lines(texts: Sequence[str]) -> str:
    return "\n".join(map(_safe, texts))


def _safe(text: str) -> str:
    return escape(text, Place.JUNIT)
