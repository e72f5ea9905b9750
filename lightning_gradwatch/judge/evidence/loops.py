"""Whether the signal vanishes or explodes over the calls of an unrolled loop, as in a recurrent net written by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.readings import hidden_sites, site_values
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Cause, CauseKind
from lightning_gradwatch.record.wording import counted, number

if TYPE_CHECKING:
    from lightning_gradwatch.record.finding import Remedy
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import SiteInfo, StepRecord


class Loop(NamedTuple):
    """An unrolled loop as one record shows it."""

    site: SiteInfo
    calls: int
    attenuation: float
    """Signal at the first call over that at the last."""
    passed: float
    """Share of the signal that the activation function itself passes back; NaN where it wasn't measured."""

    @property
    def gain(self) -> float:
        """Mean factor from a call to the one before."""
        return float(self.attenuation ** (1 / (self.calls - 1)))


def read_loops(record: StepRecord, info: RunInfo) -> list[Loop]:
    """Return the hidden sites that feed themselves, with what is left of the signal over their calls."""
    if not len(record.loop_calls):
        return []
    gains = site_values(record, info, "activation_gain")
    return [
        Loop(site, round(record.loop_calls[column]), float(record.loop_attenuation[column]), float(gains[column]))
        for column, site in hidden_sites(info)
        if column < len(record.loop_calls)
        and info.feeds_itself[column]
        and 1 < record.loop_calls[column] < math.inf
        and 0 <= record.loop_attenuation[column] < math.inf
    ]


def loop_headline(loop: Loop) -> str:
    """Say what was seen."""
    return (
        f"{loop.site.name} is called {loop.calls} times, in a loop, and the gradient {'grows' if loop.gain > 1 else 'shrinks'} by a "
        f"factor of {number(loop.gain)} per call: the first call gets {number(loop.attenuation)} {'times' if loop.gain > 1 else 'of'} "
        "the signal of the last"
    )


def loop_evidence(loop: Loop, threshold: float, gain: float) -> str:
    """Say how far back it can learn, and by which thresholds it was judged."""
    if loop.gain >= 1:
        return f"Reported above {number(threshold)} in all and {number(gain)} a call."
    calls = max(math.floor(math.log(threshold) / math.log(loop.gain)), 1) if loop.gain else 0
    return (
        f"So it learns nothing from what lies more than {counted(calls, 'call')} back. Reported below {number(threshold)} in all and "
        f"{number(gain)} a call."
    )


def explain_loop(info: RunInfo, loop: Loop) -> Explanation:
    """Say what the function and the weights do to the signal at each turn, and what to change."""
    causes = [Cause(CauseKind.UNROLLED_LOOP, (loop.site.name,))]
    if loop.site.activation.steepest < 1:
        causes.append(Cause(CauseKind.SMALL_SLOPE, (loop.site.name,)))
    return Explanation(loop_cause(loop), loop_remedy(info, loop), tuple(causes))


def loop_cause(loop: Loop) -> str:
    """Say whether the function or the weights take it."""
    function = loop.site.activation
    if math.isnan(loop.passed):
        return f"Each call of {function.module} and the weights before it weaken the signal, and a loop does so at each turn."
    between = loop.gain / loop.passed if loop.passed else 0.0
    return (
        f"At each turn of the loop {function.module} passes back {number(loop.passed)} of the signal, and the weights between "
        f"two calls {number(between)} of that."
    )


def loop_remedy(info: RunInfo, loop: Loop) -> Remedy:
    """Say what to change: a function whose slope is small everywhere, and how the weights start."""
    cure = Prescription(info)
    if loop.site.activation.steepest < 1:
        cure.replace([loop.site], "fades")
    cure.initialize()
    return cure.remedy()
