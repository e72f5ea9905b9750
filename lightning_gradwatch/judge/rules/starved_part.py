"""GW106: one part of a net gets next to no gradient any more, or can't get any, while others go on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import middle
from lightning_gradwatch.judge.rule import LazyFinding, Sentences, Verdict, cant_judge
from lightning_gradwatch.judge.streaks import State, has_gone
from lightning_gradwatch.judge.wiring_rule import WiringRule, at
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, Severity, StarvedPartWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord, Wiring
from lightning_gradwatch.record.wording import counted, listed, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

_NOT_RECORDED = cant_judge("the release that recorded the run didn't tell the losses of its optimizers apart")
_NOT_APART = cant_judge("the losses of several optimizers are propagated back before one of them steps")
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
class _Part:
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
class _Contest:
    """All parts at one record."""

    parts: Mapping[int, _Part]
    """By the optimizer's place; only those with enough readings."""
    read: Sequence[int]
    """Those that this record is a reading of."""
    starved: frozenset[int]
    known: bool
    """Whether the optimizers' losses can be told apart."""

    def layers(self, info: RunInfo, index: int) -> tuple[str, ...]:
        """Return the layers of one part alone, along the path."""
        return tuple(info.layer_names[column] for column in _own_columns(info)[index].tolist())


@dataclass(frozen=True, kw_only=True)
class StarvedPart(WiringRule):
    """One part of a net gets next to no gradient any more, or can't get any, while others go on.

    What: of a run with several optimizers, the L2 norm of the gradient of what one of them trains is at most ``ratio`` of
    its own highest so far (medians of three measured steps), in ``patience`` readings in a row, although the loss that it
    steps for is worse than in its first steps, and another optimizer's part isn't so. A part that has converged is silent,
    as its loss isn't worse; so are frozen parts, those that no longer step, and those without a weight layer, such as a
    temperature. Beside that, of any run: parameters that are multiplied with each other and are all exactly 0, in a layer
    that gets a gradient for others of its parameters (where it gets none, GW104 says so); information once the loss has come
    down to half.

    Why: of two nets that are trained against each other, as in a GAN, the one that has won is certain of every answer, and
    where it is certain it is flat: nothing passes back to the other one, which can't catch up. Of two factors that are both
    0, each one's gradient has the other's zero as a factor, so neither ever leaves it.

    What to do: hold the other one back by its learning rate, so that neither steps much further than the other, and give the
    part a loss that doesn't saturate where it fails (a generator: ``-log D(G(z))`` in place of ``log(1 - D(G(z)))``). Fewer
    steps, noise on what the other one is given and a gradient penalty hold it back as well. Of factors that are 0, initialise all but one at random.

    Attributes:
        ratio: gradient norm of a part over its own highest, at or below which it counts as starved.
        patience: readings in a row.
    """

    code: ClassVar[str] = "GW106"
    name: ClassVar[str] = "starved-part"
    warning: ClassVar[type[StarvedPartWarning]] = StarvedPartWarning
    kinds: ClassVar[tuple[str, ...]] = ("zero-factors",)

    ratio: float = 1e-2
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_between(0, 1, "ratio")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Tell of factors that are 0, and of parts whose gradient has sunk."""
        wired = super().look(record, info, state)
        if len(info.optimizers) < 2 or info.wiring is None or not info.layers:
            return wired
        parts = self._parts(record, info, state.setdefault("parts", {}))
        return Verdict(
            {**wired.findings, **parts.findings},
            healed={**wired.healed, **parts.healed},
            confirming=parts.confirming,
            unjudged=parts.unjudged or wired.unjudged,
        )

    def _parts(self, record: StepRecord, info: RunInfo, memory: dict[str, Any]) -> Verdict:
        """Compare each optimizer's gradient with its own past."""
        if not record.optimizer_losses:
            return _NOT_RECORDED
        contest = _note_parts(record, info, memory, self.ratio)
        findings: dict[str, LazyFinding] = {}
        healed: dict[str, str] = {}
        for index in contest.read:
            part, key = memory[str(index)], f"part {index}"
            hit = index in contest.starved
            part["count"] = min(part.get("count", 0) + 1, self.patience) if hit else 0
            if not hit:
                part.pop("since", None)
            elif "since" not in part:
                part["since"] = int(record.step)
            lasting = part["count"] == self.patience
            if has_gone(part, key, holds=hit, patience=self.patience):
                healed[key] = "its gradient is back, or its loss is no worse than at the start"
            if lasting:
                findings[key] = self._sighting(record, info, contest, index, part)
        # Of optimizers that take turns by batch, the next record is mostly none of the one that is asked about.
        confirming = any(0 < part.get("count", 0) < self.patience for part in memory.values())
        waiting = f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if confirming else ""
        unjudged = waiting or ("" if contest.known else _NOT_APART.unjudged)
        return Verdict(findings, healed=healed, confirming=confirming, unjudged=unjudged)

    def _sighting(
        self, record: StepRecord, info: RunInfo, contest: _Contest, index: int, part: Mapping[str, Any]
    ) -> LazyFinding:
        return LazyFinding(
            severity=Severity.WARNING,
            layers=contest.layers(info, index),
            first_step=int(part["since"]),
            last_step=int(record.step),
            value=contest.parts[index].sunk,
            threshold=self.ratio,
            write=partial(_starved, info, contest, index),
        )

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say which factors are 0, and which to initialise."""
        drawn = listed(fact.names, "parameter")
        return Sentences(
            cause="Each one's gradient has the other's zeros as a factor, so none of them ever leaves 0.",
            remedy=Remedy(
                f"Initialise {drawn} at random (Xavier) and leave what they are multiplied with at 0: the net then starts as it does "
                "now, and all of them learn.",
                (Action("initialize", fact.names, (("method", "xavier_uniform_"),)),),
            ),
            headline=f"{drawn} can't learn: exactly 0, and multiplied ({fact.operation}(){at(fact)}) with what is exactly 0 as well",
            message=urgency,
            causes=(Cause(CauseKind.ZERO_FACTORS),),
        )


def _note_parts(record: StepRecord, info: RunInfo, memory: dict[str, Any], ratio: float) -> _Contest:
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
    return _Contest(parts, read, frozenset(low) if others else frozenset(), known)


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


def _read(held: Mapping[str, Any]) -> _Part:
    first, last, rate = held["first"], held["last"], held.get("rate", math.nan)
    if len(last) < _COMPARED:
        return _Part(middle(sorted(held["norms"])), held["peak"], math.nan, math.nan, worse=False, rate=rate)
    start, now = middle(sorted(first)), middle(sorted(last))
    worse = min(last) > max(first) and now - start >= _WORSE * abs(start)
    return _Part(middle(sorted(held["norms"])), held["peak"], start, now, worse=worse, rate=rate)


def _own_columns(info: RunInfo) -> tuple[npt.NDArray[np.intp], ...]:
    """Return for each optimizer the columns of the layers that it alone holds; none without a weight layer among them."""
    columns = info.optimizer_columns
    times = np.bincount(np.array([*chain.from_iterable(columns)], np.intp), minlength=len(info.layers))
    own = [np.sort(held[times[held] == 1]) for held in columns]
    return tuple(held if info.weight_mask[held].any() else held[:0] for held in own)


def _starved(info: RunInfo, contest: _Contest, index: int) -> Sentences:
    """Say how far the gradient of a part has sunk, and what became of its loss and of the others'."""
    part = contest.parts[index]
    others = [
        f" The loss of {_named(info, other)} has gone from {number(each.first)} to {number(each.last)}."
        for other, each in contest.parts.items()
        if other != index and math.isfinite(each.last)
    ]
    cause, remedy = _why_starved(info, contest, index)
    headline = (
        f"The gradient of {listed(contest.layers(info, index))}, which {_named(info, index)} trains, has sunk to {number(part.sunk)} of "
        "its highest"
    )
    evidence = (
        f"Its L2 norm went from {number(part.peak)} to {number(part.norm)}, while its loss has risen from {number(part.first)} to "
        f"{number(part.last)}.{''.join(others)}"
    )
    return Sentences(cause, remedy, evidence, (Cause(CauseKind.STARVED_PART),), headline)


def _why_starved(info: RunInfo, contest: _Contest, index: int) -> tuple[str, Remedy]:
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
