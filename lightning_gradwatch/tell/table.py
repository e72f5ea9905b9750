"""The tables of a check: a line a rule, a line a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.catalog import is_numbered, label_of
from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.wording import counted, listed, number
from lightning_gradwatch.tell.cells import Cell, cells_of, table_lines, width_of_table, widths_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict
    from lightning_gradwatch.record.finding import Finding

STYLES = {
    "healthy": "green",
    "passed": "green",
    "info": "cyan",
    "warning": "yellow",
    "error": "bold red",
    "failed": "bold red",
    "cannot-judge": "bold red",
    "not judged": "dim",
    "dim": "dim",
    "bold": "bold",
}


def rule_table(verdict: RunVerdict, *, width: int, colour: bool) -> list[str]:
    """Lay out a line a finding and a rule that found nothing; no line where there is no room, since the findings follow."""
    rows: list[tuple[Cell, ...]] = []
    short: dict[str, str] = {}
    labels = {code: label_of(code) for code in (*verdict.rules, *verdict.unjudged)}
    labels |= {finding.code: f"{finding.code} {finding.name}" for finding in verdict.findings}
    for code in dict.fromkeys((*(finding.code for finding in verdict.sorted_findings), *sorted(labels))):
        found = [finding for finding in verdict.sorted_findings if finding.code == code]
        rows += [(Cell(labels[code]), *_cells(verdict, finding)) for finding in found]
        short |= {
            listed(finding.layers): counted(len(finding.layers), "layer") for finding in found if finding.layers[1:]
        }
        if not found:
            word = "healthy" if code in verdict.rules else "not judged"
            rows.append((Cell(labels[code]), Cell(word, STYLES[word]), *[Cell("")] * 4))
    heads = ("rule", "verdict", "layers", "since", "number", "threshold")
    return _render(heads, rows, width=width, colour=colour, right=(3, 4, 5), elastic=2, shorter=short)


def number_text(finding: Finding) -> str:
    """Say which number was judged, and by which threshold; empty where there is none."""
    if not is_numbered(finding.code):
        return ""
    return f"{number(finding.value)}, threshold {number(finding.threshold)}"


def runs_table(rows: Sequence[tuple[RunVerdict, str]], *, width: int, colour: bool) -> list[str]:
    """Lay out a line a run: path, outcome, and what is said of that in short."""
    cells = [
        (Cell(verdict.path), Cell(verdict.outcome.replace("-", " "), STYLES[verdict.outcome]), Cell(told))
        for verdict, told in rows
    ]
    return _render(("run", "verdict", "in short"), cells, width=width, colour=colour, right=(), elastic=2)


def _cells(verdict: RunVerdict, finding: Finding) -> tuple[Cell, ...]:
    severity = finding.severity.label
    return (
        Cell(f"{severity}{', known' if verdict.is_known(finding) else ''}", STYLES[severity]),
        Cell(listed(finding.layers)),
        Cell(str(finding.first_step)),
        *(Cell(number(each) if is_numbered(finding.code) else "") for each in (finding.value, finding.threshold)),
    )


def _render(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    width: int,
    colour: bool,
    right: Sequence[int],
    elastic: int,
    shorter: Mapping[str, str] | None = None,
) -> list[str]:
    """Lay out cells; `shorter` has what an elastic cell says where it doesn't fit."""
    table = [list(row) for row in rows]
    widths = widths_of(heads, table)
    # Only the elastic column gives way: a number that is cut off would be another number.
    room = width - width_of_table(widths) + widths[elastic]
    if room < len(heads[elastic]):
        return []
    if widths[elastic] > room:
        for row in table:
            told = row[elastic].text
            if cells_of(escape(told)) > room:
                row[elastic] = Cell((shorter or {}).get(told, told))
    widths[elastic] = min(widths[elastic], room)
    return table_lines(heads, table, widths, right=right, colour=colour)
