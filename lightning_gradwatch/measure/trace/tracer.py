"""Sees every torch call of a forward pass: activation functions, first uses of parameters, where the unit axis goes.

A function mode sees modules and functional calls alike, under the names of the user's program, without a hook on any
module. It is entered for a measured step's forward pass only. Calls made inside a call (what
``F.multi_head_attention_forward`` is made of, a compiled region, a scripted function) aren't seen.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from lightning_gradwatch.measure.trace.axis_propagation import AxisPropagation, Compared
from lightning_gradwatch.measure.trace.comparisons import bound_of
from lightning_gradwatch.measure.trace.cuts import cut
from lightning_gradwatch.measure.trace.identify import FLOATS, identify, is_activation
from lightning_gradwatch.measure.trace.manual_gradients import UNSCALES, changes_gradients, clipped_by
from lightning_gradwatch.measure.trace.operands import einsum_of, operands_of, tensors_in
from lightning_gradwatch.measure.trace.pieces import joined_by
from lightning_gradwatch.measure.trace.tensor_state import Op, TensorStates, classify, is_in_place
from lightning_gradwatch.measure.units.activations import ERF, Call
from lightning_gradwatch.measure.unobserved import (
    dispatch_modes,
    function_modes,
    is_traced,
    is_traced_by_jit,
    unobserved,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.model.layers import Layers
    from lightning_gradwatch.measure.model.path import Layer
    from lightning_gradwatch.measure.trace.activation_calls import Activations
    from lightning_gradwatch.measure.trace.tensor_state import SiteCall
    from lightning_gradwatch.record.activations import Activation

_Seen: TypeAlias = "SiteCall | list[Tensor] | None"
"""What was noted before a call: of an activation function, or the tensors that it is given; None: nothing."""
_IGNORE, _KEEP, _GRAD, _BACKWARD, _CHANGE = Op.IGNORE, Op.KEEP, Op.GRAD, Op.BACKWARD, Op.CHANGE
_CUT, _MULTIPLY, _COMPARE, _EINSUM, _JOIN = Op.CUT, Op.MULTIPLY, Op.COMPARE, Op.EINSUM, Op.JOIN
"""By name: to take a member off its enumeration is slow, and this is asked at each call."""
_VALUES = frozenset((Op.ARITHMETIC, Op.SHIFT, Op.POWER, Op.MULTIPLY, Op.ERF, Op.FUNCTION))
_ops: dict[Any, Op] = {}
_changes: dict[Any, Op] = {}
"""What those do to the unit axis that may change gradients, and so are `Op.CHANGE`."""
_in_place: set[Any] = set()
"""Of those that compute values, the functions that change an argument."""


class OnGradients(Protocol):
    """Hears what is done with gradients before an optimizer steps."""

    def unscaled(self, gradients: Sequence[Tensor], inverse: Tensor) -> None:
        """Take that a gradient scaler has multiplied gradients by the inverse of its scale."""

    def clipped(self, gradients: Sequence[Tensor]) -> None:
        """Take that tensors, which may be gradients, are about to be clipped."""


class Tracer(TorchFunctionMode):
    """Watches the torch calls of one measured step while `recording`."""

    def __init__(
        self,
        *,
        layers: Layers,
        activations: Activations,
        tags: TensorStates,
        faults: Faults,
        before_backward: Callable[[Any, bool], None],
        gradients: OnGradients,
        made: Callable[..., None] | None = None,
    ) -> None:
        super().__init__()
        self.recording = False
        self._on_stack = False
        self._thread = 0
        self._activations = activations
        self._tags = tags
        self._flow = AxisPropagation(layers=layers, activations=activations, tags=tags)
        self._faults = faults
        self.harmless = faults.guard("activations")
        """A block in which an exception is a fault of ours."""
        self._before_backward = before_backward
        self._gradients = gradients
        self._made = made
        """Told of each call what it made. No class of its own: torch compiles a user's function anew for each class of modes."""
        self._used: Sequence[Layer] = ()
        """The layers of the activation call that is running."""
        self._crowded = False
        """Whether the user has a function mode around it, which would see what we compute."""

    def start(self) -> None:
        """Begin to watch."""
        self.recording = True
        self._on_stack = True
        self._thread = get_ident()
        self._crowded = function_modes() > 0
        self.__enter__()  # type: ignore[no-untyped-call]  # torch leaves modes untyped

    def stop(self) -> None:
        """End it; fine while paused."""
        self.recording = False
        if self._on_stack:
            self._on_stack = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # as above

    def pause(self) -> None:
        """Look away, as for an optimizer's many small calls, and make them free where no other mode is in the way."""
        self.recording = False
        if self._on_stack and _get_current_function_mode() is self:  # type: ignore[no-untyped-call]  # as above
            self._on_stack = False
            self.__exit__(None, None, None)

    def run_own(
        self, row: Activation, function: Callable[..., Any], run: Callable[[], Any], arguments: Sequence[Any]
    ) -> Any:
        """Run an activation function of the user's own: one call, inside of which nothing is looked at.

        Args:
            row: What is known of it.
            function: As it was registered.
            run: Calls it.
            arguments: What it is called with; of a module its parameters, too.
        """
        z = next((each for each in arguments if isinstance(each, Tensor)), None)
        if z is None or torch.compiler.is_compiling() or is_traced() or not self._faults.on("activations"):
            return run()
        seen: SiteCall | None = None
        is_data, version = False, 0
        with self.harmless, unobserved():
            call = Call(row.usual, z, in_place=False)
            is_data = z.dtype in FLOATS and self._is_activation(call)
            if is_data:
                self._used = self._flow.use(arguments)
                seen = self._activations.before(call)
                version = _version(z)
        if not is_data:
            return run()
        with self.harmless:
            self.pause()
        try:
            result = run()
        finally:
            with self.harmless:
                self.resume(function)
        if seen is not None:
            with self.harmless, unobserved():
                seen.in_place = _version(z) != version
                self._after_own(seen, result)
        return result

    def _after_own(self, seen: SiteCall, result: Any) -> None:
        if not isinstance(result, Tensor):
            self._activations.gives_no_tensor(seen)
            return
        self._activations.after(seen, result)
        if self._used:  # an activation function and a layer in one
            self._activations.parameterised(result, self._used)

    @property
    def watches_here(self) -> bool:
        """Whether it watches the calls of this thread now: its mode is on the stack of the thread that began it."""
        return self.recording and self._thread == get_ident()

    def resume(self, by: Callable[..., Any] | None = None) -> None:
        """Look again after `pause`, for the sake of a function of the user's own where one is given."""
        del by  # an audit asks for it
        if not self._on_stack:
            self.start()
        self.recording = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a torch call, and look at it where it matters."""
        kwargs = kwargs or {}
        # First of all: inside a compiled region this very function is traced, and must be nothing but the call.
        if torch.compiler.is_compiling() or not self.recording or not self._faults.on("activations"):
            return func(*args, **kwargs)
        if self._made is not None:
            return self._run_told(self._made, func, types, args, kwargs)
        op = _op(func)
        if op is _IGNORE:
            return func(*args, **kwargs)
        if op is _GRAD or op is _BACKWARD or op is _CHANGE:
            return self._run_backward(op, func, args, kwargs)
        if (
            (types and (len(types) > 1 or types[0] is not Tensor))
            or self._crowded
            or dispatch_modes()
            or is_traced_by_jit()
        ):
            return func(*args, **kwargs) if is_traced() else self._run_unobserved(op, func, args, kwargs)
        return self._run_observed(op, func, args, kwargs)

    def _run_told(
        self,
        made: Callable[..., None],
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run a call as any other, and tell what it made."""
        self._made = None
        try:
            result = Tracer.__torch_function__(self, func, types, args, kwargs)
        finally:
            self._made = made
        if self.recording and self._faults.on("wiring"):
            with self._faults.guard("wiring"), unobserved():
                made(func, args, kwargs, result)
        return result

    def _run_observed(self, op: Op, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        seen = self._before(op, func, args, kwargs)
        result = func(*args, **kwargs)
        self._after(op, func, seen, result)
        return result

    def _run_on_gradients(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a call that may change gradients that are there."""
        if func is UNSCALES:
            result = func(*args, **kwargs)
            with self.harmless:
                self._gradients.unscaled(args[0], args[2])
            return result
        with self.harmless:
            if clipped := clipped_by(func, args):
                self._gradients.clipped(clipped)
        if self._crowded or dispatch_modes() or is_traced_by_jit():
            return func(*args, **kwargs) if is_traced() else self._run_unobserved(_changes[func], func, args, kwargs)
        return self._run_observed(_changes[func], func, args, kwargs)

    def _run_backward(self, op: Op, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a call that makes gradients, or may change them."""
        if op is _CHANGE:
            return self._run_on_gradients(func, args, kwargs)
        if op is _GRAD:
            doubling = False
            with self.harmless:
                self._activations.takes_gradients(args[1] if len(args) > 1 else kwargs.get("inputs"))
                doubling = _makes_graph(args, kwargs)
            with self._activations.hooks.ignored(doubling=doubling):
                return func(*args, **kwargs)
        retained = False
        with self.harmless:
            retained = retains(args, kwargs)
        self._before_backward(args[0] if args else kwargs.get("tensors"), retained)
        return func(*args, **kwargs)

    def _run_unobserved(
        self, op: Op, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a call that modes or classes of the user's take part in, of which ours are to see nothing."""
        with unobserved():
            seen = self._before(op, func, args, kwargs)
        result = func(*args, **kwargs)
        with unobserved():
            self._after(op, func, seen, result)
        return result

    def _before(self, op: Op, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Seen:
        """Look at a call that is about to run."""
        # Not `with faults.guard(…)`, here and below: this runs at each call of a forward pass, and a `try` costs nothing.
        try:
            if op is _KEEP and (call := identify(func, args, kwargs)) is not None and self._is_activation(call):
                # Nearly always its one argument is a plain tensor: no layer's.
                self._used = self._flow.use(args) if len(args) != 1 or type(args[0]) is not Tensor else ()
                return self._activations.before(call)
            if op is _CUT or (op is _MULTIPLY and self._tags.comparisons.masks):
                found = cut(func, args, kwargs, self._tags)
                if isinstance(found, str):
                    self._flow.leaves_out(func.__name__.rstrip("_"), found, args)
                elif found is not None:
                    self._flow.use(args)
                    return self._activations.before(found)
            if op is _COMPARE:
                return Compared(bound_of(args) or ())
            if op is _EINSUM or op is _JOIN:
                return einsum_of(func, args, kwargs) if op is _EINSUM else joined_by(func, args, kwargs)
            if op in _VALUES:
                tensors: list[Tensor] = operands_of(func, args, kwargs)
                if func in _in_place:
                    self._flow.before_in_place(op, tensors)
            else:
                tensors = tensors_in((*args, *kwargs.values()) if kwargs else args)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)
            return None
        return tensors

    def _is_activation(self, call: Call) -> bool:
        """Whether an activation function's argument is data, of a layer where the function serves for much else."""
        return not self._flow.is_weight(call.z) and (not call.zones.supposed or self._activations.are_features(call.z))

    def _after(self, op: Op, func: Callable[..., Any], seen: _Seen, result: Any) -> None:
        """Look at what a call made."""
        try:
            if isinstance(seen, list):
                self._flow.follow(op, func, seen, result)
            elif seen is not None and isinstance(result, Tensor):
                self._activations.after(seen, result)
                if seen.site.function == "prelu":  # an activation function and a layer in one
                    self._activations.parameterised(result, self._used)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)


def retains(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a backward pass of these arguments leaves its graph for another one."""
    given = dict(zip(("retain_graph", "create_graph"), args[2:], strict=False)) | dict(kwargs)
    retain = given.get("retain_graph")
    return bool(given.get("create_graph") if retain is None else retain)


def _makes_graph(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether ``autograd.grad`` of these arguments makes a graph of what it does."""
    return bool(args[4] if len(args) > 4 else kwargs.get("create_graph"))


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 where torch doesn't count that."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - it has no public name


def forget(functions: Collection[Callable[..., Any]]) -> None:
    """Look anew what functions do that weren't known as what they are."""
    for function in functions:
        _ops.pop(function, None)


def _op(func: Callable[..., Any]) -> Op:
    try:
        op = _ops.get(func)
        if op is None:
            op = _ops[func] = Op.ERF if func in ERF else Op.KEEP if is_activation(func) else classify(func)
            if op in _VALUES and is_in_place(func):
                _in_place.add(func)
            if changes_gradients(func):
                _changes[func], op = op, _CHANGE
                _ops[func] = op
    except TypeError:  # an unhashable callable
        return classify(func)
    return op
