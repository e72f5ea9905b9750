"""The report as commands of GitHub's workflows: an annotation a finding. Each line is a command of ours, so no name can be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.catalog import label_of
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.terminal import change_text, warning_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding

IN_SHORT = "annotations; the Markdown is added to $GITHUB_STEP_SUMMARY"
_SHOWN = 10
"""Changes against a baseline that one annotation lists."""
_WIDTH = 200  # GitHub wraps by itself
_FAILS, _TOLD, _NOTED = range(3)


def github_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as annotations: what fails the check first, because GitHub shows ten of a kind, led by its root."""
    annotations = [each for verdict in verdicts for each in _annotations(verdict)]
    files = dict.fromkeys(verdict.settings_file for verdict in verdicts if verdict.settings_file)
    annotations += [_Annotation(_NOTED, "notice", "gradwatch: settings", (file,)) for file in files]
    return "\n".join(map(_command, sorted(annotations, key=lambda each: each.rank)))


class _Annotation(NamedTuple):
    """What GitHub shows beside a run, not spelled yet."""

    rank: int
    """Among those of all runs."""
    kind: str
    """``error``, ``warning`` or ``notice``."""
    title: str
    lines: tuple[str, ...]


def _annotations(verdict: RunVerdict) -> list[_Annotation]:
    """Return the annotations of a run."""
    found = []
    if verdict.failure:
        found.append(_Annotation(_FAILS, "error", f"gradwatch can't judge {verdict.path}", (verdict.failure,)))
    leading = {finding.consequence_of for finding in verdict.findings if verdict.fails(finding)}
    for finding in verdict.sorted_findings:
        title = f"{finding.code} {finding.name} in {verdict.path}"
        leads = not finding.consequence_of and finding.code in leading
        kind = _kind(verdict, finding)
        rank = _FAILS if verdict.fails(finding) or leads else _TOLD if kind != "notice" else _NOTED
        found.append(_Annotation(rank, kind, title, tuple(warning_text(finding, width=_WIDTH).split("\n"))))
    comparison = verdict.comparison
    if comparison is not None and comparison.changes:
        shown = [change_text(change) for change in comparison.changes[:_SHOWN]]
        rest = len(comparison.changes) - len(shown)
        more = [f"and {rest} more"] if rest else []
        kind, rank = ("warning", _FAILS) if verdict.changes_fail else ("notice", _NOTED)
        title = f"{verdict.path} is worse than {comparison.baseline}"
        found.append(_Annotation(rank, kind, title, (*shown, *more)))
    if not found:
        text = f"healthy: {counted(verdict.judged, 'rule')} judged"
        found.append(_Annotation(_NOTED, "notice", f"gradwatch: {verdict.path}", (text,)))
    if verdict.unjudged:
        reasons = [f"{label_of(code)}: {reason}" for code, reason in verdict.unjudged.items()]
        found.append(_Annotation(_NOTED, "notice", f"not judged in {verdict.path}", tuple(reasons)))
    return found


def _kind(verdict: RunVerdict, finding: Finding) -> str:
    if finding.severity == Severity.INFO or verdict.is_known(finding):
        return "notice"
    return finding.severity.label


def _command(annotation: _Annotation) -> str:
    """Return the command that makes an annotation."""
    text = "%0A".join(escape(line, Place.ANNOTATION) for line in annotation.lines)
    return f"::{annotation.kind} title={escape(annotation.title, Place.ANNOTATION_TITLE)}::{text}"
