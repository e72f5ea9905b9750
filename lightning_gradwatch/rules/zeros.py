"""Why a signal is exactly 0 from some site on: a dead layer, or a number format that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.rules.functions import look_up
from lightning_gradwatch.rules.readings import hidden_sites, site_values
from lightning_gradwatch.rules.wording import listed, number

if TYPE_CHECKING:
    from lightning_gradwatch.record import RunInfo, SiteInfo, StepRecord

_SMALLEST = {"16": 6e-8, "bf16": 9.2e-41, "32": 1.4e-45, "64": 4.9e-324}
_NEAR_UNDERFLOW, _NEAR_IN_HALF = 1e8, 1e4
"""A signal this close above the smallest number of its format is lost within a few layers."""


def blocking_sites(record: StepRecord, info: RunInfo) -> tuple[SiteInfo, ...]:
    """Return the sites that pass nothing back: all their units are dead, or were inactive in every observation."""
    dead, inactive = site_values(record, info, "dead_fraction"), site_values(record, info, "inactive_share")
    return tuple(
        site
        for column, site in enumerate(info.sites)
        if dead[column] == 1 or (inactive[column] == 1 and look_up(site.function).flat_zero)
    )


def blocking_cause(sites: tuple[SiteInfo, ...]) -> str:
    """Say that layers are dead."""
    functions = " and ".join(dict.fromkeys(look_up(site.function).module for site in sites))
    return (
        f"Dead layer: each unit of {functions} at {listed([site.name for site in sites], 'site')} is inactive in every "
        "observation, so its derivative is exactly 0 and nothing passes back through it (GW201)."
    )


class Underflow(NamedTuple):
    """A signal that is tiny where it was last above 0, and 0 before."""

    smallest: float
    """The last norm above 0."""
    site: SiteInfo
    limit: float
    """The smallest number of the format."""
    precision: str

    def sentence(self) -> str:
        """Say so."""
        return (
            f"Underflow of the number format: the gradient signal shrinks to {number(self.smallest)} at {self.site.name}, and "
            f"before it is below the smallest number of {self.precision} ({number(self.limit)}), so it reads exactly 0."
        )


def underflow(record: StepRecord, info: RunInfo) -> Underflow | None:
    """See whether the signal ends where the number format does."""
    signal = site_values(record, info, "signal_norm")
    hidden = hidden_sites(info)
    positive = [(float(signal[column]), site) for column, site in hidden if signal[column] > 0]
    if not positive or not any(signal[column] == 0 for column, _ in hidden):
        return None
    smallest, site = min(positive, key=lambda pair: pair[0])
    name = info.precision.partition("-")[0]
    limit = _SMALLEST.get(name, _SMALLEST["32"])
    near = _NEAR_IN_HALF if name == "16" else _NEAR_UNDERFLOW
    return None if smallest > limit * near else Underflow(smallest, site, limit, info.precision)
