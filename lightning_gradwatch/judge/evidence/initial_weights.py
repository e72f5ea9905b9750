"""How weights should start: their variance over the fan-in, by activation function, and what an early record shows of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.judge.readings import layer_values
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.record.finding import Cause, CauseKind
from lightning_gradwatch.record.run_info import DEFAULT_VARIANCE
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.finding import Remedy
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import SiteInfo, StepRecord

_ALIKE = 1.1
"""A layer of 64 x 64 drawn at random has its variance within 4 %: a tenth off, it is another initialisation."""
_STRAYS_BELOW, _STRAYS_ABOVE = 0.8, 1.25
"""Variance over the wanted one: over 20 layers, what lies between them changes the signal no more than tenfold."""


class Start(NamedTuple):
    """How the weights of a record compare with what its functions ask for."""

    variance: float
    """n · Var W of the median weight layer, n being the fan-in; NaN where no fan-in or no weight is known."""
    wanted: float
    """What keeps the signal level: 2 for ReLU and its kin, 1 for functions that are bounded on both sides."""
    rms: float
    """rms of the weights of the median layer."""

    def is_off(self, *, low: bool) -> bool:
        """Tell whether the weights may be too small (`low`), or too large; unknown ones may be either."""
        off = self.variance / self.wanted
        return not (off >= _STRAYS_BELOW if low else off <= _STRAYS_ABOVE)


def read_start(
    record: StepRecord, info: RunInfo, sites: Sequence[SiteInfo], layers: Sequence[str] | None = None
) -> Start:
    """Compare the weights of some layers of a record, None: of all, with what the functions at some sites ask for."""
    rms = layer_values(record, info, "weight_rms")
    if layers is not None:
        own = frozenset(layers)
        rms = np.where([name in own for name in info.layer_names], rms, np.nan)
    variance = DEFAULT_VARIANCE * (rms / info.default_rms) ** 2
    known = np.flatnonzero(np.isfinite(variance) & (variance > 0))
    wanted = 1.0 if sites and all(site.activation.linear for site in sites) else 2.0
    if not len(known):
        return Start(math.nan, wanted, math.nan)
    return Start(float(np.median(variance[known])), wanted, float(np.median(rms[known])))


def log_passed(sites: Sequence[SiteInfo]) -> float:
    """Return the logarithm of the share of the signal that functions pass back from the last of some sites to the first.

    With weights that start as the functions ask for.
    """
    return math.fsum(math.log(site.activation.passes) for site in sites[:-1])


def starting_cause(start: Start, sites: Sequence[SiteInfo], gain: float) -> str:
    """Say how far the weights are from what the functions ask for; `gain` is the measured factor from site to site."""
    functions = " and ".join(dict.fromkeys(site.activation.module for site in sites))
    side = "small" if gain < 1 else "large"
    if math.isnan(start.variance):
        return f"Most likely the weights start too {side} for {functions}."
    known = f" ({_named(start.variance)})" if _named(start.variance) else ""
    return (
        f"The weights start too {side} for {functions}: their rms is {number(start.rms)}, so the variance times the fan-in is "
        f"{number(start.variance)}{known} where {number(start.wanted)} would keep the signal level."
    )


def starting_causes(gain: float) -> tuple[Cause, ...]:
    """Return the same as data."""
    return (Cause(CauseKind.SMALL_WEIGHTS if gain < 1 else CauseKind.LARGE_WEIGHTS),)


def starting_remedy(info: RunInfo, sites: Sequence[SiteInfo]) -> Remedy:
    """Say how to start: the function where none can pass the signal on, the weights, and in deep nets what else it takes."""
    cure = Prescription(info)
    cure.replace([site for site in sites if site.activation.steepest < 1], "fades")
    cure.initialize()
    cure.add_skip_connections()
    return cure.remedy()


def _named(variance: float) -> str:
    """Return whose initialisation has that variance."""
    for usual, name in ((DEFAULT_VARIANCE, "PyTorch's default"), (1.0, "Xavier's"), (2.0, "He's")):
        if usual / _ALIKE < variance < usual * _ALIKE:
            return name
    return ""
