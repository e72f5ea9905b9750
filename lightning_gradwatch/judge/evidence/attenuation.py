"""Why a signal fades from layer to layer, and what restores it: functions, weights, or both, with their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from lightning_gradwatch.judge.evidence.attribution import Attribution, attribute
from lightning_gradwatch.judge.evidence.zero_signal import blocking_cause, blocking_sites
from lightning_gradwatch.judge.readings import hidden_sites, site_values
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Cause, CauseKind
from lightning_gradwatch.record.wording import mention, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from lightning_gradwatch.record.activations import Activation, Trouble
    from lightning_gradwatch.record.finding import Remedy
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, SiteInfo, StepRecord

    Places: TypeAlias = npt.NDArray[np.intp]

_BOUNDS = {0.25: "1/4", 1 / 6: "1/6"}
_MOSTLY = 0.5
"""Share of units from which on they speak for their layer: most of them."""
_BLAMED_SHARE = 0.25
"""Of the fading: what takes less than a quarter of it isn't worth changing first."""
_FLAT_SHARE = 0.5  # of what a function usually passes back: below it, its inputs lie where it is flat
_LARGE_FACTOR = 2.0
"""Chance and depth move a gain by tens of per cent: twice what the initialisation gives isn't chance."""
_DEFAULT_GAIN, _DEFAULT_WITHIN = 3**-0.5, 0.03  # PyTorch's default: a variance of 1/3 over the fan-in

_SHRINKING = {CauseKind.LARGE_WEIGHTS, CauseKind.SATURATED_UNITS}
"""Of a function that shrinks the signal wherever its inputs lie, that it lies badly here is only half of it."""
_DYING = {CauseKind.DEAD_LAYER, CauseKind.DEAD_UNITS}


class Blame(NamedTuple):
    """One thing that takes the signal."""

    kind: CauseKind
    """Of large weights: they drive the units to where their function is flat."""
    sites: tuple[SiteInfo, ...]
    """Whose function it is; all of them where it's the weights."""
    gain: float
    """Share of the signal that such a site passes back; NaN where it wasn't measured."""
    affected: float = 0.0
    """Share of the units of the median site that are dead, or saturated."""
    sentence: str = ""
    """What is said of it, where that takes the record."""


class Diagnosis(NamedTuple):
    """Why the signal fades in a record."""

    blamed: tuple[Blame, ...]
    gain: float
    """Mean factor from site to site."""
    gains: Attribution | None
    from_the_first: bool
    """Whether most units of the first hidden site are saturated already: then the inputs may be to blame."""


def diagnose(record: StepRecord, info: RunInfo, columns: Places, gain: float, *, alone: bool = False) -> Diagnosis:
    """Say what takes the signal along a path.

    Args:
        record: One in which the signal fades.
        info: Describes its columns.
        columns: Hidden sites with a signal, along the path; the last one's is above 0.
        gain: Mean factor from site to site.
        alone: Leave out what isn't on the path, as it may be on another.
    """
    others = columns.tolist() if alone else [column for column, _ in hidden_sites(info)]
    from_the_first = _median(record, info, "saturated_fraction", columns[:1].tolist()) >= _MOSTLY
    blocking = blocking_sites(record, info) if gain == 0 else ()
    if alone:
        blocking = tuple(site for site in _sites(info, others) if site in blocking)
    if blocking:
        blame = Blame(CauseKind.DEAD_LAYER, blocking, 0.0, sentence=blocking_cause(blocking, record, info))
        return Diagnosis((blame,), gain, None, from_the_first)
    found = attribute(record, info, columns)
    blamed = _judge(record, info, columns, others, found) if found else [_guess(record, info, columns)]
    return Diagnosis(tuple(blamed), gain, found, from_the_first)


def _judge(
    record: StepRecord, info: RunInfo, columns: Places, others: Sequence[int], found: Attribution
) -> list[Blame]:
    """Blame what takes most of the signal, by the measured gains."""
    blamed = []
    large = found.weight_gain >= _LARGE_FACTOR * found.asked_gain
    for part in found.parts:
        flat = part.gain < _FLAT_SHARE * part.function.usual_gain
        if part.share < _BLAMED_SHARE or not (flat or part.function.steepest < 1):
            continue
        dead, saturated = (
            _median(record, info, name, part.columns) for name in ("dead_fraction", "saturated_fraction")
        )
        kind = CauseKind.FLAT_REGION
        affected = 0.0
        if not flat:
            kind = CauseKind.SMALL_SLOPE
        elif dead >= _MOSTLY:
            kind, affected = CauseKind.DEAD_UNITS, dead
        elif large:
            kind = CauseKind.LARGE_WEIGHTS
        elif saturated >= _MOSTLY:
            kind, affected = CauseKind.SATURATED_UNITS, saturated
        blamed.append(Blame(kind, _all_of(info, others, part.function), part.gain, affected))
    if found.weight_share >= _BLAMED_SHARE:
        blamed.append(Blame(CauseKind.SMALL_WEIGHTS, _sites(info, columns.tolist()), found.gain))
    if not blamed:
        most = found.parts[0]
        blamed.append(Blame(CauseKind.FLAT_REGION, _all_of(info, others, most.function), most.gain))
    return blamed


def _guess(record: StepRecord, info: RunInfo, columns: Places) -> Blame:
    """Blame what most likely takes the signal, where no gains were measured."""
    sites = _sites(info, columns.tolist())
    flat = tuple(site for site in sites if site.activation.flat_middle)
    if flat:
        return Blame(CauseKind.FLAT_REGION, flat, np.nan)
    shrinking = tuple(site for site in sites if site.activation.steepest < 1)
    if shrinking:
        return Blame(CauseKind.SMALL_SLOPE, shrinking, np.nan)
    saturated = _median(record, info, "saturated_fraction", columns.tolist())
    if saturated >= _MOSTLY:
        return Blame(CauseKind.SATURATED_UNITS, sites, np.nan, saturated)
    return Blame(CauseKind.SMALL_WEIGHTS, sites, np.nan)


def explain_fading(info: RunInfo, found: Diagnosis) -> Explanation:
    """Say what takes the signal away, and what to change."""
    return Explanation(fading_cause(found), fading_remedy(info, found), fading_causes(found))


def fading_causes(found: Diagnosis) -> tuple[Cause, ...]:
    """Return what takes the signal away, as data."""
    causes = []
    for blame in found.blamed:
        # The weights are the whole path's.
        of_sites = () if blame.kind == CauseKind.SMALL_WEIGHTS else tuple(site.name for site in blame.sites)
        causes.append(Cause(blame.kind, of_sites))
        if blame.kind in _SHRINKING and (
            shrinking := tuple(site.name for site in blame.sites if _shrinks(blame, site))
        ):
            causes.append(Cause(CauseKind.SMALL_SLOPE, shrinking))
    if found.from_the_first:
        causes.append(Cause(CauseKind.UNSCALED_INPUTS))
    return tuple(causes)


def fading_cause(found: Diagnosis) -> str:
    """Say what takes the signal away, and what doesn't."""
    return " ".join([*(_told(blame, found) for blame in found.blamed), *_cleared(found)])


def _cleared(found: Diagnosis) -> list[str]:
    """Say what isn't to blame, or how the blame is shared."""
    kinds = {blame.kind for blame in found.blamed}
    if found.gains is None:
        return []
    if kinds.isdisjoint((CauseKind.SMALL_WEIGHTS, CauseKind.LARGE_WEIGHTS)):
        return [
            f"The weights between two activations pass back {number(found.gains.weight_gain)}: they aren't to blame."
        ]
    if kinds == {CauseKind.SMALL_WEIGHTS}:
        return [f"An activation itself passes back {number(found.gains.gain)}: the function isn't to blame."]
    if CauseKind.SMALL_WEIGHTS in kinds:
        functions, weights = percent(1 - found.gains.weight_share), percent(found.gains.weight_share)
        return [f"Of the fading, {functions} is the functions' and {weights} the weights'."]
    return []


def fading_remedy(info: RunInfo, found: Diagnosis) -> Remedy:
    """Say what to change: the functions to blame, how the weights start, and what the depth asks for."""
    cure = Prescription(info)
    replaced: tuple[tuple[Trouble, Callable[[Blame, SiteInfo], bool]], ...] = (("fades", _shrinks), ("dies", _dies))
    for trouble, affects in replaced:
        cure.replace([site for blame in found.blamed for site in blame.sites if affects(blame, site)], trouble)
    cure.initialize()
    if found.from_the_first:
        cure.normalize_inputs()
    cure.add_skip_connections()
    return cure.remedy()


def _shrinks(blame: Blame, site: SiteInfo) -> bool:
    shrinking = site.activation.steepest < 1
    return blame.kind in {CauseKind.SMALL_SLOPE, CauseKind.FLAT_REGION} or (blame.kind in _SHRINKING and shrinking)


def _dies(blame: Blame, _: SiteInfo) -> bool:
    return blame.kind in _DYING


def _told(blame: Blame, found: Diagnosis) -> str:
    functions = list(dict.fromkeys(site.activation for site in blame.sites))
    spelled = " and ".join(function.module for function in functions)
    passes = f"an activation passes back {number(blame.gain)} of the signal on average"
    if blame.kind == CauseKind.SMALL_SLOPE:
        steepest = max(function.steepest for function in functions)
        bound = _BOUNDS.get(steepest, number(steepest))
        measured = (
            passes if found.gains else f"an activation can pass back no more than {number(steepest)} of the signal"
        )
        return f"The derivative of {spelled} is at most {bound}: {measured}."
    if blame.kind == CauseKind.DEAD_LAYER:
        return blame.sentence
    if blame.kind == CauseKind.DEAD_UNITS:
        return f"{percent(blame.affected)} of the units of the median {spelled} activation are dead{mention('GW201')}: {passes}."
    if blame.kind == CauseKind.SATURATED_UNITS:
        measured = f": {passes}" if found.gains else ""
        return (
            f"{percent(blame.affected)} of the units of the median {spelled} activation are saturated{mention('GW202')}, where the derivative "
            f"is close to 0{measured}."
        )
    if blame.kind == CauseKind.FLAT_REGION:
        measured = f": {passes}" if found.gains else ""
        return f"{spelled} is nearly flat where its inputs lie{measured}."
    return _told_of_weights(blame, found, spelled)


def _told_of_weights(blame: Blame, found: Diagnosis, spelled: str) -> str:
    methods = " or ".join(dict.fromkeys(site.activation.initialization for site in blame.sites))
    if found.gains is None:
        return (
            f"The slope of {spelled} needn't weaken the signal, so most likely the weights are too small: {methods} keeps it "
            "level."
        )
    weights, asked = found.gains.weight_gain, found.gains.asked_gain
    measured = f"between two activations they pass back {number(weights)} of the signal on average, where {methods} gives {number(asked)}"
    if blame.kind == CauseKind.LARGE_WEIGHTS:
        return (
            f"The weights are too large for {spelled}: {measured}, and drive the units to where the function is flat: an activation "
            f"passes back {number(blame.gain)}."
        )
    default = abs(weights / _DEFAULT_GAIN - 1) < _DEFAULT_WITHIN
    known = f" PyTorch's default initialisation gives {number(_DEFAULT_GAIN)}." if default else ""
    return f"The weights are too small for {spelled}: {measured}.{known}"


def _sites(info: RunInfo, columns: Sequence[int]) -> tuple[SiteInfo, ...]:
    return tuple(info.sites[column] for column in columns)


def _all_of(info: RunInfo, columns: Sequence[int], function: Activation) -> tuple[SiteInfo, ...]:
    """Return the sites with a function: the last one's own gain isn't a part of the fading, yet it is the same."""
    return tuple(site for site in _sites(info, columns) if site.activation == function)


def _median(record: StepRecord, info: RunInfo, metric: str, columns: Sequence[int]) -> float:
    values: FloatVector = site_values(record, info, metric)[list(columns)]
    return float(np.nanmedian(values)) if np.isfinite(values).any() else 0.0
