"""GW202: hidden units that are saturated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.initial_weights import log_passed
from lightning_gradwatch.judge.evidence.loss_trend import LossTrend, loss_trend
from lightning_gradwatch.judge.evidence.onset import Drift, drift, note_first, note_passed, note_update
from lightning_gradwatch.judge.evidence.window_fill import unread
from lightning_gradwatch.judge.readings import hidden_sites, hidden_values, site_values, why_no_fraction
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import Found, Line, Rule, Seen, Sentences, Verdict
from lightning_gradwatch.judge.streaks import Mask, State
from lightning_gradwatch.record.finding import Cause, CauseKind, SaturatedUnitsWarning, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import counted, number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.record.activations import Activation
    from lightning_gradwatch.record.finding import Remedy

_LARGE_FACTOR = 2.0
"""Chance and depth move a gain by tens of per cent: twice what the initialisation gives isn't chance."""
_FADES = math.log(3e-3)
"""Share of the signal, as a logarithm, below which SGD leaves the early layers where they are: the threshold of GW101."""


@dataclass(frozen=True, kw_only=True)
class SaturatedUnits(Rule):
    """Hidden units sit on the flat outer side of their activation function.

    What: a unit is saturated where at least 95 % of the observations of a full window lie beyond the point where the
    derivative has fallen to 7 % of its maximum: Sigmoid beyond |z| = 4, Tanh beyond |z| = 2. The rule fires where
    ``fraction`` of a hidden activation's units are, in ``patience`` measured steps in a row, after ``warm_up_steps``; what no
    longer holds for as many has healed. It is information while the loss still falls, and where it has come down to next to
    nothing: the tanh over a classifier's summary of a text saturates when the net is certain. Output
    layers and gates are left out: there, saturation is success.

    Why: a saturated unit passes back next to nothing, whatever its weights, and learns its way out slowly or never. Typical
    causes are inputs that aren't scaled, weights that start too large, and a learning rate that throws them there.

    What to do: whichever the finding names: start from smaller weights (``xavier_normal_``, for ELU and its kin
    ``kaiming_normal_``) and biases of 0, scale the inputs to mean 0 and variance 1, or lower the learning rate. In place
    of Sigmoid, use ReLU. A normalisation layer before the function keeps its inputs in range.

    Attributes:
        fraction: share of a hidden activation's units that is a warning.
        warm_up_steps: steps that aren't judged.
        patience: measured steps in a row that must agree.
        loss_fall: share by which the loss must have fallen since half as many steps for the finding to be information only.
        converged: share of the loss at the start below which it is information as well.
    """

    code: ClassVar[str] = "GW202"
    name: ClassVar[str] = "saturated-units"
    warning: ClassVar[type[SaturatedUnitsWarning]] = SaturatedUnitsWarning
    judges_skipped: ClassVar[bool] = True
    key: ClassVar[str] = "saturated"

    fraction: float = 0.5
    warm_up_steps: int = 10
    patience: int = 3
    loss_fall: float = 0.05
    converged: float = 0.01

    def __post_init__(self) -> None:
        self._require_between(0, 1, "fraction", "loss_fall", "converged")
        self._require_count(0, "warm_up_steps")
        self._require_count(1, "patience")

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        del info
        return (Line("saturated_fraction", self.fraction, "above"),)

    def check(self, record: StepRecord, info: RunInfo, state: State) -> Seen | Verdict:
        """Read the saturated fraction of each hidden site whose window is full."""
        note_update(state, record, info)
        note_passed(state, record, info)
        missing = unread(record, info, state, patience=self.patience, asks=_can_saturate)
        fractions = hidden_values(record, info, "saturated_fraction")
        if fractions is None:
            return missing if missing.lapsed else Verdict(unjudged=why_no_fraction(record, info, "saturated"))
        hit = fractions >= self.fraction
        note_first(state, record, info, fractions, hit)
        trend = loss_trend(state, info).from_start()
        learns = trend.falls_by(self.loss_fall) or trend.converged_to(self.converged)
        return Seen(
            "sites", fractions, hit, self.fraction, Severity.INFO if learns else Severity.WARNING, unread=missing
        )

    def healed(self, seen: Seen) -> str:
        """Say how many units are saturated at most."""
        most = percent(float(np.fmax.reduce(seen.values)))
        return f"no more than {most} of the units of a hidden activation are saturated"

    def facts(self, info: RunInfo, state: State, where: Mask) -> tuple[Drift, LossTrend]:
        """Return what is known of the way there, and of the loss."""
        return drift(state, info, where, whole=where), loss_trend(state, info).from_start()

    def words(self, found: Found) -> Sentences:
        """Say what keeps the units there."""
        names = found.names
        others = (
            f"; {counted(len(names) - 1, 'more activation')} from {percent(self.fraction)} on" if len(names) > 1 else ""
        )
        how, trend = found.facts
        cause, causes = _reason(found.record, found.info, found.where, how)
        return Sentences(
            cause=cause,
            remedy=_remedy(found.info, found.where, causes, how),
            causes=causes,
            headline=(
                f"{percent(found.value)} of the units of {found.worst} are saturated: on a flat outer side for at least 95 % of the "
                f"inputs in the window{others}"
            ),
            message=trend.sentence(self.loss_fall),
        )


def _can_saturate(function: Activation) -> bool:
    return function.saturates


def _reason(record: StepRecord, info: RunInfo, due: Mask, how: Drift) -> tuple[str, tuple[Cause, ...]]:
    """Say why the inputs of some units lie far outside, in a sentence and as data."""
    sites = [info.sites[column] for column in np.flatnonzero(due)]
    functions = " and ".join(dict.fromkeys(site.activation.module for site in sites))
    outside = f"The inputs of these {functions} units lie far outside, where the function is flat"
    if how.thrown:
        return f"{outside}. {how.sentence()}", how.causes
    gains = site_values(record, info, "weight_gain")[due]
    gains = gains[np.isfinite(gains) & (gains > 0)]
    at_first = bool(due[list(info.site_paths.firsts)].any())
    if len(gains):
        gain = float(np.exp(np.mean(np.log(gains))))
        asked = sites[-1].activation.asked_gain
        method = sites[-1].activation.initialization
        measured = (
            f"what lies before them passes back {number(gain)} of the signal, where {method} gives {number(asked)}"
        )
        if gain >= _LARGE_FACTOR * asked:
            return f"{outside}: the weights are too large, {measured}.", (Cause(CauseKind.LARGE_WEIGHTS),)
        if not at_first:
            sentence = f"{outside}: the weights aren't to blame ({measured}), so biases far from 0 are."
            return sentence, (Cause(CauseKind.FAR_BIASES),)
    return (
        f"{outside}: inputs that aren't scaled, weights that start too large, or biases far from 0.",
        (Cause(CauseKind.UNSUITED_START), *([Cause(CauseKind.UNSCALED_INPUTS)] if at_first else [])),
    )


def _remedy(info: RunInfo, due: Mask, causes: tuple[Cause, ...], how: Drift) -> Remedy:
    cure = Prescription(info)
    sites = [site for _, site in hidden_sites(info)]
    shrinking = [site for site in sites if site.activation.steepest < 1]
    if how.thrown:  # the start was good: what the steps have done isn't undone by another one
        if shrinking and log_passed(sites) < _FADES:
            cure.replace(shrinking, "fades")  # so many of them learn at no rate
        cure.take_smaller_steps(how.update, unscaled=how.unscaled)
        return cure.remedy()
    # A function that shrinks the signal in any case has no good start, at no site.
    if any(info.sites[column].activation.steepest < 1 for column in np.flatnonzero(due)):
        cure.replace(shrinking, "fades")
    cure.initialize()
    if Cause(CauseKind.UNSCALED_INPUTS) in causes:
        cure.normalize_inputs()
    cure.add_skip_connections()
    return cure.remedy()
