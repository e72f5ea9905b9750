"""Calls of the activation functions that users have registered, which torch tells nobody of.

A Python function is called by whoever holds it, under any name, and a module's ``forward`` by its class. So while a forward pass
is watched, such a function runs other code: that which asks the tracer first. Its own is what a copy of it runs meanwhile,
with its globals, defaults and closure, and what it has again when the pass is over. No name is replaced anywhere.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from inspect import CO_VARARGS, CO_VARKEYWORDS
from itertools import islice
from threading import RLock
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from lightning_gradwatch.measure.trace.connections import hides_a_function
from lightning_gradwatch.measure.trace.identify import learn
from lightning_gradwatch.measure.trace.tracer import forget
from lightning_gradwatch.record.activations import registered
from lightning_gradwatch.record.registration import called_function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lightning_gradwatch.measure.trace.tracer import Tracer
    from lightning_gradwatch.record.activations import Activation

_SOURCE = """
def around({cells}):
    def own({parameters}):
        if 0:
            ({cells})
        from lightning_gradwatch.measure.trace import own_functions as _gradwatch
        if _gradwatch.compiling():
            return _gradwatch.originals[{number}]({arguments})
        return _gradwatch.call({number}, ({positional}), dict({named}))
"""
"""What runs instead: with the parameters that the function has, and with as many variables of a closure, as Python asks for
the one and torch's compiler, which remembers them by function, for the other."""
_lock = RLock()
_numbers: dict[FunctionType, int] = {}
_detours: list[_Detour] = []
"""By number: one for each function that was ever watched, as a call in another thread may outlast a pass."""
originals: list[Callable[..., Any]] = []
"""Copies of the functions, by number, which run their own code."""
compiling = torch.compiler.is_compiling


class _Own(NamedTuple):
    """A function as it was registered."""

    row: Activation
    function: Any

    def is_called(self, args: Sequence[Any]) -> bool:
        """Whether a call with these arguments is one of it, and not of another that runs the same code."""
        owner = self.function.__self__ if isinstance(self.function, MethodType) else self.function
        if isinstance(owner, type):
            return bool(args) and (args[0] is owner or isinstance(args[0], owner))
        return True


class _Detour:
    """What a function runs while some tracer watches it."""

    def __init__(self, function: FunctionType, number: int) -> None:
        self._function = function
        self._number = number
        self._earlier = function.__code__
        self._own = _code(function, number)
        self.watching: list[tuple[Tracer, tuple[_Own, ...]]] = []

    def place(self) -> FunctionType:
        """Have the function run our code; return a copy of it that doesn't."""
        function = self._function
        if function.__code__ is not self._own:
            if function.__code__ is not self._earlier:
                self._earlier, self._own = function.__code__, _code(function, self._number)
            function.__code__ = self._own
        copy = FunctionType(
            self._earlier, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
        return copy

    def lift(self) -> None:
        """Give the function its own code back, unless somebody has put theirs into it."""
        if self._function.__code__ is self._own:
            self._function.__code__ = self._earlier


def _code(function: FunctionType, number: int) -> CodeType:
    own = function.__code__
    names, last = iter(own.co_varnames), own.co_posonlyargcount
    positional = list(islice(names, own.co_argcount))
    named = [f"{name}={name}" for name in islice(names, own.co_kwonlyargcount)]
    rest = [f"*{next(names)}"] if own.co_flags & CO_VARARGS else []
    more = [f"**{next(names)}"] if own.co_flags & CO_VARKEYWORDS else []
    only = [each.partition("=")[0] for each in named]
    parameters = [*positional[:last], *["/"][:last], *positional[last:], *(rest or ["*"][: len(only)]), *only, *more]
    source = _SOURCE.format(
        number=number,
        cells="".join(f"cell_{place}, " for place in range(len(function.__closure__ or ()))),
        parameters=", ".join(parameters),
        positional="".join(f"{each}, " for each in (*positional, *rest)),
        named=", ".join((*named, *more)),
        arguments=", ".join((*positional, *rest, *named, *more)),
    )
    code = compile(source, __file__, "exec")
    for _ in ("around", "own"):
        code = next(each for each in code.co_consts if isinstance(each, CodeType))
    return code.replace(co_name=own.co_name)


@contextmanager
def watching(tracer: Tracer) -> Iterator[None]:
    """Have a tracer see the calls of the functions that are registered by now while the block runs."""
    if changed := learn():
        forget(changed)
        hides_a_function.cache_clear()
    by_function: dict[FunctionType, list[_Own]] = {}
    for row in registered():
        for function in row.functions:
            if (runs := called_function(function)) is not None:
                by_function.setdefault(runs, []).append(_Own(row, function))
    with ExitStack() as placed:
        for runs, own in by_function.items():
            placed.enter_context(_watching(tracer, runs, tuple(own)))
        yield


@contextmanager
def _watching(tracer: Tracer, function: FunctionType, own: tuple[_Own, ...]) -> Iterator[None]:
    watcher = (tracer, own)
    with _lock:
        number = _numbers.setdefault(function, len(_detours))
        if number == len(_detours):
            _detours.append(_Detour(function, number))
            originals.append(function)
        detour = _detours[number]
        originals[number] = detour.place()
        detour.watching.append(watcher)
    try:
        yield
    finally:
        with _lock:
            detour.watching.remove(watcher)
            if not detour.watching:
                detour.lift()


@contextmanager
def not_watching() -> Iterator[None]:
    """Have all functions run their own code while the block runs, as what is compiled was compiled for that."""
    with _lock:
        lifted = [(number, detour) for number, detour in enumerate(_detours) if detour.watching]
        for _, detour in lifted:
            detour.lift()
    try:
        yield
    finally:
        with _lock:
            for number, detour in lifted:
                if detour.watching:
                    originals[number] = detour.place()


def call(number: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a function that was called, and have those see it who watch here."""

    def run() -> Any:
        return originals[number](*args, **kwargs)

    for tracer, own in tuple(_detours[number].watching):
        if tracer.watches_here and _is_active(tracer):
            found = next((each for each in own if each.is_called(args)), None)
            if found is not None:
                run = _seen_by(tracer, found, run, (*args, *kwargs.values()))
    return run()


def _is_active(tracer: Tracer) -> bool:
    """Whether torch would tell a tracer of a call now: not inside of another call, as a backward pass that computes anew is."""
    enabled = torch._C._is_torch_function_mode_enabled()  # noqa: SLF001 - it has no public name
    return enabled and tracer in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # torch leaves modes untyped


def _seen_by(tracer: Tracer, own: _Own, run: Callable[[], Any], given: Sequence[Any]) -> Callable[[], Any]:
    modules = [each for each in given if isinstance(each, nn.Module)]
    tensors = [each for each in given if isinstance(each, Tensor)]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return lambda: tracer.run_own(own.row, cast("Callable[..., Any]", own.function), run, [*tensors, *parameters])
