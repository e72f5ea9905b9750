"""Modules for whose call the tracer steps aside, since its mere presence would change what they do.

Torch's attention modules leave their fused inference path where a function mode is active: a frozen encoder in evaluation
mode would compute the same numbers in another order, and so train another net than without us. A compiled module would
be compiled again, mode and all. A hook on such a module changes it too.

So for one forward pass the function that its call ends in is replaced by one that takes the mode off the stack meanwhile.
Of the attention modules that is their class's, which any instance calls with itself: what is put on an instance goes with
each copy that is made of it in that pass, and there still belongs to the original. Compiled modules leave what stands for
their compiled code out of their copies.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import update_wrapper
from threading import RLock
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.patches import Patch
from lightning_gradwatch.measure.trace.compiled import is_compiled, is_compiled_class
from lightning_gradwatch.measure.trace.own_functions import not_watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_gradwatch.measure.trace.tracer import Tracer

_MISSING = object()
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def find_opaque(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that are of a kind which `tracing_suspended_for` is for."""
    found: list[nn.Module] = []
    waiting = [model]  # not `model.modules()`, which makes a name for each: this runs in every measured step
    seen = {id(model)}
    kinds: dict[type, bool] = {}  # a deep net has hundreds of modules of a few classes
    for module in waiting:
        kind = type(module)
        needs = kinds.get(kind)
        if needs is None:
            needs = kinds[kind] = issubclass(kind, _FUSED) or is_compiled_class(kind)
        if needs or module.__dict__.get("_compiled_call_impl") is not None:
            found.append(module)
        if children := module._modules:  # noqa: SLF001 - what `modules()` goes through
            for _, child in children.items():  # noqa: PERF102 - a scripted module's have no `values`
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    waiting.append(child)
    return found


@contextmanager
def tracing_suspended_for(
    modules: Sequence[nn.Module], tracer: Tracer, *, eager: bool, untrained: Callable[[nn.Module], None]
) -> Iterator[None]:
    """Step aside for those of the modules that need it while the block runs.

    Args:
        modules: The modules that may need it.
        tracer: What steps aside.
        eager: Compiled modules run eagerly in this block, so they need no space.
        untrained: Called with a module that is about to run unseen, as nothing of it is trained.
    """
    with ExitStack() as placed:
        for module in modules:
            if is_compiled(module) and not eager:
                optimized = type(module).__name__ == "OptimizedModule"
                placed.callback(_replace(module, "forward" if optimized else "_compiled_call_impl", tracer).remove)
        for kind in {type(module): None for module in modules if isinstance(module, _FUSED)}:
            placed.callback(_Detour.through(kind, tracer, untrained))
        yield


def _replace(module: nn.Module, name: str, tracer: Tracer) -> Patch:
    """Have a compiled module called with the tracer off the stack."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def aside(*args: Any, **kwargs: Any) -> Any:
            if not tracer.recording:
                with not_watching():
                    return original(*args, **kwargs)
            with tracer.harmless:
                tracer.pause()
            try:
                with not_watching():
                    return original(*args, **kwargs)
            finally:
                with tracer.harmless:
                    tracer.resume()

        return aside

    return Patch(module, name, around)


class _Detour:
    """The way round a class's ``forward``, for as long as some tracer watches a module of that class."""

    _lock = RLock()
    _placed: dict[type[nn.Module], _Detour] = {}  # noqa: RUF012 - one table of what is placed in this process

    def __init__(self, kind: type[nn.Module]) -> None:
        self._kind = kind
        self._watching: list[tuple[Tracer, Callable[[nn.Module], None]]] = []
        self._earlier = vars(kind).get("forward", _MISSING)
        original = kind.forward
        through = self._run

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return through(original, self, args, kwargs)

        # With the original's own globals, and its source to be found through it, it can be scripted as the original can.
        self._own: Any = update_wrapper(
            FunctionType(forward.__code__, original.__globals__, "forward", None, forward.__closure__), original
        )
        kind.forward = self._own

    @classmethod
    def through(
        cls, kind: type[nn.Module], tracer: Tracer, untrained: Callable[[nn.Module], None]
    ) -> Callable[[], None]:
        """Have a class's modules called with a tracer off the stack where they need it; what is returned ends it."""
        if not isinstance(kind.forward, FunctionType):
            return lambda: None
        with cls._lock:
            detour = cls._placed.get(kind)
            if detour is None or not detour.stands:
                detour = cls._placed[kind] = cls(kind)
            watching = (tracer, untrained)
            detour._watching.append(watching)

        def end() -> None:
            with cls._lock:
                detour._watching.remove(watching)
                if not detour._watching:
                    detour._remove()

        return end

    @property
    def stands(self) -> bool:
        """Whether it is what the class has, and nobody has put theirs around it."""
        return vars(self._kind).get("forward") is self._own

    def _remove(self) -> None:
        if self._placed.get(self._kind) is self:
            del self._placed[self._kind]
        if not self.stands:
            return  # somebody has put theirs around ours, which by now does nothing but call
        if self._earlier is _MISSING:
            del self._kind.forward
        else:
            self._kind.forward = self._earlier

    def _run(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
        paused: list[Tracer] = []
        for tracer, untrained in reversed(self._watching):
            with tracer.harmless:
                if tracer.watches_here and _sees_no_gradients(module, (*args, *kwargs.values())):
                    untrained(module)
                    paused.append(tracer)
                    tracer.pause()
        try:
            return original(module, *args, **kwargs)
        finally:
            for tracer in reversed(paused):
                with tracer.harmless:
                    tracer.resume()


def _sees_no_gradients(module: nn.Module, arguments: Sequence[Any]) -> bool:
    """Whether the module sees no gradients, and so may take its fast path."""
    return not torch.is_grad_enabled() or not (
        any(parameter.requires_grad for parameter in module.parameters())
        or any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
    )
