"""One measured step on the device: from the first forward pass to the transfer."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from lightning_gradwatch.measure import faults as internal
from lightning_gradwatch.measure.garbage import collecting_later
from lightning_gradwatch.measure.gradients import OptimizerGradients
from lightning_gradwatch.measure.measured import Measured, OptimizerStep
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.repeats import Repeats
from lightning_gradwatch.measure.signal import SignalHooks
from lightning_gradwatch.measure.trace.activation_calls import Activations
from lightning_gradwatch.measure.trace.connections import Connections
from lightning_gradwatch.measure.trace.hidden_ops import Audit, AuditedTracer
from lightning_gradwatch.measure.trace.lost_gradients import Trail, TrailedTracer
from lightning_gradwatch.measure.trace.manual_gradients import Held
from lightning_gradwatch.measure.trace.opaque import tracing_suspended_for
from lightning_gradwatch.measure.trace.own_functions import watching
from lightning_gradwatch.measure.trace.tensor_state import TensorStates
from lightning_gradwatch.measure.trace.tracer import Tracer
from lightning_gradwatch.measure.transfer.host import HostTransfer, Slot
from lightning_gradwatch.measure.units.site_stats import Collected
from lightning_gradwatch.measure.unobserved import is_opaque, unobserved
from lightning_gradwatch.measure.wiring.watch import Unwatched
from lightning_gradwatch.record.finding import GradWatchWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.instruments import Instruments
    from lightning_gradwatch.measure.model.layers import Owned
    from lightning_gradwatch.measure.model.path import Layer, Site
    from lightning_gradwatch.measure.updates import WeightSnapshot


class EarlyMeasuring(Protocol):
    """Measures what an optimizer is going to use before it begins to step."""

    def __call__(self, index: int, *, again: bool) -> object:
        """Do it for the optimizer of an index; again, where it was measured."""


_Method = TypeVar("_Method", bound="Callable[..., Any]")


def _harmless(method: _Method) -> _Method:
    """Make a method of a meter one that the user's training may call: it raises nothing of ours, and nobody sees it compute."""

    @wraps(method)
    def called(self: StepMeter, *args: Any, **kwargs: Any) -> Any:
        if self.fault is None:
            with self.harmless, unobserved():
                return method(self, *args, **kwargs)
        return None

    return cast("_Method", called)


class _Harmless:
    """A block in which an exception is a fault of ours, which ends the step's measuring and nothing else."""

    def __init__(self, meter: StepMeter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if internal.RAISE or isinstance(error, GradWatchWarning):  # to be told at once, and loudly
            return False
        self._meter.give_up(error)
        return True


class StepMeter:
    """Measures one step: forward passes within `tracing`, gradients and weights around each optimizer step."""

    _held: Held | None = None

    def __init__(
        self,
        run: Instruments,
        *,
        measure_early: EarlyMeasuring,
        optimizers: Callable[[], Sequence[Optimizer]],
        opaque_modules: Sequence[nn.Module] = (),
        activations_only: bool = False,
        audited: bool = False,
        suspects: Sequence[Layer] = (),
    ) -> None:
        """Begin to measure.

        Args:
            run: What the run's steps are measured with.
            measure_early: Measures what an optimizer is going to use before it begins to step.
            optimizers: Returns those that train the model now.
            opaque_modules: Modules of the model that are let alone by what watches calls.
            activations_only: Count the units' observations, and measure nothing else.
            audited: Compare the graph of each pass with the calls that were seen.
            suspects: Layers whose gradient was missing, and is looked for.
        """
        self.faults = faults = run.faults
        self.fault: Exception | None = None
        """What ended the measuring of this step; for whoever closes it to raise, where the run's measuring can be ended."""
        self.harmless = _Harmless(self)
        self._remembered: dict[int, WeightSnapshot] = {}
        self._early: dict[int, bool] = {}
        """The optimizers that haven't begun to step and whose gradients were measured, each with whether there are more now."""
        self._clipped_by_hand: set[int] = set()
        self.scaled_losses = False
        """Whether the losses are multiplied by the scale."""
        self.pack = HostTransfer()
        self._staging = run.staging
        run.staging.begin(self.pack)
        self.collected = Collected(run.staging)
        self.steps: dict[int, OptimizerStep] = {}
        self.losses: list[Slot] = []
        self._of_next: list[Slot] = []
        """Losses that belong to the optimizer that steps next, where there are several."""
        self.scale: Slot | None = None
        self.activations_only = activations_only
        self.segments: dict[Site, Site] = {}
        self.chains: Mapping[Site, Sequence[Sequence[int]]] = {}
        self._measure_early = measure_early
        self._optimizers = optimizers
        self._repeats = Repeats(optimizers)
        self._layers = run.layers
        self._snapshots = run.snapshots
        self._spacious = opaque_modules
        self._eager = run.eager
        self._shards = run.shards
        self._tags = TensorStates()
        self.hooks = SignalHooks(faults, off=activations_only)
        self._connections = Connections(run.path, off=activations_only)
        self.activations = Activations(
            sites=run.sites,
            collected=self.collected,
            hooks=self.hooks,
            connections=self._connections,
            tags=self._tags,
            names=run.names,
            unseen=run.unseen,
        )
        self.takes_losses = True
        self.wiring = Unwatched() if activations_only else run.wiring.begin(self.pack, self._tags, optimizers)
        self._audit = Audit(run.unseen, run.layers) if audited and not suspects else None
        self.trail: Trail | None = None
        """Follows layers that had no gradient, if there are any."""
        if suspects and faults.on("signal"):
            with faults.guard("signal"):
                self.trail = Trail(
                    suspects,
                    layers=run.layers,
                    pack=self.pack,
                    names=run.names,
                    hooks=self.hooks,
                    faults=faults,
                    optimizers=optimizers(),
                )
        settings: dict[str, Any] = {
            "layers": run.layers,
            "activations": self.activations,
            "tags": self._tags,
            "faults": faults,
            "before_backward": self._saw_backward,
            "gradients": self,
        }
        self.tracer = self._make_tracer(settings)

    def _make_tracer(self, settings: dict[str, Any]) -> Tracer:
        """Return what looks at the calls of this step's passes."""
        if self.trail is not None:
            return TrailedTracer(trail=self.trail, **settings)
        if self._audit is not None:
            return AuditedTracer(audit=self._audit, sees=self.wiring.see, made=self.wiring.made, **settings)
        return Tracer(made=self.wiring.made if self.wiring.watches else None, **settings)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Watch one forward pass; nothing of it is kept afterwards but sums."""
        stack = ExitStack()
        with self.harmless:
            if self.fault is None:
                self._watch(stack)
        try:
            yield
        finally:
            with self.harmless:
                stack.close()
            with self.harmless:
                self.tracer.stop()
            with self.harmless:
                self.end_pass()

    def _watch(self, stack: ExitStack) -> None:
        if self._eager:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(
            tracing_suspended_for(self._spacious, self.tracer, eager=self._eager, untrained=self._runs_unseen)
        )
        stack.enter_context(watching(self.tracer))
        self.tracer.start()

    def _runs_unseen(self, module: nn.Module) -> None:
        with self.faults.guard("activations"):
            self.activations.runs_unseen(module)

    @property
    def audited(self) -> bool:
        """Whether its graphs are compared with the calls that were seen."""
        return self._audit is not None

    @property
    def lost(self) -> bool:
        """Whether a graph of its passes was too large to be followed."""
        return self._connections.lost

    @_harmless
    def end_pass(self, loss: Any = None, *, retained: bool = False) -> None:
        """Close a forward pass.

        Args:
            loss: What it computed and is about to be propagated back, where that is known.
            retained: The graph stays for another pass to go on from.
        """
        with self.faults.guard("activations"):
            self.activations.end_pass()
        with self.faults.guard("signal"), collecting_later():
            self._connections.end_pass(loss, retained=retained)
            if self.trail is not None:
                self.trail.note_loss(loss)
        if self._audit is not None:
            with self.faults.guard("activations"):
                self._audit.check(loss)

    @_harmless
    def _saw_backward(self, loss: Any, retained: bool) -> None:
        self.wiring.backward_begins(loss)
        self.end_pass(loss, retained=retained)
        self._held = None
        self._early = dict.fromkeys(self._early, True)
        if self.takes_losses:
            self.add_loss(loss)

    @_harmless
    def add_loss(self, loss: Any, scale: Tensor | None = None, *, late: bool = False) -> None:
        """Take the loss of one backward pass; those of a step's micro-batches add up, and a repeated pass counts for nothing.

        Args:
            loss: The loss.
            scale: What it is multiplied by.
            late: It belongs to the step although the gradients were measured before.
        """
        self.wiring.backward_begins(loss)
        several = len(self._optimizers()) > 1 and not self.activations_only
        if len(self.steps) > len(self._early) and not late:
            if several:
                self._of_next += self._taken(loss, scale)
            return
        self.hooks.ignoring = not late and self._repeats.is_one()
        if self.hooks.ignoring:
            with self.faults.guard("activations"):
                self.collected.take_back()
        if self.hooks.ignoring or self.activations_only:
            return
        taken = self._taken(loss, scale)
        self.losses += taken
        if several:
            self._of_next += taken

    def _taken(self, loss: Any, scale: Tensor | None) -> list[Slot]:
        """Take the number of a loss; none of what isn't one."""
        if isinstance(loss, (list, tuple)) and len(loss) == 1:
            loss = loss[0]
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex() or is_opaque(loss):
            return []
        value = loss.detach().reshape(()).double()
        taken = [self.pack.add(value if scale is None else value / scale)]
        self.wiring.takes_loss(loss, scale)
        return taken

    @_harmless
    def set_scale(self, scale: Tensor) -> None:
        """Take the factor by which the loss, and so every signal of this step, is multiplied."""
        self.scale = self.pack.add(scale)

    # -- what is done with gradients before the optimizer steps

    @_harmless
    def unscaled(self, gradients: Sequence[Tensor], inverse: Tensor) -> None:
        """Measure gradients that a scaler has just unscaled, and take its scale out of losses and signals."""
        if self.activations_only or self.fault is not None:
            return
        for index in self._holders(gradients):
            if index not in self.steps or index in self._early:
                self._early[index] = False
                self._measure_early(index, again=index in self.steps)
        if self.scale is None:
            self.scale = self.pack.add(inverse.detach().double().reciprocal())
            self.scaled_losses = self.takes_losses

    @_harmless
    def clipped(self, gradients: Sequence[Tensor]) -> None:
        """Measure gradients before they are clipped."""
        if self.activations_only:
            return
        for index in self._holders(gradients):
            stale = self._early.get(index)
            if index not in self.steps or stale:
                self._early[index] = False
                self._measure_early(index, again=bool(stale))
            if index in self._early:
                self._clipped_by_hand.add(index)

    def _holders(self, gradients: Sequence[Tensor]) -> set[int]:
        if self._held is None:
            self._held = Held(self._optimizers())
        return self._held.of(gradients)

    def awaits(self, index: int) -> bool:
        """Whether an optimizer's step was measured from its beginning and is still to end."""
        return index in self.steps and not self.steps[index].done

    def is_early(self, index: int) -> bool:
        """Whether an optimizer that hasn't begun to step was measured."""
        return index in self._early

    @_harmless
    def remember_weights(self, optimizer: Optimizer, index: int) -> None:
        """Remember the weights of an optimizer that is about to step, where its gradients are there already.

        A closure that it is given may be called for other weights than these, as that of a SAM is.
        """
        if index in self.steps:
            return
        self._repeats.step_begins(optimizer)
        if (
            self.activations_only
            or not self.faults.on("updates")
            or all(each.grad is None for each in parameters_of(optimizer))
        ):
            return
        with self.faults.guard("updates"):
            owned = self._layers.trained_by(optimizer)
            self._remembered[index] = self._snapshots.take(index, owned, self.pack, shards=self._shards)

    @_harmless
    def before_optimizer_step(
        self, optimizer: Optimizer, index: int, *, again: bool = False, early: bool = False
    ) -> bool:
        """Measure the gradients an optimizer is about to use and remember its weights; the first time in a step only.

        Args:
            optimizer: The optimizer.
            index: Its place in the run's list.
            again: Drop what was measured before: there are more gradients now.
            early: It is still to be clipped, or to step at all.

        Returns:
            Whether it was measured, so that `after_optimizer_step` is wanted.
        """
        stale = self._early.pop(index, None) if index in self.steps and not early else None
        if stale is False and not again:
            found = self.steps[index].gradients
            if found is None or not found.were_emptied:
                return True
            stale = True
            self._clipped_by_hand.discard(index)
        if index in self.steps and not (again or stale):
            self.steps_again()
            return False
        before = self.steps.get(index)
        step = self.steps[index] = OptimizerStep(optimizer)
        step.losses, self._of_next = ([] if before is None else before.losses) + self._of_next, []
        if self.activations_only:
            return True
        self.wiring.steps(optimizer, index)
        owned: list[Owned] | None = None
        with self.faults.guard("gradients"):
            owned = self._layers.trained_by(optimizer)
        if owned is None:
            return True
        if self.faults.on("gradients"):
            with self.faults.guard("gradients"):
                step.gradients = OptimizerGradients(owned, self.pack, shards=self._shards)
        if self.faults.on("updates"):
            with self.faults.guard("updates"):
                step.snapshot = self._remembered.pop(index, None) or (None if before is None else before.snapshot)
                if step.snapshot is None:
                    step.snapshot = self._snapshots.take(index, owned, self.pack, shards=self._shards)
        return True

    @_harmless
    def steps_again(self) -> None:
        """Take that an optimizer steps that has stepped before: what it steps for is none of the next one's."""
        self._of_next = []

    @_harmless
    def after_optimizer_step(self, index: int, *, clipped: bool = False) -> None:
        """Compare the weights with those before; with `clipped`, read the gradients again, as the step used them."""
        step = self.steps[index]
        step.done = True
        self.wiring.stepped(step.optimizer, index)
        with self.faults.guard("gradients"):
            self._ask_scaler(step)
        if step.snapshot is not None and self.faults.on("updates"):
            with self.faults.guard("updates"):
                step.snapshot.measure(self.pack)
        step.clipped_by_hand = index in self._clipped_by_hand
        clipped = clipped or step.clipped_by_hand
        if clipped and step.gradients is not None and self.faults.on("gradients"):
            with self.faults.guard("gradients"):
                owned = self._layers.trained_by(step.optimizer)
                step.clipped = OptimizerGradients(owned, self.pack, shards=self._shards)

    def _ask_scaler(self, step: OptimizerStep) -> None:
        """Take what a gradient scaler tells an optimizer that unscales by itself, for the duration of its step."""
        found_inf, scale = (getattr(step.optimizer, name, None) for name in ("found_inf", "grad_scale"))
        # Copies: the scaler changes its own in place before the step's numbers are sent.
        if isinstance(found_inf, Tensor):
            step.found_inf = self.pack.add(found_inf.detach().clone())
        if isinstance(scale, Tensor) and step.gradients is not None:
            step.gradients.scale = self.pack.add(scale.detach().clone())
            if self.scale is None:
                self.scale = self.pack.add(scale.detach().clone())
                self.scaled_losses = self.takes_losses

    def finish(self) -> Measured:
        """Take every hook away and start the transfer."""
        self.close()
        with self.faults.guard("activations"):
            self._staging.end()
        with self.faults.guard("signal"):
            self.segments = self._connections.segments()
            self.chains = self._connections.chains()
        self.wiring.end()
        return Measured(
            steps=self.steps,
            activations_only=self.activations_only,
            sums=list(self.collected.sites.values()) if self.faults.on("activations") else [],
            losses=self.losses,
            scale=self.scale,
            scaled_losses=self.scaled_losses,
            segments=self.segments,
            chains=self.chains,
            trail=self.trail,
            wiring=self.wiring,
            pending=self.pack.send(),
        )

    @_harmless
    def cut_short(self) -> None:
        """Tell no signal of this step: what comes from now on isn't watched."""
        for sums in self.collected.sites.values():
            sums.signal_complete = False

    def close(self) -> None:
        """Take every hook away; fine to call again."""
        self.tracer.stop()
        self.hooks.remove()
        if self.trail is not None:
            self.trail.close()
        self._tags.clear()

    def give_up(self, fault: Exception) -> None:
        """Measure nothing more of this step, for the reason given; what is in place does nothing until it is taken away."""
        if self.fault is None:
            self.fault = fault
        self.tracer.recording = False
        self.hooks.ignoring = True
