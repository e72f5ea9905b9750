"""Why a signal is exactly 0 from some site on: a dead layer, or a number format that ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.readings import hidden_sites, site_values
from lightning_gradwatch.record.wording import listed, mention, number, percent

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import SiteInfo, StepRecord

_SMALLEST = {"16": 6e-8, "bf16": 9.2e-41, "32": 1.4e-45, "64": 4.9e-324}
_NEAR_UNDERFLOW, _NEAR_IN_HALF = 1e8, 1e4
"""A signal this close above the smallest number of its format is lost within a few layers."""


def blocking_sites(record: StepRecord, info: RunInfo) -> tuple[SiteInfo, ...]:
    """Return the sites that pass nothing back: all their units are dead, or were inactive in every observation."""
    dead, inactive = site_values(record, info, "dead_fraction"), site_values(record, info, "inactive_share")
    return tuple(
        site
        for column, site in enumerate(info.sites)
        if dead[column] == 1 or (inactive[column] == 1 and site.activation.flat_zero)
    )


def blocking_cause(sites: tuple[SiteInfo, ...], record: StepRecord, info: RunInfo) -> str:
    """Say that layers are dead, as far as the windows of their units say so too: GW201 is told by those."""
    dead = dict(zip(info.site_names, site_values(record, info, "dead_fraction").tolist(), strict=True))
    whole = [site for site in sites if dead[site.name] == 1]
    open_ = [site for site in sites if math.isnan(dead[site.name])]
    lately = [site for site in sites if dead[site.name] < 1]
    told = []
    if whole:
        told.append(
            f"Dead layer: each unit of {_where(whole)} is inactive in every observation{_BLOCKED}{mention('GW201')}."
        )
    if open_:
        told.append(
            f"Dead layer: each unit of {_where(open_)} is inactive in every observation of this step{_BLOCKED}. Whether "
            "they stay so GW201 says once their window is full."
        )
    if lately:
        share = percent(max(dead[site.name] for site in lately))
        told.append(
            f"Silent layer: each unit of {_where(lately)} is inactive in every observation of this step{_BLOCKED}. Over "
            f"the window of the last steps, no more than {share} of them are dead{mention('GW201')}: the others are seldom active, or "
            "were last active some steps ago."
        )
    return " ".join(told)


_BLOCKED = ", so its derivative is exactly 0 and nothing passes back through it"


def _where(sites: list[SiteInfo]) -> str:
    functions = " and ".join(dict.fromkeys(site.activation.module for site in sites))
    return f"{functions} at {listed([site.name for site in sites], 'activation')}"


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
