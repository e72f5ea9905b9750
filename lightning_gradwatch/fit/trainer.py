"""What is read from a Trainer, by attributes, as Lightning exists as two packages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.fit.strategies import name_of, runs_training_step, world_size
from lightning_gradwatch.measure.coverage import OUT_OF_SIGHT
from lightning_gradwatch.measure.model.call_site import mark_outermost
from lightning_gradwatch.measure.patches import Patch
from lightning_gradwatch.measure.trace.compiled import has_compiled_step
from lightning_gradwatch.record.run_end import COMPLETED, FAILED, INTERRUPTED, STOPPED, RunEnd
from lightning_gradwatch.record.step import NotCovered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning_gradwatch.measure.step import StepMeter
    from lightning_gradwatch.record.run_info import RunInfo


_AFTER_MEASURING = ("configure_gradient_clipping", "on_before_optimizer_step")
"""Hooks in which gradients are clipped that Lightning calls after those of callbacks."""
_LIGHTNING = ("lightning.", "pytorch_lightning.")


class TracedTrainingStep:
    """Lets a strategy's ``training_step`` run under the tracer, for the batch that is being measured.

    An attribute of the one instance, which Lightning looks up at each call; it hides the class's own until `remove`.
    """

    def __init__(self, trainer: Any, meter: StepMeter, *, begins: Callable[[], None]) -> None:
        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            def measured_training_step(*args: Any, **kwargs: Any) -> Any:
                if meter.steps:  # a line search calls its closure again, elsewhere
                    return original(*args, **kwargs)
                with meter.harmless:
                    begins()  # hooks of the user's may have changed the net since the batch began
                with meter.tracing():
                    output = original(*args, **kwargs)
                    meter.end_pass(output.get("loss") if isinstance(output, Mapping) else output)
                    return output

            mark_outermost(measured_training_step.__code__)
            return measured_training_step

        self._patch = Patch(runs_training_step(trainer), "training_step", around)

    def remove(self) -> bool:
        """Put things back; whether nothing is left, as where others have put something over it."""
        return self._patch.remove()


def logger_step(trainer: Any) -> int:
    """Return the step at which Lightning logs what this batch logs: how many batches have stepped before."""
    loop = trainer.fit_loop.epoch_loop
    # `global_step` counts every optimizer's steps; the loggers' axis counts batches and has no public name.
    steps = getattr(loop, "_batches_that_stepped", None)
    return int(trainer.global_step if steps is None else steps)


def folder_of(trainer: Any) -> str | Path:
    """Return where a run is logged, as the Trainer's ``log_dir`` has it, which asks all ranks; this is for one alone."""
    for logger in trainer.loggers[:1]:
        folder: str | Path | None = getattr(logger, "log_dir", None) or logger.save_dir
        if folder:
            return folder
    return str(trainer.default_root_dir)


def accumulates(trainer: Any) -> bool:
    """Whether Lightning doesn't step in this batch, as more are to be accumulated; the same on all ranks."""
    return bool(trainer.fit_loop._should_accumulate())  # noqa: SLF001 - it depends on the end of the data too; no public name


def current_scale(trainer: Any, like: Tensor | nn.Module) -> Tensor | None:
    """Return the factor that losses and gradients are multiplied by now, on their device; None without a scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return None
    device = like.device if isinstance(like, Tensor) else next(like.parameters()).device
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale


def is_compiled_step(trainer: Any, pl_module: Any) -> bool:
    """Whether the training step as a whole runs compiled: ``trainer.fit(torch.compile(module))``, or in a compiled step."""
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        return True
    # Lightning hands the training step to the optimizer as a closure, unless a scaler is to see the gradients first.
    inside = pl_module.automatic_optimization and getattr(trainer.precision_plugin, "scaler", None) is None
    return inside and any(map(has_compiled_step, trainer.optimizers))


def clips(trainer: Any) -> bool:
    """Whether gradients may be clipped after they were measured: by the Trainer, or in a hook of the module's own."""
    if trainer.gradient_clip_val is not None:
        return True
    return any(overrides(trainer.lightning_module, name) for name in _AFTER_MEASURING)


def overrides(module: Any, name: str) -> bool:
    """Whether a module has a hook of its own in the place of Lightning's."""
    owner = next((base for base in type(module).__mro__ if name in vars(base)), object)
    return not owner.__module__.startswith(_LIGHTNING)


def describe(info: RunInfo, trainer: Any, pl_module: Any, *, every_n_steps: int, eager: bool) -> RunInfo:
    """Add the training loop's settings to a run's description; nothing here sets up data."""
    coverage = info.coverage
    if is_compiled_step(trainer, pl_module) and not eager:
        why = (
            'the training step is compiled: no activation is seen; pass compiled="eager" to run measured steps eagerly'
        )
        coverage = (NotCovered("", why), *(entry for entry in coverage if entry.reason != OUT_OF_SIGHT))
    clipping = ""
    if trainer.gradient_clip_val is not None:
        algorithm = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm) or "norm"
        clipping = f"{algorithm} {trainer.gradient_clip_val}"
    return replace(
        info,
        coverage=coverage,
        precision=str(trainer.precision),
        accumulation=int(trainer.accumulate_grad_batches),
        clipping=clipping,
        planned_steps=_planned_steps(trainer),
        every_n_steps=every_n_steps,
        world_size=world_size(trainer),
        strategy=name_of(trainer),
    )


def end_of(trainer: Any, exception: BaseException | None = None) -> RunEnd:
    """Return how a fit ends, as seen when it does; an exception may end it."""
    steps, planned = logger_step(trainer), _planned_steps(trainer)
    if exception is not None:
        by_hand = isinstance(exception, KeyboardInterrupt)
        how, error = INTERRUPTED if by_hand else FAILED, type(exception).__name__
        return RunEnd(how=how, steps=steps, planned_steps=planned, error=error)
    # A limit of the Trainer's counts the steps of every optimizer, of which a batch may take several.
    spent = 0 < trainer.max_steps <= trainer.global_step
    short = not spent and (trainer.should_stop if planned is None else steps < planned)
    return RunEnd(how=STOPPED if short else COMPLETED, steps=steps, planned_steps=planned)


def _planned_steps(trainer: Any) -> int | None:
    """Return how many optimizer steps the fit may take; None where nothing known limits them."""
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if (trainer.max_epochs or -1) > 0 and math.isfinite(trainer.num_training_batches):
        limits.append(math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    return min(limits, default=None)
