"""GW101: the gradient signal vanishes on its way to the early layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, NamedTuple

from lightning_gradwatch.judge.evidence.attenuation import diagnose, explain_fading
from lightning_gradwatch.judge.evidence.branches import on_weak_branches
from lightning_gradwatch.judge.evidence.depth import Depth, read_depths
from lightning_gradwatch.judge.evidence.loops import Loop, explain_loop, loop_evidence, loop_headline, read_loops
from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend, middle
from lightning_gradwatch.judge.evidence.minimum_rms import judge_floor
from lightning_gradwatch.judge.evidence.onset import Drift, first_steps, note_update, swings
from lightning_gradwatch.judge.evidence.standing_loss import count_standing, forget_standing
from lightning_gradwatch.judge.evidence.starved_input import (
    STARVED,
    explain_starved,
    first_share,
    read_input,
    starved_headline,
)
from lightning_gradwatch.judge.evidence.zero_signal import underflow
from lightning_gradwatch.judge.readings import layer_values
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import HEALTHY, Explanation, LazyFinding, Line, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import State, count_hit, has_gone
from lightning_gradwatch.record.finding import (
    Cause,
    CauseKind,
    Severity,
    VanishingGradientWarning,
)
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number

_READINGS = 5
_ERROR_FACTOR = 100
"""How far beyond the threshold it is an error, by convention: a product over layers, where a factor of 10 is one layer more or two."""
_SGD_RATIO = 3e-3
"""From experiments: nets of six Sigmoid layers, at 5e-4 to 8e-4, learned nothing in 300 steps of SGD; 3e-3 is a layer fewer."""
_LAX_RATIO = 1e-4
"""Other optimizers divide the gradient by its own size, so early layers still move: by convention a factor of 30 more."""
_MOST = 1e100
_STRONGER = 10.0
"""How many times stronger a layer's gradient is than that of the first branch, where what fades is the branches'."""
_HARMED = 2.0
"""Loss over that at the start from which the steps have done harm."""
_STARVES = "starves"
"""Where the memory has for how long the first layer gets too little while the loss stands."""
_WHATEVER_THE_STEPS = {CauseKind.SMALL_SLOPE, CauseKind.DEAD_LAYER}
"""What takes the signal away however the weights were changed."""


class _Signal(NamedTuple):
    """The signal along the path on which it fades most."""

    depth: Depth
    attenuation: float
    """Of this reading, or the median of the latest."""

    @property
    def gain(self) -> float:
        """Mean factor from one site to the next."""
        return float(self.attenuation ** (1 / (len(self.depth.columns) - 1)))


@dataclass(frozen=True, kw_only=True)
class VanishingGradient(Rule):
    """The gradient vanishes on its way to the early layers.

    What: the signal is the gradient of the loss at an activation function's input. Its attenuation is the norm at the
    first hidden activation over that at the last, along one path from the loss to the input; where towers part, each is a path.
    The rule fires where the median of the last five readings is below ``ratio``
    and the signal shrinks to less than ``gain`` from one activation to the next on average, in ``patience`` measured steps in a
    row, after ``warm_up_steps``. A hundredth of ``ratio`` is an error. It is information only as long as the loss still
    falls, below where it began, and silent once it has converged; what no longer holds for ``patience`` readings has healed.
    An activation that is called in a loop and feeds itself is
    judged in the same way from its first call to its last, by ``loop_gain``. Where that signal doesn't vanish, or isn't known,
    the first layer's gradient is compared with the others': a warning where it is less than a millionth of theirs while the
    loss stands. Else the gradients of the weights aren't compared: at initialisation they stay level while the signal vanishes.

    Why: an early layer whose gradient is thousands of times smaller than a late one's hardly moves, so the net learns with
    its last layers on top of random features, or not at all. Sigmoid passes back at most 1/4 of the signal a layer:
    after 50 layers nothing is left. Weights that start too small do the same to any function. The finding says which it
    is: what the activations pass back, and what lies between them, is held against what the right start would give.

    What to do: replace Sigmoid by ReLU, LeakyReLU or ELU; initialise with ``kaiming_normal_`` (ReLU and its kin) or
    ``xavier_normal_`` (Tanh); add skip connections or normalisation layers; use fewer layers. Adam hides the loss of scale
    for a while, hence its laxer threshold.

    Attributes:
        ratio: attenuation below which the gradient vanishes; None: 3e-3 for SGD and ASGD, 1e-4 for any other optimizer.
        gain: mean factor from activation to activation that must be undercut as well.
        loop_gain: the same from call to call in an unrolled loop; Sigmoid's slope is at most 1/4.
        min_grad_rms: plain threshold: each early weight layer whose gradient has a smaller root mean square is reported at
            once, whatever the rest says; one that is exactly 0 is GW104's; None: none.
        warm_up_steps: steps that aren't judged by ``ratio``.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW101"
    name: ClassVar[str] = "vanishing-gradient"
    warning: ClassVar[type[VanishingGradientWarning]] = VanishingGradientWarning

    ratio: float | None = None
    gain: float = 0.75
    loop_gain: float = 0.25
    min_grad_rms: float | None = None
    warm_up_steps: int = 10
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(0, 1, "ratio", optional=True)
        self._require_between(0, 1, "gain", "loop_gain", "loss_fall", "converged")
        self._require_between(0, float("inf"), "min_grad_rms", optional=True)
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the signal by its ratio, and what is judged beside it."""
        note_update(state, record, info)
        if "fed" not in state:
            state["fed"] = [int(record.step), first_share(record, info)]
        findings, by_floor, judged = self._look_beside(record, info, state)
        signal = self._read(record, info)
        if isinstance(signal, str):
            pending = bool(state.get("loops")) and "loop" not in findings
            healed = {} if "input" in findings else self._fed_again(state)
            return Verdict(findings, healed=healed, confirming=pending, unjudged="" if judged else signal)
        _note_start(record, state, signal)
        if record.step < self.warm_up_steps:
            return Verdict(findings) if by_floor else self.warms_up()._replace(findings=findings)
        found = self._judge_ratio(record, info, state, signal)
        if state["streak"] or self.still_reported(state, "signal"):
            findings.pop("input", None)  # the signal over depth says more
        healed = {} if "input" in findings else self._fed_again(state)
        gone = has_gone(state, "signal", holds=state["streak"] > 0, patience=self.patience)
        if found is not None:
            findings["signal"] = found
        elif gone:
            healed["signal"] = "the signal no longer fades so much, or the loss has converged"
            return Verdict(findings, healed=healed)
        pending = state["streak"] > 0 and "signal" not in {*findings, *self.reported(state)}
        if not (pending or findings or healed):
            return HEALTHY
        return Verdict(findings, healed=healed, confirming=pending, unjudged=self.waits if pending else "")

    def _look_beside(
        self, record: StepRecord, info: RunInfo, state: State
    ) -> tuple[dict[str, LazyFinding], bool, bool]:
        """Judge by the plain threshold, where it is asked for, the loops, and what the first layer gets.

        Returns:
            The findings; whether the threshold could be judged by, and whether anything was.
        """
        findings: dict[str, LazyFinding] = {}
        by_floor = False
        if self.min_grad_rms is not None:
            by_floor, low = judge_floor(record, info, state, self.min_grad_rms)
            if low is not None:
                findings["floor"] = low
        loops = read_loops(record, info)
        if record.step >= self.warm_up_steps:
            if loops and (seen := self._judge_loops(record, info, state, loops)):
                findings["loop"] = seen
            if starved := self._judge_input(record, info, state):
                findings["input"] = starved
        return findings, by_floor, by_floor or bool(loops) or "input" in findings

    def threshold_for(self, info: RunInfo) -> float:
        """Return the attenuation below which this run's gradient vanishes."""
        if self.ratio is not None:
            return self.ratio
        return _SGD_RATIO if info.steps_follow_gradient else _LAX_RATIO

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        return (Line("signal_norm", self.threshold_for(info), "below", of_last=True),)

    def _read(self, record: StepRecord, info: RunInfo) -> _Signal | str:
        """Return the signal on the path on which it fades most, or why it can't be judged."""
        depths = read_depths(record, info, ended=True)
        if isinstance(depths, str):
            return depths
        signals = [
            _Signal(depth, float(depth.norms[0]) / float(depth.norms[-1])) for depth in depths if depth.norms[-1] > 0
        ]
        if not signals:
            return "can't judge: no signal at the last hidden activation"
        threshold = self.threshold_for(info)
        # Of a long path less may be left than of a short one, and yet most at each site.
        return min(
            signals, key=lambda each: (each.attenuation >= threshold or each.gain >= self.gain, each.attenuation)
        )

    def _judge_ratio(self, record: StepRecord, info: RunInfo, state: State, signal: _Signal) -> LazyFinding | None:
        # Steps of different optimizers (a GAN's) see different sites: only like is compared with like.
        ends = signal.depth.ends(info)
        readings = state.setdefault("readings", [])
        readings.append([ends, signal.attenuation])
        del readings[:-_READINGS]
        median = middle(sorted([value for other, value in readings if other == ends]))
        signal = signal._replace(attenuation=median)
        threshold = self.threshold_for(info)
        passed_by = signal.attenuation < threshold and _passed_by(record, info, signal.depth)
        if signal.attenuation >= threshold or signal.gain >= self.gain or passed_by:
            state["streak"] = 0
            return None
        trend = loss_trend(state, info).from_start()
        if trend.converged_to(self.converged):
            state["streak"] = 0
            return None
        if not state.get("streak"):
            state["since"] = int(record.step)
        state["streak"] = state.get("streak", 0) + 1
        if state["streak"] < self.patience:
            return None
        severity = Severity.ERROR if signal.attenuation < threshold / _ERROR_FACTOR else Severity.WARNING

        how, first = self._steps_since_a_good_start(info, state, trend), state["first"][:2]

        def write() -> Sentences:
            found = diagnose(record, info, signal.depth.columns, signal.gain, alone=signal.depth.several)
            ended = underflow(record, info) if signal.attenuation == 0 else None
            why = explain_fading(info, found)
            if how is not None and not any(blame.kind in _WHATEVER_THE_STEPS for blame in found.blamed):
                step, attenuation = first
                at_first = (
                    f"At step {step} the signal at the first activation was {number(attenuation)} of that at the last"
                )
                why = _weakened(info, at_first, how)
            return Sentences(
                cause=" ".join([why.cause, *([ended.sentence()] if ended else [])]),
                remedy=why.remedy,
                causes=(*why.causes, *([Cause(CauseKind.UNDERFLOW)] if ended else [])),
                headline=signal.depth.headline(info, signal.attenuation),
                message=self._evidence(signal, threshold, trend),
            )

        return LazyFinding(
            severity=Severity.INFO if trend.falls_by(self.loss_fall) else severity,
            layers=partial(_faded_layers, info, signal, threshold),
            first_step=state["since"],
            last_step=int(record.step),
            value=signal.attenuation,
            threshold=threshold,
            write=write,
        )

    def _steps_since_a_good_start(self, info: RunInfo, state: State, trend: LossTrend) -> Drift | None:
        """Return what is known of the steps that weakened a signal which didn't vanish at first; None where it did, or may have.

        That it didn't says little alone: a deep net on its way to nothing passes many a threshold. The steps are to blame
        where they are seen to be too large, or the loss lies far above its start; or above it, while a layer is thrown about.
        """
        step, attenuation, gain = state["first"]
        fine = attenuation >= self.threshold_for(info) or gain >= self.gain
        return _harmful_steps(state, trend) if fine and step < self.warm_up_steps else None

    def _judge_input(self, record: StepRecord, info: RunInfo, state: State) -> LazyFinding | None:
        """Judge what the first layer gets, while the loss stands."""
        starved = read_input(record, info, min(STARVED, self.threshold_for(info)))
        trend = loss_trend(state, info).from_start()
        if starved is None or trend.unknown or trend.learns(self.loss_fall):
            forget_standing(state, key=_STARVES)
            return None
        standing = count_standing(state, record.step, key=_STARVES)
        if standing.steps < self.patience:
            return None
        state["starved"] = True
        step, share = state["fed"]
        fed = step < self.warm_up_steps and share is not None and share >= starved.threshold
        how = _harmful_steps(state, trend) if fed else None

        def write() -> Sentences:
            cause, remedy, causes = explain_starved(starved)
            if how is not None:
                cause, remedy, causes = _weakened(
                    info, f"At step {step} it got {number(share)} of what others got", how
                )
            return Sentences(cause, remedy, trend.sentence(self.loss_fall), causes, starved_headline(starved))

        return LazyFinding(
            severity=Severity.WARNING,
            layers=(starved.layer,),
            first_step=standing.since,
            last_step=int(record.step),
            value=starved.ratio,
            threshold=starved.threshold,
            write=write,
        )

    def _fed_again(self, state: State) -> dict[str, str]:
        """Return that the first layer has a gradient again, or learns all the same."""
        if _STARVES in state or not state.pop("starved", False):
            return {}
        return {"input": "the first layer gets more of the gradient, or the loss falls"}

    def _judge_loops(self, record: StepRecord, info: RunInfo, state: State, loops: list[Loop]) -> LazyFinding | None:
        """Judge the signal over the calls of the loop in which it fades most."""
        threshold = self.threshold_for(info)
        worst = min(loops, key=lambda loop: loop.gain)
        trend = loss_trend(state, info).from_start()
        if worst.attenuation >= threshold or worst.gain >= self.loop_gain or trend.converged_to(self.converged):
            state.pop("loops", None)
            return None
        streaks = state.setdefault("loops", {})
        if count_hit(streaks, "fades", record.step) < self.patience:
            return None
        severity = Severity.ERROR if worst.attenuation < threshold / _ERROR_FACTOR else Severity.WARNING

        def write() -> Sentences:
            cause, remedy, causes = explain_loop(info, worst)
            message = f"{loop_evidence(worst, threshold, self.loop_gain)} {trend.sentence(self.loss_fall)}"
            return Sentences(cause, remedy, message, causes, loop_headline(worst))

        return LazyFinding(
            severity=Severity.INFO if trend.falls_by(self.loss_fall) else severity,
            layers=(worst.site.name,),
            first_step=streaks["fades"]["since"],
            last_step=int(record.step),
            value=worst.attenuation,
            threshold=threshold,
            write=write,
        )

    def _evidence(self, signal: _Signal, threshold: float, trend: LossTrend) -> str:
        """Say what the loss does, and how deep a net may be at that factor."""
        loss = trend.sentence(self.loss_fall)
        if not signal.attenuation:
            return loss
        return (
            f"{loss} At this factor {_depth_limit(signal.gain, threshold)} hidden activations fall below the threshold."
        )


def _passed_by(record: StepRecord, info: RunInfo, depth: Depth) -> bool:
    """Tell whether skip connections carry the gradient to the first weight layer: what fades are branches that start small.

    Then it is stronger there than at the last one, or far stronger than in the first branch.
    """
    gradient, names = layer_values(record, info, "grad_rms"), info.layer_names
    own = depth.layers(info)
    if own and gradient[names.index(own[0])] > gradient[names.index(own[-1])]:
        return True
    first = info.site_names[depth.columns[0]]
    feeding = [
        column
        for column, layer in enumerate(info.layers)
        if layer.weight and layer.feeds == first and gradient[column] > 0
    ]
    # Beside those that lie before the first branch, on the trunk.
    weakest = min(feeding, key=lambda column: float(gradient[column]), default=None)
    return weakest is not None and on_weak_branches(record, info, [weakest], _STRONGER)


def _note_start(record: StepRecord, state: State, signal: _Signal) -> None:
    """Remember the signal of the first record."""
    if "first" not in state:
        state["first"] = [int(record.step), min(signal.attenuation, _MOST), min(signal.gain, _MOST)]


def _harmful_steps(state: State, trend: LossTrend) -> Drift | None:
    """Return what is known of the first steps, where they are seen to be too large, or to have done harm."""
    how = first_steps(state)
    harmed = not trend.unknown and trend.of_first >= (1 if swings(state) else _HARMED)
    return how if how.oversized or harmed else None


def _weakened(info: RunInfo, at_first: str, how: Drift) -> Explanation:
    """Say of a signal that was there in the first measured step what that showed, and that no start of the weights is to blame."""
    rate = how.sentence() if how.oversized else "Most likely the learning rate is too high."
    cure = Prescription(info)
    cure.take_smaller_steps(how.update, unscaled=how.unscaled)
    cure.clip_gradients()
    return Explanation(
        f"{at_first}: not the start, but what the steps since have done to the net takes it away. {rate}",
        cure.remedy(),
        how.causes,
    )


def _depth_limit(gain: float, threshold: float) -> int:
    """Return from how many hidden sites on the attenuation is below a threshold, at that factor from site to site."""
    return math.floor(math.log(threshold) / math.log(gain)) + 2


def _faded_layers(info: RunInfo, signal: _Signal, threshold: float) -> tuple[str, ...]:
    """Return the weight layers of the path from the first to where the signal is back above the threshold."""
    depth = signal.depth
    faded = int((depth.norms >= threshold * depth.norms[-1]).argmax())
    own = depth.layers(info)
    early = own[: max(1, len(own) // 3)]
    if info.knows_feeds:
        names = {info.layer_names[column] for column in info.layers_on(depth.columns[:faded])}
        return tuple(name for name in own if name in names or name in early)
    # An older run doesn't say which layer feeds which site; in a chain of n sites the k-th of n + 1 layers does, unless some
    # came late, which stand behind in such a run.
    if any(later < earlier for earlier, later in pairwise(depth.columns.tolist())):
        return own
    return own[: max(faded * len(own) // (len(depth.norms) + 1), len(early))]
