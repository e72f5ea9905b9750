"""What GW104 says of layers whose gradient is lost, told by the states of each record."""

from __future__ import annotations

import dataclasses

from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.record.step import LayerState, LostGradient

NONE, ZERO = LayerState.NONE, LayerState.ZERO


def judged(runs, states, *, info=None, **given):
    """`states`: for each record, the states of the layers that aren't OK."""
    info = info or runs.stack(function="relu")
    records = [runs.measure(info, step, states=each, **given) for step, each in enumerate(states)]
    return runs.feed(UnreachedLayer(), records, info)


def lost(info, **by_name):
    """The description, with where the gradients of some layers are lost: (kind, operation, module) by name."""
    layers = tuple(
        dataclasses.replace(layer, lost=LostGradient(*by_name[layer.name])) if layer.name in by_name else layer
        for layer in info.layers
    )
    return dataclasses.replace(info, layers=layers)


def kinds(finding):
    return [action.kind for action in finding.remedy.actions]
