"""GW301: a weight layer hardly moves while others do, or none does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from lightning_gradwatch.findings import Action, Remedy, Severity, StalledUpdateWarning
from lightning_gradwatch.record import LayerState
from lightning_gradwatch.rules.memory import columns, count_hits, counts, first_step, shift_in, streaks
from lightning_gradwatch.rules.protocol import HEALTHY, Rule, Sentences, Sighting, State, Verdict
from lightning_gradwatch.rules.rates import relative_rates, schedule_phase
from lightning_gradwatch.rules.readings import hidden_sites, layer_values, names_where
from lightning_gradwatch.rules.starting import default_rms, starting_remedy
from lightning_gradwatch.rules.trend import LossTrend, loss_trend, note_loss
from lightning_gradwatch.rules.wording import counted, listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.record import FloatVector, RunInfo, StepRecord
    from lightning_gradwatch.rules.memory import Mask

_ERROR_FACTOR = 10
_USUAL = 1e-3
_LARGE_WEIGHTS = 10
_RISEN = 2
_NOTHING_MEASURED = "not yet: no update of a weight layer was measured"
_COARSE = {"bf16-true": "bfloat16", "16-true": "float16"}
_STALLED, _SLOW = 0, 1
"""Levels of the streaks: a layer behind the others, and all layers alike."""


class _Reading(NamedTuple):
    """The update ratios of one record."""

    record: StepRecord
    info: RunInfo
    ratios: FloatVector
    """As the largest learning rate of its optimizer would give each layer, shape [L]."""
    judged: Mask
    """Which layers take part."""
    top: float
    """The highest ratio among them."""


@dataclass(frozen=True, kw_only=True)
class StalledUpdate(Rule):
    """A weight layer hardly moves while others do, or none does.

    What: the update ratio is the root mean square of a step's change over that of the weights, measured, whatever the
    optimizer. The rule fires where it is below ``ratio`` in a weight layer and ``spread`` times higher in another; or below
    ``ratio`` in all of them, which is a learning rate that is too small. It must hold in ``patience`` measured steps in a
    row, after ``warm_up_steps``. A tenth of ``ratio`` is an error. Left out are layers without a gradient (GW104), frozen
    ones, weights that are all 0, layers at rest, and those whose ratio has doubled since half as many steps or fewer, as
    they are on their way. A learning rate of its own that a layer's parameter group has is taken into account; while the
    learning rate rises, or after it was lowered to less than half, nothing is judged. It is information only as long as
    the loss still falls, and silent once it has converged.

    Why: about 1e-3 is usual. At 1e-5, a layer takes 100,000 steps to change as much as it weighs, so it stays what it was
    at the start. Under SGD its gradient is that small; under Adam, whose steps don't depend on the gradient's scale, it
    has fallen below ``eps``, or the weights are too large; in bfloat16, the change is lost in rounding.

    What to do: for single layers, mend what weakens their gradient (GW101), or start from smaller weights; for all of
    them, raise the learning rate; keep the weights in float32 (``precision="bf16-mixed"``).

    Attributes:
        ratio: update ratio below which a layer is stalled.
        spread: how many times higher another weight layer's must be for a layer to be behind.
        warm_up_steps: steps that aren't judged.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which the rule is silent.
    """

    code: ClassVar[str] = "GW301"
    name: ClassVar[str] = "stalled-update"
    warning: ClassVar[type[StalledUpdateWarning]] = StalledUpdateWarning

    ratio: float = 1e-5
    spread: float = 100.0
    warm_up_steps: int = 10
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(0, 1, "ratio", "loss_fall", "converged")
        self._require_between(1, float("inf"), "spread")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Compare the update ratios of the weight layers with the threshold and with each other."""
        if record.skipped:
            return Verdict(unjudged="not yet: the optimizer step was skipped")
        note_loss(state.setdefault("loss", {}), record)
        phase = schedule_phase(record, state.setdefault("rates", {}))
        _mark(record, info, state)
        if record.step < self.warm_up_steps:
            return Verdict(unjudged=f"not yet: the first {self.warm_up_steps} steps are warm-up")
        if phase:
            return Verdict(unjudged=f"not yet: {phase}")
        ratios = record.metrics.get("update_ratio")
        if ratios is None:
            return Verdict(unjudged=_NOTHING_MEASURED)
        judged = np.isfinite(ratios) & info.weight_mask & (record.layer_state == LayerState.OK)
        held = streaks(state, "streaks", info, "layers", levels=2)
        if held.blank and not np.count_nonzero(judged & (ratios < self.ratio)):
            return HEALTHY if np.count_nonzero(judged) else Verdict(unjudged=_NOTHING_MEASURED)
        rates = relative_rates(record, info)
        if rates is not None:
            judged &= rates > 0
            ratios = ratios / np.where(judged, rates, 1.0)
        reading = _Reading(record, info, ratios, judged, float(np.max(ratios, initial=0.0, where=judged)))
        trend = loss_trend(state["loss"], info)
        low = judged & (ratios < self.ratio) & ~_rising(record, info, state) & (not trend.converged_to(self.converged))
        slow = low & (reading.top < self.ratio) & _most_take_part(reading)
        hits = np.stack([low & (ratios * self.spread <= _top_of_full_weights(reading)) & ~slow, slow])
        count_hits(held, hits, judged & ~hits, record.step)
        findings = {}
        for level, key, told in ((_STALLED, "stalled", self._stalled), (_SLOW, "slow", self._slow)):
            due = hits[level] & (counts(held)[level] >= self.patience)
            if np.count_nonzero(due):
                findings[key] = told(reading, due, first_step(held, due, level), trend)
        reported = state.setdefault("reported", [])
        reported += [key for key in findings if key not in reported]
        pending = len(reported) < 2 and any(
            key not in reported and hits[level].any() for level, key in ((_STALLED, "stalled"), (_SLOW, "slow"))
        )
        reason = f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if pending else ""
        return Verdict(findings, confirming=pending, unjudged=reason)

    def _severity(self, value: float, trend: LossTrend) -> Severity:
        if trend.falls_by(self.loss_fall):
            return Severity.INFO
        return Severity.ERROR if value < self.ratio / _ERROR_FACTOR else Severity.WARNING

    def _stalled(self, reading: _Reading, due: Mask, since: int, trend: LossTrend) -> Sighting:
        """Tell of layers that are behind the others."""
        record, info = reading.record, reading.info
        names = names_where(info.layer_names, due)
        value = float(np.min(reading.ratios, initial=np.inf, where=due))

        def write() -> Sentences:
            worst = int(np.argmin(np.where(due, reading.ratios, np.inf)))
            best = int(np.argmax(np.where(reading.judged, reading.ratios, -1.0)))
            cause, remedy = _why_behind(record, info, worst, best)
            message = (
                f"A step changes {info.layers[worst].name} by {number(value)} of itself, and {info.layers[best].name} by "
                f"{number(reading.top)}. Stalled: {listed(names)}. Reported below {number(self.ratio)} where another layer's "
                f"is {number(self.spread)} times higher. {trend.sentence(self.loss_fall)}"
            )
            return Sentences(cause, remedy, message)

        return Sighting(self._severity(value, trend), names, since, int(record.step), value, self.ratio, write)

    def _slow(self, reading: _Reading, due: Mask, since: int, trend: LossTrend) -> Sighting:
        """Tell of a net that doesn't move."""
        record, info = reading.record, reading.info
        names = names_where(info.layer_names, due)
        value = reading.top

        def write() -> Sentences:
            rates = ", ".join(dict.fromkeys(number(rate) for rate in record.learning_rates if rate >= 0))
            message = (
                f"A step changes no weight layer by more than {number(value)} of itself ({listed(names)}). Reported below "
                f"{number(self.ratio)}. {trend.sentence(self.loss_fall)}"
            )
            cause, remedy = _why_slow(reading, rates)
            return Sentences(cause, remedy, message)

        return Sighting(self._severity(value, trend), names, since, int(record.step), value, self.ratio, write)


def _mark(record: StepRecord, info: RunInfo, state: State) -> None:
    """Remember the update ratios of steps 0, 1, 3, 7, …: the last two of them, and whether the older is due for use."""
    if record.step < state.get("next_mark", 0):
        return
    held = columns(state, "marks", info, "layers", rows=2, fill=math.nan)
    shift_in(held, record.values("update_ratio", len(info.layers)))
    state["next_mark"] = 2 * int(record.step) + 1


def _rising(record: StepRecord, info: RunInfo, state: State) -> Mask:
    """Return the layers whose update ratio has doubled since half as many steps or fewer: they are on their way.

    Behind branches that start at next to nothing (a layer scale), the first steps are tiny and grow from step to step.
    """
    held = columns(state, "marks", info, "layers", rows=2, fill=math.nan)
    ratios = record.values("update_ratio", len(info.layers))
    return np.asarray((ratios >= _RISEN * held.values[0]) & (ratios > 0))


def _top_of_full_weights(reading: _Reading) -> float:
    """Return the highest ratio, with weights below the default initialisation counted as large as that.

    A layer that starts at 0 changes by all of itself and hardly moves: beside it, none is behind.
    """
    sizes = np.fmin(layer_values(reading.record, reading.info, "weight_rms") / default_rms(reading.info), 1.0)
    ratios = np.where(reading.judged, reading.ratios, 0.0)
    return float(np.fmax.reduce(ratios * sizes, initial=0.0))


def _most_take_part(reading: _Reading) -> bool:
    """Tell whether at least half of the weight layers are judged: of a net that is mostly dead, the rest says little."""
    return bool(2 * np.count_nonzero(reading.judged) >= np.count_nonzero(reading.info.weight_mask))


def _why_slow(reading: _Reading, rates: str) -> tuple[str, Remedy]:
    """Say why no layer moves: weights that were thrown far out, a coarse number format, or the learning rate."""
    info = reading.info
    weights = layer_values(reading.record, info, "weight_rms")
    growths = weights[reading.judged] / default_rms(info)[reading.judged]
    known = growths[np.isfinite(growths)]
    grown = float(np.median(known)) if len(known) else 1.0
    if grown > _LARGE_WEIGHTS:
        start = starting_remedy(info, [site for _, site in hidden_sites(info)])
        remedy = Remedy(
            f"{start.text} Lower the learning rate to a tenth.",
            (*start.actions, Action("set_learning_rate", (), (("factor", 0.1),))),
        )
        cause = (
            f"The weights are {number(grown)} times as large as PyTorch's default initialisation makes them, so a step is a small "
            "part of them: they started so, or steps that were too large threw them there."
        )
        return cause, remedy
    cause = f"No weight layer moves: the learning rate ({rates}) is too small for these weights and gradients."
    return cause, _rounding(info) or _faster(reading.top)


def _faster(top: float) -> Remedy:
    """Say how much higher the learning rate must be for updates of the usual size."""
    factor = 10.0 ** min(max(round(math.log10(_USUAL / top)), 1), 6) if top > 0 else 1000.0
    return Remedy(
        f"Raise the learning rate {factor:g} times, which makes the largest update ratio about {number(_USUAL)}.",
        (Action("set_learning_rate", (), (("factor", factor),)),),
    )


def _rounding(info: RunInfo) -> Remedy | None:
    """Say how to keep small changes, where the weights' number format is too coarse for them."""
    if info.precision not in _COARSE:
        return None
    return Remedy(
        f'Keep the weights in float32, precision="bf16-mixed": in {_COARSE[info.precision]} a small change is rounded away.',
        (Action("set_precision", (), (("to", "bf16-mixed"),)),),
    )


def _why_behind(record: StepRecord, info: RunInfo, worst: int, best: int) -> tuple[str, Remedy]:
    """Say why a layer moves less than another: its gradient beside eps or beside the other's, or its weights."""
    gradient, weights = layer_values(record, info, "grad_rms"), layer_values(record, info, "weight_rms")
    here, there = float(gradient[worst]), float(gradient[best])
    names = [layer.name for layer in info.layers]
    remedy = starting_remedy(info, [site for _, site in hidden_sites(info)])
    optimizer = next((each for each in info.optimizers if names[worst] in each.layers), None)
    eps = optimizer.settings.get("eps") if optimizer is not None else None
    if optimizer is not None and isinstance(eps, float) and here < eps:
        cause = (
            f"The gradient of {names[worst]} has an rms of {number(here)}, below the eps of {optimizer.name} ({number(eps)}), so "
            f"its steps shrink with it ({names[best]}: {number(there)}). What weakens the gradient is the cause (GW101)."
        )
        return cause, remedy
    usual = float(default_rms(info)[worst])
    if weights[worst] > _LARGE_WEIGHTS * usual:
        cause = (
            f"The weights of {names[worst]} are large: their rms is {number(weights[worst])}, PyTorch's default initialisation "
            f"gives {number(usual)}. The same step is a smaller part of them."
        )
        return cause, remedy
    if here < there:
        cause = (
            f"The gradient of {names[worst]} has an rms of {number(here)}, that of {names[best]} {number(there)}: it is too weak "
            "for the learning rate that suits the others (GW101)."
        )
    else:
        cause = f"The gradient of {names[worst]} isn't weaker than that of {names[best]}: the optimizer gives it smaller steps."
    return cause, _rounding(info) or remedy
