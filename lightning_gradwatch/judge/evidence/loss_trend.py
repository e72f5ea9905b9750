"""Whether the loss still falls, told from the measured steps alone.

Compared are the latest losses with those of half as many steps: a fixed number of steps would call a slow run stalled and a
fast one falling, and training that follows a power law falls by about the same share at each doubling.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_gradwatch.record.wording import number, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

LOSSES = "losses"
"""Where a rule's memory has them."""

_KEPT = 40
_COMPARED = 5
_FEWEST = 10
"""Losses on either side from which on all are compared, where a handful is too noisy to tell: as those of tiny batches are."""
_SURE = 2.5
"""Standard errors by which the mean of all must have fallen: by chance it has in one case of 160."""
_DENSE = 10
"""Latest losses that are all kept, however often the run is measured."""
_STARTING = 3
_COME_DOWN = 0.5
"""Of the first loss: more than noise or a better guess of the mean makes, and what any net that learns passes early."""
_RISEN = 1.1
"""Of the first loss: from there on it isn't where it began, but above."""
_FAR_BELOW = 0.1
"""Of the very first loss, which may be an odd one."""


class LossTrend(NamedTuple):
    """What the losses say, or why they say nothing."""

    unknown: str = ""
    """Why the losses can't tell; the other fields mean nothing then."""
    fall: float = 0.0
    """Share by which the loss fell since `since_step`; 0 where noise could explain it."""
    since_step: int = 0
    of_start: float = 1.0
    """Latest loss over the loss at the start."""
    of_first: float = 1.0
    """Latest loss over the first one."""
    level: float = math.nan
    """Latest loss."""
    discounted: str = ""
    """Why its fall doesn't count."""
    compared: int = 0
    """How many latest losses were compared with as many before, or with fewer."""

    def falls_by(self, share: float) -> bool:
        """Tell whether the loss is known to fall by at least that share."""
        return not self.unknown and not self.discounted and self.fall >= share

    def converged_to(self, share: float) -> bool:
        """Tell whether the loss is known to be below that share of its start; far below the first one, if a step learned all."""
        return not self.unknown and (self.of_start < share or self.of_first < share * _FAR_BELOW)

    @property
    def come_down(self) -> bool:
        """Whether the loss is known to be down to half of where it began, or less: the net learns."""
        return not self.unknown and self.of_first < _COME_DOWN

    def learns(self, share: float) -> bool:
        """Tell whether the loss is known to have come down, or to fall by at least that share: it doesn't stand."""
        return self.come_down or self.falls_by(share)

    def at_start(self, fall: float) -> bool:
        """Tell whether the loss is known to be where it began, but for a fall by that share."""
        return not self.unknown and min(self.of_first, self.of_start) >= 1 - fall

    def told_come_down(self) -> str:
        """Say so."""
        return f"the loss has come down to {percent(self.of_first)} of where it began"

    def from_start(self) -> LossTrend:
        """Return it for a net that may never have learned: a fall that only takes back a rise doesn't count."""
        if self.fall and self.of_first >= 1:
            where = "where it began" if self.of_first < _RISEN else f"{number(self.of_first)} times where it began"
            return self._replace(discounted=f"which only brings it back to {where}")
        return self

    def sentence(self, share: float) -> str:
        """Say whether the loss makes the matter less urgent."""
        if self.unknown:
            return f"Whether the net still learns can't be told: {self.unknown}."
        if self.falls_by(share):
            return f"The loss still falls, by {percent(self.fall)} since step {self.since_step}, so this is information only."
        if self.discounted:
            return f"The loss fell by {percent(self.fall)} since step {self.since_step}, {self.discounted}."
        if self.fall >= 0.005:
            return f"The loss hardly falls: by {percent(self.fall)} since step {self.since_step}."
        return f"The loss hasn't fallen since step {self.since_step}."


def middle(values: Sequence[float]) -> float:
    """Return the median of values in rising order; `statistics.median` takes ten times as long for a handful."""
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


class Losses:
    """The losses of a run, evenly spread over its steps beside the latest; one, shared by all rules of an evaluator."""

    __slots__ = ("_counts", "_losses", "_means", "_start", "_steps", "_trend")

    def __init__(self, plain: Mapping[str, list[Any]] = MappingProxyType({})) -> None:
        """Take what `plain` gave."""
        self._start: list[float] = [*plain.get("start", ())]
        self._steps: list[int] = [*plain.get("steps", ())]
        self._losses: list[float] = [*plain.get("losses", ())]
        self._means: list[float] = [*plain.get("means", ())]
        self._counts: list[int] = [*plain.get("counts", ())]
        self._trend: LossTrend | None = None

    def note(self, record: StepRecord) -> None:
        """Add a record's loss, if it has one."""
        if record.skipped or not math.isfinite(record.loss):
            return
        self._trend = None
        if len(self._start) < _STARTING:
            self._start.append(float(record.loss))
        steps, losses = self._steps, self._losses
        steps.append(int(record.step))
        losses.append(float(record.loss))
        self._means.append(float(record.loss))
        self._counts.append(1)
        if len(losses) > _KEPT:
            self._merge()

    def _merge(self) -> None:
        """Let go of the loss that leaves the smallest gap; it stays in the mean that goes with the next.

        Halving the older ones again and again would leave only the first of them.
        """
        steps, means, counts = self._steps, self._means, self._counts
        gone = min(range(1, _KEPT - _DENSE), key=lambda place: steps[place + 1] - steps[place - 1])
        count = counts[gone] + counts[gone + 1]
        means[gone + 1] += (means[gone] - means[gone + 1]) * (counts[gone] / count)
        counts[gone + 1] = count
        del steps[gone], self._losses[gone], means[gone], counts[gone]

    def trend(self, info: RunInfo) -> LossTrend:
        """Say whether the loss falls."""
        if len(info.optimizers) > 1:
            return LossTrend(unknown="several optimizers share the run, each with a loss of its own")
        if self._trend is None:
            self._trend = self._read()
        return self._trend

    def plain(self) -> dict[str, list[Any]]:
        """Return them as plain JSON data."""
        return {
            "start": [*self._start],
            "steps": [*self._steps],
            "losses": [*self._losses],
            "means": [*self._means],
            "counts": [*self._counts],
        }

    def _read_many(self, place: int, now: float, then: float) -> tuple[float, float, bool]:
        """Compare the means of all losses from a place on and before it; return those of a handful where they don't tell either."""
        if min(place, len(self._losses) - place) < _FEWEST:
            return now, then, False
        recent, recent_variance = _mean(self._means[place:], self._counts[place:])
        earlier, earlier_variance = _mean(self._means[:place], self._counts[:place])
        if earlier - recent >= _SURE * math.sqrt(recent_variance + earlier_variance):
            return recent, earlier, True
        return now, then, False

    def _read(self) -> LossTrend:
        start, steps, losses = self._start, self._steps, self._losses
        if not losses:
            return LossTrend(unknown="no loss was recorded")
        at_start = middle(sorted(start))
        if at_start <= 0 or min(losses) < 0:
            return LossTrend(unknown="the loss isn't positive")
        boundary = steps[-1] // 2
        if steps[0] > boundary:
            boundary = steps[(len(steps) - 1) // 2]
        place = bisect_right(steps, boundary)
        recent = sorted(losses[max(place, len(losses) - _COMPARED) :])
        earlier = sorted(losses[max(place - len(recent), 0) : place])
        if not recent or not earlier:
            return LossTrend(unknown="too few losses were measured")
        now, then = middle(recent), middle(earlier)
        # Half the pairs fall by chance; three quarters of them is what noise seldom gives.
        pairs = sum([bisect_left(recent, old) for old in earlier])
        falling = pairs >= 0.75 * len(earlier) * len(recent)
        if not falling:
            now, then, falling = self._read_many(place, now, then)
        return LossTrend(
            fall=1 - now / then if falling and then > 0 else 0.0,
            since_step=steps[place - 1],
            of_start=now / at_start,
            level=now,
            of_first=now / start[0] if start[0] > 0 else math.inf,
            compared=min(len(recent), len(earlier)),
        )


def _mean(losses: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return the mean of losses, each itself the mean of so many, and the variance of that mean."""
    steps = sum(counts)
    mean = math.fsum([loss * (count / steps) for loss, count in zip(losses, counts, strict=True)])
    spread = math.fsum([(loss - mean) * (loss - mean) * count for loss, count in zip(losses, counts, strict=True)])
    return mean, spread / (len(losses) - 1) / steps


def loss_trend(state: State, info: RunInfo) -> LossTrend:
    """Say whether the loss falls: from a rule's memory, which the evaluator puts the losses into."""
    losses: Losses = state[LOSSES]
    return losses.trend(info)
