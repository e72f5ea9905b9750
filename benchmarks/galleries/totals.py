"""Counts over judged runs: who learned, who was warned, whose root cause was named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.galleries.judge import Judged
    from benchmarks.galleries.peer_rules import Illness

_ILLNESSES: dict[str, frozenset[Illness]] = {
    "GW101": frozenset({"vanishing"}),
    "GW102": frozenset({"exploding"}),
    "GW103": frozenset({"exploding"}),
    "GW104": frozenset({"vanishing", "dead"}),
    "GW201": frozenset({"dead"}),
    "GW202": frozenset({"saturated"}),
    "GW301": frozenset({"update"}),
    "GW302": frozenset({"update"}),
    "GW303": frozenset({"update"}),
    "GW304": frozenset({"update"}),
    "GW401": frozenset(),
    **dict.fromkeys(("GW501", "GW502", "GW503", "GW504", "GW505", "GW506", "GW106", "GW601"), frozenset()),
}
"""What a peer would call it. None of them has a word for the initialisation, or for wiring: its effect counts."""


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    part: int
    whole: int

    def __str__(self) -> str:
        return f"{self.part}/{self.whole} ({100 * self.part / self.whole:.1f} %)" if self.whole else "-"


@dataclass(frozen=True)
class Totals:
    """One judge's counts over some runs."""

    recall: Share
    """Of the ill runs, those that were warned of."""
    named: Share
    """Of the ill runs, those whose root cause was named: by a peer, by any of its alarms."""
    in_time: Share
    false_alarms: Share
    """Of the runs of healthy cases that learned, those that were warned of."""
    false_on_ill: Share
    """Of the runs of ill cases that learned all the same, those that were warned of."""


def count(runs: Sequence[Judged], *, peer: str | None = None) -> Totals:
    """Count for GradWatch, or for a peer."""
    ill = [run for run in runs if run.ill]
    learned = [run for run in runs if run.result.outcome.learned]

    def share(of: Sequence[Judged], holds: Callable[[Judged], bool]) -> Share:
        return Share(sum(map(holds, of)), len(of))

    def warned(run: Judged) -> bool:
        return bool(run.peers[peer] if peer else run.alarms)

    def named(run: Judged) -> bool:
        return bool({alarm.illness for alarm in run.peers[peer]} & illnesses(run)) if peer else run.named

    def in_time(run: Judged) -> bool:
        return (
            any(run.is_early(alarm.step) for alarm in run.peers[peer])
            if peer
            else run.warned is not None and run.is_early(run.warned)
        )

    return Totals(
        recall=share(ill, warned),
        named=share(ill, named),
        in_time=share(ill, in_time),
        false_alarms=share([run for run in learned if not run.case.ill], warned),
        false_on_ill=share([run for run in learned if run.case.ill], warned),
    )


def illnesses(run: Judged) -> frozenset[Illness]:
    """Return what a peer may call a run's illness."""
    return frozenset().union(*(_ILLNESSES[code] for code in run.case.roots))


def spread(values: Sequence[str]) -> str:
    """Return values with how often each is there: ``GW101 x4, -``."""
    return ", ".join(f"{value} x{times}" if times > 1 else value for value, times in Counter(values).most_common())
