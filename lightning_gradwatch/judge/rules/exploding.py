"""GW102: the gradient explodes, on its way to the early layers or from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lightning_gradwatch.judge.evidence.depth import Depth, gains_sentence, read_depths
from lightning_gradwatch.judge.evidence.gradient_spike import GradientSpike, note_reading, read_surge
from lightning_gradwatch.judge.evidence.initial_weights import (
    read_start,
    starting_cause,
    starting_causes,
    starting_remedy,
)
from lightning_gradwatch.judge.evidence.loops import explain_loop, loop_evidence, loop_headline, read_loops
from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend, middle
from lightning_gradwatch.judge.evidence.unscaled_targets import WHY_HUGE
from lightning_gradwatch.judge.readings import weight_layers
from lightning_gradwatch.judge.remedies import CLIP_GRADIENTS, SCALE_TARGETS
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Line, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import State, count_hit
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, ExplodingGradientWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_READINGS = 5
_ERROR_FACTOR = 100
"""How far beyond the threshold it is an error, by convention: a product over layers, where a factor of 10 is one layer more or two."""
_HUGE_LOSS = 1e6
"""By convention: over classes a loss starts at ln C, with targets of variance 1 at about 1."""
_HUGE_NORM = 1e4
"""By convention: of targets that aren't scaled, the gradient grows at least as the square root of the loss."""
_LONGEST = 20
"""Readings after which what broke is no longer told by what came before it."""


@dataclass(frozen=True, kw_only=True)
class ExplodingGradient(Rule):
    """The gradient explodes on its way to the early layers, or from step to step.

    What: over depth, the gradient signal at the first hidden activation is more than ``ratio`` times that at the last, along one
    path from the loss to the input, in the median of the last five readings, and grows by more than ``gain`` from one activation to
    the one before on average, with most activations taking part; where towers part, each is a path. Or it did so in one step, and within twenty readings the signal there is down to one part in ``ratio``: one
    step has wrecked the net. So is an activation that is called in a loop and feeds itself, from its first call to its last. Over time,
    after ``warm_up_steps``, the gradient norm of the whole net is ``growth`` times the median of the 20 readings before, and
    beyond three standard deviations of their logarithms, while the loss is twice its own median and back where the run
    began: near the floor of a loss, a batch that still holds something to learn has many times a median that is close to
    zero. Where the loss can't be told, the norm must be a hundred times ``growth``, and back where it began itself. Either
    must hold in ``patience`` measured steps in a row, so that a spike which is over at once, or which clipping catches, is
    none; over time, steps in between that fall a little short don't break the row. A hundred times a threshold is an error.
    It is information only as long as the loss still falls, and silent once it has converged; what is no longer seen when the
    loss has come down to half of where it began has healed. A gradient that is large and level isn't exploding: together
    with a huge loss it is information about targets that aren't scaled.

    Why: a signal that grows from layer to layer gives the early layers steps that are thousands of times those of the late
    ones. One such step throws the net where nothing is learned: units die or saturate, or the loss overflows to NaN
    (GW103). Over depth, weights that start too large do it; over time, a learning rate that is too high, or a loop that is
    unrolled over many steps.

    What to do: initialise with ``kaiming_normal_`` (ReLU and its kin) or ``xavier_normal_`` (Tanh); normalise between the
    layers; clip the gradient norm; lower the learning rate or warm it up; scale the targets.

    Attributes:
        ratio: signal at the first hidden activation over that at the last from which it explodes over depth.
        gain: mean factor from activation to activation that must be exceeded as well; BatchNorm nets start at 1.25, and train.
        growth: factor of the gradient norm from which it explodes over time.
        warm_up_steps: steps that aren't judged by ``growth``.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW102"
    name: ClassVar[str] = "exploding-gradient"
    warning: ClassVar[type[ExplodingGradientWarning]] = ExplodingGradientWarning
    tells_first_bad_step: ClassVar[bool] = True

    ratio: float = 1e3
    gain: float = 1.4
    growth: float = 10.0
    warm_up_steps: int = 10
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(1, float("inf"), "ratio", "gain", "growth")
        self._require_between(0, 1, "loss_fall", "converged")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        del info
        return (Line("signal_norm", self.ratio, "above", of_last=True),)

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the signal over depth and the gradient norm over time."""
        depth = self._read(record, info, state)
        streaks = state.setdefault("streaks", {})
        surge = self._surge(record, state, lasting="time" in streaks)
        hits: dict[str, _Hit] = {}
        if isinstance(depth, Depth) and (hit := self._over_depth(record, info, state, depth)):
            hits["depth"] = hit
        if hit := self._over_loop(record, info):
            hits["loop"] = hit
        if surge is not None:
            hits["time"] = self._over_time(record, info, surge)
        if record.step >= self.warm_up_steps and not hits and (hit := _level(record, info)):
            hits["level"] = hit
        if not hits and not streaks and not self._may_heal(state, info):
            return (
                Verdict(unjudged=depth) if isinstance(depth, str) and math.isnan(record.global_grad_norm) else HEALTHY
            )
        return self._told(record, info, state, hits)

    def _surge(self, record: StepRecord, state: State, *, lasting: bool) -> GradientSpike | None:
        """Compare norm and loss with the readings before, and keep them if they are like those."""
        judged = record.step >= self.warm_up_steps
        surge = read_surge(state, record, self.growth, lasting=lasting) if judged else None
        if surge is None:  # else it would become the measure of itself
            note_reading(state, record)
        return surge

    def _read(self, record: StepRecord, info: RunInfo, state: State) -> Depth | str:
        """Return the path on which the signal grows most, else the one on which it did, or why it can't be judged."""
        depths = read_depths(record, info)
        if isinstance(depths, str):
            return depths
        grew = state.get("exploded", {}).get("ends")
        return max(
            depths,
            key=lambda each: (each.gain > self.gain and each.steady, each.ends(info) == grew, each.attenuation),
        )

    def _over_depth(self, record: StepRecord, info: RunInfo, state: State, depth: Depth) -> _Hit | None:
        """See the signal grow on its way to the early layers, or that it did until a step wrecked the net."""
        # Steps of different optimizers (a GAN's) see different sites: only like is compared with like.
        ends = depth.ends(info)
        readings = [*state.get("readings", ()), [ends, depth.attenuation]][-_READINGS:]
        state["readings"] = readings
        value = middle(sorted([reading for other, reading in readings if other == ends]))
        gain = value ** (1 / (len(depth.norms) - 1))
        if value > self.ratio and gain > self.gain and depth.attenuation > 1 and depth.steady:
            _note_explosion(state, record, ends, value)
            return self._growing(record, info, depth, value)
        past = _wrecked_by(state, ends)
        if past is None or value >= 1 / self.ratio:
            return None
        return self._growing(record, info, depth, past["value"], now=value, since=past["since"])

    def _growing(
        self,
        record: StepRecord,
        info: RunInfo,
        depth: Depth,
        value: float,
        *,
        now: float | None = None,
        since: int | None = None,
    ) -> _Hit:
        """Tell of a signal that grows, or grew from step `since` on and is `now` all but gone."""
        gain = value ** (1 / (len(depth.norms) - 1))

        def write(trend: LossTrend) -> Sentences:
            sites = depth.sites(info)
            start = read_start(record, info, sites, depth.layers(info))
            remedy = starting_remedy(info, sites)
            measured = gains_sentence(record, info, depth) if now is None else ""
            evidence = (
                trend.sentence(self.loss_fall)
                if now is None
                else f"Then a step wrecked the net: {number(now)} of the signal is left there."
            )
            return Sentences(
                cause=starting_cause(start, sites, gain) + measured,
                causes=starting_causes(gain),
                remedy=Remedy(
                    f"{remedy.text} Until then, clip the gradient norm to 1.",
                    (*remedy.actions, CLIP_GRADIENTS),
                ),
                headline=depth.headline(info, value, was=now is not None),
                message=evidence,
            )

        return _Hit(value, self.ratio, depth.layers(info), write, since=since)

    def _over_loop(self, record: StepRecord, info: RunInfo) -> _Hit | None:
        """See the signal grow on its way to the first call of an unrolled loop."""
        loops = [loop for loop in read_loops(record, info) if loop.attenuation > self.ratio and loop.gain > self.gain]
        if not loops:
            return None
        worst = max(loops, key=lambda loop: loop.gain)

        def write(trend: LossTrend) -> Sentences:
            cause, start, causes = explain_loop(info, worst)
            return Sentences(
                cause=cause,
                causes=causes,
                remedy=Remedy(
                    f"{start.text} Until then, clip the gradient norm to 1.",
                    (*start.actions, CLIP_GRADIENTS),
                ),
                headline=loop_headline(worst),
                message=f"{loop_evidence(worst, self.ratio, self.gain)} {trend.sentence(self.loss_fall)}",
            )

        return _Hit(worst.attenuation, self.ratio, (worst.site.name,), write)

    def _over_time(self, record: StepRecord, info: RunInfo, surge: GradientSpike) -> _Hit:
        """Tell how the gradient norm and the loss have grown from step to step."""
        norm, threshold, risen = record.global_grad_norm, surge.least, surge.loss_growth

        def write(trend: LossTrend) -> Sentences:
            loss = "" if risen is None else f", the loss {number(risen)} times its own and back where the run began"
            clip = float(f"{surge.past_norm:.0e}")
            return Sentences(
                cause=(
                    "Each step makes the next gradient larger: the learning rate is too high for where the net is now, or a loop "
                    "that is unrolled over many steps multiplies the gradient."
                ),
                causes=(Cause(CauseKind.HIGH_LEARNING_RATE),),
                remedy=Remedy(
                    f"Lower the learning rate to a tenth, or warm it up, and clip the gradient norm to {number(clip)}, which is "
                    "usual in this run.",
                    (
                        Action("set_learning_rate", (), (("factor", 0.1),)),
                        Action("clip_gradients", (), (("norm", clip),)),
                    ),
                ),
                headline=(
                    f"The gradient norm of the whole net is {number(norm)}, {number(surge.growth)} times the median of the measured "
                    f"steps before{loss}"
                ),
                message=trend.sentence(self.loss_fall),
            )

        return _Hit(surge.growth, threshold, _layers(info), write, sure=surge.explodes)

    def _may_heal(self, state: State, info: RunInfo) -> bool:
        """Tell whether what was reported may be over: each record says so, as it may have come back in between."""
        return bool(self.reported(state)) and loss_trend(state, info).come_down

    def _told(self, record: StepRecord, info: RunInfo, state: State, hits: dict[str, _Hit]) -> Verdict:
        """Count what was seen, and tell what has lasted."""
        streaks = state["streaks"]
        trend = loss_trend(state, info)
        if trend.converged_to(self.converged):
            hits = {}
        for kind in [kind for kind in streaks if kind not in hits]:
            del streaks[kind]
        findings = {}
        for kind, hit in hits.items():
            count = count_hit(streaks, kind, record.step)
            sure = streaks[kind]["sure"] = streaks[kind].get("sure", 0) + int(hit.sure)
            if count - sure > sure + self.patience:
                del streaks[kind]
            if hit.since is None and (not hit.sure or sure < self.patience or 2 * sure <= count):
                continue
            severity = Severity.ERROR if hit.value > _ERROR_FACTOR * hit.threshold else Severity.WARNING
            # Of a wreck, the loss may fall from far above chance to chance: that is no learning.
            calm = hit.since is None and trend.falls_by(self.loss_fall)
            findings[kind] = LazyFinding(
                severity=Severity.INFO if kind == "level" or calm else severity,
                layers=tuple(hit.layers),
                first_step=streaks[kind]["since"] if hit.since is None else hit.since,
                last_step=int(record.step),
                value=hit.value,
                threshold=hit.threshold,
                write=partial(hit.write, trend),
            )
        healed, reported = {}, self.reported(state)
        if trend.come_down:
            healed = dict.fromkeys(set(reported) - set(findings), trend.told_come_down())
        pending = any(kind not in reported and kind not in findings for kind in streaks)
        reason = self.waits if pending else ""
        return Verdict(findings, healed=healed, confirming=pending, unjudged=reason)


class _Hit(NamedTuple):
    """One way to explode, as one record shows it."""

    value: float
    threshold: float
    layers: Sequence[str]
    write: Callable[[LossTrend], Sentences]
    sure: bool = True
    """Whether it counts for itself, or only goes on with others: most must be sure."""
    since: int | None = None
    """The step from which on it was seen, where what came of it leaves nothing to wait for."""


def _level(record: StepRecord, info: RunInfo) -> _Hit | None:
    """See a loss and a gradient that are huge without growing."""
    loss, norm = float(record.loss), float(record.global_grad_norm)
    if not (_HUGE_LOSS <= loss < math.inf and _HUGE_NORM <= norm < math.inf):
        return None

    def write(trend: LossTrend) -> Sentences:
        del trend
        return Sentences(
            cause=(
                f"A loss this large {WHY_HUGE}. The gradients are in proportion to it and level: that isn't an explosion."
            ),
            remedy=SCALE_TARGETS,
            causes=(Cause(CauseKind.UNSCALED_TARGETS),),
            headline=f"The loss is {number(loss)} and the gradient norm of the whole net {number(norm)}, both level",
            message=f"Reported from a loss of {number(_HUGE_LOSS)} and a norm of {number(_HUGE_NORM)} on.",
        )

    return _Hit(loss, _HUGE_LOSS, _layers(info), write)


def _layers(info: RunInfo) -> Sequence[str]:
    return weight_layers(info) or info.layer_names


def _note_explosion(state: State, record: StepRecord, ends: str, value: float) -> None:
    """Keep that the signal between two sites explodes in a record, with the largest reading and the first step.

    Where steps are as large as the gradient, it may be over after the first of them, and which of the next ones still shows it is a
    matter of the last bits. What it leaves behind isn't: no net goes from one end to the other and learns.
    """
    known = state.get("exploded", {})
    if known.get("ends") == ends:
        state["exploded"] = {**known, "value": max(value, known["value"]), "readings": 0}
    else:
        state["exploded"] = {"ends": ends, "value": value, "since": int(record.step), "readings": 0}


def _wrecked_by(state: State, ends: str) -> Mapping[str, Any] | None:
    """Return the explosion between two sites that a reading may be the wreck of: one of at most 20 readings ago."""
    known: dict[str, Any] | None = state.get("exploded")
    if not known or known["ends"] != ends:
        return None
    known["readings"] += 1
    if known["readings"] > _LONGEST:
        del state["exploded"]
        return None
    return known
