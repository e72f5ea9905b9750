"""GW102: the gradient explodes, on its way to the early layers or from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lightning_gradwatch.findings import Action, ExplodingGradientWarning, Remedy, Severity
from lightning_gradwatch.rules.depth import Depth, gains_sentence, read_depths
from lightning_gradwatch.rules.loops import loop_cause, loop_message, loop_remedy, read_loops
from lightning_gradwatch.rules.protocol import HEALTHY, Rule, Sentences, Sighting, State, Verdict
from lightning_gradwatch.rules.readings import count_hit, weight_layers
from lightning_gradwatch.rules.starting import read_start, starting_cause, starting_remedy
from lightning_gradwatch.rules.surge import Surge, read_surge
from lightning_gradwatch.rules.targets import SCALE_TARGETS, WHY_HUGE
from lightning_gradwatch.rules.trend import LossTrend, loss_trend, middle
from lightning_gradwatch.rules.wording import counted, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_gradwatch.record import RunInfo, StepRecord

_READINGS = 5
_ERROR_FACTOR = 100
_HUGE_LOSS = 1e6
_HUGE_NORM = 1e4
_LOSS_RISE = 2.0
_UNKNOWN_LOSS_FACTOR = 100


@dataclass(frozen=True, kw_only=True)
class ExplodingGradient(Rule):
    """The gradient explodes on its way to the early layers, or from step to step.

    What: over depth, the gradient signal at the first hidden site is more than ``ratio`` times that at the last, along one
    path from the loss to the input, in the median of the last five readings, and grows by more than ``gain`` from one site to
    the one before on average, with most sites taking part; where towers part, each is a path. So is a site that is called in
    a loop and feeds itself, from its first call to its last. Over time, after ``warm_up_steps``, the gradient norm of the whole net is ``growth`` times the median
    of the 20 readings before, while the loss has at least doubled; where the loss can't be told, a hundred times
    ``growth``. Either must hold in ``patience`` measured steps in a row, so that a spike which is over at once, or which
    clipping catches, is none. A hundred times a threshold is an error. It is information only as long as the loss still
    falls, and silent once it has converged. A gradient that is large and level isn't exploding: together with a huge loss
    it is information about targets that aren't scaled.

    Why: a signal that grows from layer to layer gives the early layers steps that are thousands of times those of the late
    ones. One such step throws the net where nothing is learned: units die or saturate, or the loss overflows to NaN
    (GW103). Over depth, weights that start too large do it; over time, a learning rate that is too high, or a loop that is
    unrolled over many steps.

    What to do: initialise with ``kaiming_normal_`` (ReLU and its kin) or ``xavier_normal_`` (Tanh); normalise between the
    layers; clip the gradient norm; lower the learning rate or warm it up; scale the targets.

    Attributes:
        ratio: signal at the first hidden site over that at the last from which it explodes over depth.
        gain: mean factor from site to site that must be exceeded as well; BatchNorm nets start at 1.25, and train.
        growth: factor of the gradient norm from which it explodes over time.
        warm_up_steps: steps that aren't judged by ``growth``.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW102"
    name: ClassVar[str] = "exploding-gradient"
    warning: ClassVar[type[ExplodingGradientWarning]] = ExplodingGradientWarning

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

    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the signal over depth and the gradient norm over time."""
        if record.skipped:
            return Verdict(unjudged="not yet: the optimizer step was skipped")
        depth = self._read(record, info)
        surge = read_surge(state.setdefault("norms", {}), record, self.growth)
        hits: dict[str, _Hit] = {}
        if isinstance(depth, Depth) and (hit := self._over_depth(record, info, state, depth)):
            hits["depth"] = hit
        if hit := self._over_loop(record, info):
            hits["loop"] = hit
        if record.step >= self.warm_up_steps and surge is not None and (hit := self._over_time(record, info, surge)):
            hits["time"] = hit
        if record.step >= self.warm_up_steps and not hits and (hit := _level(record, info)):
            hits["level"] = hit
        streaks = state.setdefault("streaks", {})
        if not hits and not streaks:
            return (
                Verdict(unjudged=depth) if isinstance(depth, str) and math.isnan(record.global_grad_norm) else HEALTHY
            )
        return self._told(record, info, state, hits)

    def _read(self, record: StepRecord, info: RunInfo) -> Depth | str:
        """Return the path on which the signal grows most, or why it can't be judged."""
        depths = read_depths(record, info)
        if isinstance(depths, str):
            return depths
        return max(depths, key=lambda each: (each.gain > self.gain and each.steady, each.attenuation))

    def _over_depth(self, record: StepRecord, info: RunInfo, state: State, depth: Depth) -> _Hit | None:
        """See the signal grow on its way to the early layers."""
        # Steps of different optimizers (a GAN's) see different sites: only like is compared with like.
        ends = depth.ends(info)
        readings = [*state.get("readings", ()), [ends, depth.attenuation]][-_READINGS:]
        state["readings"] = readings
        value = middle(sorted([reading for other, reading in readings if other == ends]))
        gain = value ** (1 / (len(depth.norms) - 1))
        if value <= self.ratio or gain <= self.gain or not depth.attenuation > 1 or not depth.steady:
            return None

        def write(trend: LossTrend) -> Sentences:
            sites = depth.sites(info)
            start = read_start(record, info, sites, depth.layers(info))
            remedy = starting_remedy(info, sites)
            return Sentences(
                cause=starting_cause(start, sites, gain) + gains_sentence(record, info, depth),
                remedy=Remedy(
                    f"{remedy.text} Until then, clip the gradient norm to 1.",
                    (*remedy.actions, Action("clip_gradients", (), (("norm", 1.0),))),
                ),
                message=(
                    f"{depth.seen(info, f'{number(value)} times')}: a factor of {number(gain)} at each of {len(sites) - 1} steps "
                    f"between sites. Reported above {number(self.ratio)}. {trend.sentence(self.loss_fall)}"
                ),
            )

        return _Hit(value, self.ratio, depth.layers(info), write)

    def _over_loop(self, record: StepRecord, info: RunInfo) -> _Hit | None:
        """See the signal grow on its way to the first call of an unrolled loop."""
        loops = [loop for loop in read_loops(record, info) if loop.attenuation > self.ratio and loop.gain > self.gain]
        if not loops:
            return None
        worst = max(loops, key=lambda loop: loop.gain)

        def write(trend: LossTrend) -> Sentences:
            start = loop_remedy(info, worst)
            return Sentences(
                cause=loop_cause(worst),
                remedy=Remedy(
                    f"{start.text} Until then, clip the gradient norm to 1.",
                    (*start.actions, Action("clip_gradients", (), (("norm", 1.0),))),
                ),
                message=f"{loop_message(worst, self.ratio, self.gain)} {trend.sentence(self.loss_fall)}",
            )

        return _Hit(worst.attenuation, self.ratio, (worst.site.name,), write)

    def _over_time(self, record: StepRecord, info: RunInfo, surge: Surge) -> _Hit | None:
        """See the gradient norm and the loss grow from step to step."""
        threshold, risen = self.growth, surge.loss_growth
        if risen is None:
            threshold *= _UNKNOWN_LOSS_FACTOR
        elif risen < _LOSS_RISE:
            return None
        if surge.growth < threshold:
            return None
        norm = record.global_grad_norm

        def write(trend: LossTrend) -> Sentences:
            loss = "" if risen is None else f", the loss {number(risen)} times its own"
            clip = float(f"{surge.past_norm:.0e}")
            return Sentences(
                cause=(
                    "Each step makes the next gradient larger: the learning rate is too high for where the net is now, or a loop "
                    "that is unrolled over many steps multiplies the gradient."
                ),
                remedy=Remedy(
                    f"Lower the learning rate to a tenth, or warm it up, and clip the gradient norm to {number(clip)}, which is "
                    "usual in this run.",
                    (
                        Action("set_learning_rate", (), (("factor", 0.1),)),
                        Action("clip_gradients", (), (("norm", clip),)),
                    ),
                ),
                message=(
                    f"The gradient norm is {number(norm)}, {number(surge.growth)} times the median of the measured steps "
                    f"before{loss}. Reported from {number(threshold)} times on. {trend.sentence(self.loss_fall)}"
                ),
            )

        return _Hit(surge.growth, threshold, _layers(info), write)

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
            if count < self.patience:
                continue
            severity = Severity.ERROR if hit.value > _ERROR_FACTOR * hit.threshold else Severity.WARNING
            findings[kind] = Sighting(
                severity=Severity.INFO if kind == "level" or trend.falls_by(self.loss_fall) else severity,
                layers=tuple(hit.layers),
                first_step=streaks[kind]["since"],
                last_step=int(record.step),
                value=hit.value,
                threshold=hit.threshold,
                write=partial(hit.write, trend),
            )
        state["reported"] = sorted({*state.get("reported", ()), *findings})
        pending = any(kind not in state["reported"] for kind in streaks)
        reason = f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if pending else ""
        return Verdict(findings, confirming=pending, unjudged=reason)


class _Hit(NamedTuple):
    """One way to explode, as one record shows it."""

    value: float
    threshold: float
    layers: Sequence[str]
    write: Callable[[LossTrend], Sentences]


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
            message=(
                f"The loss is {number(loss)} and the gradient norm {number(norm)}, both level. Information from a loss of "
                f"{number(_HUGE_LOSS)} and a norm of {number(_HUGE_NORM)} on."
            ),
        )

    return _Hit(loss, _HUGE_LOSS, _layers(info), write)


def _layers(info: RunInfo) -> Sequence[str]:
    return weight_layers(info) or info.layer_names
