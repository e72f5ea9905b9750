"""GW401: the weights at the start can't carry the signal through this depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.depth import LEAST_SITES, Depth, gains_sentence, read_depths
from lightning_gradwatch.judge.evidence.initial_weights import (
    Start,
    log_passed,
    read_start,
    starting_cause,
    starting_causes,
    starting_remedy,
)
from lightning_gradwatch.judge.readings import hidden_values
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Line, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.finding import InitializationWarning, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord
from lightning_gradwatch.record.wording import number

_ERROR_FACTOR = 100
"""How far beyond the threshold it is an error, by convention: a product over layers, where a factor of 10 is one layer more or two."""
_SGD, _LAX = (1e-3, 1e2), (1e-6, 1e3)
"""Attenuation below and above which nets of the digits data set didn't learn: by SGD, and by optimizers such as Adam."""
_FIRST_STEPS = 10
"""Steps in which a net that passes no signal at step 0 (a head, or branches, that start at zero) is still at its start."""


@dataclass(frozen=True, kw_only=True)
class Initialization(Rule):
    """The weights at the start can't carry the signal through this depth.

    What: judged once, in the first measured step that has a signal, where the run is watched from step 0 on. The rule fires
    where the gradient signal at the first hidden activation is below ``ratio`` times that at the last, or above ``growth`` times,
    if that is the weights' doing: it changes by a factor below ``gain`` or above ``1/gain`` from activation to activation on average,
    with most activations taking part; the variance of the weights is off what the activation functions ask for, on that side; and
    less than half of the change is what these functions take away themselves, or the spread that chance gives narrow nets
    (Hanin 2018). A hundred times beyond is an error.

    Why: each layer multiplies the signal by about the square root of its fan-in times the variance of its weights, forward
    and backward. With PyTorch's default that is 0.41 a layer for ReLU and 0.58 for Tanh: no matter for three layers, and
    1e-12 for thirty. Weights that start too large make it explode instead.

    What to do: initialise with ``kaiming_normal_`` (ReLU and its kin) or ``xavier_normal_`` (Tanh); in deep nets also
    normalise between the layers and add skip connections.

    Attributes:
        ratio: attenuation at the start below which the signal is lost; None: 1e-3 for SGD and ASGD, 1e-6 for any other
            optimizer, as Adam's steps don't depend on the gradient's scale.
        growth: attenuation at the start above which the signal explodes; None: 1e2 for SGD and ASGD, 1e3 for any other.
        gain: mean factor from activation to activation that must be undercut as well, or its inverse exceeded.
    """

    code: ClassVar[str] = "GW401"
    name: ClassVar[str] = "initialization"
    warning: ClassVar[type[InitializationWarning]] = InitializationWarning
    judges_skipped: ClassVar[bool] = True

    ratio: float | None = None
    growth: float | None = None
    gain: float = 0.75

    def __post_init__(self) -> None:
        self._require_between(0, 1, "ratio", optional=True)
        self._require_between(1, float("inf"), "growth", optional=True)
        self._require_between(0, 1, "gain")

    def lines(self, info: RunInfo) -> tuple[Line, ...]:
        """Return what a chart can show of the thresholds."""
        low, high = self._limits(info)
        return (
            Line("signal_norm", low, "below", of_last=True),
            Line("signal_norm", high, "above", of_last=True),
        )

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge the first record of a run that has a signal, if the run began with it or a few steps before."""
        if "settled" in state:
            return Verdict(unjudged=state["settled"]) if state["settled"] else HEALTHY
        if "first_step" not in state:
            state["first_step"] = int(record.step)
        if state["first_step"] > 0:
            state["settled"] = (
                f"can't judge: the first measured step is step {state['first_step']}, and how the weights started isn't known"
            )
            return Verdict(unjudged=state["settled"])
        if record.step >= _FIRST_STEPS:
            none = f"can't judge: no signal at the hidden activations in the first {_FIRST_STEPS} steps"
            state["settled"] = state.get("lacking", none)
            return Verdict(unjudged=state["settled"])
        depths = read_depths(record, info)
        if isinstance(depths, str):
            signal = hidden_values(record, info, "signal_norm")
            if len(info.hidden_columns) < LEAST_SITES or (signal is not None and np.count_nonzero(signal > 0)):
                state["lacking"] = depths  # it isn't the signal that is lacking
            return Verdict(unjudged=depths)
        state["settled"] = ""
        # The path on which the signal is furthest beyond its limit says it for all.
        for depth in sorted(depths, key=lambda each: -self._beyond(info, each)):
            found = self._sighting(record, info, depth)
            if found is not None:
                return Verdict({"weights": found})
        return HEALTHY

    def _beyond(self, info: RunInfo, depth: Depth) -> float:
        """Return how far beyond its limit the signal at the first site is: above 1, too far."""
        low, high = self._limits(info)
        return low / depth.attenuation if depth.attenuation < 1 else depth.attenuation / high

    def _sighting(self, record: StepRecord, info: RunInfo, depth: Depth) -> LazyFinding | None:
        value = depth.attenuation
        low = value < 1
        limit = self._limits(info)[0 if low else 1]
        beyond = self._beyond(info, depth)
        if beyond <= 1 or self.gain <= depth.gain <= 1 / self.gain or not depth.steady:
            return None
        start = read_start(record, info, depth.sites(info), depth.layers(info))
        if not start.is_off(low=low) or not _is_weights_doing(info, depth, low=low):
            return None
        severity = Severity.ERROR if beyond > _ERROR_FACTOR else Severity.WARNING
        step = int(record.step)

        def write() -> Sentences:
            return _sentences(record, info, depth, start)

        return LazyFinding(severity, depth.layers(info), step, step, value, limit, write)

    def _limits(self, info: RunInfo) -> tuple[float, float]:
        """Return the attenuation below which, and above which, this run's signal can't be trained by."""
        ratio, growth = _SGD if info.steps_follow_gradient else _LAX
        return (ratio if self.ratio is None else self.ratio, growth if self.growth is None else self.growth)


def _sentences(record: StepRecord, info: RunInfo, depth: Depth, start: Start) -> Sentences:
    sites = depth.sites(info)
    outputs = record.forward_rms[depth.columns]
    forward = ""
    if np.isfinite(outputs[[0, -1]]).all():
        forward = (
            f"In the forward pass, the rms of the outputs goes from {number(outputs[0])} to {number(outputs[-1])}."
        )
    return Sentences(
        cause=starting_cause(start, sites, depth.gain) + gains_sentence(record, info, depth),
        causes=starting_causes(depth.gain),
        remedy=starting_remedy(info, sites),
        headline=depth.headline(info, depth.attenuation, at=f"At step {record.step}"),
        message=forward,
    )


def _is_weights_doing(info: RunInfo, depth: Depth, *, low: bool) -> bool:
    """Tell whether neither the functions nor chance account for most of the change.

    Hanin (2018): over random weights of layers of widths n, the logarithm of the squared norm spreads with a variance of
    about 5β, β = Σ 1/n, and lies half as much below that of the mean.
    """
    sites = depth.sites(info)
    beta = math.fsum(1 / site.units for site in sites if site.units)
    change = math.log(depth.attenuation)
    if not low:
        return change > 2 * math.sqrt(5 * beta)
    by_chance = 5 * beta / 4 + math.sqrt(5 * beta)
    by_functions = -log_passed(sites)
    return -change > 2 * max(by_functions, by_chance)
