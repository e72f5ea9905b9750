"""One measured step on the device: from the first forward pass to the transfer."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_gradwatch.measure.activations import Activations
from lightning_gradwatch.measure.aside import stepping_aside
from lightning_gradwatch.measure.audit import Audit, AuditedTracer
from lightning_gradwatch.measure.collect import Collected, SiteSums
from lightning_gradwatch.measure.connections import Connections
from lightning_gradwatch.measure.gradients import OptimizerGradients
from lightning_gradwatch.measure.pack import Pack, Pending, Slot, Values
from lightning_gradwatch.measure.signal import SignalHooks
from lightning_gradwatch.measure.tags import Tags
from lightning_gradwatch.measure.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from lightning_gradwatch.measure.faults import Faults
    from lightning_gradwatch.measure.layers import Layers, Owned
    from lightning_gradwatch.measure.path import Path
    from lightning_gradwatch.measure.sites import Site, Sites
    from lightning_gradwatch.measure.staging import Staging
    from lightning_gradwatch.measure.unseen import Unseen
    from lightning_gradwatch.measure.updates import Snapshots, WeightSnapshot


class OptimizerStep:
    """What one optimizer's step was measured by."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.learning_rate = max(
            (float(group["lr"]) for group in optimizer.param_groups if "lr" in group), default=float("nan")
        )
        self.gradients: OptimizerGradients | None = None
        self.clipped: OptimizerGradients | None = None
        self.snapshot: WeightSnapshot | None = None
        self.done = False
        """Whether the optimizer stepped; a gradient scaler leaves a step with inf out."""
        self.found_inf: Slot | None = None
        """Of an optimizer that leaves such a step out itself: above 0 if it did."""

    def taken(self, values: Values) -> bool:
        """Whether the step was really taken."""
        return self.done and (self.found_inf is None or not values[self.found_inf][0] > 0)


class Measured:
    """A step whose numbers are on their way to the host."""

    def __init__(self, step: StepMeter) -> None:
        self.steps = step.steps
        self.activations_only = step.activations_only
        self.sums: list[SiteSums] = list(step.collected.sites.values()) if step.faults.on("activations") else []
        self.losses = step.losses
        self.scale = step.scale
        self.segments = step.segments
        self.pending: Pending = step.pack.send()


class StepMeter:
    """Measures one step: forward passes within `tracing`, gradients and weights around each optimizer step."""

    def __init__(
        self,
        *,
        layers: Layers,
        sites: Sites,
        path: Path,
        faults: Faults,
        names: Mapping[int, str],
        staging: Staging,
        snapshots: Snapshots,
        spacious: Sequence[nn.Module] = (),
        eager: bool = False,
        processes: int = 1,
        activations_only: bool = False,
        unseen: Unseen,
        audited: bool = False,
    ) -> None:
        self.faults = faults
        self.pack = Pack()
        self._staging = staging
        staging.begin(self.pack)
        self.collected = Collected(staging)
        self.steps: dict[int, OptimizerStep] = {}
        self.losses: list[Slot] = []
        self.scale: Slot | None = None
        self.activations_only = activations_only
        self.segments: dict[Site, Site] = {}
        self._layers = layers
        self._snapshots = snapshots
        self._spacious = spacious
        self._eager = eager
        self._processes = processes
        self._tags = Tags()
        self.hooks = SignalHooks(faults, off=activations_only)
        self._connections = Connections(path, off=activations_only)
        self.activations = Activations(
            sites=sites,
            collected=self.collected,
            hooks=self.hooks,
            connections=self._connections,
            tags=self._tags,
            names=names,
            unseen=unseen,
        )
        self.takes_losses = True
        self._audit = Audit(unseen) if audited else None
        settings: dict[str, Any] = {
            "layers": layers,
            "activations": self.activations,
            "tags": self._tags,
            "faults": faults,
            "before_backward": self._saw_backward,
        }
        self.tracer = Tracer(**settings) if self._audit is None else AuditedTracer(audit=self._audit, **settings)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Watch one forward pass; nothing of it is kept afterwards but sums."""
        self.tracer.start()
        try:
            with ExitStack() as stack:
                if self._eager:
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(
                    stepping_aside(self._spacious, self.tracer, eager=self._eager, untrained=self._runs_unseen)
                )
                yield
        finally:
            self.tracer.stop()
            self.end_pass()

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

    def end_pass(self, loss: Any = None) -> None:
        """Close a forward pass; `loss` is what it computed and is about to be propagated back, where that is known."""
        with self.faults.guard("activations"):
            self.activations.end_pass()
        with self.faults.guard("signal"):
            self._connections.end_pass(loss)
        if self._audit is not None:
            with self.faults.guard("activations"):
                self._audit.check(loss)

    def _saw_backward(self, loss: Any) -> None:
        self.end_pass(loss)
        if self.takes_losses:
            self.add_loss(loss)

    def add_loss(self, loss: Any, scale: Tensor | None = None, *, late: bool = False) -> None:
        """Take the loss of one backward pass; those of a step add up, and those of a line search behind it don't count.

        Args:
            loss: The loss.
            scale: What it is multiplied by.
            late: It belongs to the step although the gradients were measured before.
        """
        if self.steps and not late:
            return
        if isinstance(loss, (list, tuple)) and len(loss) == 1:
            loss = loss[0]
        if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
            value = loss.detach().reshape(()).double()
            self.losses.append(self.pack.add(value if scale is None else value / scale))

    def set_scale(self, scale: Tensor) -> None:
        """Take the factor by which the loss, and so every signal of this step, is multiplied."""
        self.scale = self.pack.add(scale)

    def before_optimizer_step(self, optimizer: Optimizer, index: int, *, again: bool = False) -> bool:
        """Measure the gradients an optimizer is about to use and remember its weights; the first time in a step only.

        Args:
            optimizer: The optimizer.
            index: Its place in the run's list.
            again: Drop what was measured before: there are more gradients now.

        Returns:
            Whether it was measured, so that `after_optimizer_step` is wanted.
        """
        if index in self.steps and not again:
            return False
        step = self.steps[index] = OptimizerStep(optimizer)
        if self.activations_only:
            return True
        owned: list[Owned] | None = None
        with self.faults.guard("gradients"):
            owned = self._layers.trained_by(optimizer)
        if owned is None:
            return True
        if self.faults.on("gradients"):
            with self.faults.guard("gradients"):
                step.gradients = OptimizerGradients(owned, self.pack, processes=self._processes)
        if self.faults.on("updates"):
            with self.faults.guard("updates"):
                step.snapshot = self._snapshots.take(index, owned, self.pack, processes=self._processes)
        return True

    def after_optimizer_step(self, index: int, *, clipped: bool = False) -> None:
        """Compare the weights with those before; with `clipped`, read the gradients again, as the step used them."""
        step = self.steps[index]
        step.done = True
        with self.faults.guard("gradients"):
            self._ask_scaler(step)
        if step.snapshot is not None and self.faults.on("updates"):
            with self.faults.guard("updates"):
                step.snapshot.measure(self.pack)
        if clipped and step.gradients is not None and self.faults.on("gradients"):
            with self.faults.guard("gradients"):
                owned = self._layers.trained_by(step.optimizer)
                step.clipped = OptimizerGradients(owned, self.pack, processes=self._processes)

    def _ask_scaler(self, step: OptimizerStep) -> None:
        """Take what a gradient scaler tells an optimizer that unscales by itself, for the duration of its step."""
        found_inf, scale = (getattr(step.optimizer, name, None) for name in ("found_inf", "grad_scale"))
        # Copies: the scaler changes its own in place before the step's numbers are sent.
        if isinstance(found_inf, Tensor):
            step.found_inf = self.pack.add(found_inf.detach().clone())
        if isinstance(scale, Tensor) and step.gradients is not None:
            step.gradients.scale = self.pack.add(scale.detach().clone())

    def finish(self) -> Measured:
        """Take every hook away and start the transfer."""
        self.close()
        with self.faults.guard("activations"):
            self._staging.end()
        with self.faults.guard("signal"):
            self.segments = self._connections.segments()
        return Measured(self)

    def close(self) -> None:
        """Take every hook away; fine to call again."""
        self.tracer.stop()
        self.hooks.remove()
        self._tags.clear()
