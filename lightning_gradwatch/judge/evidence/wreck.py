"""A net that exploded over depth and was wrecked by it: what was a thousandfold at the early layers is a thousandth now.

Where the steps are as large as the gradient, an explosion may be over after the first of them, and which of the next ones
still shows it is a matter of the last bits. What it leaves behind isn't: no net goes from one end to the other and learns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.step import StepRecord

_LONGEST = 20
"""Readings after which what broke is no longer told by what came before it."""


class Explosion(NamedTuple):
    """What an explosion over depth was before it wrecked the net."""

    value: float
    """Signal at the first site over that at the last: the largest reading."""
    since: int
    """The step in which it was first seen."""


def note_explosion(state: State, record: StepRecord, ends: str, value: float) -> None:
    """Keep that the signal between two sites explodes in a record."""
    known = state.get("exploded", {})
    if known.get("ends") == ends:
        state["exploded"] = {**known, "value": max(value, known["value"]), "readings": 0}
    else:
        state["exploded"] = {"ends": ends, "value": value, "since": int(record.step), "readings": 0}


def read_wreck(state: State, ends: str, value: float, gone: float) -> Explosion | None:
    """Return the explosion that a reading is the wreck of: one of at most 20 readings ago, of the same sites.

    Args:
        state: The memory, which `note_explosion` fills.
        ends: The sites.
        value: Signal at the first of them over that at the last.
        gone: Share below which it is all but gone.
    """
    known = state.get("exploded")
    if not known or known["ends"] != ends:
        return None
    known["readings"] += 1
    if known["readings"] > _LONGEST:
        del state["exploded"]
        return None
    return Explosion(known["value"], known["since"]) if value < gone else None
