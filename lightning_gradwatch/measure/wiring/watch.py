"""Watches the wiring of a run in its first measured steps, and is free afterwards."""

from __future__ import annotations

import math
import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from typing_extensions import override

from lightning_gradwatch.measure.model.call_site import line_of_function
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.wiring.calls import Calls
from lightning_gradwatch.measure.wiring.constant import ConstantAnswers
from lightning_gradwatch.measure.wiring.facts import Facts
from lightning_gradwatch.measure.wiring.parameters import InitialValues, holders, loose_leaves, unheld
from lightning_gradwatch.measure.wiring.stale import StaleGradients

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.model.call_site import ModuleNames
    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.trace.tensor_state import TensorStates
    from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot, Values
    from lightning_gradwatch.record.step import LostGradient, Wiring

FIRST_STEPS = 4
"""Measured steps that are watched. Gradients that weren't emptied show in the second of two that follow each other."""


class Unwatched:
    """A step whose wiring isn't looked at."""

    watches = False

    def see(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at a torch call of the forward pass that is about to run."""

    def made(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Look at a torch call of the forward pass that has run."""

    def takes_loss(self, loss: Tensor, scale: Tensor | None) -> None:
        """Take that a loss, which is multiplied by a scale, counts for the step."""

    def backward_begins(self, loss: Any) -> None:
        """Look at the gradients that are there, and at what a loss depends on."""

    def steps(self, optimizer: Optimizer, index: int) -> None:
        """Take that an optimizer is about to step."""

    def stepped(self, optimizer: Optimizer, index: int) -> None:
        """Take that an optimizer has stepped."""

    def end(self) -> None:
        """Look at what has a gradient when the step ends."""

    def read(self, values: Values, *, scaled: bool, factors: Sequence[LostGradient] = ()) -> bool:  # noqa: ARG002 - there is nothing in it
        """Take what the device has counted; return whether that shows something new.

        Args:
            values: What was transferred.
            scaled: Whether a scaler has part in the gradients, so that what was left and what is new aren't comparable.
            factors: Products of parameters that are all 0, whose layers get a gradient all the same.
        """
        return False

    def answer(self, values: Values) -> tuple[float, ...]:  # noqa: ARG002 - there is nothing in it
        """Return what the step's losses would be of a constant answer, and from what, as `StepRecord.constant_answer`."""
        return ()

    def described(self) -> tuple[Wiring, ...]:
        """Return what is known so far."""
        return ()


class WiringWatch:
    """The watch of a run."""

    def __init__(self, model: nn.Module, layers: Layers, names: ModuleNames, faults: Faults) -> None:
        self.facts = Facts()
        self.model = model
        self.layers = layers
        self.faults = faults
        self.stale = StaleGradients()
        self.initial = InitialValues()
        self._names = names
        self._steps = 0

    def begin(self, pack: HostTransfer, tags: TensorStates, optimizers: Callable[[], Sequence[Optimizer]]) -> Unwatched:
        """Begin a step, whose numbers go into `pack`; one that isn't watched once enough were."""
        if self._steps >= FIRST_STEPS:
            return Unwatched()
        self._steps += 1
        compares = self._steps in (1, FIRST_STEPS)
        return StepWiring(self, Calls(self.model, self.facts, tags, self._names), pack, optimizers, compares=compares)


_Method = TypeVar("_Method", bound="Callable[..., Any]")


def _harmless(method: _Method) -> _Method:
    """Make a method one that raises nothing, and does nothing more once it would have."""

    @wraps(method)
    def called(self: StepWiring, *args: Any, **kwargs: Any) -> Any:
        if self.faults.on("wiring"):
            with self.faults.guard("wiring"):
                return method(self, *args, **kwargs)
        return None

    return cast("_Method", called)


class StepWiring(Unwatched):
    """One measured step."""

    watches = True

    def __init__(
        self,
        watch: WiringWatch,
        calls: Calls,
        pack: HostTransfer,
        optimizers: Callable[[], Sequence[Optimizer]],
        *,
        compares: bool,
    ) -> None:
        self.faults = watch.faults
        self._watch = watch
        self._facts = watch.facts
        self._calls = calls
        self._stale = watch.stale.begin(pack)
        self._optimizers = optimizers
        self._looked_at: weakref.ref[Tensor] | None = None
        """The loss whose graph was walked last."""
        self._pack = pack
        self._shadows = ConstantAnswers()
        self._answers: list[Slot] | None = []
        """Of each loss; None where one has none that is known."""
        self._sources: list[Slot] = []
        self._compares = compares
        """Whether it is one of the two steps between which layers that no optimizer holds are compared."""
        self._unmoved: list[tuple[Layer, Slot]] = []

    @override
    @_harmless
    def see(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._calls.see(func, args, kwargs)

    @override
    @_harmless
    def made(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self._shadows.made(func, args, kwargs, result)

    @override
    @_harmless
    def takes_loss(self, loss: Tensor, scale: Tensor | None) -> None:
        answer = self._shadows.of(loss)
        if answer is None or self._answers is None:
            self._answers = None
            return
        self._answers.append(self._pack.add(answer.loss if scale is None else answer.loss / scale))
        if answer.source is not None and not self._sources:
            nothing = torch.full_like(answer.loss, math.nan)
            self._sources = [self._pack.add(nothing if each is None else each) for each in answer.source]

    @override
    @_harmless
    def backward_begins(self, loss: Any) -> None:
        self._stale.backward_begins()
        if isinstance(loss, Tensor):
            if self._looked_at is not None and self._looked_at() is loss:
                return  # the loop has told of this pass, and its torch call is seen as well
            self._looked_at = weakref.ref(loss)
        loose = loose_leaves(self._watch.model, loss, self._optimizers())
        for name, entries, line in holders(self._watch.model, loose) if loose else ():
            self._facts.note("unregistered", name, value=entries, line=line)

    @override
    @_harmless
    def steps(self, optimizer: Optimizer, index: int) -> None:
        self._stale.steps(optimizer, index)

    @override
    @_harmless
    def stepped(self, optimizer: Optimizer, index: int) -> None:
        self._stale.stepped(optimizer, index)

    @override
    @_harmless
    def end(self) -> None:
        self._shadows.clear()
        optimizers = self._optimizers()
        layers = list(unheld(self._watch.layers, optimizers))
        for layer in layers:
            self._facts.note("unheld", layer.name)
        if layers and self._compares:
            watch = self._watch
            self._unmoved = watch.initial.look(layers, watch.layers, watch.model, optimizers, self._pack)

    @override
    def read(self, values: Values, *, scaled: bool, factors: Sequence[LostGradient] = ()) -> bool:
        before = self._facts.changes
        self._read(values, scaled=scaled)
        self._note_factors(factors)
        return self._facts.changes != before

    @override
    def answer(self, values: Values) -> tuple[float, ...]:
        return self._answer(values) or ()

    @_harmless
    def _answer(self, values: Values) -> tuple[float, ...]:
        if not self._answers:
            return ()
        loss = math.fsum(float(values[slot][0]) for slot in self._answers)
        sources = [float(values[slot][0]) for slot in self._sources] or [math.nan] * 3
        return (loss, *sources) if 0 < loss < math.inf else ()

    @_harmless
    def _read(self, values: Values, *, scaled: bool) -> None:
        for name in self._watch.initial.read(self._unmoved, values):
            self._facts.note("unheld-initial", name)
        for optimizer, share, line in self._stale.read(values):
            where = line or line_of_function(getattr(type(self._watch.model), "optimizer_zero_grad", None))
            owners = map(self._watch.layers.owner, parameters_of(optimizer))
            for name in dict.fromkeys(owner.name for owner in owners if owner is not None):
                self._facts.note(
                    "stale-gradient",
                    name,
                    operation=type(optimizer).__name__,
                    line=where,
                    value=None if scaled else share,
                )

    @_harmless
    def _note_factors(self, factors: Sequence[LostGradient]) -> None:
        for place in factors:
            line = place.lines[0] if place.lines else ""
            for name in place.factors[:-1]:
                self._facts.note("zero-factors", name, operation=place.operation, line=line)
            self._facts.note("zero-factors-kept", place.factors[-1], operation=place.operation, line=line)

    @override
    def described(self) -> tuple[Wiring, ...]:
        return self._facts.described()
