"""Which layers are trained, and since when: it may change in mid-run, as in fine-tuning, and is said, as no number shows it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.judge.rule import Sentences, Sighting
from lightning_gradwatch.record.finding import Remedy, Severity
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.record.wording import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

KEY = "trained-layers"
_LASTING = 3
"""Measured steps for which a change must last."""
_SHOWN = 4
"""Changes that are told one by one."""


def changed_layers(record: StepRecord, info: RunInfo, state: State) -> dict[str, Sighting]:
    """Return as information which layers were thawed or frozen since the run began, and stayed so.

    Those that change more than once are trained by turns, as the networks of a GAN are: that is no change of the run.
    """
    memory: dict[str, Any] = state.setdefault("trained", {"seen": 0, "as": None, "frozen": {}, "changes": {}})
    columns = np.flatnonzero(record.layer_state == int(LayerState.FROZEN)).tolist()
    memory["seen"] += 1
    if memory["as"] != [info.layout, columns]:
        _note(memory, info, set(columns), int(record.step))
        memory["as"] = [info.layout, columns]
    if not memory["changes"]:
        return {}
    changes: dict[tuple[int, bool], list[str]] = {}
    for name, (step, seen, times) in memory["changes"].items():
        if times == 1 and memory["seen"] - seen >= _LASTING:
            changes.setdefault((step, memory["frozen"][name]), []).append(name)
    if not changes:
        return {}
    names = tuple(name for each in changes.values() for name in each)
    sighting = Sighting(
        severity=Severity.INFO,
        layers=names,
        first_step=min(step for step, _ in changes),
        last_step=int(record.step),
        value=float(len(names)),
        threshold=0.0,
        write=partial(_write, changes),
    )
    return {KEY: sighting}


def _note(memory: dict[str, Any], info: RunInfo, columns: set[int], step: int) -> None:
    """Note what changed: a layer that comes later was frozen before, as those that train are known from the first step on."""
    frozen: dict[str, bool] = memory["frozen"]
    first = memory["as"] is None
    for column, name in enumerate(info.layer_names):
        before, now = frozen.get(name, not first), column in columns
        if before != now and not (first and now):
            times = memory["changes"].get(name, (0, 0, 0))[2] + 1
            memory["changes"][name] = [step, memory["seen"], times]
        frozen[name] = now


def _write(changes: Mapping[tuple[int, bool], list[str]]) -> Sentences:
    told = [
        f"by step {step} {listed(names)} {'was' if len(names) == 1 else 'were'} {'frozen' if now else 'thawed'}"
        for (step, now), names in sorted(changes.items())
    ]
    rest = len(told) - _SHOWN
    said = "; ".join([*told[:_SHOWN], *([f"and {rest} further changes"] if rest > 0 else [])])
    return Sentences(
        cause="requires_grad was changed in mid-run, as callbacks for fine-tuning do.",
        remedy=Remedy(
            "Nothing, where it is meant: a rate that suits the head alone may be too high for what is trained from then on."
        ),
        headline=f"{said[:1].upper()}{said[1:]}",
        message="",
    )
