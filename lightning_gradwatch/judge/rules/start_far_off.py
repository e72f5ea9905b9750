"""GW505: the first loss is far above what one constant answer gives, and the net doesn't come back from there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from lightning_gradwatch.judge.evidence.constant_answer import UNKNOWN, Excess, note_answer, read_cost, read_excess
from lightning_gradwatch.judge.evidence.loss_trend import loss_trend
from lightning_gradwatch.judge.evidence.standing_loss import count_standing, forget_standing
from lightning_gradwatch.judge.remedies import SCALE_TARGETS
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Rule, Sentences, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, Severity, StartFarOffWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend

_FIRST_STEPS = 10
"""Steps in which a run is at its start."""
_STAYS = "stays"
"""Where the memory has for how long it stays there; what an earlier release left in a checkpoint has a bare number at ``stood``."""


@dataclass(frozen=True, kw_only=True)
class StartFarOff(Rule):
    """The first loss is far above what one constant answer gives.

    What: in one of the first measured steps the loss is more than ``ratio`` times what the same loss gives where all classes
    are equally likely (ln C), or where each output is the mean of that step's targets (their variance, for squared errors).
    It is information as long as the loss falls, and for ``warm_up_steps`` in any case, as most nets come back within a few
    steps. It is a warning where the loss is still that far above, doesn't fall, and isn't down to half of where it began, in
    ``patience`` measured steps in a row. It has healed where the loss is no longer that far above. What a constant answer
    gives is read off the loss function, with all that the program makes of it; where a term of another kind takes part (a
    penalty, a prior), it isn't known, and nothing is judged.

    Why: a net that knows nothing loses least by saying nothing in particular. One that starts far above that is sure of
    what is wrong: weights of the last layer that are too large, inputs of 0 to 255, or targets that lie far from 0. The
    first steps then go into taking that back, and are as large as the loss is.

    What to do: normalise inputs and targets to mean 0 and variance 1; start the last layer with smaller weights.

    Attributes:
        ratio: loss over that of a constant answer from which on a start is far off.
        warm_up_steps: steps in which it is information, whatever the loss does.
        patience: measured steps in a row in which the loss must stand there.
        loss_fall: share by which the loss must have fallen since half as many steps to count as falling.
    """

    code: ClassVar[str] = "GW505"
    name: ClassVar[str] = "start-far-off"
    warning: ClassVar[type[StartFarOffWarning]] = StartFarOffWarning

    ratio: float = 5.0
    warm_up_steps: int = 50
    patience: int = 3
    loss_fall: float = 0.05

    def __post_init__(self) -> None:
        self._require_between(1, math.inf, "ratio")
        self._require_between(0, 1, "loss_fall")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """See where the run begins, and whether it stays there."""
        note_answer(state, record)
        if state.get("over"):
            return HEALTHY
        if "start" not in state:
            return self._begins(record, info, state)
        cost = read_cost(state)
        trend = loss_trend(state, info).from_start()
        if cost is None or trend.unknown:
            return self._found(record, state, trend, standing=False)
        above = not math.isfinite(record.loss) or record.loss >= self.ratio * cost.loss
        if not above:
            state["near"] = state.get("near", 0) + 1
            if state["near"] >= self.patience:
                state["over"] = True
                return Verdict(healed={"start": "the loss is no longer that far above what a constant answer gives"})
        else:
            state["near"] = 0
        stands = above and not trend.learns(self.loss_fall)
        standing = count_standing(state, record.step, key=_STAYS) if stands else forget_standing(state, key=_STAYS)
        due = standing.is_due(self, record.step)
        nears = standing.nears(self, record.step) and not due
        return self._found(record, state, trend, standing=due)._replace(confirming=bool(nears), dated=True)

    def _begins(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the first record with a known answer, if the run began with it or a few steps before."""
        if record.step >= _FIRST_STEPS:
            return cant_judge(state.get("lacking", "how the run began isn't known"))
        known = math.isfinite(record.loss)
        state["lacking"] = UNKNOWN if known else "the loss isn't finite"
        if known:
            state.setdefault("first", float(record.loss))
        if not record.constant_answer:
            return not_yet(state["lacking"])
        far = self.ratio * record.constant_answer[0]
        # A first loss that was lower, whose answer isn't known: then steps took it there, and not the start.
        if not record.loss >= far or math.isinf(record.loss) or state["first"] < far:
            state["over"] = True
            return HEALTHY
        excess = read_excess(record, info)
        numbers = excess.rms, excess.mean, excess.deviation, _gain(record, info, excess)
        state["start"] = {
            "step": int(record.step),
            "loss": [float(record.loss), float(record.constant_answer[0])],
            "excess": [excess.kind, excess.layer],
            "numbers": [float(each) if math.isfinite(each) else None for each in numbers],
        }
        return self._found(record, state, loss_trend(state, info), standing=False)

    def _found(self, record: StepRecord, state: State, trend: LossTrend, *, standing: bool) -> Verdict:
        start = state["start"]
        (loss, answer), (kind, layer) = start["loss"], start["excess"]
        *numbers, gain = [math.nan if each is None else each for each in start["numbers"]]
        if standing:
            state["told"] = True
        told = bool(state.get("told")) and not trend.learns(self.loss_fall)
        excess = Excess(kind, layer, *numbers)
        return Verdict(
            {
                "start": LazyFinding(
                    severity=Severity.WARNING if told else Severity.INFO,
                    layers=(layer,),
                    first_step=start["step"],
                    last_step=int(record.step),
                    value=loss / answer,
                    threshold=self.ratio,
                    write=partial(self._sentences, (loss, answer), excess, gain, trend.sentence(self.loss_fall)),
                )
            }
        )

    def _sentences(self, seen: tuple[float, float], excess: Excess, gain: float, urgency: str) -> Sentences:
        loss, answer = seen
        layer = excess.layer or "the root"
        if excess.kind == "targets":
            kind, remedy, why = CauseKind.UNSCALED_TARGETS, SCALE_TARGETS, "the targets of {layer} aren't scaled"
            cause = (
                f"The targets lie around {number(excess.mean)} with a standard deviation of {number(excess.deviation)}, and the outputs "
                f"start around 0: nearly all of the loss is that distance."
            )
        elif excess.kind == "inputs":
            kind, why = CauseKind.UNSCALED_INPUTS, "the inputs of {layer} aren't scaled"
            cause = (
                f"What {layer} puts out, the first layer, has an rms of {number(excess.rms)} though its weights are of the usual size: the "
                "inputs aren't scaled."
            )
            remedy = Remedy("Scale the inputs to mean 0 and variance 1.", (Action("normalize_inputs"),))
        else:
            kind, why = CauseKind.LARGE_WEIGHTS, "{layer} puts out too much"
            cause = f"What {layer} puts out has an rms of {number(excess.rms)}: its weights start too large for what they are given."
            arguments = ("method", "xavier_normal_"), ("gain", gain), ("bias", 0.0)
            remedy = Remedy(
                f"Initialise the weights of {layer} with xavier_normal_, times {number(gain)}, and the biases with 0.",
                (Action("initialize", (excess.layer,), arguments),),
            )
        return Sentences(
            cause=cause,
            causes=(Cause(kind),),
            remedy=remedy,
            headline=(
                f"The loss starts at {number(loss)}, {number(loss / answer)} times the {number(answer)} that one constant answer gives: "
                f"{why.format(layer=layer)}"
            ),
            message=urgency,
        )


def _gain(record: StepRecord, info: RunInfo, excess: Excess) -> float:
    """Return the gain by which a layer's weights start so that what it puts out has an rms of about 1."""
    layer = next((each for each in info.layers if each.name == excess.layer), None)
    matrix = None if layer is None else next((shape for shape in layer.shapes if len(shape) > 1), None)
    rms = 0.0 if layer is None else float(record.values("weight_rms", len(info.layers))[info.layers.index(layer)])
    if matrix is None or not rms > 0 or not excess.rms > 0:
        return 0.1
    field = math.prod(matrix[2:])
    xavier = math.sqrt(2 / ((matrix[0] + matrix[1]) * field))
    return float(f"{min(max(rms / excess.rms / xavier, 1e-3), 1.0):.1g}")
