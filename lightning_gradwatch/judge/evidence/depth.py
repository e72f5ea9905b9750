"""How the gradient signal changes along a path from the last hidden site to the first, and whether it does so site by site."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.judge.readings import hidden_values
from lightning_gradwatch.record.wording import counted, number

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, SiteInfo, StepRecord

LEAST_SITES = 3
"""Of two, the mean factor is a single one, and no trend."""
_STEADY_SHARE = 0.75
"""Most of the steps from site to site: by chance, half of them go either way."""


class Depth(NamedTuple):
    """The signal over the hidden sites of one path that passed one on, in one step."""

    columns: npt.NDArray[np.intp]
    """Of the sites, along the path."""
    norms: FloatVector
    """‖δ‖ there, above 0."""
    several: bool = False
    """Whether the step has more than one such path."""

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
        names = info.site_names
        return f"{names[self.columns[0]]}\n{names[self.columns[-1]]}\n{len(self.columns)}"

    def headline(self, info: RunInfo, attenuation: float, *, at: str = "", was: bool = False) -> str:
        """Say what the signal at the first site is of that at the last, how much that is a layer, and which path is meant.

        Args:
            info: Describes the sites.
            attenuation: Signal at the first site over that at the last.
            at: When, as ``"At step 0"``; empty: now.
            was: Whether it is over.
        """
        first, last = (info.site_names[column] for column in self.columns[[0, -1]])
        the = f"{at}, the" if at else "The"
        path = ", on one of several paths" if self.several else ""
        if attenuation == 0:
            return (
                f"{the} gradient vanishes: nothing is left of it at {first}, exactly 0, and at {last} it is there{path}"
            )
        gain = attenuation ** (1 / (len(self.columns) - 1))
        how = ("grew" if was else "grows") if gain > 1 else ("shrank" if was else "shrinks")
        times = "times" if gain > 1 else "of"
        return (
            f"{the} gradient {how} by a factor of {number(gain)} per layer: {first} {'got' if was else 'gets'} {number(attenuation)} "
            f"{times} the signal of {last}{path}"
        )

    def layers(self, info: RunInfo) -> tuple[str, ...]:
        """Return the weight layers that it is about: those of the path, in a net that has several."""
        own = info.layers_on(self.columns) if self.several else ()
        return tuple(info.layer_names[column] for column in own) or info.weight_names or info.layer_names


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


def read_depths(record: StepRecord, info: RunInfo, *, ended: bool = False) -> list[Depth] | str:
    """Return the signal over depth on each path that has enough sites, or why it can't be judged.

    Args:
        record: The step.
        info: Describes its columns.
        ended: Take in sites whose signal is exactly 0, too.
    """
    hidden = len(info.hidden_columns)
    if hidden < LEAST_SITES:
        had = counted(hidden, "hidden activation") if hidden else "no hidden activation"
        return f"can't judge: a signal over depth needs {LEAST_SITES} hidden activations, the run has {had}"
    norms = hidden_values(record, info, "signal_norm")
    measured = np.zeros(0, dtype=bool) if norms is None else (norms >= 0 if ended else norms > 0)
    if ended and norms is not None and "softmax" in info.hidden_functions:
        # Over a single key it passes back exactly 0, into queries and keys alone.
        measured = measured & ((norms > 0) | [site.function != "softmax" for site in info.sites])
    count = int(np.count_nonzero(measured))
    if norms is None or count < LEAST_SITES:
        return f"can't judge: the signal was measured at {counted(count, 'hidden activation')} only"
    paths = [path[measured[path]] for path in info.site_paths.along(norms)]
    several = sum(len(path) > 1 for path in paths) > 1
    depths = [Depth(path, norms[path], several=several) for path in paths if len(path) >= LEAST_SITES]
    if depths:
        return depths
    return (
        f"can't judge: a signal over depth needs {LEAST_SITES} hidden activations on one path, and no path has as many"
    )
