"""Compiled modules and optimizers: told apart without importing the compiler, and left as they are while measuring.

What is put inside of a compiled region would be compiled with it. So a compiled optimizer's step is measured from outside:
for a measured batch the optimizer has a `step` of ours around its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.patches import Patch, beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.step import StepMeter

COMPILED = 'compiled: its activations aren\'t seen; pass compiled="eager" to run measured steps eagerly'
"""Why something compiled isn't covered."""


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code (``torch.compile(module)`` or ``module.compile()``)."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def has_compiled_step(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step runs compiled code (``optimizer.step = torch.compile(optimizer.step)``)."""
    return hasattr(beneath(optimizer.__dict__.get("step")), "_torchdynamo_orig_callable")


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
