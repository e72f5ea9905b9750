"""What one measured step and one run hold: plain numpy, so that rules and readers never need torch.

Layers and sites stand along the data's path through the net, and may become more in mid-run: one that is thawed, or no longer
skipped, takes its place between others. So a record names its column lists by a hash, its *layout*, and columns of different
layouts are matched by name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.record.activations import Activation, look_up
from lightning_gradwatch.record.stored_function import StoredFunction

FloatVector: TypeAlias = npt.NDArray[np.float64]
Role: TypeAlias = Literal["hidden", "gate", "output"]

SCHEMA_VERSION = 1

PARAMETRIZED = re.compile(r"(?:^|\.)parametrizations\.[^.]+$")
"""What torch puts behind the name of a module for what one of its parametrized weights is made of."""


class LayerState(IntEnum):
    """What the gradient of a layer was in one measured step; decided by its entries, never by a norm."""

    UNMEASURED = 0
    """Not looked at: no optimizer that holds the layer stepped."""
    OK = 1
    NONE = 2
    """Trainable, held by an optimizer that stepped, and no parameter of the layer has a gradient."""
    ZERO = 3
    """There are gradients, and every entry is exactly zero."""
    FROZEN = 4
    NON_FINITE = 5
    UNUSED = 6
    """No gradient, as this step's forward pass left out a layer that it used before (an expert without tokens)."""


LostKind: TypeAlias = Literal[
    "discarded",
    "zero-input",
    "left-out",
    "escaped",
    "cut",
    "softmax-of-one",
    "softmax-certain",
    "norm-of-one",
    "times-zero",
    "zero-factor",
    "zero-factors",
    "zero-weights",
    "inactive",
    "clamped",
    "rounded",
    "dropped",
    "masked",
    "few",
    "other",
]
"""What keeps a gradient from a layer.

- *discarded*: it arrived at the parameters, and was None or 0 when the optimizer stepped.
- *zero-input*: it arrives at what the layer makes, and the layer is given zeros.
- *left-out*, *escaped*: no loss depends on what it makes, whose values were read by Python's own code, or not even that.
- *cut*: the loss depends on it, and its autograd graph doesn't: an operation stands between.
- *few*: an operation passes nothing but 0 back to it, and was given so few values that this may be chance.
- *zero-factors*: a product is of parameters that are all 0, or of what those have made 0, and that all learn.
- the others: an operation passes nothing but 0 back to it.
"""


@dataclass(frozen=True)
class LostGradient:
    """Where a gradient is lost on its way to a layer, as a step showed that was followed call by call."""

    kind: LostKind
    operation: str = ""
    """Name of the torch function; ``no_grad`` for the context."""
    module: str = ""
    """Fully qualified name of the module that calls it, ``""`` for the root; of *zero-weights*, the layer whose they are."""
    lines: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Where that is written, such as ``training_step (model.py:31)``; none where it isn't the user's, or isn't known. Of *cut*,
    where several calls cut the ways to a loss, a few of them."""
    factors: tuple[str, ...] = ()
    """Of *zero-factors*, the parameters: all but the last of them are to be given other values."""

    @property
    def told(self) -> tuple[Any, ...]:
        """What the layout is told by."""
        own = self.kind, self.operation, self.module
        return (*own, self.factors) if self.factors else own


WiringKind: TypeAlias = Literal[
    "output-twice",
    "log-of-output",
    "stale-gradient",
    "unregistered",
    "unheld",
    "unheld-initial",
    "norm-of-one",
    "norm-of-sample",
    "evaluation-mode",
    "zero-factors",
    "zero-factors-kept",
]
"""What is wrong in how a net, its loss and its optimizer are put together.

- *output-twice*: the loss applies softmax or sigmoid itself, and is given what one of them has put out.
- *log-of-output*: ``log`` is taken of what a softmax or sigmoid has put out, and not of its argument.
- *stale-gradient*: an optimizer steps by gradients to which those of its step before were added.
- *unregistered*: parameters that the loss depends on are held by a plain attribute, and so are none of the model's.
- *unheld*: parameters of the model get a gradient, and no optimizer holds them.
- *unheld-initial*: layers of those that lie before one that is trained, are in training mode, and stay as they were initialised.
- *norm-of-one*: a normalisation over a single value.
- *norm-of-sample*: a batch normalisation whose batch is one sample, over that one's positions.
- *evaluation-mode*: a module was left in evaluation mode, and what lies around it is trained.
- *zero-factors*: parameters that are multiplied with others, are all exactly 0, and all learn; beside them, a gradient arrives at their
  layer. Those that are to be initialised; *zero-factors-kept* are the others.
"""


@dataclass(frozen=True)
class Wiring:
    """One thing that the first measured steps showed to be wired wrongly, or oddly."""

    kind: WiringKind
    names: tuple[str, ...]
    """What it is about: an activation site, layers, modules, or, of *unregistered*, attributes that hold modules or parameters."""
    operation: str = ""
    """Name of the torch function that shows it, or of the kind of module."""
    line: str = dataclasses.field(default="", compare=False)
    """Where that is called, such as ``forward (model.py:31)``, or the function that makes the module; empty where it isn't the
    user's, or isn't known."""
    value: float | None = dataclasses.field(default=None, compare=False)
    """Of *stale-gradient*, the norm of what was left over that of what was added to it; of the norms, how many values go in."""
    origin: str = dataclasses.field(default="", compare=False)
    """Where the first of the sites is called; empty where a module is, or it isn't known."""

    @property
    def told(self) -> tuple[Any, ...]:
        """What the layout is told by."""
        return self.kind, self.names, self.operation


TURNED_KIND = "Conv1D"
"""The linear layer of transformers whose matrix has a column, not a row, for each output."""


NOT_TOLD = -1
"""Of `LayerInfo.inputs`: the shape of the parameter doesn't tell, as of a transposed convolution."""


def usual_inputs(kind: str, shape: Sequence[int]) -> int:
    """Return how many inputs an output of a matrix adds up, by the kind of its layer.

    >>> usual_inputs("Linear", (12, 5)), usual_inputs("Conv1D", (5, 12)), usual_inputs("Conv2d", (12, 5, 3, 3))
    (5, 5, 45)
    """
    if kind == TURNED_KIND:
        return math.prod(shape[:-1])
    # A bare parameter may be a table of positions or a mixing matrix: what is added up is its last axis.
    return shape[-1] if kind == "Parameter" else math.prod(shape[1:])


@dataclass(frozen=True)
class LayerInfo:
    """One column of a layer metric."""

    name: str
    kind: str
    """Class name of the module that owns the parameters, such as ``Linear``; ``Parameter`` for one the root owns."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the trainable parameters that the layer owns directly, in registration order."""
    parameters: int
    """Number of trainable entries."""
    weight: bool
    """Whether it is a weight layer: a parameter of two or more dimensions, not an embedding, not a norm."""
    used: bool | None = True
    """Whether the forward pass was seen to use it; None where the forward pass can't be seen (compiled)."""
    lost: LostGradient | None = None
    """Where its gradient is lost; None where it has one, and where that didn't show."""
    feeds: str = ""
    """The first site on the path that its output reaches through no other; empty where it reaches none, or none is known."""
    place: int | None = None
    """How many layers were known when it first was, which its curves are numbered by; None: as many as its column says."""
    inputs: tuple[int, ...] = ()
    """How many inputs an output of each parameter adds up, where a product with data showed that, and it isn't what the layer's
    kind has: 0 where it wasn't shown or is none, `NOT_TOLD` where that can't tell; empty where none is."""

    @property
    def told(self) -> tuple[Any, ...]:
        """All of it, as the layout is told by."""
        own = (self.name, self.kind, self.shapes, self.parameters, self.weight, self.used)
        lost = () if self.lost is None else (self.lost.told,)
        own = (*own, *lost, self.inputs) if self.inputs else (*own, *lost)
        return own if not self.feeds and self.place is None else (*own, self.feeds, self.place)

    @property
    def holder(self) -> str:
        """Name of the module whose weight it is: of a parametrized one the module itself; ``""`` for the root.

        >>> LayerInfo("net.0.parametrizations.weight", "Linear", ((16, 1), (16, 8)), 144, weight=True).holder
        'net.0'
        """
        return PARAMETRIZED.sub("", self.name)

    @property
    def fan_in(self) -> float:
        """How many inputs a unit adds up, over the layer's matrices in proportion to their entries; NaN where unknown.

        >>> LayerInfo("net.0", "Conv2d", ((16, 8, 3, 3), (16,)), 1168, weight=True).fan_in
        72.0
        """
        if self.kind.startswith("ConvTranspose"):
            return math.nan  # its stride decides
        units = entries = 0.0
        for shape, shown in self._matrices:
            if shown == NOT_TOLD:
                return math.nan
            inputs = shown or usual_inputs(self.kind, shape)
            units += math.prod(shape) / max(inputs, 1)
            entries += math.prod(shape)
        return entries / units if units else math.nan

    @property
    def _matrices(self) -> list[tuple[tuple[int, ...], int]]:
        """The shapes of two or more dimensions, but for the lengths that weight normalisation holds apart, [n, 1, …]; with their `inputs`."""
        inputs = self.inputs or (0,) * len(self.shapes)
        matrices = [each for each in zip(self.shapes, inputs, strict=True) if len(each[0]) > 1]
        if self.kind.startswith(("LSTM", "GRU", "RNN")):  # one that is given a single feature has such a matrix
            return matrices
        return [each for each in matrices if math.prod(each[0][1:]) > 1] or matrices


@dataclass(frozen=True)
class SiteInfo:
    """One column of a site metric."""

    name: str
    function: str
    """Name of the activation function, such as ``relu`` (a row of the table of activation functions)."""
    role: Role
    units: int
    """Number of units (size of the unit axis); 0 for a function without unit fractions (softmax)."""
    predecessors: tuple[str, ...] = ()
    """Sites whose outputs reached this one's argument through no other site in any measured step, as the autograd graph
    had it; in the order of the columns. An unrolled loop is among its own."""
    past_unseen: tuple[str, ...] = ()
    """Where an activation function that isn't seen, or has no signal, lies between: the sites on the other side of it."""
    place: int | None = None
    """How many sites were known when it first was, which its curves are numbered by; None: as many as its column says."""
    own_function: StoredFunction | None = None
    """What was registered of the function when it was measured; None for one of torch's."""

    @cached_property
    def activation(self) -> Activation:
        """The row of its function in the table of activation functions: what the run was measured by."""
        return look_up(self.function) if self.own_function is None else self.own_function.row(self.function)

    @property
    def told(self) -> tuple[Any, ...]:
        """All of it, as the layout is told by."""
        own: tuple[Any, ...] = (self.name, self.function, self.role, self.units, self.predecessors)
        own = own if self.place is None and not self.past_unseen else (*own, self.past_unseen, self.place)
        return own if self.own_function is None else (*own, dataclasses.astuple(self.own_function))


@dataclass(frozen=True)
class NotCovered:
    """One thing that isn't measured, and why."""

    name: str
    """Fully qualified name of the module, layer or site; ``""`` for the whole run."""
    reason: str
    sites: int = 0
    """Known activation sites that aren't seen because of it."""


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer of the run and the settings that the rules ask about."""

    name: str
    """Class name, such as ``Adam``."""
    settings: Mapping[str, Any]
    """Plain numbers, strings and booleans of its ``defaults`` (learning rate, eps, momentum, …)."""
    layers: tuple[str, ...] = ()
    """Names of the layers whose parameters it holds."""
    rates: tuple[float, ...] = ()
    """Learning rate of each of `layers` over the optimizer's largest one, when the run was described; empty: all alike."""
    decays: tuple[float, ...] = ()
    """Weight decay of the matrices of each of `layers`, when the run was described; empty: as in `settings`."""


@dataclass(frozen=True, eq=False)
class StepRecord:
    """One measured step: every number that the rules and the dashboard see.

    Vectors over layers have length L, over sites length S, of the `RunInfo` with the same `layout`.
    NaN is "not measured" in each of them.
    """

    step: int
    """The logger's step, counted from 0: how many batches had stepped before."""
    layout: str
    metrics: Mapping[str, FloatVector]
    """By metric name; a metric that isn't there was measured for no column."""
    layer_state: npt.NDArray[np.uint8]
    """`LayerState` codes, shape [L]."""
    window_fill: FloatVector
    """How full each site's window is, 0 to 1, shape [S]."""
    forward_rms: FloatVector
    """rms of each site's output in this step, shape [S], rounded to float32; infinite where it holds NaN or infinity."""
    loop_calls: FloatVector = field(default_factory=lambda: np.empty(0))
    """How many calls of each site followed each other, as the turns of a loop over a sequence do: the mean over a step's
    sequences, shape [S], or [0] where none did; NaN for a site of which none did."""
    loop_attenuation: FloatVector = field(default_factory=lambda: np.empty(0))
    """‖δ‖ at the first of these calls over that at the last, each the root of the sum of squares over the sequences, in the
    same shape."""
    batch_idx: int = 0
    optimizers: tuple[int, ...] = (0,)
    """Indices of the optimizers that stepped."""
    loss: float = float("nan")
    learning_rates: tuple[float, ...] = ()
    """Largest learning rate over the parameter groups of each of the run's optimizers."""
    optimizer_losses: tuple[float, ...] = ()
    """What each of the run's optimizers stepped for, where there are several: the losses that were propagated back since another
    one had stepped. NaN where it didn't step; all of them where those of several were propagated back before the first stepped."""
    gradient_scale: float = 1.0
    skipped: bool = False
    """The gradient scaler left the optimizer step out (inf or NaN in scaled gradients)."""
    partial: bool = False
    """The last, shorter window of accumulation: fewer micro-batches than the loss was divided by."""
    clip_factor: float = float("nan")
    """Global norm after clipping over before; NaN where nothing was clipped or it isn't known."""
    global_grad_norm: float = float("nan")
    world_size: int = 1
    constant_answer: tuple[float, ...] = ()
    """In the first measured steps, where it is known: the loss that one constant answer would have had in this step; rms of
    the outputs that the loss was given; mean and standard deviation of the targets. NaN where not known, or where the
    targets are classes."""

    def values(self, metric: str, length: int) -> FloatVector:
        """Return a metric as float64[length], NaN where this record has no column yet; not to be changed in place."""
        vector = self.metrics.get(metric)
        if vector is not None and len(vector) == length and vector.dtype == np.float64:
            return vector
        found = np.full(length, np.nan)
        if vector is not None:
            found[: len(vector)] = vector[:length]
        return found
