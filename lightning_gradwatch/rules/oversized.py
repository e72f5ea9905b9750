"""GW302: a weight layer is changed by a large part of itself at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from lightning_gradwatch.findings import Action, OversizedUpdateWarning, Remedy, Severity
from lightning_gradwatch.rules.memory import count_hits, lasting, streaks
from lightning_gradwatch.rules.protocol import HEALTHY, Rule, Sentences, Sighting, State, Verdict
from lightning_gradwatch.rules.rates import rate_factor
from lightning_gradwatch.rules.readings import layer_values
from lightning_gradwatch.rules.targets import SCALE_TARGETS, WHY_HUGE, unscaled_targets
from lightning_gradwatch.rules.trend import LossTrend, loss_trend
from lightning_gradwatch.rules.wording import counted, listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.record import RunInfo, StepRecord

_ERROR_FACTOR = 10
_NOTHING_MEASURED = "not yet: no update of a weight layer was measured"
_WELL_BELOW = 0.5
_MOST = 1e100
_LEAST = 0.3


@dataclass(frozen=True, kw_only=True)
class OversizedUpdate(Rule):
    """A weight layer is changed by a large part of itself at each step.

    What: the update ratio is the root mean square of a step's change over that of the weights, measured, whatever the
    optimizer. The rule fires where it is above ``ratio`` in a weight layer, in ``patience`` measured steps in a row. These
    count from step 0 on, as the first steps are the largest under Adam, but are told from step ``warm_up_steps`` on: many
    a net that starts too fast lands on its feet by then. Ten times ``ratio`` is an error. It is information only where less
    than half of the weight layers are above and none ten times, or the loss has come down from where it started, and silent
    once it has converged. Weights that are smaller than PyTorch's default initialisation makes them are measured by that instead: a
    layer that starts at or near 0 (a zero-initialised head, a LoRA adapter) is changed by much of itself and by little of
    what it will be. Biases, norms and embeddings are left out.

    Why: about 1e-3 is usual. At 0.1, ten steps replace a layer: what it had learned, or its initialisation, is gone, units
    are thrown where they die or saturate, and the loss jumps or overflows. Under Adam the first steps are the largest, and
    all layers take them at once.

    What to do: lower the learning rate, or warm it up over the first few hundred steps; clip the gradient norm.

    Attributes:
        ratio: update ratio above which a layer's update is oversized.
        warm_up_steps: steps that count and aren't told.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW302"
    name: ClassVar[str] = "oversized-update"
    warning: ClassVar[type[OversizedUpdateWarning]] = OversizedUpdateWarning

    ratio: float = 0.1
    warm_up_steps: int = 4
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(0, float("inf"), "ratio")
        self._require_between(0, 1, "loss_fall", "converged")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Count for each weight layer how many measured steps in a row changed it by too much."""
        if record.skipped:
            return Verdict(unjudged="not yet: the optimizer step was skipped")
        ratios = record.metrics.get("update_ratio")
        if ratios is None:
            return Verdict(unjudged=_NOTHING_MEASURED)
        judged = np.isfinite(ratios) & info.weight_mask
        held = streaks(state, "streaks", info, "layers")
        if held.blank and not np.count_nonzero(judged & (ratios > self.ratio)):
            return HEALTHY if np.count_nonzero(judged) else Verdict(unjudged=_NOTHING_MEASURED)
        trend = loss_trend(state, info)
        sizes = layer_values(record, info, "weight_rms") / info.default_rms
        if np.count_nonzero(judged) < len(judged):
            ratios = np.where(judged, ratios, 0.0)
        ratios = ratios * np.fmin(sizes, 1.0)
        hit = ratios > self.ratio
        if trend.converged_to(self.converged):
            hit = np.zeros_like(hit)
        if held.blank and np.count_nonzero(hit):
            # What the learning rate does to these weights shows at first; later steps act on what it has made of them.
            state["unscaled"] = unscaled_targets(record, info)
            state["at_first"] = min(float(np.max(ratios[hit] * np.fmax(sizes[hit], 1.0))), _MOST)
        count_hits(held, hit, judged > hit, record.step)
        due = lasting(held, self.patience)
        if record.step < self.warm_up_steps or due is None:
            if state.get("reported", False) or not np.count_nonzero(hit):
                return HEALTHY
            reason = f"not yet: {counted(self.patience, 'measured step')} in a row must agree"
            return Verdict(confirming=True, unjudged=reason)
        state["reported"] = True
        learns = self._learns(trend)
        where = due.where
        value, at_first = float(np.maximum.reduce(ratios[where])), state["at_first"]
        unscaled = state["unscaled"] and info.steps_follow_gradient
        most = bool(2 * np.count_nonzero(where) >= np.count_nonzero(judged)) or value > _ERROR_FACTOR * self.ratio

        def write() -> Sentences:
            worst = info.layer_names[int((where & (ratios == value)).argmax())]
            urgency = self._urgency(trend, learns=learns, most=most)
            return self._sentences(record, info, _Seen(due.names(), worst, value, at_first, unscaled, urgency))

        severity = Severity.ERROR if value > _ERROR_FACTOR * self.ratio else Severity.WARNING
        return Verdict(
            {
                "oversized": Sighting(
                    severity=Severity.INFO if learns or not most else severity,
                    layers=due.names,
                    first_step=due.since,
                    last_step=int(record.step),
                    value=value,
                    threshold=self.ratio,
                    write=write,
                )
            }
        )

    def _learns(self, trend: LossTrend) -> bool:
        """Tell whether the loss has come down from where it began: the first steps may have thrown it up."""
        return trend.of_first < _WELL_BELOW or (trend.falls_by(self.loss_fall) and trend.of_first < 1)

    def _urgency(self, trend: LossTrend, *, learns: bool, most: bool) -> str:
        if not most:
            return "As less than half of the weight layers are above, this is information only."
        if learns:
            return "The loss is below its start, so this is information only."
        return "The loss is above its start." if trend.falls_by(self.loss_fall) else trend.sentence(self.loss_fall)

    def _sentences(self, record: StepRecord, info: RunInfo, seen: _Seen) -> Sentences:
        rates = ", ".join(dict.fromkeys(number(rate) for rate in record.learning_rates if rate >= 0))
        if seen.unscaled:
            cause, remedy = (
                f"The loss is so large that steps in proportion to it are too: it {WHY_HUGE}.",
                SCALE_TARGETS,
            )
        else:
            cause = (
                f"The learning rate ({rates}) is too high for these weights and gradients, at least without a warm-up."
            )
            factor = min(rate_factor(info, seen.at_first), _LEAST)
            remedy = Remedy(
                f"Multiply the learning rate by {factor:g}, or warm it up from there; clip the gradient norm to 1.",
                (
                    Action("set_learning_rate", (), (("factor", factor),)),
                    Action("clip_gradients", (), (("norm", 1.0),)),
                ),
            )
        others = f" Above the threshold: {listed(seen.names)}." if len(seen.names) > 1 else ""
        return Sentences(
            cause=cause,
            remedy=remedy,
            message=(
                f"A step changes {seen.worst} by {number(seen.value)} of itself. Reported above {number(self.ratio)}, "
                f"{counted(self.patience, 'measured step')} in a row.{others} {seen.urgency}"
            ),
        )


class _Seen(NamedTuple):
    """What the sentences need of a record."""

    names: tuple[str, ...]
    worst: str
    value: float
    at_first: float
    """The largest change in the first such step, over the rms that PyTorch's default initialisation gives the weights."""
    unscaled: bool
    """Whether targets make the loss huge, and with it the steps, which are in proportion to the gradient."""
    urgency: str
