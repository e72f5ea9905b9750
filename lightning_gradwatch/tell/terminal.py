"""Tells findings and verdicts as text. Without colour it reads as well, in a log file and in a warning."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from lightning_gradwatch.judge.catalog import is_numbered, label_of
from lightning_gradwatch.judge.verdict import Change, RunVerdict
from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.wording import counted, listed, number, percent
from lightning_gradwatch.tell.cells import cut, paint, wrapped
from lightning_gradwatch.tell.table import STYLES, rule_table, runs_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.judge.verdict import Comparison
    from lightning_gradwatch.record.finding import Finding

__all__ = [
    "RunVerdict",
    "change_text",
    "check_command",
    "consequence_text",
    "ending",
    "finding_texts",
    "line_text",
    "outcome",
    "summary_text",
    "verdict_text",
    "warning_text",
]

_WIDTH = 80
_LABEL = 11
_WIDEST = 100
_MOST_LINES = 12
"""Of a finding in a terminal of that width: what a person takes in at a glance; more lines where they are shorter."""
_LEAST = {"why": 2, "led to": 1, "do": 4, "head": 3, "rule": 1}
"""Lines that each part keeps, in the order in which they are cut: with the last line, so many in all."""
_SHOWN = 20
"""Changes against a baseline that are listed."""


def warning_text(finding: Finding, *, led_to: Sequence[Finding] = (), width: int = _WIDEST, before: str = "") -> str:
    """Render a finding as the text of a warning: what is wrong, where and by which number, then what to do, why, what it led to.

    At 100 columns it is 12 lines at most, and what there is no room for ends in an ellipsis: `gradwatch check` with another
    format has it whole. What follows from another finding is one line, however long: all else stands where its root is
    told. Nothing in it breaks the layout: control characters in names are spelled out.

    Args:
        finding: What to tell.
        led_to: What follows from it, as far as that is told here alone.
        width: Columns of the terminal.
        before: What is printed in front of the first line, such as the name of the warning's class.
    """
    if finding.consequence_of:
        return escape(consequence_text(finding))
    why = " ".join(part for part in (finding.cause, finding.evidence) if part)
    rows = {
        "do": finding.remedy.text,
        "why": why,
        "led to": "; ".join(map(_in_brief, led_to)),
        "rule": f"{_rule_and_steps(finding)}{_threshold(finding)}",
        "more": f"gradwatch explain {finding.code}",
    }
    head = _wrap(_first_sentence(finding), width, " " * len(before), "  ")
    blocks = {"head": [head[0].lstrip(" "), *head[1:]]}
    blocks |= {label: _row(label, text, width) for label, text in rows.items() if text}
    return "\n".join(line for block in _fitted(blocks, width) for line in block)


def finding_texts(findings: Sequence[Finding], *, width: int = _WIDEST) -> list[tuple[Finding, str]]:
    """Render findings that are told together: what follows from one of them is told there, and not once more."""
    roots: dict[str, Finding] = {}
    for finding in findings:
        if not finding.consequence_of:
            roots.setdefault(finding.code, finding)
    led_to = {code: [finding for finding in findings if finding.consequence_of == code] for code in roots}
    return [
        (
            finding,
            warning_text(
                finding, led_to=led_to[finding.code] if roots.get(finding.code) is finding else (), width=width
            ),
        )
        for finding in findings
        if finding.consequence_of not in roots
    ]


def _first_sentence(finding: Finding) -> str:
    """Say what is wrong; where a rule gave no headline, with its name and the layers before all that was seen."""
    if finding.headline:
        return f"{finding.code} {finding.headline}."
    where = f" at {listed(finding.layers)}" if finding.layers else ""
    return f"{finding.code} {finding.name}{where}: {finding.message}"


def _in_brief(finding: Finding) -> str:
    where = f" at {finding.layers[0]}" if finding.layers else ""
    more = f" and {len(finding.layers) - 1} more" if len(finding.layers) > 1 else ""
    return f"{finding.code} {finding.name}{where}{more}"


def _threshold(finding: Finding) -> str:
    return f" (threshold {number(finding.threshold)})" if is_numbered(finding.code) else ""


def _fitted(blocks: Mapping[str, list[str]], width: int) -> list[list[str]]:
    """Cut a finding to the lines that it may have, what matters least first."""
    scale = max(_WIDEST / width, 1.0)
    fitted = dict(blocks)
    beyond = sum(map(len, blocks.values())) - round(_MOST_LINES * scale)
    for label, least in _LEAST.items():
        lines = blocks.get(label, [])
        fitted[label] = _cut(lines, max(len(lines) - max(beyond, 0), round(least * scale)), width)
        beyond -= len(lines) - len(fitted[label])
    return list(fitted.values())


def _cut(lines: list[str], most: int, width: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], cut(f"{lines[most - 1]} …", width)]


def consequence_text(finding: Finding) -> str:
    """Say of a finding that follows from another what, where and from which, in a line that isn't escaped yet."""
    seen = _first_sentence(finding).removesuffix(".")
    return f"{seen}; {finding.follows} ({_rule_and_steps(finding)})"


def verdict_text(verdict: RunVerdict, *, width: int = _WIDTH, colour: bool = False, brief: bool = False) -> str:
    """Render what a check says about one run: its findings, what couldn't be judged, and the outcome in a line.

    Args:
        verdict: What to tell.
        width: Columns of the terminal.
        colour: Whether to use a terminal's colours.
        brief: Leave out the table of rules where there is nothing to worry about.
    """
    head = verdict.path
    if verdict.measured:
        head += f": {verdict.measured}"
    lines = _painted(_wrap(head, width, "", "  "), "bold", colour=colour)
    if not brief:
        lines.extend(_settings_lines([verdict], width))
    for problem in verdict.problems:
        lines.extend(_wrap(f"note: {problem}", width, "  ", "    "))
    for each in verdict.ignored:
        if each.names:
            told = f"ignored: {each.rule} at {listed(each.names)} ({each.pattern}): {each.reason}"
            lines.extend(_wrap(told, width, "  ", "    "))
    if (verdict.rules or verdict.findings) and not (brief and verdict.outcome == "healthy"):
        table = rule_table(verdict, width=width - 2, colour=colour)
        lines.extend(("", *(f"  {line}" for line in table), *([""] if table else [])))
    for finding, text in finding_texts(verdict.sorted_findings, width=width - 2):
        block = [f"  {line}" for line in text.splitlines()]
        known = verdict.is_known(finding)
        style = "dim" if known else finding.severity.label
        lines.extend(_painted(block[:1], style, colour=colour))
        lines.extend([*block[1:], *(["    known    the baseline has it as well"] if known else []), ""])
    if verdict.comparison is not None:
        lines.extend(_comparison_lines(verdict.comparison, width))
    for code, reason in verdict.unjudged.items():
        lines.extend(_wrap(f"not judged: {label_of(code)}: {reason}", width, "  ", "    "))
    lines.extend(_painted(_wrap(outcome(verdict), width, "  ", "    "), verdict.outcome, colour=colour))
    return "\n".join(lines)


def line_text(verdict: RunVerdict, *, colour: bool = False) -> str:
    """Say in one line, however long, what a check says about one run of many."""
    roots = dict.fromkeys(
        f"{each.code} {each.name}"
        for each in verdict.sorted_findings
        if verdict.fails(each) and not each.consequence_of
    )
    line = escape(f"{verdict.path}: {outcome(verdict)}" + (f": {', '.join(roots)}" if roots else ""))
    return paint(line, STYLES[verdict.outcome]) if colour else line


def summary_text(
    verdicts: Sequence[RunVerdict],
    *,
    listed: Sequence[RunVerdict] | None = None,
    width: int = _WIDTH,
    colour: bool = False,
) -> str:
    """Render one line on several runs, and a table of those that aren't healthy.

    Args:
        verdicts: On all runs.
        listed: Those that are told of in the table; None: all. Of the others a command says more.
        width: Columns of the terminal.
        colour: Whether to use a terminal's colours.
    """
    words = {"healthy": "healthy", "passed": "passed", "failed": "failed", "cannot-judge": "can't be judged"}
    counts = {word: sum(verdict.outcome == key for verdict in verdicts) for key, word in words.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    lines = _wrap(f"{counted(len(verdicts), 'run')}: {told}", width, "", "  ")
    lines.extend(_settings_lines(verdicts, width))
    ill = [verdict for verdict in (verdicts if listed is None else listed) if verdict.exit_code]
    further = [verdict for verdict in verdicts if verdict.exit_code and listed is not None and verdict not in ill]
    if further:
        lines.append(escape(f"  more: {check_command(further[0].path)}"))  # in one piece, to be copied
    if ill:
        rows = [(verdict, in_short(verdict)) for verdict in ill]
        lines.extend(f"  {line}" for line in runs_table(rows, width=width - 2, colour=colour))
    return "\n".join(lines)


def _settings_lines(verdicts: Sequence[RunVerdict], width: int) -> list[str]:
    files = dict.fromkeys(verdict.settings_file for verdict in verdicts if verdict.settings_file)
    return [line for file in files for line in _wrap(f"settings: {file}", width, "  ", "    ")]


def ending(verdict: RunVerdict) -> str:
    """Say in one line what came out of a fit: as `outcome`, with the root causes by name and how many rules judged."""
    if verdict.failure:
        return f"can't judge: {verdict.failure}"
    rules = counted(verdict.judged, "rule")
    if verdict.unjudged:
        rules = f"{verdict.judged} of {counted(verdict.judged + len(verdict.unjudged), 'rule')}"
    open_ = [each for each in verdict.sorted_findings if each.severity > Severity.INFO]
    if not open_:
        infos = len(verdict.findings)
        return f"healthy by {rules} in {verdict.measured}{f'; {infos} info' if infos else ''}"
    roots = dict.fromkeys(
        f"{each.code} {each.name} ({each.severity.label})" for each in open_ if not each.consequence_of
    )
    rest = sum(bool(each.consequence_of) for each in open_)
    follows = (
        f", and {counted(rest, 'finding')} that {'follows' if rest == 1 else 'follow'} from {'it' if len(roots) == 1 else 'them'}"
        if rest
        else ""
    )
    return f"not healthy: {', '.join(roots)}{follows}; {rules} judged {verdict.measured}"


def check_command(path: str) -> str:
    """Return the command that tells all of a run.

    >>> check_command("logs/version 0")
    "gradwatch check 'logs/version 0'"
    """
    return f"gradwatch check {shlex.quote(path)}"


def change_text(change: Change) -> str:
    """Say in one line what got worse.

    >>> change_text(Change(metric="grad_norm", name="net.0", base=0.5, run=0.0005, noise=1.25, steps=9))
    'grad_norm of net.0: 0.5 → 0.0005, 0.001 times (spread of the baseline: 1.25 times)'
    """
    name = f"{change.metric} of {change.name}" if change.name else change.metric
    if change.metric.endswith("_fraction"):
        return (
            f"{name}: {percent(change.base)} → {percent(change.run)} (spread of the baseline: {percent(change.noise)})"
        )
    return (
        f"{name}: {number(change.base)} → {number(change.run)}, {number(change.ratio)} times "
        f"(spread of the baseline: {number(change.noise)} times)"
    )


def _comparison_lines(comparison: Comparison, width: int) -> list[str]:
    lines = _wrap(
        f"compared with {comparison.baseline}: {comparison.compared or 'not comparable'}", width, "  ", "    "
    )
    for title, names in (("only there", comparison.only_baseline), ("only here", comparison.only_run)):
        if names:
            lines.extend(_wrap(f"{title}: {listed(names)}", width, "  ", "    "))
    for finding in comparison.gone:
        lines.extend(_wrap(f"gone: {finding.code} {finding.name} at {listed(finding.layers)}", width, "  ", "    "))
    for change in comparison.changes[:_SHOWN]:
        lines.extend(_wrap(f"worse: {change_text(change)}", width, "  ", "    "))
    if len(comparison.changes) > _SHOWN:
        lines.append(f"  worse: and {len(comparison.changes) - _SHOWN} more; --format json has them all")
    return lines


def _painted(lines: list[str], style: str, *, colour: bool) -> list[str]:
    return [paint(line, STYLES[style]) for line in lines] if colour else lines


def _rule_and_steps(finding: Finding) -> str:
    steps = f"since step {finding.first_step}"
    if finding.last_step > finding.first_step:
        steps += f", last seen at step {finding.last_step}"
    healed = "" if finding.healed_step is None else f", healed by step {finding.healed_step}"
    return f"{finding.name}, {finding.severity.label} {steps}{healed}"


def outcome(verdict: RunVerdict) -> str:
    """Say in one line what came out."""
    return f"{_word(verdict)}: {in_short(verdict)}"


def _word(verdict: RunVerdict) -> str:
    if verdict.failure:
        return "can't judge"
    if verdict.exit_code:
        return "failed"
    got_worse = verdict.comparison is not None and verdict.comparison.changes
    return "passed" if verdict.findings or got_worse else "healthy"


def in_short(verdict: RunVerdict) -> str:
    """Say how many findings there are, and how many rules judged, or why none could."""
    if verdict.failure:
        return verdict.failure
    rules = counted(verdict.judged, "rule")
    comparison = verdict.comparison
    worse = 0 if comparison is None else len(comparison.changes)
    against = "" if comparison is None else f"{counted(worse, 'number')} worse than {comparison.baseline}; "
    if not verdict.findings:
        return f"{against}{rules} judged, nothing found"
    amounts = [
        (sum(finding.severity == severity for finding in verdict.findings), severity.label)
        for severity in sorted(Severity, reverse=True)
    ]
    found = ", ".join(
        counted(count, label) if label != "info" else f"{count} info" for count, label in amounts if count
    )
    known = sum(map(verdict.is_known, verdict.findings))
    if known:
        found += f" ({known} known)"
    return f"{against}{found} from {rules} judged"


def _row(label: str, text: str, width: int) -> list[str]:
    return _wrap(text, width, f"  {label:<{_LABEL - 2}}", " " * _LABEL)


def _wrap(text: str, width: int, first: str, rest: str) -> list[str]:
    """Escape and wrap; all that is printed passes here."""
    return wrapped(text, max(width, _LABEL + 10), first, rest)
