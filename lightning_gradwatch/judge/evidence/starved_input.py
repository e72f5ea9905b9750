"""An input layer or embedding that gets next to nothing of the gradient, whatever lies between it and the loss, seen or not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.judge.readings import layer_values
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.record.wording import number

if TYPE_CHECKING:
    import numpy.typing as npt

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

STARVED = 1e-6
"""Gradient norm of the first layer over the largest of the others below which no scale of a layer's own explains it: a layer
scale starts at 1e-6 at least, and is a branch's."""
_RECURRENT = ("LSTM", "GRU", "RNN")
_OK = int(LayerState.OK)


class Starved(NamedTuple):
    """How little a layer gets."""

    layer: str
    follows: str
    """The next layer on the path that gets a gradient of the usual size."""
    kind: str
    """Of that layer."""
    ratio: float
    """Gradient norm over the largest of the other layers."""
    threshold: float


def first_share(record: StepRecord, info: RunInfo) -> float | None:
    """Return the gradient norm of the first layer on the path over the largest of the others; None where it can't be told."""
    norms, there = _with_gradient(record, info)
    return float(norms[there[0]]) / float(norms[there[1:]].max()) if len(there) > 1 else None


def _with_gradient(record: StepRecord, info: RunInfo) -> tuple[FloatVector, npt.NDArray[np.intp]]:
    """Return the gradient norms, and the columns of the layers that have one."""
    norms = layer_values(record, info, "grad_norm")
    return norms, np.flatnonzero((record.layer_state == _OK) & np.isfinite(norms) & (norms > 0))


def read_input(record: StepRecord, info: RunInfo, threshold: float) -> Starved | None:
    """Return how little the first layer on the path gets, if that is below a threshold; one that gets exactly 0 is GW104's."""
    norms, there = _with_gradient(record, info)
    if len(there) < 2:
        return None
    first, others = there[0], there[1:]
    largest = float(norms[others].max())
    ratio = float(norms[first]) / largest
    if not ratio < threshold:
        return None
    fed = next(column for column in others.tolist() if norms[column] >= math.sqrt(threshold) * largest)
    layer = info.layers[fed]
    return Starved(info.layers[first].name, layer.name, layer.kind, ratio, threshold)


def explain_starved(starved: Starved) -> Explanation:
    """Say where the gradient is lost, and what to do."""
    if starved.kind.startswith(_RECURRENT):
        return Explanation(
            f"The gradient is lost inside of {starved.follows}, a recurrent layer: what each time step does to it is multiplied over "
            "all of them. Where sequences are padded at their end and the last state is read, it has to come back through all of the "
            "padding, over which memory and gradient fade.",
            Remedy(
                f"Hand padded sequences to {starved.follows} by pack_padded_sequence, or read the state at each sequence's own end; "
                "else use shorter sequences.",
                (Action("pack_sequences", (starved.follows,)),),
            ),
            (Cause(CauseKind.UNROLLED_LOOP),),
        )
    return Explanation(
        f"The gradient is lost between {starved.layer} and {starved.follows}, in what isn't measured there.",
        Remedy(
            f"Look at what lies between {starved.layer} and {starved.follows}: long products, factors near 0, functions that are flat; "
            "add a skip connection around it.",
            (Action("trace_gradient", (starved.layer,)),),
        ),
        (Cause(CauseKind.UNKNOWN),),
    )


def starved_headline(starved: Starved) -> str:
    """Say what was seen."""
    return (
        f"{starved.layer}, the first layer, gets {number(starved.ratio)} of the gradient that others get (L2 norms), and "
        f"{starved.follows}, behind it, as much as they do"
    )
