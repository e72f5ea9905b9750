"""GW302: a weight layer is changed by a large part of itself at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.unscaled_targets import WHY_HUGE, unscaled_targets
from lightning_gradwatch.judge.rates import rate_factor, rates_of, warm_up_steps
from lightning_gradwatch.judge.readings import layer_values, of_full_weights
from lightning_gradwatch.judge.remedies import CLIP_GRADIENTS, SCALE_TARGETS
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Line, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import Lasting, State, count_hits, lasting, streaks
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, OversizedUpdateWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import FloatVector, StepRecord
from lightning_gradwatch.record.wording import counted, listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import Columns, Mask

_ERROR_FACTOR = 10
"""How far beyond the threshold it is an error, by convention: a number of one layer, where a factor of 10 leaves no doubt."""
_CLIP = "clip the gradient norm to 1"
_NOTHING_MEASURED = "not yet: no update of a weight layer was measured"
_MOST = 1e100
_LEAST = 0.3
"""A factor nearer to 1 would be lost in what differs from run to run: by convention, half a decade."""
_FAR_ABOVE = 4.0
"""At a rate that suits the median layer, at about 1e-2, one four times above it is still well below the threshold of 0.1."""
_DAMAGE = 10.0
"""Loss over that at the start from which nobody waits whether it comes down again."""
_BELOW_START, _CLEARLY_BELOW = 0.95, 0.8
"""Loss over that at the start below which a fall is more than the return from where the first steps threw it; and below
which it needn't go on falling."""


@dataclass(frozen=True, kw_only=True)
class OversizedUpdate(Rule):
    """A weight layer is changed by a large part of itself at each step.

    What: the update ratio is the root mean square of a step's change over that of the weights, measured, whatever the
    optimizer. The rule fires where it is above ``ratio`` in a weight layer, in ``patience`` measured steps in a row. These
    count from step 0 on, as the first steps are the largest under Adam, and what they did is judged by the loss: many a net
    that starts too fast lands on its feet. So it is told from step ``warm_up_steps`` on, or as soon as the loss is ten times
    what it was at the start, also of steps that have become smaller by then. Ten times ``ratio`` is an error. One of these steps that
    replaces most weight layers whole (ten times ``ratio``) is enough, where the loss hasn't come below its start by then. It is
    information only as long as the loss falls, below where it began, or is below half of that, and where less than half of
    the weight layers are above and none ten times; silent once it has converged. A finding that warned heals when the loss
    has come down to half of where it began. Weights that are smaller than PyTorch's default initialisation makes them are
    measured by that instead: a layer that starts at or near 0 (a zero-initialised head, a LoRA adapter) is changed by much of
    itself and by little of what it will be. Biases, norms and embeddings are left out.

    Why: about 1e-3 is usual. At 0.1, ten steps replace a layer: what it had learned, or its initialisation, is gone, units
    are thrown where they die or saturate, and the loss jumps or overflows. Under Adam the first steps are the largest, and
    all layers take them at once.

    What to do: lower the learning rate, or warm it up over the first few hundred steps; clip the gradient norm.

    Attributes:
        ratio: update ratio above which a layer's update is oversized.
        warm_up_steps: steps that count and aren't told unless the loss has risen tenfold.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW302"
    name: ClassVar[str] = "oversized-update"
    warning: ClassVar[type[OversizedUpdateWarning]] = OversizedUpdateWarning
    tells_first_bad_step: ClassVar[bool] = True

    ratio: float = 0.1
    warm_up_steps: int = 24
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(0, float("inf"), "ratio")
        self._require_between(0, 1, "loss_fall", "converged")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        del info
        return (Line("update_ratio", self.ratio, "above"),)

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Count for each weight layer how many measured steps in a row changed it by too much."""
        if "unscaled" not in state:  # a loss that is huge later on may be what these steps have made of it
            state["unscaled"] = unscaled_targets(record, info)
        ratios = record.metrics.get("update_ratio")
        if ratios is None:
            return Verdict(unjudged=_NOTHING_MEASURED)
        judged = np.isfinite(ratios) & info.weight_mask
        held = streaks(state, "streaks", info, "layers")
        if held.blank and "due" not in state and not np.count_nonzero(judged & (ratios > self.ratio)):
            return HEALTHY if np.count_nonzero(judged) else Verdict(unjudged=_NOTHING_MEASURED)
        trend = loss_trend(state, info)
        hit, ratios = self._count(record, info, state, held, judged, converged=trend.converged_to(self.converged))
        due = lasting(held, self.patience)
        if due is None:
            due = self._brief(record, state, held, ratios=ratios, hit=hit, judged=judged)
        if due is not None:
            self._note_due(record, info, state, due, ratios=ratios, judged=judged)
        return self._told(record, info, state, trend, pending=due is None and bool(np.count_nonzero(hit)))

    def _count(
        self, record: StepRecord, info: RunInfo, state: State, held: Columns, judged: Mask, *, converged: bool
    ) -> tuple[Mask, FloatVector]:
        """Count the layers that a step changed by too much; return which they are, and by how much of a full start."""
        ratios = np.where(judged, layer_values(record, info, "update_ratio"), 0.0)
        ratios = of_full_weights(ratios, record, info)
        hit = ratios > self.ratio
        if converged:
            hit = np.zeros_like(hit)
        if held.blank and np.count_nonzero(hit):
            # What the learning rate does to these weights shows at first; later steps act on what it has made of them.
            sizes = layer_values(record, info, "weight_rms") / info.default_rms
            state["at_first"] = min(_usual_change(ratios[hit] * np.fmax(sizes[hit], 1.0)), _MOST)
        count_hits(held, hit, judged > hit, record.step)
        return hit, ratios

    def _brief(
        self, record: StepRecord, state: State, held: Columns, *, ratios: FloatVector, hit: Mask, judged: Mask
    ) -> Lasting | None:
        """Return the layers that one of the first steps has replaced whole, where they are most: it takes no second one."""
        if record.step >= self.warm_up_steps or not state.get("due", {"brief": True}).get("brief", False):
            return None
        where = hit & (ratios > _ERROR_FACTOR * self.ratio)
        if not np.count_nonzero(where) or 2 * np.count_nonzero(where) < np.count_nonzero(judged):
            return None
        state["brief"] = True
        return Lasting(where, int(record.step), held.names)

    def _note_due(
        self, record: StepRecord, info: RunInfo, state: State, due: Lasting, *, ratios: FloatVector, judged: Mask
    ) -> None:
        """Remember the worst of what has lasted: the loss may say later what came of it."""
        where = due.where
        value = min(float(np.maximum.reduce(ratios[where])), _MOST)
        most = bool(2 * np.count_nonzero(where) >= np.count_nonzero(judged)) or value > _ERROR_FACTOR * self.ratio
        brief = state.pop("brief", False)
        before = state.get("due")
        if before is None or before.get("brief", False) > brief or (most, value) >= (before["most"], before["value"]):
            state["due"] = {
                "names": list(due.names()),
                "worst": due.columns[int((where & (ratios == np.maximum.reduce(ratios[where]))).argmax())],
                "since": due.since if before is None else before["since"],
                "value": value,
                "most": most,
                "at_first": state["at_first"],
                "unscaled": state["unscaled"],
                "brief": brief,
                "rates": list(rates_of(record, info, where)),
                "other_rates": list(rates_of(record, info, judged & ~where)) if (judged & ~where).any() else [],
            }
        state["due"]["last"] = int(record.step)

    def _told(self, record: StepRecord, info: RunInfo, state: State, trend: LossTrend, *, pending: bool) -> Verdict:
        """Say of what has lasted what the loss makes of it."""
        due = state.get("due")
        if due is None:
            reason = self.waits
            return Verdict(confirming=True, unjudged=reason) if pending else HEALTHY
        due["rises"] = state["rises"] = state.get("rises", False) or _rises(record, state)
        jumped = not trend.unknown and trend.of_first >= _DAMAGE and not due.get("brief", False)
        harmed = not math.isfinite(record.loss) or jumped
        if record.step < self.warm_up_steps and not (harmed or state.get("warned", False)):
            reason = f"not yet: whether the loss comes down again shows by step {self.warm_up_steps}"
            return Verdict(confirming=True, dated=True, unjudged=reason)
        down = trend.come_down and not harmed
        learns = down or (not harmed and self._learns(trend))
        severity = Severity.ERROR if due["value"] > _ERROR_FACTOR * self.ratio else Severity.WARNING
        if learns or not due["most"]:
            severity = Severity.INFO
        holds = due["last"] == record.step
        if not holds and (learns or state.get("warned", False)):
            return self._settled(state, trend, down=down)
        if down and state.pop("warned", False):
            return Verdict(healed={"oversized": trend.told_come_down()})
        state["warned"] = state.get("warned", False) or severity > Severity.INFO
        urgency = self._urgency(trend, learns=learns, most=due["most"])
        return Verdict({"oversized": self._sighting(info, due, severity, urgency)})

    def _learns(self, trend: LossTrend) -> bool:
        """Tell whether the loss is clearly below where it began, or on its way there."""
        return not trend.unknown and trend.of_first < (
            _BELOW_START if trend.falls_by(self.loss_fall) else _CLEARLY_BELOW
        )

    def _settled(self, state: State, trend: LossTrend, *, down: bool) -> Verdict:
        """Let go of steps that have become smaller, once the loss has shown that they did no harm."""
        if not state.get("warned", False):
            del state["due"]
            return HEALTHY
        if not down:
            return HEALTHY
        del state["due"], state["warned"]
        return Verdict(healed={"oversized": trend.told_come_down()})

    def _sighting(self, info: RunInfo, due: dict[str, Any], severity: Severity, urgency: str) -> LazyFinding:
        seen = _Seen(
            tuple(due["names"]),
            due["worst"],
            due["value"],
            due["at_first"],
            due["unscaled"] and info.steps_follow_gradient,
            due.get("brief", False),
            due["since"] < self.warm_up_steps and not due.get("rises", False) and not info.steps_follow_gradient,
            urgency,
            tuple(due["rates"]),
            tuple(rate for rate in due["other_rates"] if rate not in due["rates"]),
        )
        return LazyFinding(
            severity=severity,
            layers=seen.names,
            first_step=due["since"],
            last_step=due["last"],
            value=seen.value,
            threshold=self.ratio * (_ERROR_FACTOR if seen.brief else 1),
            write=lambda: self._sentences(info, seen),
        )

    def _urgency(self, trend: LossTrend, *, learns: bool, most: bool) -> str:
        if not most:
            return "As less than half of the weight layers are above, this is information only."
        if learns:
            return "The loss is below its start, so this is information only."
        return "The loss is above its start." if trend.falls_by(self.loss_fall) else trend.sentence(self.loss_fall)

    def _from(self, seen: _Seen) -> str:
        """Say from which number on a single step is reported; empty where several were so."""
        if not seen.brief:
            return ""
        return f"Reported above {number(_ERROR_FACTOR * self.ratio)} in one of the first {self.warm_up_steps} steps. "

    def _sentences(self, info: RunInfo, seen: _Seen) -> Sentences:
        rates = ", ".join(map(number, seen.rates))
        if seen.unscaled:
            kinds, cause, remedy = (
                [CauseKind.UNSCALED_TARGETS],
                f"The loss is so large that steps in proportion to it are too: it {WHY_HUGE}.",
                SCALE_TARGETS,
            )
        else:
            kinds, of, others = [CauseKind.HIGH_LEARNING_RATE], "", ""
            if seen.other_rates:
                of = f" of {listed(seen.names)}"
                others = f" (that of the other layers, {', '.join(map(number, seen.other_rates))}, can stay)"
            cause = f"The learning rate{of} ({rates}) is too high for these weights and gradients, at least without a warm-up."
            factor = min(rate_factor(info, seen.at_first), _LEAST)
            warming: tuple[Action, ...] = ()
            warm = f"or warm it up from there; {_CLIP}"
            if seen.cold:
                kinds.append(CauseKind.MISSING_WARM_UP)
                cause += " It is there from the first step on, where steps that are divided by the gradient's own size are the largest."
                steps = warm_up_steps(info)
                warm = f"and warm it up over {steps} steps; {_CLIP}"
                warming = (Action("warm_up", (), (("steps", steps),)),)
            remedy = Remedy(
                f"Multiply the learning rate{of} by {number(factor)}{others}, {warm}.",
                (
                    Action("set_learning_rate", seen.names if seen.other_rates else (), (("factor", factor),)),
                    *warming,
                    CLIP_GRADIENTS,
                ),
            )
        others = (
            f", and {counted(len(seen.names) - 1, 'more layer')} by more than {number(self.ratio)}"
            if len(seen.names) > 1
            else ""
        )
        return Sentences(
            cause=cause,
            causes=tuple(map(Cause, kinds)),
            remedy=remedy,
            headline=(
                f"Steps are too large: one changes {seen.worst} by {number(seen.value)} of itself (usual: about 0.001){others}"
            ),
            message=f"{self._from(seen)}{seen.urgency}",
        )


def _rises(record: StepRecord, state: State) -> bool:
    """Tell whether the learning rate has risen since such steps were first seen."""
    rate = max((rate for rate in record.learning_rates if rate >= 0), default=0.0)
    return bool(rate > state.setdefault("first_rate", rate))


def _usual_change(changes: FloatVector) -> float:
    """Return by how much of themselves steps change weight layers: the median, unless another layer is far above it.

    The layer with the smallest weights would ask for a rate at which the others hardly learn. At a rate that suits the
    median, a layer four times above it is still well below what is too much.
    """
    return max(float(np.median(changes)), float(np.max(changes)) / _FAR_ABOVE)


class _Seen(NamedTuple):
    """What the sentences need of a record."""

    names: tuple[str, ...]
    worst: str
    value: float
    at_first: float
    """The usual change in the first such step, over the rms that PyTorch's default initialisation gives the weights."""
    unscaled: bool
    """Whether targets make the loss huge, and with it the steps, which are in proportion to the gradient."""
    brief: bool
    """Whether it was so in a single one of the first steps."""
    cold: bool
    """Whether the first steps were such, at a rate that didn't rise, under an optimizer whose first steps are the largest."""
    urgency: str
    rates: tuple[float, ...]
    """Of these layers."""
    other_rates: tuple[float, ...]
    """Learning rates that only other layers have, which aren't changed by too much."""
