"""The heatmap of layers and steps as a PNG, for models with too many layers for a curve each. Pillow, no torch."""

from __future__ import annotations

import io
import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.record.escape import Place, escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, int, int]
Vector: TypeAlias = npt.NDArray[np.float64]

# After cividis: dark blue to yellow, readable with any colour vision and in grey.
_ANCHORS = np.array(
    [
        (0, 34, 78),
        (30, 58, 111),
        (66, 78, 108),
        (97, 99, 112),
        (125, 124, 120),
        (161, 150, 116),
        (201, 178, 98),
        (254, 232, 56),
    ],
    dtype=np.float64,
)
_ZERO: Colour = (213, 94, 0)
_NON_FINITE: Colour = (190, 60, 190)
_ABSENT: Colour = (232, 232, 232)
_SPECIAL = ((_ZERO, "exactly 0"), (_NON_FINITE, "not finite"), (_ABSENT, "not measured"))

_TEXT: Colour = (40, 40, 40)
_QUIET: Colour = (110, 110, 110)
_PAPER: Colour = (255, 255, 255)
_FONT_SIZE = 12
_TITLE_SIZE = 15
_LINE = 15
"""Height of a line of text, in pixels."""
_WIDTH = 760
"""Of the cells; and most columns and, as _TALLEST, most rows that are drawn."""
_TALLEST = 2000
_NAME_SIGNS = 42
_DECADES = 16
"""Colours span at most so many."""


def heatmap_png(steps: npt.NDArray[np.int64], values: Vector, names: Sequence[str], title: str) -> bytes:
    """Draw log10 of a metric, one row a layer and one column a measured step.

    Zeros, values that aren't finite and values that weren't measured have colours of their own. Where there are more
    steps than pixels, a column stands for several: it shows the last, but a zero or a non-finite value of any.

    Args:
        steps: Shape [S], rising.
        values: Shape [S, N], positive or 0; NaN where not measured.
        names: N names, along the path, the first at the top.
        title: Above the image.

    Raises:
        ValueError: there is nothing to draw, or the shapes don't fit.
    """
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - dear to import, and most runs draw no image

    if values.shape != (len(steps), len(names)) or not values.size:
        raise ValueError(f"values of shape {values.shape} for {len(steps)} steps and {len(names)} names")
    columns, rows = _last_of_bins(len(steps), _WIDTH), _last_of_bins(len(names), _TALLEST)
    cells = _reduce(_reduce(values, columns).T, rows)
    low, high = _range(cells)
    height = len(rows) * max(1, min(18, 960 // len(rows)))
    height = max(height, 120)
    font, large = ImageFont.load_default(_FONT_SIZE), ImageFont.load_default(_TITLE_SIZE)
    prefix = _common_prefix(names)
    apart = _every(len(rows), height)
    labels = {row: _label(names[last][len(prefix) :]) for row, last in enumerate(rows) if row % apart == 0}
    head = _label(prefix) and f"{_label(prefix)}*"
    left = 22 + math.ceil(max(font.getlength(label) for label in (head, *labels.values())))
    top = 40
    image = Image.new("RGB", (left + _WIDTH + 140, top + height + 46), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.font = font
    draw.text((left, 12), _label(title, 100), fill=_TEXT, font=large)
    draw.text((left - 9, 24), head, fill=_QUIET, anchor="rm")
    image.paste(_cells(cells, low, high).resize((_WIDTH, height), Image.Resampling.NEAREST), (left, top))
    draw.rectangle((left - 1, top - 1, left + _WIDTH, top + height), outline=_QUIET)
    for row, label in labels.items():
        middle = top + (row + 0.5) * height / len(rows)
        draw.line((left - 5, middle, left - 2, middle), fill=_QUIET)
        draw.text((left - 9, middle), label, fill=_TEXT, anchor="rm")
    _draw_steps(draw, steps[columns].tolist(), left, top + height)
    _draw_legend(draw, cells, (low, high), (left + _WIDTH + 24, top, height))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _last_of_bins(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return the last index of each of at most `most` bins."""
    bins = min(count, most)
    return np.arange(1, bins + 1) * count // bins - 1


def _reduce(values: Vector, last: npt.NDArray[np.int64]) -> Vector:
    """Reduce the first axis to bins that end at `last`: the last value, unless one in the bin is 0 or not finite."""
    if len(last) == len(values):
        return values
    reduced = values[last]
    starts = np.concatenate(([0], last[:-1] + 1))
    for alarm in (0.0, math.inf):
        reduced[np.logical_or.reduceat(values == alarm, starts, axis=0)] = alarm
    return reduced


def _range(cells: Vector) -> tuple[float, float]:
    """Return log10 of the values at both ends of the colours, whole decades."""
    logs = np.sort(np.log10(cells[np.isfinite(cells) & (cells > 0)]))
    if not logs.size:
        return -1.0, 0.0
    # A hundredth at each end is left out: one step's outlier would take the contrast from all others.
    few = logs.size // 100
    high = math.ceil(logs[-1 - few])
    return float(max(min(math.floor(logs[few]), high - 1), high - _DECADES)), float(high)


def _colours(position: Vector) -> npt.NDArray[np.uint8]:
    """Return RGB of positions from 0 to 1 on the scale."""
    anchors = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(position, anchors, channel) for channel in _ANCHORS.T], axis=-1).round().astype(np.uint8)


def _cells(cells: Vector, low: float, high: float) -> Image.Image:
    from PIL import Image  # noqa: PLC0415 - see heatmap_png

    usable = np.isfinite(cells) & (cells > 0)
    logs = np.log10(np.where(usable, cells, 1.0))
    pixels = _colours(np.clip((logs - low) / (high - low), 0, 1))
    pixels[cells == 0] = _ZERO
    pixels[np.isinf(cells)] = _NON_FINITE
    pixels[np.isnan(cells)] = _ABSENT
    return Image.fromarray(pixels)


def _every(rows: int, height: int) -> int:
    """Return how many rows apart labels stand so that they don't touch: 1, 2, 5, 10 and so on."""
    needed = rows * _LINE / height
    return next(apart for scale in (1, 10, 100) for apart in (scale, 2 * scale, 5 * scale) if apart >= needed)


def _common_prefix(names: Sequence[str]) -> str:
    """Return what all names start with, up to a dot; empty for one name."""
    if len(names) < 2:
        return ""
    # Names between the first and the last in dictionary order start as both of these do.
    common = "".join(
        itertools.takewhile(str, (a if a == b else "" for a, b in zip(min(names), max(names), strict=False)))
    )
    return common[: common.rfind(".") + 1]


def _label(name: str, most: int = _NAME_SIGNS) -> str:
    """Return a name that fits, on one line: its ends tell more than its middle."""
    shown = escape(name[: most + 1] + name[-most:] if len(name) > 2 * most else name, Place.PICTURE)
    kept = (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[:kept]}…{shown[-(most - 1 - kept) :]}"


def _draw_steps(draw: ImageDraw.ImageDraw, steps: list[int], left: int, bottom: int) -> None:
    free_from = float(left - 20)
    for index, step in enumerate(steps):
        centre = left + (index + 0.5) * _WIDTH / len(steps)
        label = str(step)
        half = draw.textlength(label) / 2
        if centre - half < free_from:
            continue
        draw.line((centre, bottom + 1, centre, bottom + 4), fill=_QUIET)
        draw.text((centre, bottom + 6), label, fill=_TEXT, anchor="ma")
        free_from = centre + half + 36
    draw.text((left + _WIDTH / 2, bottom + 24), "step", fill=_TEXT, anchor="ma")


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    cells: Vector,
    ends: tuple[float, float],
    place: tuple[int, int, int],
) -> None:
    left, top, height = place
    low, high = ends
    present = [
        (colour, meaning)
        for (colour, meaning), found in zip(
            _SPECIAL, ((cells == 0).any(), np.isinf(cells).any(), np.isnan(cells).any()), strict=True
        )
        if found
    ]
    draw.text((left, top - 4), "gradient norm", fill=_TEXT)
    first = top + 20
    length = min(220, height - 20 - 20 * len(present) - 8)
    for offset, colour in enumerate(_colours(np.linspace(1, 0, length)).tolist()):
        draw.line((left, first + offset, left + 14, first + offset), fill=tuple(colour))
    decades = int(high - low)
    apart = next(step for step in (1, 2, 4, 8, 16) if decades / step * 22 <= length or step == _DECADES)
    for exponent in range(int(high), int(low) - 1, -apart):
        y = first + (high - exponent) / (high - low) * (length - 1)
        draw.line((left + 15, y, left + 18, y), fill=_QUIET)
        below = exponent == low and bool(((cells > 0) & (cells < 10.0**low)).any())
        above = exponent == high and bool((np.isfinite(cells) & (cells > 10.0**high)).any())
        draw.text((left + 22, y), f"{'<' if below else '>' if above else ''}1e{exponent}", fill=_TEXT, anchor="lm")
    for number, (colour, meaning) in enumerate(present):
        y = first + length + 14 + 20 * number
        draw.rectangle((left, y, left + 14, y + 12), fill=colour, outline=_QUIET)
        draw.text((left + 22, y + 6), meaning, fill=_TEXT, anchor="lm")
