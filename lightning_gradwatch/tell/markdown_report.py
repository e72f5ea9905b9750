"""The report as Markdown, for a step summary or a comment: an overview, then a section a run that isn't healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.catalog import label_of
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.wording import listed
from lightning_gradwatch.tell.table import number_text
from lightning_gradwatch.tell.terminal import change_text, consequence_text, outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding

IN_SHORT = "a table a run and a section a finding"
_MARKS = {"healthy": "✅ healthy", "passed": "✅ passed", "failed": "❌ failed", "cannot-judge": "⚠️ can't judge"}
_SHOWN = 20
"""Changes against a baseline that are listed."""


def markdown_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as Markdown."""
    rows = [
        f"| {_cell(verdict.path)} | {_MARKS[verdict.outcome]} | {_cell(outcome(verdict))} | {_cell(verdict.measured)} |"
        for verdict in verdicts
    ]
    blocks = ["## GradWatch\n\n| run | verdict | in short | measured |\n|---|---|---|---|\n" + "\n".join(rows)]
    files = dict.fromkeys(verdict.settings_file for verdict in verdicts if verdict.settings_file)
    blocks += [f"Settings: {_cell(file)}" for file in files]
    return "\n\n".join([*blocks, *(block for verdict in verdicts for block in _sections(verdict))]) + "\n"


def _sections(verdict: RunVerdict) -> list[str]:
    blocks = [_finding(finding, known=verdict.is_known(finding)) for finding in verdict.sorted_findings]
    comparison = verdict.comparison
    if comparison is not None and comparison.changes:
        shown = [f"- {_cell(change_text(change))}" for change in comparison.changes[:_SHOWN]]
        rest = len(comparison.changes) - len(shown)
        head = f"#### worse than {_cell(comparison.baseline)}"
        blocks.append("\n".join([head, "", *shown, *([f"- and {rest} more"] if rest else [])]))
    notes = [f"- not judged: {_cell(label_of(code))}: {_cell(reason)}" for code, reason in verdict.unjudged.items()]
    notes += [
        f"- ignored: {_cell(each.rule)} at {_cell(listed(each.names))}: {_cell(each.reason)}"
        for each in verdict.ignored
        if each.names
    ]
    notes += [f"- note: {_cell(problem)}" for problem in verdict.problems]
    if notes:
        blocks.append("\n".join(notes))
    return [f"### {_cell(verdict.path)}", *blocks] if blocks else []


def _finding(finding: Finding, *, known: bool) -> str:
    mark = ", known from the baseline" if known else ""
    if finding.consequence_of:
        return f"#### {_cell(consequence_text(finding))}{mark}"
    steps = f"since step {finding.first_step}"
    rows = {
        "layers": listed(finding.layers),
        "seen": finding.message,
        "number": number_text(finding),
        "cause": finding.cause,
        "remedy": finding.remedy.text,
    }
    head = f"#### {_cell(finding.code)} {_cell(finding.name)}: {finding.severity.label} {steps}"
    return "\n".join([head + mark, "", *(f"- **{name}** {_cell(text)}" for name, text in rows.items() if text)])


def _cell(text: str) -> str:
    return escape(text, Place.MARKDOWN)
