"""When an optimizer steps, whoever calls it.

By its own hooks, where torch has given it some; by those of the optimizers that it holds, where a user steps one of them
(a SAM's two-step form) or it is none of torch's making (Lookahead, wrappers of training packages); else by a ``step`` of
ours around its own, for as long as a step is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.patches import Patch
from lightning_gradwatch.measure.trace.compiled import has_compiled_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.step import StepMeter

_DEEPEST = 3
"""Optimizers inside of optimizers: as many levels as packages stack (a trainer's wrapper, Lookahead, the one that steps)."""
_MOST = 32


class OptimizerSteps:
    """Hears of the steps of one optimizer until it is removed."""

    def __init__(
        self,
        optimizer: Optimizer,
        index: int,
        meter: StepMeter,
        *,
        before: Callable[[bool], None],
        after: Callable[[], None],
        told: bool = False,
        eager: bool = False,
        closes: bool = True,
    ) -> None:
        """Put it in place.

        Args:
            optimizer: The optimizer.
            index: Its place in the run's list.
            meter: Measures the step that is under way.
            before: Called when the gradients are there, and once more, with True, when there are more for the same weights.
            after: Called when the optimizer has stepped.
            told: Somebody else calls what `before` does, but for an optimizer whose step is compiled.
            eager: Run a compiled step eagerly.
            closes: Whether the gradients are made by the closure alone that a compiled step is given.
        """
        self._optimizer = optimizer
        self._index = index
        self._meter = meter
        self._before = before
        self._after = after
        self._told = told
        self._inside = 0
        self._handles: list[RemovableHandle | AroundStep | Patch] = []
        if has_compiled_step(optimizer):
            self._handles.append(
                AroundStep(optimizer, meter, eager=eager, before=self._measure, then=self._ended, closes=closes)
            )
            return
        inner = [each for each in inner_optimizers(optimizer) if _has_hooks(each) and not has_compiled_step(each)]
        self._waiting = set(map(id, inner))
        """Optimizers inside that haven't stepped yet."""
        self._by_inner = bool(inner) and not _has_hooks(optimizer)
        """Whether its own step may be left out, as wrappers do while they accumulate, and one inside tells."""
        if _has_hooks(optimizer):
            self._handles.append(optimizer.register_step_pre_hook(self._begins))
            self._handles.append(optimizer.register_step_post_hook(self._ends))
        elif hasattr(optimizer, "__dict__"):
            self._handles.append(_around(optimizer, self._begins, self._ends))
        for each in inner:
            self._handles.append(each.register_step_pre_hook(self._inner_begins))
            self._handles.append(each.register_step_post_hook(self._inner_ends))

    def remove(self) -> bool:
        """Take it away; whether nothing is left, as where others have put something over it."""
        self._handles = [handle for handle in self._handles if handle.remove() is False]
        return not self._handles

    def _begins(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        self._inside += 1
        with self._meter.harmless:
            return self._about_to_step(args, kwargs)
        return None

    def _ends(self, *_: Any) -> None:
        self._inside -= 1
        with self._meter.harmless:
            if not (self._by_inner and self._waiting):
                self._ended()

    def _inner_begins(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        with self._meter.harmless:
            return None if self._inside else self._about_to_step(args, kwargs)
        return None

    def _inner_ends(self, inner: Optimizer, *_: Any) -> None:
        self._waiting.discard(id(inner))
        with self._meter.harmless:
            if not self._inside and not self._waiting:
                self._ended()

    def _about_to_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Measure, or have a closure that makes the gradients measure when it has; its first argument is the optimizer."""
        if self._told:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None or (self._index in self._meter.steps and not self._meter.is_early(self._index)):
            self._measure()
            return None
        self._meter.remember_weights(self._optimizer, self._index)

        def measured_closure() -> Any:
            # The first call makes the gradients; a line search calls it again, elsewhere.
            loss = closure()
            with self._meter.harmless:
                self._measure()
            return loss

        return (args[0], measured_closure, *args[2:]), {
            name: each for name, each in kwargs.items() if name != "closure"
        }

    def _measure(self, again: bool = False) -> None:
        with self._meter.harmless:
            if again or self._index not in self._meter.steps or self._meter.is_early(self._index):
                self._before(again)
            else:
                self._meter.steps_again()

    def _ended(self) -> None:
        with self._meter.harmless:
            self._after()


def _around(
    optimizer: Optimizer,
    begins: Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], tuple[Any, Any] | None],
    ends: Callable[..., None],
) -> Patch:
    """Put a ``step`` of ours around that of an optimizer which has no hooks that torch would call."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            changed = begins(optimizer, (optimizer, *args), kwargs)
            (_, *args_now), kwargs_now = ((optimizer, *args), kwargs) if changed is None else changed
            result = original(*args_now, **kwargs_now)
            ends()
            return result

        return step

    return Patch(optimizer, "step", around)


def inner_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that one holds in its attributes, also in lists and dictionaries, and those that they hold."""
    found: dict[int, Optimizer] = {}
    level: list[Any] = [optimizer]
    for _ in range(_DEEPEST):
        inside = [each for one in level for each in _held(one) if each is not optimizer and id(each) not in found]
        level = list({id(each): each for each in inside}.values())
        found.update((id(each), each) for each in level)
    return list(found.values())[:_MOST]


def _held(optimizer: Any) -> Iterator[Optimizer]:
    for value in list(getattr(optimizer, "__dict__", {}).values()):
        if isinstance(value, Optimizer):
            yield value
        elif isinstance(value, (list, tuple, Mapping)) and len(value) <= _MOST:
            entries = value.values() if isinstance(value, Mapping) else value
            yield from (each for each in entries if isinstance(each, Optimizer))


def _has_hooks(optimizer: Optimizer) -> bool:
    """Whether torch calls the hooks of an optimizer's step: its class's was prepared for it when one was made."""
    return hasattr(optimizer, "_optimizer_step_post_hooks") and getattr(type(optimizer).step, "hooked", False) is True


def _nothing() -> None:
    pass


class AroundStep:
    """Stands around an optimizer's compiled step until it is removed, as hooks would be inside of it."""

    def __init__(
        self,
        optimizer: Optimizer,
        meter: StepMeter,
        *,
        eager: bool,
        before: Callable[[bool], None],
        then: Callable[[], None] = _nothing,
        closes: bool = True,
    ) -> None:
        """Put it in place.

        Args:
            optimizer: The optimizer.
            meter: Measures the step that is under way.
            eager: Run the optimizer's step eagerly.
            before: Called when the gradients are there, and once more, with True, when there are more for the same weights.
            then: Called when the optimizer has stepped; may be set later.
            closes: Whether the gradients are made by the closure alone that the step is given, and none are there before.
        """
        self.then = then

        def around(compiled: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                closure = args[0] if args else kwargs.get("closure")
                there = closure is None or not closes
                looking = meter.tracer.recording and not eager
                if looking:
                    meter.tracer.pause()
                if there:
                    before(False)
                losses = len(meter.losses)
                try:
                    with (
                        torch.compiler.set_stance("force_eager") if eager else nullcontext(),
                        nullcontext()
                        if closure is None
                        else AfterBackward(parameters_of(optimizer), before, meter.faults, again=there),
                    ):
                        result = compiled(*args, **kwargs)
                finally:
                    if looking:
                        meter.tracer.resume()
                if closure is not None and len(meter.losses) == losses:
                    meter.add_loss(result, late=True)
                self.then()
                return result

            return step

        self._patch = Patch(optimizer, "step", around)

    def remove(self) -> bool:
        """Put the optimizer's own step back; whether nothing is left, as where others have put something over it."""
        return self._patch.remove()


class AfterBackward:
    """While it is entered, calls a function when a backward pass has left gradients; again for more of the same weights.

    It hears of them from the autograd engine: where the call of the backward pass is compiled, nothing in there changes.
    """

    def __init__(
        self, parameters: Iterable[Tensor], call: Callable[[bool], None], faults: Faults, *, again: bool
    ) -> None:
        """Take in what to watch.

        Args:
            parameters: Those whose gradients are meant.
            call: What to call; it's told whether it is called again.
            faults: Where faults of ours are told.
            again: Whether it was called before.
        """
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._versions: list[int] = []
        self._call = call
        self._faults = faults
        self._again = again
        self._waiting = False
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        hear = torch.compiler.disable(self._hear)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with self._faults.guard("gradients"):
            for parameter in self._parameters:
                self._handles.append(parameter.register_post_accumulate_grad_hook(hear))  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hear(self, _: Tensor) -> None:
        if not self._waiting:
            self._waiting = True
            with self._faults.guard("gradients"):
                _at_the_end(self._ended)

    def _ended(self) -> None:
        self._waiting = False
        with self._faults.guard("gradients"):
            _at_the_end(self._tell)  # behind what puts the gradients of several processes together at this point

    def _tell(self) -> None:
        with self._faults.guard("gradients"):
            versions = [parameter._version for parameter in self._parameters]  # noqa: SLF001 - documented, without a public name
            if self._versions in ([], versions):  # a line search makes gradients of other weights
                self._call(self._again)
                self._again, self._versions = True, versions


def _at_the_end(call: Callable[[], None]) -> None:
    """Have a function called when the backward pass that is under way ends, which the compiler leaves alone."""
    opaque = torch.compiler.disable(call)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.autograd.Variable._execution_engine.queue_callback(opaque)  # noqa: SLF001 - as torch's own data parallelism does
