"""Sees every torch call of a forward pass: activation functions, first uses of parameters, where the unit axis goes.

A function mode sees modules and functional calls alike, under the names of the user's program, without a hook on any
module. It is entered for a measured step's forward pass only. Calls made inside a call (what
``F.multi_head_attention_forward`` is made of, a compiled region, a scripted function) aren't seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_gradwatch.measure.activations import Activations
from lightning_gradwatch.measure.composites import combine
from lightning_gradwatch.measure.coverage import OPAQUE
from lightning_gradwatch.measure.functions import ERF, identify
from lightning_gradwatch.measure.tags import Op, Tag, Tags, axis_after, classify, tensors_in

if TYPE_CHECKING:
    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.functions import Call
    from lightning_gradwatch.measure.layers import Layer, Layers

_ops: dict[Any, Op] = {}
_ELEMENTWISE = (Op.ARITHMETIC, Op.MULTIPLY, Op.ERF)


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
        self.recording = True
        self._layers = layers
        self._activations = activations
        self._tags = tags
        self._faults = faults
        self._before_backward = before_backward

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
        try:
            op = _ops.get(func)
            if op is None:
                op = _ops[func] = Op.ERF if func in ERF else classify(func)
            call = identify(func, args, kwargs) if op is Op.KEEP else None
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the user's forward pass; it is reported
            self._faults.report("activations", error)
            return func(*args, **kwargs)
        if call is not None:
            return self._run_activation(call, func, args, kwargs)
        if op is Op.IGNORE:
            return func(*args, **kwargs)
        if op is Op.BACKWARD:
            self._before_backward(args[0] if args else kwargs.get("tensors"))
            return func(*args, **kwargs)
        if op is Op.GRAD:
            with self._activations.hooks.ignored():
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            self._follow(op, func, list(tensors_in((*args, *kwargs.values()))), result)
        except Exception as error:  # noqa: BLE001 - as above
            self._faults.report("activations", error)
        return result

    def _run_activation(self, call: Call, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        seen = None
        try:
            seen = self._activations.before(call)
            if self._layers.unused:
                for argument in tensors_in(args):
                    self._use(argument)
        except Exception as error:  # noqa: BLE001 - as above
            self._faults.report("activations", error)
        result = func(*args, **kwargs)
        if seen is not None and isinstance(result, Tensor):
            try:
                self._activations.after(seen, result)
            except Exception as error:  # noqa: BLE001 - as above
                self._faults.report("activations", error)
        return result

    def _use(self, argument: Tensor) -> Layer | None:
        layer = self._layers.owner(argument) if isinstance(argument, nn.Parameter) else None
        if layer is not None and not layer.used:
            self._layers.use(layer)
        return layer

    def _follow(self, op: Op, func: Callable[..., Any], arguments: list[Tensor], result: Any) -> None:
        """Hand what is known of a call's arguments on to its results."""
        results = (result,) if isinstance(result, Tensor) else result
        if not isinstance(results, (list, tuple)):
            return
        if op is Op.LAST and (name := getattr(func, "__name__", "")) in OPAQUE:
            self._activations.hides(name)
        source: Tensor | None = None
        tag: Tag | None = None
        user: Layer | None = None
        for argument in arguments:
            layer = self._use(argument)
            if layer is not None:
                user = user or layer
            elif tag is None:
                tag = self._tags.get(argument)
                source = argument if tag is not None else None
        if tag is None and user is None and op not in _ELEMENTWISE and op not in (Op.LAST, Op.CHANNEL):
            return
        for each in results:
            if not isinstance(each, Tensor):
                continue
            if user is not None:
                self._activations.parameterised(each)
            axis = axis_after(op, func, source, tag.axis if tag is not None else None, each)
            new = Tag(each, axis, user or (tag.layer if tag is not None else None))
            self._tags.put(each, new)
            if op in _ELEMENTWISE:
                if op is Op.ERF:
                    new.of, new.u = self._tags.root(arguments[0]), arguments[0].detach()
                    continue
                done = combine(op, arguments, new, self._tags, self._activations.roles)
                if done is not None:
                    self._activations.complete(done, each, self._tags.unit_axis(each), new.layer)
            elif tag is not None and (op is Op.RESHAPE or op is Op.TRANSPOSE or (op is Op.KEEP and each._is_view())):  # noqa: SLF001 - the documented test for a view has no public name
                new.call = tag.call
