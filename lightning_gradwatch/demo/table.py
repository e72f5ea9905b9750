"""A row a layer: gradient and signal as bars on a log scale, saturated or dead units as a share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from lightning_gradwatch.rules.wording import number, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lightning_gradwatch.demo.training import Outcome
    from lightning_gradwatch.record import StepRecord

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


def layer_table(outcome: Outcome, *, most: int, within: tuple[Scale, Scale], ascii_only: bool = False) -> Table:
    """Build a net's table, as it was in the step that shows the point.

    Args:
        outcome: The net.
        most: Rows; of a deeper net every so many layers are shown, the first and the last among them.
        within: Scales of gradient and signal.
        ascii_only: Draw bars that any terminal can spell.
    """
    rows = _rows(outcome, outcome.last)
    saturated = any(math.isfinite(row.saturated) for row in rows)
    dead = any(row.dead > 0 or (not saturated and math.isfinite(row.dead)) for row in rows)
    gradient, signal = within
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("layer", justify="right")
    table.add_column("gradient", justify="right")
    table.add_column(_span(gradient), no_wrap=True)
    table.add_column("signal", justify="right")
    table.add_column(_span(signal), no_wrap=True)
    for shown, title in ((saturated, "saturated"), (dead, "dead")):
        if shown:
            table.add_column(title, justify="right")
            table.add_column("", no_wrap=True)
    for place in _chosen(len(rows), most):
        row = rows[place]
        cells = [
            str(place + 1) if math.isfinite(row.signal) or place < len(rows) - 1 else "out",
            _number(row.gradient),
            f"[yellow]{_bar(gradient.share(row.gradient), _BAR, ascii_only=ascii_only)}[/]",
            _number(row.signal),
            f"[cyan]{_bar(signal.share(row.signal), _BAR, ascii_only=ascii_only)}[/]",
        ]
        for shown, share in ((saturated, row.saturated), (dead, row.dead)):
            if shown:
                cells += [_percent(share), f"[red]{_bar(share, _SHARE_BAR, ascii_only=ascii_only)}[/]"]
        table.add_row(*cells)
    return table


def signal_sentence(outcome: Outcome) -> str:
    """Say how much of the signal a layer passes back, which is what the article is about."""
    signals = [row.signal for row in _rows(outcome, outcome.last) if math.isfinite(row.signal)]
    if len(signals) < 2 or not signals[-1] > 0:
        return ""
    ratio = signals[0] / signals[-1]
    gain = f", a factor of {number(ratio ** (1 / (len(signals) - 1)))} a layer" if ratio else ""
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
