"""GW304: weight decay, and not the loss, moves the weights.

Where the optimizer adds the decay to the gradient (SGD, Adam), the shares are those of the gradient that it then uses. Where it
takes a part of the weights away beside the step (AdamW), that part is the learning rate times the decay, and what the
step changes is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.standing_loss import awaits_standing_loss, count_standing, forget_standing
from lightning_gradwatch.judge.readings import layer_values, weight_layers
from lightning_gradwatch.judge.rule import HEALTHY, Explanation, LazyFinding, Rule, Sentences, Verdict, not_yet
from lightning_gradwatch.judge.streaks import State, columns, count_hit
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, DecayDominatesWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.record.step import FloatVector, OptimizerInfo

_ERROR_SHRUNK = 0.1
"""By convention a decade below the threshold, as with the rules about steps."""
_ADDED = frozenset(("SGD", "Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD"))
"""Optimizers of torch that add the decay to the gradient, unless they are told to keep it apart."""
_APART = frozenset(("AdamW", "Lion", "Adafactor", "Muon"))
_USUAL = 0.02
"""Share of the decay in the first steps with which nets learn."""
_LEAST, _MOST = 1e-6, 0.1


@dataclass(frozen=True, kw_only=True)
class DecayDominates(Rule):
    """Weight decay, and not the loss, moves the weights.

    What: the share of weight decay in a step's change of each weight layer, by what its optimizer does: SGD and Adam add the
    decay times the weights to the gradient, AdamW takes the learning rate times the decay of the weights away beside its step,
    whose change is measured. The rule fires where that share was above ``share`` in the median layer, in ``patience``
    measured steps in a row, where the weights have since shrunk to less than ``shrunk`` of what they were, and the loss stands
    for as many measured steps, told from step ``warm_up_steps`` on. Weights that are down to a tenth of that share are an
    error. What shrinks while the net learns is left alone, as weights are that a norm follows: those have no size that counts.
    It heals when the loss has come down to half of where it began.

    Why: decay pulls each weight towards 0 whatever the data say. Where it outweighs the gradient, the weights shrink until the
    two balance, and a net of small weights gives the same answer to everything. Under SGD and Adam what counts is the decay
    times the weights beside the gradient: 0.1 times weights of 0.07 is 0.007, and the gradient of a mean loss is often less.

    What to do: lower ``weight_decay``; the finding gives a factor. About 1e-4 is usual for SGD and Adam, and 0.01 to 0.1
    for AdamW.

    Attributes:
        share: share of a step's change from which decay outweighs the loss.
        shrunk: what must be left of the weights.
        warm_up_steps: steps for which the loss must have stood.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the rule to be silent.
    """

    code: ClassVar[str] = "GW304"
    name: ClassVar[str] = "decay-dominates"
    warning: ClassVar[type[DecayDominatesWarning]] = DecayDominatesWarning

    share: float = 0.5
    shrunk: float = 0.5
    warm_up_steps: int = 24
    patience: int = 3
    loss_fall: float = 0.05

    def __post_init__(self) -> None:
        self._require_between(0, 1, "share", "shrunk", "loss_fall")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Remember when decay outweighed the loss, and see what became of the weights and of the loss."""
        if not info.layers:
            return not_yet("no layer was seen")
        if not info.decays:
            return HEALTHY
        left = self._left(record, info, state)
        share = _median(_decay_shares(record, info))
        if math.isnan(left) or math.isnan(share):
            return not_yet("no gradient or weight of a layer that decays was measured")
        self._note(record, state, share)
        if "due" not in state:
            return Verdict(confirming=True, unjudged=self.waits) if share > self.share else HEALTHY
        trend = loss_trend(state, info).from_start()
        told = self.still_reported(state, "decay")
        learns = not trend.unknown and (trend.come_down or (not told and trend.falls_by(self.loss_fall)))
        if learns or left > self.shrunk:
            forget_standing(state)
            why = trend.told_come_down() if learns else "the weights have grown again"
            return Verdict(healed={"decay": why} if told else {}, confirming=self._early(record, share), dated=True)
        return self._count(record, info, state, trend, left=left, told=told)

    def _early(self, record: StepRecord, share: float) -> bool:
        """Tell whether the first steps are yet to show what the decay does."""
        return record.step < self.warm_up_steps and share > self.share

    def _left(self, record: StepRecord, info: RunInfo, state: State) -> float:
        """Return what is left of the weights of the median layer, of those that decay."""
        held = columns(state, "start", info, "layers", rows=1, fill=math.nan)
        weights = layer_values(record, info, "weight_rms")
        start = held.values[0]
        new = np.isnan(start) & (weights > 0)
        if np.count_nonzero(new):
            start[new] = weights[new]
            held.blank = False
        decays = info.weight_mask & (np.fmax.reduce(info.layer_decays, initial=0.0) > 0)
        return _median(np.where(decays, weights / start, np.nan))

    def _note(self, record: StepRecord, state: State, share: float) -> None:
        """Remember that decay outweighed the loss for long enough, and by how much at first."""
        if share <= self.share:
            state.pop("streak", None)
            return
        streak = state.setdefault("streak", {})
        count = count_hit(streak, "decay", record.step)
        state.setdefault("at_first", share)
        if count >= self.patience and "due" not in state:
            state["due"] = {"since": streak["decay"]["since"], "share": state["at_first"]}

    def _count(
        self, record: StepRecord, info: RunInfo, state: State, trend: LossTrend, *, left: float, told: bool
    ) -> Verdict:
        """Count one more step at which the loss stood with weights that have shrunk, and tell what has lasted."""
        standing = count_standing(state, record.step)
        if (waiting := awaits_standing_loss(self, record.step, trend, standing, told=told)) is not None:
            return waiting
        due: dict[str, Any] = state["due"]
        sighting = LazyFinding(
            severity=Severity.ERROR if left < _ERROR_SHRUNK * self.shrunk else Severity.WARNING,
            layers=weight_layers(info),
            first_step=due["since"],
            last_step=int(record.step),
            value=due["share"],
            threshold=self.share,
            write=partial(self._write, info, trend, due["share"], left),
        )
        return Verdict({"decay": sighting})

    def _write(self, info: RunInfo, trend: LossTrend, share: float, left: float) -> Sentences:
        cause, remedy, causes = _why_decayed(info, share)
        headline = (
            f"Weight decay made up {percent(share)} of the first steps' change, in the median layer, and has left {percent(left)} of the "
            "weights"
        )
        return Sentences(cause, remedy, trend.sentence(self.loss_fall), causes, headline)


def _median(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan


def _decay_shares(record: StepRecord, info: RunInfo) -> FloatVector:
    """Return which share of a step's change is decay, shape [L]; NaN for a layer that has none, or where it isn't known."""
    shares = np.full(len(info.layers), np.nan)
    weights, gradients = layer_values(record, info, "weight_rms"), layer_values(record, info, "grad_rms")
    ratios = layer_values(record, info, "update_ratio")
    kept = record.clip_factor if record.clip_factor >= 0 else 1.0
    for index, (optimizer, held) in enumerate(zip(info.optimizers, info.optimizer_columns, strict=True)):
        if index not in record.optimizers or index >= len(record.learning_rates):
            continue
        decays = info.layer_decays[index][held]
        pull = decays * weights[held]
        added = pull / (pull + kept * gradients[held])
        apart = np.fmin(decays * record.learning_rates[index] * info.layer_rates[index][held] / ratios[held], 1.0)
        kind = _kind(optimizer)
        share = added if kind == "added" else apart if kind == "apart" else np.minimum(added, apart)
        shares[held] = np.where(decays > 0, share, np.nan)
    return np.where(info.weight_mask & np.isfinite(shares), shares, np.nan)


def _kind(optimizer: OptimizerInfo) -> str:
    """Say how an optimizer decays weights; empty where that isn't known."""
    apart = optimizer.settings.get("decoupled_weight_decay")
    if apart is True or optimizer.name in _APART:
        return "apart"
    return "added" if optimizer.name in _ADDED else ""


def _why_decayed(info: RunInfo, share: float) -> Explanation:
    """Say that decay moves the weights, and by how much it is to be lowered.

    Args:
        info: Describes the run.
        share: That of the decay in the first steps, of the median layer.
    """
    decays = sorted({float(f"{decay:.6g}") for row in info.layer_decays for decay in row if decay > 0}, reverse=True)
    factor = float(f"{min(max(_USUAL * (1 - share) / share if share < 1 else _LEAST, _LEAST), _MOST):.0e}")
    told = ", ".join(map(number, decays))
    lowered = ", ".join(number(factor * decay) for decay in decays)
    return Explanation(
        f"The weight decay ({told}) is too strong for these gradients: it pulls the weights towards 0 by more than the loss holds "
        "against it.",
        Remedy(
            f"Multiply weight_decay by {number(factor)}, to {lowered}.",
            (Action("scale_weight_decay", (), (("factor", factor),)),),
        ),
        (Cause(CauseKind.STRONG_DECAY),),
    )
