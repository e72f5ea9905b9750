"""The first bad step: a ring of the last measured records, and where a jump or a NaN among them began.

One, shared by all rules of an evaluator. A record costs a few comparisons of numbers that it has already; which layer left
its own range first is looked for only where something jumps. What jumps asks for the next steps to be measured as well,
within a budget that goes by steps alone: so all ranks ask for the same ones, and a stored run knows what the live one knew.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_gradwatch.judge.evidence.departure import (
    Reading,
    find_departure,
    is_broken,
    plain_reading,
    read_step,
    reading_of,
)
from lightning_gradwatch.judge.evidence.loss_jump import LEAST, RANGE, WINDOW, read_jump
from lightning_gradwatch.judge.evidence.loss_trend import middle
from lightning_gradwatch.record.checkpoint import StateError, count_of, mapping_of, plain_of
from lightning_gradwatch.record.first_bad_step import FirstBadStep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

RECENT = "recent"
"""Where a rule's memory has it."""

_MOST_NUMBERS = 400_000
"""That the ring holds: nets of more columns have a shorter one, of 5 readings at least."""
_FEWEST = 5
_STARTING = 5
_GROWTH = 10.0
"""How many times its median a gradient norm jumps to at least; with fewer than 8 readings, twice as many."""
_BEYOND = 3.0
"""How many times the largest of the latest norms it is then at least."""
_OF_START = 0.3
"""Share of the usual norm of the first readings: near the floor of a loss, an odd batch has many times a norm close to 0."""
_CALM = 3
"""Readings in a row that show that a jump has come back."""
_LASTS = 64
"""Readings after which a jump that hasn't come back is how the run goes on."""
_DENSE = 64
"""Steps after a sign that are measured one by one."""
_MOST_DENSE, _STEPS_A_DENSE = 192, 200
"""Because of signs at most so many steps are asked for, or later one of so many: at most 0.5 % of a fit from 38,400 steps on."""


class _Sign(NamedTuple):
    """Something that jumped, or isn't finite."""

    optimizers: tuple[int, ...]
    """Those that stepped in its record."""
    step: int
    """Of that record."""
    highest_loss: float | None
    """What the loss has to come back to; None where it isn't the loss that jumped."""
    highest_norm: float | None
    """And the gradient norm."""
    found: FirstBadStep
    readings: int = 0
    """Since then."""
    calm: int = 0
    """In a row that show nothing any more."""
    last: int = -1
    """The last step that showed it."""

    def covers(self, step: int) -> bool:
        """Tell whether what was first seen in a step may have begun with it."""
        good = self.found.last_good_step
        return (self.found.step if good is None else good) <= step <= max(self.step, self.last)


class RecentSteps:
    """The last measured steps of a run, and what jumped in them."""

    def __init__(self) -> None:
        self._ring: deque[Reading] = deque(maxlen=WINDOW)
        """Those that showed nothing."""
        self._start: tuple[list[float], list[float]] = [], []
        """Losses and gradient norms of the first readings."""
        self._sign: _Sign | None = None
        """The one under way."""
        self._over: _Sign | None = None
        """The latest that has come back."""
        self._until = 0
        """Before this step each is to be measured."""
        self._granted = 0

    def wants(self, step: int) -> bool:
        """Whether a step is to be measured, as something jumped less than 64 steps before it."""
        return step < self._until

    def note(self, record: StepRecord, info: RunInfo) -> None:
        """Add a record, and look whether something jumps in it."""
        if record.skipped:
            return
        reading = read_step(record, info)
        sign = self._sign
        if sign is None:
            limits = self._jumps(reading, record)
            if limits is None:
                self._keep(reading)
            else:
                self._begin(reading, info, *limits)
            return
        if self._is_calm(sign, reading, record):
            self._keep(reading)
            self._sign = sign._replace(readings=sign.readings + 1, calm=sign.calm + 1)
            if self._sign.calm >= _CALM:
                self._sign, self._over = None, self._sign
        elif sign.readings < _LASTS or is_broken(record):
            self._sign = sign._replace(readings=min(sign.readings + 1, _LASTS), calm=0, last=reading.step)
        else:  # it is the run's own range from now on
            self._sign, self._over = None, None
            self._ring.clear()
            self._keep(reading)

    def onset(self, step: int, info: RunInfo) -> FirstBadStep | None:
        """Return where what was first seen in a step began; None where nothing left its range there."""
        for sign in (self._sign, self._over):
            if sign is not None and sign.covers(step):
                return sign.found
        if self._sign is not None or not self._ring:
            return None
        found = self._found(info)
        return found if found.layer and (found.last_good_step or 0) <= step else None

    def _jumps(self, reading: Reading, record: StepRecord) -> tuple[float | None, float | None] | None:
        """Return what loss and gradient norm have to come back to, where they jump; None where neither does."""
        if is_broken(record):
            return None, None
        losses, norms = self._before(reading)
        highest_loss = highest_norm = None
        starts, first_norms = self._start
        if math.isfinite(reading.loss) and len(losses) >= LEAST and reading.loss > max(losses):
            jump = read_jump(reading.loss, losses, middle(sorted(starts)))
            highest_loss = None if jump is None else jump.highest
        if math.isfinite(reading.norm) and len(norms) >= LEAST:
            highest = max(norms[-RANGE:])
            if reading.norm > _BEYOND * highest and reading.norm >= _OF_START * middle(sorted(first_norms)):
                least = _GROWTH if len(norms) >= RANGE else 2 * _GROWTH
                highest_norm = highest if reading.norm >= least * middle(sorted(norms)) else None
        return None if highest_loss is None and highest_norm is None else (highest_loss, highest_norm)

    def _before(self, reading: Reading) -> tuple[list[float], list[float]]:
        """Return losses and norms of the ring, those of the same optimizers: a GAN's differ."""
        alike = [each for each in self._ring if each.optimizers == reading.optimizers]
        losses = [each.loss for each in alike if math.isfinite(each.loss)]
        return losses, [each.norm for each in alike if math.isfinite(each.norm)]

    def _is_calm(self, sign: _Sign, reading: Reading, record: StepRecord) -> bool:
        """Tell whether a reading is back where it was before a sign; one of other optimizers says nothing of it."""
        if is_broken(record):
            return False
        if sign.optimizers != reading.optimizers:
            return False
        loss_back = sign.highest_loss is None or not reading.loss > sign.highest_loss
        return loss_back and (sign.highest_norm is None or not reading.norm > _BEYOND * sign.highest_norm)

    def _begin(self, reading: Reading, info: RunInfo, highest_loss: float | None, highest_norm: float | None) -> None:
        self._ring.append(reading)
        found = self._found(info)
        self._ring.pop()
        self._sign = _Sign(reading.optimizers, reading.step, highest_loss, highest_norm, found, last=reading.step)
        if self._granted + _DENSE <= max(_MOST_DENSE, reading.step // _STEPS_A_DENSE):
            self._granted += _DENSE
            self._until = reading.step + 1 + _DENSE

    def _keep(self, reading: Reading) -> None:
        columns = 3 * len(reading.layers) + len(reading.sites)
        most = min(max(_MOST_NUMBERS // max(columns, 1), _FEWEST), WINDOW)
        while len(self._ring) >= most:
            self._ring.popleft()
        self._ring.append(reading)
        for kept, value in zip(self._start, (reading.loss, reading.norm), strict=True):
            if len(kept) < _STARTING and math.isfinite(value):
                kept.append(value)

    def _found(self, info: RunInfo) -> FirstBadStep:
        """Return where it began that the last reading of the ring shows."""
        readings = [*self._ring]
        place, quantity, name, before, after = find_departure(readings, info)
        bad, good = readings[place], readings[place - 1] if place else None
        site = name if quantity == "forward_rms" else ""
        layer = next((each.name for each in info.layers if site and each.feeds == site), name)
        return FirstBadStep(
            layer=layer,
            site=site,
            metric=quantity,
            before=_finite(before),
            after=_finite(after),
            step=bad.step,
            batch=bad.batch,
            last_good_step=None if good is None else good.step,
            last_good_batch=None if good is None else good.batch,
            learning_rate=_rate(bad, info, layer),
            learning_rate_before=None if good is None else _rate(good, info, layer),
        )

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        layouts = [*dict.fromkeys((each.layers, each.sites) for each in self._ring)]
        return {
            "layouts": [[[*layers], [*sites]] for layers, sites in layouts],
            "ring": [[layouts.index((each.layers, each.sites)), plain_reading(each)] for each in self._ring],
            "start": [[*kept] for kept in self._start],
            "sign": _plain_sign(self._sign),
            "over": _plain_sign(self._over),
            "until": self._until,
            "granted": self._granted,
        }

    @classmethod
    def from_plain(cls, data: Any) -> RecentSteps:
        """Build from what `plain` gave.

        Raises:
            StateError: it isn't that.
        """
        recent = cls()
        what = "the latest steps"
        mapping_of(plain_of(data, what), what, required=recent.plain())
        try:
            layouts = [(_names(layers), _names(sites)) for layers, sites in data["layouts"]]
            recent._ring.extend(reading_of(each, *layouts[place]) for place, each in data["ring"])
            losses, norms = data["start"]
            recent._start = [*map(float, losses)], [*map(float, norms)]
            recent._sign, recent._over = _read_sign(data["sign"]), _read_sign(data["over"])
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise StateError(f"{what} can't be read ({type(error).__name__}: {error})") from error
        recent._until = count_of(data["until"], what)
        recent._granted = count_of(data["granted"], what)
        return recent


def first_bad_step(state: State, info: RunInfo, step: int) -> FirstBadStep | None:
    """Return where what was first seen in a step began: from a rule's memory, which the evaluator puts the ring into."""
    recent = state.get(RECENT)
    return recent.onset(step, info) if isinstance(recent, RecentSteps) else None


def _rate(reading: Reading, info: RunInfo, layer: str) -> float | None:
    """Return a layer's learning rate in a reading, the largest of its optimizers'; of the whole net where it isn't known."""
    known = info.layer_rates
    column = info.layer_names.index(layer) if layer in info.layer_names else None
    rates = [
        rate * (1.0 if column is None or index >= len(known) else float(known[index, column]))
        for index, rate in enumerate(reading.rates)
    ]
    found = [rate for rate in rates if rate >= 0] or [rate for rate in reading.rates if rate >= 0]
    return max(found, default=None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain_sign(sign: _Sign | None) -> dict[str, Any] | None:
    if sign is None:
        return None
    return {**sign._asdict(), "optimizers": [*map(int, sign.optimizers)], "found": sign.found.to_dict()}


def _read_sign(data: Mapping[str, Any] | None) -> _Sign | None:
    if data is None:
        return None
    return _Sign(
        **{**data, "optimizers": tuple(map(int, data["optimizers"])), "found": FirstBadStep.from_dict(data["found"])}
    )


def _names(names: Any) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name is no text")
    return tuple(names)
