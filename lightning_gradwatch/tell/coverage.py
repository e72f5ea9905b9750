"""Tells what of a net is measured, and what isn't and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.record.wording import counted, ordinal

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo

_NAMED = 3
"""Reasons that a line gives; the run's description has them all."""


def columns_text(info: RunInfo) -> str:
    """Count layers and activation sites, beside those that are known and not seen.

    >>> from lightning_gradwatch.record.step import NotCovered
    >>> from lightning_gradwatch.record.run_info import RunInfo
    >>> columns_text(RunInfo(coverage=(NotCovered("attn", "fused", sites=1),)))
    '0 layers, 0 of 1 activation site'
    """
    seen, known = len(info.sites), info.known_sites
    sites = counted(known, "activation site")
    return f"{counted(len(info.layers), 'layer')}, {f'{seen} of {sites}' if known > seen else sites}"


def coverage_line(info: RunInfo, *, where: str = "") -> str:
    """Say in one line what is measured and when, where it is written, and what isn't measured.

    Each reason is told once, with the first place that it holds for.

    >>> from lightning_gradwatch.record.step import NotCovered
    >>> from lightning_gradwatch.record.run_info import RunInfo
    >>> coverage_line(RunInfo(coverage=(NotCovered("a", "fused", 1), NotCovered("b", "fused", 1))))
    'GradWatch: 0 layers, 0 of 2 activation sites; not covered: `a` and 1 more (fused)'
    """
    line = f"GradWatch: {columns_text(info)}"
    if info.every_n_steps:
        line += f", {_told_steps(info.every_n_steps)}"
    line += f"; {where}" if where else ""
    places: dict[str, list[str]] = {}
    for entry in info.coverage:
        places.setdefault(entry.reason, []).append(entry.name)
    told = [_told(reason, names) for reason, names in list(places.items())[:_NAMED]]
    rest = sum(len(names) for names in list(places.values())[_NAMED:])
    return line + (f"; not covered: {', '.join(told)}" if told else "") + (f" and {rest} more" if rest else "")


def _told_steps(every: int) -> str:
    """Say which steps are measured.

    >>> _told_steps(1), _told_steps(2), _told_steps(50)
    ('each step', 'each 2nd step and steps 0, 1', 'each 50th step and steps 0, 1, 2, 4, …')
    """
    if every == 1:
        return "each step"
    early = [step for step in (0, 1, 2, 4) if step < every]
    more = ", …" if every > 8 else ""
    return f"each {ordinal(every)} step and steps {', '.join(map(str, early))}{more}"


def _told(reason: str, names: list[str]) -> str:
    named = [name for name in names if name]
    if not named:
        return reason
    more = f" and {len(named) - 1} more" if len(named) > 1 else ""
    return f"`{named[0]}`{more} ({reason})"
