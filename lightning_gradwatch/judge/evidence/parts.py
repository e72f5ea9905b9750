"""How the parts of a net that have optimizers of their own fare: each one's gradient and loss against its own past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import middle
from lightning_gradwatch.record.finding import Action, Remedy
from lightning_gradwatch.record.wording import listed, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_COMPARED = 3
"""Readings of which the median is taken, at the start and at present."""
_STARTING = 16
"""Steps in which a run starts: of optimizers that take turns, one may have a single reading there."""
_WORSE = 0.05
"""Share of its loss at the start by which a part's loss must have risen."""
_WON = 0.5
"""The same by which that of one that has won has fallen."""
_HOLD_BACK = 0.1
"""Learning rate of what has won, over the present one: a decade, as with every other rate that is too high."""
_EVEN = 1.5
"""How many times the starved part's learning rate that of the other one, held back, may still be: steps that are as large as each
other's helped most where they weren't."""


@dataclass(frozen=True)
class Part:
    """What is known of an optimizer's part."""

    norm: float
    """Median of the latest readings of its gradient's L2 norm."""
    peak: float
    """The highest such median."""
    first: float
    """Median of its first losses; NaN where it isn't known."""
    last: float
    worse: bool
    """Whether its latest losses are all above its first ones, clearly."""
    rate: float
    """Its learning rate when it last stepped; NaN where that isn't known."""

    @property
    def sunk(self) -> float:
        """The gradient's norm over its highest."""
        return self.norm / self.peak if self.peak > 0 else math.nan

    @property
    def won(self) -> bool:
        """Whether its loss has come far down."""
        return self.first - self.last >= _WON * abs(self.first)


@dataclass(frozen=True)
class Contest:
    """All parts at one record."""

    parts: Mapping[int, Part]
    """By the optimizer's place; only those with enough readings."""
    read: Sequence[int]
    """Those that this record is a reading of."""
    starved: frozenset[int]
    known: bool
    """Whether the optimizers' losses can be told apart."""

    def layers(self, info: RunInfo, index: int) -> tuple[str, ...]:
        """Return the layers of one part alone, along the path."""
        return tuple(info.layer_names[column] for column in _own_columns(info)[index].tolist())


class Told(NamedTuple):
    """What there is to say of a starved part."""

    sunk: float
    headline: str
    evidence: str


def note_parts(record: StepRecord, info: RunInfo, memory: dict[str, Any], ratio: float) -> Contest:
    """Take a record's numbers into the memory, plain data by optimizer, and compare each part with its own past."""
    norms = record.values("grad_norm", len(info.layers))
    read, parts = [], {}
    known = any(math.isfinite(loss) for loss in record.optimizer_losses)
    for index, columns in enumerate(_own_columns(info)):
        held = memory.setdefault(str(index), {"norms": [], "peak": 0.0, "first": [], "last": []})
        if index in record.optimizers and _note(held, record, index, norms[columns]):
            read.append(index)
        known = known or bool(held["last"])
        if len(held["norms"]) == _COMPARED:
            parts[index] = _read(held)
    low = {index for index in read if (part := parts.get(index)) is not None and part.sunk <= ratio and part.worse}
    others = [index for index in parts if index not in low and not (parts[index].worse and parts[index].sunk <= ratio)]
    return Contest(parts, read, frozenset(low) if others else frozenset(), known)


def _note(held: dict[str, Any], record: StepRecord, index: int, norms: npt.NDArray[np.float64]) -> bool:
    """Take in what one optimizer stepped by; whether it is a reading."""
    measured = norms[~np.isnan(norms)]
    if not measured.size or not np.isfinite(measured).all() or not record.learning_rates[index] > 0:
        return False
    held["norms"] = [*held["norms"], math.hypot(*measured.tolist())][-_COMPARED:]
    held["rate"] = float(record.learning_rates[index])
    held["peak"] = max(held["peak"], middle(sorted(held["norms"])))
    loss = record.optimizer_losses[index]
    if math.isfinite(loss):
        held["last"] = [*held["last"], float(loss)][-_COMPARED:]
        if not held["first"] or (len(held["first"]) < _COMPARED and record.step < _STARTING):
            held["first"].append(float(loss))
    return True


def _read(held: Mapping[str, Any]) -> Part:
    first, last, rate = held["first"], held["last"], held.get("rate", math.nan)
    if len(last) < _COMPARED:
        return Part(middle(sorted(held["norms"])), held["peak"], math.nan, math.nan, worse=False, rate=rate)
    start, now = middle(sorted(first)), middle(sorted(last))
    worse = min(last) > max(first) and now - start >= _WORSE * abs(start)
    return Part(middle(sorted(held["norms"])), held["peak"], start, now, worse=worse, rate=rate)


def _own_columns(info: RunInfo) -> tuple[npt.NDArray[np.intp], ...]:
    """Return for each optimizer the columns of the layers that it alone holds; none without a weight layer among them."""
    columns = info.optimizer_columns
    times = np.bincount(np.array([*chain.from_iterable(columns)], np.intp), minlength=len(info.layers))
    own = [np.sort(held[times[held] == 1]) for held in columns]
    return tuple(held if info.weight_mask[held].any() else held[:0] for held in own)


def told_parts(info: RunInfo, contest: Contest, index: int) -> Told:
    """Say how far the gradient of a part has sunk, and what became of its loss and of the others'."""
    part = contest.parts[index]
    others = [
        f" The loss of {_named(info, other)} has gone from {number(each.first)} to {number(each.last)}."
        for other, each in contest.parts.items()
        if other != index and math.isfinite(each.last)
    ]
    headline = (
        f"The gradient of {listed(contest.layers(info, index))}, which {_named(info, index)} trains, has sunk to {number(part.sunk)} of "
        "its highest"
    )
    evidence = (
        f"Its L2 norm went from {number(part.peak)} to {number(part.norm)}, while its loss has risen from {number(part.first)} to "
        f"{number(part.last)}.{''.join(others)}"
    )
    return Told(part.sunk, headline, evidence)


def why_starved(info: RunInfo, contest: Contest, index: int) -> tuple[str, Remedy]:
    """Say why a part gets next to no gradient, and what to do."""
    rest = [other for other in contest.parts if other != index]
    won = [other for other in rest if contest.parts[other].won]
    if won:
        cause = (
            f"{_named(info, won[0])[:1].upper()}{_named(info, won[0])[1:]} has won: where its part is certain of every answer it "
            "is flat, and nothing passes back through it to what is trained against it."
        )
    else:
        cause = "What it is trained by hardly depends on it any more, although its loss is worse than at the start: that is flat there."
    layers = tuple(name for other in won or rest for name in contest.layers(info, other))
    faster = max(contest.parts[other].rate for other in won or rest) * _HOLD_BACK / contest.parts[index].rate
    even = ""
    actions = [Action("set_learning_rate", layers, (("factor", _HOLD_BACK),))]
    if _EVEN < faster < math.inf:
        up = min(faster, 1 / _HOLD_BACK)
        even = (
            f", and as that is still {number(faster)} times the starved part's own, multiply this one's by {number(up)}"
        )
        actions.append(Action("set_learning_rate", contest.layers(info, index), (("factor", up),)))
    return cause, Remedy(
        f"Hold {listed(layers)} back: a tenth of the learning rate{even}. And give the starved part a loss that doesn't saturate "
        "where it fails (a generator: minimise -log D(G(z)), as binary_cross_entropy_with_logits with targets of 1 does, and not "
        "log(1 - D(G(z)))): where the data lie far from what it makes, only both together help. Fewer steps of the other one, noise "
        "on what that is given, or a gradient penalty hold it back as well.",
        tuple(actions),
    )


def _named(info: RunInfo, index: int) -> str:
    return f"optimizer {index} ({info.optimizers[index].name})"
