"""Sees every torch call of a forward pass: activation functions, first uses of parameters, where the unit axis goes.

A function mode sees modules and functional calls alike, under the names of the user's program, without a hook on any
module. It is entered for a measured step's forward pass only. Calls made inside a call (what
``F.multi_head_attention_forward`` is made of, a compiled region, a scripted function) aren't seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from lightning_gradwatch.measure.flow import Flow
from lightning_gradwatch.measure.functions import ERF
from lightning_gradwatch.measure.identify import identify
from lightning_gradwatch.measure.tags import Op, Tags, classify, is_in_place, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.measure.activations import Activations
    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.functions import Call
    from lightning_gradwatch.measure.layers import Layer, Layers

_IGNORE, _KEEP, _GRAD, _BACKWARD = Op.IGNORE, Op.KEEP, Op.GRAD, Op.BACKWARD
"""By name: to take a member off its enumeration is slow, and this is asked at each call."""
_VALUES = frozenset((Op.ARITHMETIC, Op.MULTIPLY, Op.ERF))
_ops: dict[Any, Op] = {}
_in_place: set[Any] = set()
"""Of those that compute values, the functions that change an argument."""


class Tracer(TorchFunctionMode):
    """Watches the torch calls of one measured step while `recording`."""

    def __init__(
        self,
        *,
        layers: Layers,
        activations: Activations,
        tags: Tags,
        faults: Faults,
        before_backward: Callable[[Any], None],
    ) -> None:
        super().__init__()
        self.recording = False
        self._on_stack = False
        self._activations = activations
        self._flow = Flow(layers=layers, activations=activations, tags=tags)
        self._faults = faults
        self._before_backward = before_backward

    def start(self) -> None:
        """Begin to watch."""
        self.recording = True
        self._on_stack = True
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

    def resume(self) -> None:
        """Look again after `pause`."""
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
        # Not `with faults.guard(…)`, here and below: this runs at each call of a forward pass, and a `try` costs nothing.
        call: Call | None = None
        try:
            op = _op(func)
            if op is _KEEP:
                call = identify(func, args, kwargs)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)
            op = _IGNORE
        if op is _IGNORE:
            return func(*args, **kwargs)
        if call is not None:
            return self._run_activation(call, func, args, kwargs)
        if op is _GRAD:
            with self._activations.hooks.ignored():
                return func(*args, **kwargs)
        if op is _BACKWARD:
            self._before_backward(args[0] if args else kwargs.get("tensors"))
            return func(*args, **kwargs)
        return self._run_followed(op, func, args, kwargs)

    def _run_followed(self, op: Op, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        tensors: Sequence[Tensor] = ()
        try:
            tensors = tensors_in((*args, *kwargs.values()) if kwargs else args)
            if func in _in_place:
                self._flow.before_in_place(op, tensors)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)
        result = func(*args, **kwargs)
        try:
            self._flow.follow(op, func, tensors, result)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)
        return result

    def _run_activation(self, call: Call, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        seen = None
        layers: Sequence[Layer] = ()
        try:
            layers = self._flow.use(args)
            seen = self._activations.before(call)
        except Exception as error:  # noqa: BLE001 - a fault of ours
            self._faults.report("activations", error)
        result = func(*args, **kwargs)
        if seen is not None and isinstance(result, Tensor):
            try:
                self._activations.after(seen, result)
                if call.function == "prelu":  # an activation function and a layer in one
                    self._activations.parameterised(result, layers)
            except Exception as error:  # noqa: BLE001 - a fault of ours
                self._faults.report("activations", error)
        return result


def _op(func: Callable[..., Any]) -> Op:
    try:
        op = _ops.get(func)
        if op is None:
            op = _ops[func] = Op.ERF if func in ERF else classify(func)
            if op in _VALUES and is_in_place(func):
                _in_place.add(func)
    except TypeError:  # an unhashable callable
        return classify(func)
    return op
