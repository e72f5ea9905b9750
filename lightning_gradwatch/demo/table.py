"""A row a layer: gradient and signal as bars on a log scale, saturated or dead units as a share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_gradwatch.record.wording import number, percent
from lightning_gradwatch.tell.cells import Cell, table_lines, width_of_table, widths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lightning_gradwatch.demo.training import Outcome
    from lightning_gradwatch.record.step import StepRecord

_BAR = 12
_SHARE_BAR = 5
_LEAST_DECADES = 4
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Scale:
    """A log scale between two powers of ten."""

    lowest: int
    highest: int

    @classmethod
    def over(cls, values: Iterable[float]) -> Scale:
        """Return the decades that all positive values lie in, and some more where those are few."""
        logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
        highest = math.ceil(max(logs, default=0.0))
        return cls(min(math.floor(min(logs, default=0.0)), highest - _LEAST_DECADES), highest)

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        if not value > 0:
            return 0.0
        place = (math.log10(min(value, 10.0**self.highest)) - self.lowest) / (self.highest - self.lowest)
        return min(max(place, 0.0), 1.0)


def scales(outcomes: Sequence[Outcome]) -> tuple[Scale, Scale]:
    """Return the scales of gradient and signal that suit all of some nets, so that their bars can be compared."""
    rows = [row for outcome in outcomes for row in _rows(outcome, outcome.last)]
    return Scale.over(row.gradient for row in rows), Scale.over(row.signal for row in rows)


def layer_table(
    outcome: Outcome, *, most: int, within: tuple[Scale, Scale], width: int, colour: bool, ascii_only: bool = False
) -> list[str]:
    """Lay out a net's table, as it was in the step that shows the point.

    Args:
        outcome: The net.
        most: Rows; of a deeper net every so many layers are shown, the first and the last among them.
        within: Scales of gradient and signal.
        width: Cells of the terminal; where it is too narrow for them, bars are left out, the last ones first.
        colour: Whether to use a terminal's colours.
        ascii_only: Draw bars that any terminal can spell.
    """
    rows = _rows(outcome, outcome.last)
    saturated = any(math.isfinite(row.saturated) for row in rows)
    dead = any(row.dead > 0 or (not saturated and math.isfinite(row.dead)) for row in rows)
    chosen = _chosen(len(rows), most)
    shown = [rows[place] for place in chosen]

    def bars(shares: Iterable[float], style: str, width: int) -> list[Cell]:
        return [Cell(_bar(share, width, ascii_only=ascii_only), style) for share in shares]

    gradient, signal = within
    last = len(rows) - 1
    names = [str(place + 1) if place < last or math.isfinite(rows[place].signal) else "out" for place in chosen]
    columns = [
        ("layer", [Cell(name) for name in names]),
        ("gradient", [Cell(_number(row.gradient)) for row in shown]),
        (_span(gradient), bars((gradient.share(row.gradient) for row in shown), "yellow", _BAR)),
        ("signal", [Cell(_number(row.signal)) for row in shown]),
        (_span(signal), bars((signal.share(row.signal) for row in shown), "cyan", _BAR)),
    ]
    for title, wanted, shares in (
        ("saturated", saturated, [row.saturated for row in shown]),
        ("dead", dead, [row.dead for row in shown]),
    ):
        if wanted:
            columns += [(title, [Cell(_percent(share)) for share in shares]), ("", bars(shares, "red", _SHARE_BAR))]
    return _lines(columns, bars={_span(gradient), _span(signal), ""}, width=width, colour=colour)


def _lines(columns: list[tuple[str, list[Cell]]], *, bars: set[str], width: int, colour: bool) -> list[str]:
    """Lay out columns; those whose titles are `bars` may be left out, and the others are numbers."""
    while True:
        heads, cells = zip(*columns, strict=True)
        rows = list(zip(*cells, strict=True))
        widths = widths_of(heads, rows)
        spare = [place for place, head in enumerate(heads) if head in bars]
        if width_of_table(widths) <= width or not spare:
            right = [place for place in range(len(heads)) if place not in spare]
            return table_lines(heads, rows, widths, right=right, colour=colour)
        del columns[spare[-1]]


def signal_sentence(outcome: Outcome) -> str:
    """Say how much of the signal a layer passes back, which is what the article is about."""
    signals = [row.signal for row in _rows(outcome, outcome.last) if math.isfinite(row.signal)]
    if len(signals) < 2 or not signals[-1] > 0:
        return ""
    ratio = signals[0] / signals[-1]
    gain = f", a factor of {number(ratio ** (1 / (len(signals) - 1)))} per layer" if ratio else ""
    return f"Signal at layer 1 in step {outcome.last.step}: {number(ratio)} of layer {len(signals)}'s{gain}."


@dataclass(frozen=True)
class _Row:
    gradient: float
    signal: float
    saturated: float
    dead: float


def _rows(outcome: Outcome, record: StepRecord) -> list[_Row]:
    """Pair weight layers with activation sites: in the demo's nets, the k-th of the one feeds the k-th of the other."""
    info = outcome.info
    gradients = record.values("grad_norm", len(info.layers))
    columns = [column for column, layer in enumerate(info.layers) if layer.weight]
    sites = [record.values(name, len(info.sites)) for name in ("signal_norm", "saturated_fraction", "dead_fraction")]
    return [
        _Row(float(gradients[column]), *(float(site[place]) if place < len(site) else math.nan for site in sites))
        for place, column in enumerate(columns)
    ]


def _chosen(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    step = -(-(count - 2) // (most - 2))
    return [*range(0, count - 2, step), count - 2, count - 1]


def _span(scale: Scale) -> str:
    return f"1e{scale.lowest} to 1e{scale.highest}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.1e}" if value else "0"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else percent(share)


def _bar(share: float, width: int, *, ascii_only: bool) -> str:
    if math.isnan(share):
        return ""
    eighths = round(share * width * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")
