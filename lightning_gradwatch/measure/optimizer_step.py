"""When an optimizer steps, whoever calls it.

By its own hooks, where torch has given it some; by those of the optimizers that it holds, where a user steps one of them
(a SAM's two-step form) or it is none of torch's making (Lookahead, wrappers of training packages); else by a ``step`` of
ours around its own, for as long as a step is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from lightning_gradwatch.measure.patches import Patch
from lightning_gradwatch.measure.trace.compiled import AroundStep, has_compiled_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle

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
