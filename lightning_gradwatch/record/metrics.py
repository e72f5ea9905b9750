"""The metrics of a measured step, a row each: over what, how it follows from the step's sums, what it says, how it is shown.

Whatever writes, reads, draws or compares metrics goes through this table, so a metric that is added to it is in the record,
in the event, in a run that is read, in a comparison, and the same on one rank and on many. What is measured are sums
(`OfLayer`, `OfSite`), which add up over calls, micro-batches and ranks; a metric is decided once, from those of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from lightning_gradwatch.record.step import FloatVector

Over: TypeAlias = Literal["layers", "sites"]
Part: TypeAlias = Literal["", "gradients", "updates"]

_NAN = float("nan")


class OfLayer(IntEnum):
    """What is summed up for a layer: the columns of its sums.

    Each is a number, with whether it is a norm (which adds up as its square) and the part of the measuring that it takes.
    """

    is_norm: bool
    part: Part

    def __new__(cls, column: int, is_norm: bool = False, part: Part = "") -> Self:
        """Make a member of a row."""
        member = int.__new__(cls, column)
        member._value_ = column
        member.is_norm, member.part = is_norm, part
        return member

    GRADIENT = 0, True, "gradients"
    """Of the gradients of all its parameters."""
    MATRICES = 1, True, "gradients"
    """Of the gradients of those of two or more dimensions."""
    WEIGHT = 2, True, "updates"
    UPDATE = 3, True, "updates"
    """How far the step moved them; NaN where it wasn't taken."""
    MATRIX_ENTRIES = 4, False, "gradients"
    """Entries of the gradients in MATRICES."""
    WEIGHT_ENTRIES = 5, False, "updates"
    """Entries of the weights that are compared."""
    GRADIENTS = 6, False, "gradients"
    """Parameters that have a gradient."""
    NONZERO = 7
    """Parameters whose gradient has an entry that isn't 0."""
    HELD = 8, False, "gradients"
    """Parameters in an optimizer that stepped."""
    TRAINED = 9
    """Whether something of it is being trained."""
    USED = 10
    """Whether the forward pass of this step used it."""
    KNOWN = 11
    """Whether that of any measured step so far did."""


class OfSite(IntEnum):
    """What is summed up for a site: the columns of its sums.

    Each is a number, with whether it is a norm (which adds up as its square), and whether it adds up over ranks that share
    the work on one part of the data and have different units of it.
    """

    is_norm: bool
    adds_up: bool

    def __new__(cls, column: int, is_norm: bool = False, adds_up: bool = False) -> Self:
        """Make a member of a row."""
        member = int.__new__(cls, column)
        member._value_ = column
        member.is_norm, member.adds_up = is_norm, adds_up
        return member

    OUTPUT = 0, True, True
    SIGNAL = 1, True, True
    """δ, still multiplied by the gradient scale."""
    GRAD_OUTPUT = 2, True, True
    """dL/da, in the same way."""
    FIRST_CALL = 3, True, True
    """δ of the first call of a chain of several that follow each other, as the turns of a loop do."""
    LAST_CALL = 4, True, True
    OUTPUT_ENTRIES = 5, False, True
    INACTIVE_OR_SATURATED = 6, False, True
    """Observations that are the one or the other, summed over the units."""
    SIGNALS = 7
    """Whether there is a signal."""
    GRAD_OUTPUTS = 8
    """Whether there is dL/da."""
    INCOMPLETE = 9, False, True
    """Whether a call's δ or dL/da couldn't be had."""
    SEEN = 10
    """Whether the site was called."""
    CALLS = 11
    """Calls in such chains."""
    LOOPS = 12
    """How many chains those are."""
    NOT_COMBINABLE = 13, False, True
    """Whether the numbers of several processes can't be put together."""


@dataclass
class StepSums:
    """What the metrics of one step follow from: sums over its calls, micro-batches and ranks, and the units' windows."""

    layers: npt.NDArray[np.float64]
    """Shape [len(OfLayer), L]."""
    sites: npt.NDArray[np.float64]
    """Shape [len(OfSite), S]."""
    observations: FloatVector
    """Of all units of a site in this step; NaN for one without counts, shape [S]."""
    dead: FloatVector
    """Share of the units that were inactive in all of their window, shape [S]."""
    saturated: FloatVector
    """Share of those that were saturated in nearly all of it, shape [S]."""
    starts: npt.NDArray[np.intp]
    """The column of the site at which the segment of a site's weight gain starts; -1 without one, shape [S]."""
    scale: float
    """What the loss was multiplied by."""
    signal: FloatVector = field(init=False)
    """‖δ‖ of each site, times the scale; NaN where that of some call is missing."""
    grad_output: FloatVector = field(init=False)
    """‖dL/da‖ of each site, in the same way."""

    def __post_init__(self) -> None:
        whole = self.sites[OfSite.INCOMPLETE] == 0
        self.signal, self.grad_output = (
            np.where(whole & (self.sites[is_there] > 0), self.sites[norm], _NAN)
            for norm, is_there in ((OfSite.SIGNAL, OfSite.SIGNALS), (OfSite.GRAD_OUTPUT, OfSite.GRAD_OUTPUTS))
        )


Worse: TypeAlias = Literal["lower", "higher", "both", "farther"]
"""Which way a number gets worse; *farther* from 1, either way."""


class Compared(NamedTuple):
    """How a metric is held against a baseline's."""

    worse: Worse
    relative_to: Literal["", "largest", "last"] = ""
    """What each number is divided by first: the largest of its own step, or that of the last column on the path."""


@dataclass(frozen=True)
class Metric:
    """One number a layer or site and step; NaN is "not measured"."""

    name: str
    title: str
    """What it is called in a heading."""
    over: Over
    follows: Callable[[StepSums], FloatVector]
    """Computes it from the step's sums, a number a column."""
    description: str
    """What it is, in a sentence."""
    is_fraction: bool = False
    """Whether it is a share, from 0 to 1; else it spans decades, and is drawn and compared as a logarithm."""
    is_curve: bool = False
    """Whether small nets get a curve a layer, or site, of it."""
    compared: Compared | None = None
    """How two runs are compared by it; None: not at all."""


def ratio(part: FloatVector, whole: FloatVector) -> FloatVector:
    """Divide; NaN where the divisor isn't above 0."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinite norms give NaN, and are told by the layers' state
        quotient: FloatVector = np.divide(part, whole, out=np.full(len(whole), _NAN), where=whole > 0)
    return quotient


def _weight_gain(sums: StepSums) -> FloatVector:
    if not len(sums.starts):
        return np.empty(0)
    # The gradient scale, which is in both norms of a ratio, isn't in a gain.
    return ratio(np.where(sums.starts >= 0, sums.grad_output[sums.starts], _NAN), sums.signal)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "grad_norm",
            "gradient norm",
            "layers",
            lambda sums: np.where(sums.layers[OfLayer.GRADIENTS] > 0, sums.layers[OfLayer.GRADIENT], _NAN),
            "L2 norm of the gradient of all parameters of the layer, unscaled and before clipping.",
            is_curve=True,
            compared=Compared("lower", "largest"),
        ),
        Metric(
            "grad_rms",
            "gradient rms",
            "layers",
            lambda sums: ratio(sums.layers[OfLayer.MATRICES], np.sqrt(sums.layers[OfLayer.MATRIX_ENTRIES])),
            "Root mean square of the gradient's entries, over the layer's parameters of two or more dimensions.",
        ),
        Metric(
            "weight_rms",
            "weight rms",
            "layers",
            lambda sums: ratio(sums.layers[OfLayer.WEIGHT], np.sqrt(sums.layers[OfLayer.WEIGHT_ENTRIES])),
            "Root mean square of the weights before the step.",
        ),
        Metric(
            "update_ratio",
            "update ratio",
            "layers",
            lambda sums: ratio(sums.layers[OfLayer.UPDATE], sums.layers[OfLayer.WEIGHT]),
            "rms(update) / rms(weight): the share of itself by which the step changed the layer.",
            compared=Compared("both"),
        ),
        Metric(
            "dead_fraction",
            "dead units",
            "sites",
            lambda sums: sums.dead,
            "Share of units that were inactive in every observation of the window.",
            is_fraction=True,
            is_curve=True,
            compared=Compared("higher"),
        ),
        Metric(
            "saturated_fraction",
            "saturated units",
            "sites",
            lambda sums: sums.saturated,
            "Share of units that were saturated in at least 95 % of the window's observations.",
            is_fraction=True,
            is_curve=True,
            compared=Compared("higher"),
        ),
        Metric(
            "inactive_share",
            "inactive observations",
            "sites",
            lambda sums: ratio(sums.sites[OfSite.INACTIVE_OR_SATURATED], sums.observations),
            "Share of this step's observations that were inactive or saturated, over all units.",
            is_fraction=True,
        ),
        Metric(
            "signal_norm",
            "signal",
            "sites",
            lambda sums: sums.signal / sums.scale,
            "L2 norm of dL/dz, the gradient of the loss at the activation function's input.",
            compared=Compared("farther", "last"),
        ),
        Metric(
            "activation_gain",
            "activation gain",
            "sites",
            lambda sums: ratio(sums.signal, sums.grad_output),
            "Share of the gradient that the activation function passes back.",
        ),
        Metric(
            "weight_gain",
            "weight gain",
            "sites",
            _weight_gain,
            "Share of the gradient that what lies between the site before and this one passes back.",
        ),
    )
}
"""By name, in the order in which records hold them: those over layers first."""


def over(what: Over) -> Iterator[str]:
    """Yield the names of the metrics over layers, or over sites."""
    return (metric.name for metric in METRICS.values() if metric.over == what)


class RecordVector(NamedTuple):
    """A vector that every record holds beside its metrics."""

    over: Over
    is_optional: bool = False
    """Whether it may have no entries at all."""
    is_code: bool = False
    """Whether it holds a code a column (uint8), and no numbers."""


RECORD_VECTORS: dict[str, RecordVector] = {
    "layer_state": RecordVector("layers", is_code=True),
    "window_fill": RecordVector("sites"),
    "forward_rms": RecordVector("sites"),
    "loop_calls": RecordVector("sites", is_optional=True),
    "loop_attenuation": RecordVector("sites", is_optional=True),
}
"""By the name of its field (`StepRecord`)."""


def is_over_layers(vector: str) -> bool:
    """Whether a metric, or another vector of a record, has a number a layer, and not one a site."""
    found = METRICS.get(vector) or RECORD_VECTORS[vector]
    return found.over == "layers"
