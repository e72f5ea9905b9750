"""The report as JUnit XML: a suite a run, a case a rule, so that a CI server lists what was judged and what wasn't."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring  # only written: no XML is ever parsed here

from lightning_gradwatch.judge.catalog import label_of
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.tell.terminal import change_text, warning_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding

IN_SHORT = "a test suite a run, a test case a rule"


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
    leading = [finding.code for finding in verdict.sorted_findings if finding.code in verdict.rules]
    for code in dict.fromkeys((*leading, *verdict.rules)):
        case = _case(suite, verdict, label_of(code))
        _tell(case, verdict, [finding for finding in verdict.sorted_findings if finding.code == code])
    for code, reason in verdict.unjudged.items():
        SubElement(_case(suite, verdict, label_of(code)), "skipped", message=_safe(reason))
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
        failure.set("message", _safe(_headed(failing[0])))
        # A server shows what fails: where the root doesn't, it is told with what follows from it.
        roots = [finding for finding in verdict.findings if _leads(finding, failing) and not verdict.fails(finding)]
        failure.text = "\n\n".join(map(_text, (*roots, *failing)))
    others = [finding for finding in found if not verdict.fails(finding)]
    if others:
        SubElement(case, "system-out").text = "\n\n".join(map(_text, others))


def _headed(finding: Finding) -> str:
    return f"{finding.seen}; {finding.follows}" if finding.consequence_of else finding.message


def _leads(finding: Finding, others: Sequence[Finding]) -> bool:
    """Tell whether others follow from a finding."""
    return not finding.consequence_of and any(other.consequence_of == finding.code for other in others)


def _case(suite: Element, verdict: RunVerdict, name: str) -> Element:
    return SubElement(suite, "testcase", classname=_safe(verdict.path), name=_safe(name), time="0")


def _text(finding: Finding) -> str:
    return _safe_lines(warning_text(finding).split("\n"))


def _safe_lines(texts: Sequence[str]) -> str:
    return "\n".join(map(_safe, texts))


def _safe(text: str) -> str:
    return escape(text, Place.JUNIT)
