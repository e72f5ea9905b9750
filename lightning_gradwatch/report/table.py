"""Tables and colour for a terminal. rich lays them out: it knows how wide a character is; names never pass as its markup."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

from lightning_gradwatch.report.escape import escape
from lightning_gradwatch.rules.wording import counted, listed, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.findings import Finding
    from lightning_gradwatch.verdict import RunVerdict

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
_GAP = 2


def rule_table(verdict: RunVerdict, *, width: int, colour: bool) -> list[str]:
    """Lay out a line a finding and a rule that found nothing; no line where there is no room, since the findings follow."""
    rows: list[tuple[str, ...]] = []
    short: dict[str, str] = {}
    labels = {label.partition(" ")[0]: label for label in (*verdict.rules, *verdict.unjudged)}
    labels |= {finding.code: f"{finding.code} {finding.name}" for finding in verdict.findings}
    for code in dict.fromkeys((*(finding.code for finding in verdict.sorted_findings), *sorted(labels))):
        found = [finding for finding in verdict.sorted_findings if finding.code == code]
        rows += [(labels[code], *_cells(verdict, finding)) for finding in found]
        short |= {
            listed(finding.layers): counted(len(finding.layers), "layer") for finding in found if finding.layers[1:]
        }
        if not found:
            word = "healthy" if labels[code] in verdict.rules else "not judged"
            rows.append((labels[code], word, "", "", "", ""))
    heads = ("rule", "verdict", "layers", "since", "number", "threshold")
    return _render(heads, rows, width=width, colour=colour, right=(3, 4, 5), elastic=2, shorter=short)


def runs_table(rows: Sequence[tuple[RunVerdict, str]], *, width: int, colour: bool) -> list[str]:
    """Lay out a line a run: path and outcome."""
    cells = [(verdict.path, verdict.outcome.replace("-", " "), told.partition(": ")[2]) for verdict, told in rows]
    return _render(("run", "verdict", "in short"), cells, width=width, colour=colour, right=(), elastic=2)


def paint(text: str, style: str) -> str:
    """Return one line of text in a style, as a terminal reads it."""
    return _print(_text(text, STYLES[style]), width=max(len(text) * 2, 1), colour=True)[0]


def _cells(verdict: RunVerdict, finding: Finding) -> tuple[str, ...]:
    return (
        f"{finding.severity.label}{', known' if verdict.is_known(finding) else ''}",
        listed(finding.layers),
        str(finding.first_step),
        number(finding.value),
        number(finding.threshold),
    )


def _render(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    colour: bool,
    right: Sequence[int],
    elastic: int,
    shorter: Mapping[str, str] | None = None,
) -> list[str]:
    """Lay out cells; `shorter` has what an elastic cell says where it doesn't fit."""
    from rich.cells import cell_len  # noqa: PLC0415 - rich takes longer to import than a short report to write
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold" if colour else "")
    # Only the elastic column gives way: a number that is cut off would be another number.
    widths = [max(cell_len(escape(cell)) for cell in column) for column in zip(heads, *rows, strict=True)]
    room = width - sum(widths) + widths[elastic] - _GAP * len(widths)
    if room < len(heads[elastic]):
        return []
    if widths[elastic] > room:
        rows = [
            tuple(
                (shorter or {}).get(cell, cell) if place == elastic and cell_len(escape(cell)) > room else cell
                for place, cell in enumerate(row)
            )
            for row in rows
        ]
    widths[elastic] = min(widths[elastic], room)
    for place, head in enumerate(heads):
        justify: Literal["left", "right"] = "right" if place in right else "left"
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", width=widths[place])
    for row in rows:
        style = STYLES.get(row[1].partition(",")[0].replace("cannot judge", "cannot-judge"), "")
        table.add_row(*(_text(cell, style if place == 1 else "") for place, cell in enumerate(row)))
    return [line.rstrip() for line in _print(table, width=width, colour=colour)]


def _text(text: str, style: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(escape(text), style=style)


def _print(renderable: Any, *, width: int, colour: bool) -> list[str]:
    from rich.console import Console  # noqa: PLC0415

    console = Console(
        file=io.StringIO(),
        width=width,
        color_system="standard" if colour else None,
        force_terminal=colour,
        legacy_windows=False,
        no_color=False if colour else None,
        highlight=False,
    )
    console.print(renderable, soft_wrap=False)
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
