"""Tells findings and verdicts as plain text, without colour: it must read well in a log file and in a warning, too."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_gradwatch.findings import Severity
from lightning_gradwatch.report.escape import escape
from lightning_gradwatch.rules.wording import counted, listed, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.findings import Finding

_WIDTH = 80
_LABEL = 11


@dataclass(frozen=True, kw_only=True)
class RunVerdict:
    """What a check says about one run."""

    path: str
    findings: tuple[Finding, ...] = ()
    unjudged: Mapping[str, str]
    """Rules that couldn't judge, by code and name, with the reason."""
    judged: int = 0
    """Number of rules that could judge."""
    measured: str = ""
    """Such as ``12 measured steps (0 to 99), 17 layers, 8 sites``."""
    problems: tuple[str, ...] = ()
    """What couldn't be read."""
    failure: str = ""
    """Why the run can't be judged at all; empty where it can."""
    exit_code: int = 0


def warning_text(finding: Finding, *, width: int = _WIDTH) -> str:
    """Render a finding as the text of a warning: a headline, then labelled and indented lines.

    Nothing in it breaks the layout: control characters in names are spelled out.
    """
    rows = [
        ("layers", listed(finding.layers)),
        ("seen", finding.message),
        ("number", f"{number(finding.value)}, threshold {number(finding.threshold)}"),
        ("cause", finding.cause),
        ("remedy", finding.remedy.text),
        ("more", f"gradwatch explain {finding.code}"),
    ]
    lines = _wrap(_headline(finding), width, "", "  ")
    for label, text in rows:
        if text:
            lines.extend(_row(label, text, width))
    return "\n".join(lines)


def verdict_text(verdict: RunVerdict, *, width: int = _WIDTH) -> str:
    """Render what a check says about one run: its findings, what couldn't be judged, and the outcome in a line."""
    head = verdict.path
    if verdict.measured:
        head += f": {verdict.measured}"
    lines = _wrap(head, width, "", "  ")
    for problem in verdict.problems:
        lines.extend(_wrap(f"note: {problem}", width, "  ", "    "))
    for finding in sorted(verdict.findings, key=lambda each: -each.severity):
        lines.extend(("", *(f"  {line}" for line in warning_text(finding, width=width - 2).splitlines())))
    if verdict.findings:
        lines.append("")
    for rule, reason in verdict.unjudged.items():
        lines.extend(_wrap(f"not judged: {rule}: {reason}", width, "  ", "    "))
    lines.extend(_wrap(_outcome(verdict), width, "  ", "    "))
    return "\n".join(lines)


def _headline(finding: Finding) -> str:
    steps = f"since step {finding.first_step}"
    if finding.last_step > finding.first_step:
        steps += f", last seen at step {finding.last_step}"
    return f"{finding.code} {finding.name}: {finding.severity.label} {steps}"


def _outcome(verdict: RunVerdict) -> str:
    if verdict.failure:
        return f"can't judge: {verdict.failure}"
    rules = counted(verdict.judged, "rule")
    if not verdict.findings:
        return f"healthy: {rules} judged, nothing found"
    amounts = [
        (sum(finding.severity == severity for finding in verdict.findings), severity.label)
        for severity in sorted(Severity, reverse=True)
    ]
    found = ", ".join(
        counted(count, label) if label != "info" else f"{count} info" for count, label in amounts if count
    )
    return f"{'failed' if verdict.exit_code else 'passed'}: {found} from {rules} judged"


def _row(label: str, text: str, width: int) -> list[str]:
    return _wrap(text, width, f"  {label:<{_LABEL - 2}}", " " * _LABEL)


def _wrap(text: str, width: int, first: str, rest: str) -> list[str]:
    """Escape and wrap; all that is printed passes here."""
    return textwrap.wrap(
        escape(text),
        max(width, _LABEL + 10),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )
