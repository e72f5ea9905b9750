"""Which hidden sites' units a rule can't judge, because their windows aren't full.

A rule that has read nine sites of ten has not judged the tenth; one whose window has been in doubt for several steps (its
units fell silent, and too little was seen since) isn't judged any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.rule import HEALTHY, Verdict
from lightning_gradwatch.judge.streaks import columns
from lightning_gradwatch.record.wording import listed, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_gradwatch.judge.streaks import Mask, State
    from lightning_gradwatch.record.activations import Activation
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_KEY = "windows"
_ASKED = "asked"


def unread(
    record: StepRecord, info: RunInfo, state: State, *, patience: int, asks: Callable[[Activation], bool]
) -> Verdict:
    """Say which hidden sites aren't judged; `HEALTHY` where all are.

    Args:
        record: The newest.
        info: Describes it.
        state: The rule's memory.
        patience: Records in a row without a full window after which a site that had one isn't judged any more.
        asks: Whether the rule has to judge the units of a function.
    """
    # A column each: 0 for a window that was never full; else 1, and 1 more for each record since it was.
    held = columns(state, _KEY, info, "sites", rows=1)
    known = held.derived.get(_ASKED)
    if known is None or known[0] != info.layout:
        able = np.array([asks(site.activation) and site.units > 0 for site in info.sites], dtype=bool)
        known = held.derived[_ASKED] = info.layout, able & info.hidden_mask
    asked: Mask = known[1]
    full = record.window_fill >= 1
    (seen,) = held.values
    if np.count_nonzero(asked & (seen != 1)) == 0 and np.count_nonzero(asked & ~full) == 0:
        return HEALTHY
    seen[asked & ~full & (seen > 0)] += 1
    seen[asked & full] = 1
    held.blank = False
    lapsed = asked & (seen > patience)
    never = asked & (seen == 0)
    missing = lapsed if np.count_nonzero(lapsed) else never
    if not np.count_nonzero(missing):
        return HEALTHY
    return Verdict(unjudged=_why(record, info, missing, asked, lapsed=missing is lapsed), lapsed=missing is lapsed)


def _why(record: StepRecord, info: RunInfo, missing: Mask, asked: Mask, *, lapsed: bool) -> str:
    names = [info.site_names[column] for column in np.flatnonzero(missing)]
    fill = percent(float(np.minimum.reduce(record.window_fill[missing])))
    which = f"{len(names)} of {np.count_nonzero(asked)} hidden activations"
    if lapsed:
        return (
            f"can't judge: units of {listed(names, 'activation')} fell silent, and what was seen since fills {fill} of a window "
            f"({which})"
        )
    return f"not yet: the window of {listed(names, 'activation')} is {fill} full ({which})"
