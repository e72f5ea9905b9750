"""The report as commands of GitHub's workflows: an annotation a finding. Each line is a command of ours, so no name can be one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.terminal import change_text, warning_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding

_SHOWN = 10
"""Changes against a baseline that one annotation lists."""
_WIDTH = 200  # GitHub wraps by itself
_FAILS, _TOLD, _NOTED = range(3)


def github_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as annotations: what fails the check first, because GitHub shows ten of a kind, led by its root."""
    lines = [line for verdict in verdicts for line in _annotations(verdict)]
    files = dict.fromkeys(verdict.settings_file for verdict in verdicts if verdict.settings_file)
    lines += [(_NOTED, _command("notice", "gradwatch: settings", file)) for file in files]
    return "\n".join(line for _, line in sorted(lines, key=lambda each: each[0]))


def _annotations(verdict: RunVerdict) -> list[tuple[int, str]]:
    """Return the annotations of a run, each with its rank among those of all runs."""
    lines = []
    if verdict.failure:
        lines.append((_FAILS, _command("error", f"gradwatch can't judge {verdict.path}", verdict.failure)))
    leading = {finding.consequence_of for finding in verdict.findings if verdict.fails(finding)}
    for finding in verdict.sorted_findings:
        title = f"{finding.code} {finding.name} in {verdict.path}"
        leads = not finding.consequence_of and finding.code in leading
        kind = _kind(verdict, finding)
        rank = _FAILS if verdict.fails(finding) or leads else _TOLD if kind != "notice" else _NOTED
        lines.append((rank, _command(kind, title, *warning_text(finding, width=_WIDTH).split("\n"))))
    comparison = verdict.comparison
    if comparison is not None and comparison.changes:
        shown = [change_text(change) for change in comparison.changes[:_SHOWN]]
        rest = len(comparison.changes) - len(shown)
        more = [f"and {rest} more"] if rest else []
        kind, rank = ("warning", _FAILS) if verdict.changes_fail else ("notice", _NOTED)
        lines.append((rank, _command(kind, f"{verdict.path} is worse than {comparison.baseline}", *shown, *more)))
    if not lines:
        text = f"healthy: {counted(verdict.judged, 'rule')} judged"
        lines.append((_NOTED, _command("notice", f"gradwatch: {verdict.path}", text)))
    if verdict.unjudged:
        reasons = [f"{rule}: {reason}" for rule, reason in verdict.unjudged.items()]
        lines.append((_NOTED, _command("notice", f"not judged in {verdict.path}", *reasons)))
    return lines


def _kind(verdict: RunVerdict, finding: Finding) -> str:
    if finding.severity == Severity.INFO or verdict.is_known(finding):
        return "notice"
    return finding.severity.label


def _command(kind: str, title: str, *lines: str) -> str:
    """Return a command whose text has these lines."""
    text = "%0A".join(escape(line, Place.ANNOTATION) for line in lines)
    return f"::{kind} title={escape(title, Place.ANNOTATION_TITLE)}::{text}"
