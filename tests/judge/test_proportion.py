"""What a description holds is looked through once, not at each of a run's records: a file can have many of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.streaks import _moved, columns


class Counted(tuple):
    """Names that count how often they are looked through."""

    __slots__ = ()
    looks = 0

    def __iter__(self):
        Counted.looks += 1
        return super().__iter__()

    def __contains__(self, name):
        Counted.looks += 1
        return super().__contains__(name)


def test_names_of_optimizers_and_predecessors_are_looked_through_once(runs, monkeypatch):
    monkeypatch.setattr(Counted, "looks", 0)
    info = runs.stack(function="relu", optimizers=("SGD", "Adam"))
    info = replace(
        info,
        optimizers=tuple(
            replace(each, layers=Counted(each.layers), rates=Counted((1.0,) * len(each.layers)))
            for each in info.optimizers
        ),
        sites=tuple(replace(site, predecessors=Counted((*site.predecessors, site.name))) for site in info.sites),
    )
    evaluator = Evaluator(DEFAULT_RULES)
    looks = []
    for step in range(60):
        record = runs.measure(info, step, states={"net.0": 3}, rates=(0.0, 0.1), signal_norm=runs.fading(info, 1e-9))
        record = replace(record, loop_calls=np.full(6, 4.0), loop_attenuation=np.full(6, 1e-9))
        evaluator.feed(record, info)
        looks.append(Counted.looks)
    assert looks[-1] == looks[20] > 0


def test_what_is_carried_over_to_a_new_layout_is_worked_out_once_for_all_rules(runs):
    """And not by looking for each of the old names among all new ones."""
    before = runs.stack(depth=50)
    after = runs.stack(depth=60)
    _moved.cache_clear()
    states = [{} for _ in range(10)]
    for info in (before, after):
        for state in states:
            held = columns(state, "held", info, "layers", rows=2)
            held.values[:] = len(info.layers)
    assert _moved.cache_info().misses == 2
    again = columns(states[0], "held", before, "layers", rows=2)
    assert again.values.shape == (2, 51)
    assert (again.values == 61).all()
