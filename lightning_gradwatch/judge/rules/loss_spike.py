"""GW105: the loss jumps, and comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from lightning_gradwatch.judge.evidence.first_bad_step import first_bad_step
from lightning_gradwatch.judge.evidence.loss_jump import WINDOW, read_jump
from lightning_gradwatch.judge.evidence.loss_trend import middle
from lightning_gradwatch.judge.readings import weight_layers
from lightning_gradwatch.judge.remedies import CLIP_GRADIENTS
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Rule, Sentences, Verdict, cant_judge, not_yet
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, LossSpikeWarning, Remedy, Severity
from lightning_gradwatch.record.first_bad_step import FirstBadStep
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number, ordinal, percent

_STARTING = 3
_OF_STEPS = ("weight_rms", "update_ratio")
"""What leaves its range first where steps are to blame, and not the batch."""
_LONGEST = 64
"""Measured steps after which a loss that hasn't come back is no spike."""


@dataclass(frozen=True, kw_only=True)
class LossSpike(Rule):
    """The loss jumps, and comes back.

    What: a loss gives up at least ``given_up`` of what was learned since the start, in one measured step: it is above the
    median of the last 20 by that share of the way that this has come down, and by three times their range (by six times, with
    fewer). Of a loss that never fell, its own size stands for the way, and half of it must be added. When it is back below
    the highest of these in ``patience`` measured steps in a row, within 64, this is information. A loss that
    doesn't come back is the matter of other rules, as is one that isn't finite; one that falls never is. From the jump on,
    the next 64 steps are measured one by one.

    Why: a batch unlike the others, or steps that are too large for where the net is, throw it out of what it had learned.
    One that lands on its feet again lost only time; where spikes get more, or larger, the next may not come back.

    What to do: nothing about a single one. Where they come again, look at the batch, clip the gradient norm to what is usual
    in the run, or lower the learning rate that they begin at.

    Attributes:
        given_up: share of what was learned since the start that a jump gives up.
        patience: measured steps in a row that show that it has come back.
    """

    code: ClassVar[str] = "GW105"
    name: ClassVar[str] = "loss-spike"
    warning: ClassVar[type[LossSpikeWarning]] = LossSpikeWarning

    given_up: float = 0.25
    patience: int = 3

    def __post_init__(self) -> None:
        self._require_between(0, float("inf"), "given_up")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Wait for a jump, then for its end."""
        if len(info.optimizers) > 1:
            return cant_judge("several optimizers share the run, each with a loss of its own")
        spike = state.get("spike")
        loss = float(record.loss)
        if not math.isfinite(loss):
            state.pop("spike", None)
            return not_yet("no loss was recorded")
        if spike is not None:
            return self._follow(record, info, state, spike)
        latest, start = state.setdefault("latest", []), state.setdefault("start", [])
        jump = read_jump(loss, latest, middle(sorted(start)), self.given_up) if start and loss > latest[-1] else None
        if jump is None:
            _keep(state, record)
            return HEALTHY
        state["spike"] = {
            "step": int(record.step),
            "last": int(record.step),
            "usual": jump.usual,
            "highest": jump.highest,
            "peak": loss,
            "given_up": jump.given_up,
            "fell": jump.fell,
            "readings": 0,
            "calm": 0,
        }
        return not_yet("whether a loss that has jumped comes back shows in the steps after it")

    def _follow(self, record: StepRecord, info: RunInfo, state: State, spike: dict[str, Any]) -> Verdict:
        """See whether a loss that has jumped is back."""
        loss = float(record.loss)
        spike["readings"] += 1
        if loss <= spike["highest"]:
            spike["calm"] += 1
            _keep(state, record)
        else:
            spike["calm"] = 0
            spike["last"] = int(record.step)
            if loss > spike["peak"]:
                rise = spike["peak"] - spike["usual"]
                spike["given_up"] *= (loss - spike["usual"]) / rise
                spike["peak"] = loss
        if spike["calm"] >= self.patience:
            del state["spike"]
            state["count"] = state.get("count", 0) + 1
            return Verdict({"spike": self._sighting(info, state, spike)})
        if spike["readings"] >= _LONGEST:
            del state["spike"]
            state["latest"] = [loss]
        return HEALTHY

    def _sighting(self, info: RunInfo, state: State, spike: dict[str, Any]) -> LazyFinding:
        begun = first_bad_step(state, info, spike["step"])
        layers = (begun.layer,) if begun is not None and begun.layer else weight_layers(info) or info.layer_names
        write = partial(_sentences, dict(spike), state["count"], begun)
        return LazyFinding(
            severity=Severity.INFO,
            layers=layers,
            first_step=spike["step"],
            last_step=spike["last"],
            value=spike["given_up"],
            threshold=self.given_up,
            write=write,
            first_bad=begun,
        )


def _keep(state: State, record: StepRecord) -> None:
    losses, start = state["latest"], state["start"]
    losses.append(float(record.loss))
    if len(losses) > WINDOW:
        del losses[0]
    if len(start) < _STARTING:
        start.append(losses[-1])


def _sentences(spike: dict[str, Any], count: int, begun: FirstBadStep | None) -> Sentences:
    if begun is not None and begun.metric in _OF_STEPS:
        kind, cause = CauseKind.HIGH_LEARNING_RATE, "A step was too large for where the net was."
        remedy = Remedy(
            "Nothing about a single one. Where spikes come again, halve the learning rate that they begin at, and clip the "
            "gradient norm to 1.",
            (Action("set_learning_rate", (), (("factor", 0.5),)), CLIP_GRADIENTS),
        )
    else:
        kind = CauseKind.UNUSUAL_BATCH
        within = "" if begun is None else ", as weights and steps were in their own range"
        cause = f"Most likely the batch is unlike the others{within}."
        remedy = Remedy(
            "Nothing about a single one. Where spikes come again, look at their batches, and clip the gradient norm to 1.",
            (CLIP_GRADIENTS,),
        )
    share = f"{percent(spike['given_up'])} of {'what was learned' if spike['fell'] else 'its own size'}"
    return Sentences(
        cause=f"{cause} It came back, so this is information only.",
        remedy=remedy,
        headline=(
            f"The loss jumped from {number(spike['usual'])} to {number(spike['peak'])} at step {spike['step']}, {share}, and was "
            f"back after step {spike['last']}{'' if count == 1 else f': the {ordinal(count)} time in this run'}"
        ),
        message="",
        causes=(Cause(kind),),
    )
