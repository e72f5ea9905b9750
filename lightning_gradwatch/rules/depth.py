"""How the gradient signal changes from the last hidden site to the first, and whether it does so site by site."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.rules.readings import hidden_values
from lightning_gradwatch.rules.wording import counted, number

if TYPE_CHECKING:
    from lightning_gradwatch.record import FloatVector, RunInfo, SiteInfo, StepRecord

LEAST_SITES = 3
_STEADY_SHARE = 0.75


class Depth(NamedTuple):
    """The signal over the hidden sites that passed one on, in one step."""

    columns: npt.NDArray[np.intp]
    """Of the sites, along the path."""
    norms: FloatVector
    """‖δ‖ there, above 0."""

    @property
    def attenuation(self) -> float:
        """‖δ‖ at the first site over that at the last; above 1, the signal grows on its way back."""
        # Through logarithms: the quotient of the ends of a deep net may be beyond the largest float, or below the smallest.
        return math.exp(min(max(math.log(self.norms[0]) - math.log(self.norms[-1]), -700.0), 700.0))

    @property
    def gain(self) -> float:
        """Mean factor from one site to the one before it."""
        return float(self.attenuation ** (1 / (len(self.norms) - 1)))

    @property
    def steady(self) -> bool:
        """Whether most steps from site to site take part in the change.

        A net of branches has sites whose signals differ for good reasons (a trunk and branches that start small), so
        its ends may differ a lot where nothing grows or fades. Sites of two kinds take turns there: every other site
        is compared as well.
        """
        logs = np.log(self.norms)
        mean = (logs[0] - logs[-1]) / (len(logs) - 1)
        return any(
            float(np.mean((logs[:-lag] - logs[lag:]) / mean >= lag / 2)) >= _STEADY_SHARE
            for lag in (1, 2)
            if len(logs) > lag + 1
        )

    def sites(self, info: RunInfo) -> list[SiteInfo]:
        """Return the sites."""
        return [info.sites[column] for column in self.columns]

    def ends(self, info: RunInfo) -> str:
        """Return what readings must share to be compared."""
        return ends(info, self.columns)


def ends(info: RunInfo, columns: npt.NDArray[np.intp]) -> str:
    """Return what readings of the signal over these sites must share to be compared."""
    names = info.site_names
    return f"{names[columns[0]]}\n{names[columns[-1]]}\n{len(columns)}"


def gains_sentence(record: StepRecord, info: RunInfo, depth: Depth) -> str:
    """Say what weights and functions each pass back a layer, where that was measured along most of the sites."""
    said = []
    # A site's own function and the weights behind it: the first site's weights and the last one's function lie outside.
    for metric, columns, what in (
        ("weight_gain", depth.columns[1:], "the weights pass back {} of the signal a layer"),
        ("activation_gain", depth.columns[:-1], "the functions {}"),
    ):
        gains = record.values(metric, len(info.sites))[columns]
        known = gains[np.isfinite(gains) & (gains > 0)]
        if 2 * len(known) <= len(columns):
            return ""
        said.append(what.format(number(float(np.exp(np.log(known).mean())))))
    return f" Measured, {' and '.join(said)}."


def read_depth(record: StepRecord, info: RunInfo) -> Depth | str:
    """Return the signal over depth, or why it can't be judged."""
    hidden = len(info.hidden_columns)
    if hidden < LEAST_SITES:
        had = counted(hidden, "hidden activation site") if hidden else "no hidden activation site"
        return f"can't judge: attenuation needs {LEAST_SITES} hidden activation sites, the run has {had}"
    norms = hidden_values(record, info, "signal_norm")
    columns = (norms > 0).nonzero()[0] if norms is not None else np.empty(0, dtype=np.intp)
    if norms is None or len(columns) < LEAST_SITES:
        return f"can't judge: a signal was measured at {counted(len(columns), 'hidden activation site')} only"
    return Depth(columns, norms[columns])
