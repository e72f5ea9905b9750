"""GradWatch: when to measure, which optimizer, which logger. The only module of the core that knows Lightning.

Between measured steps it compares integers. For a measured one it wraps the strategy's ``training_step`` (an attribute
of that one instance, gone when the batch ends) and listens to Lightning's own hooks; nothing is ever put on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.fit.batch_hooks import BatchHooks
from lightning_gradwatch.fit.callback_base import Telling, guarded
from lightning_gradwatch.fit.fit import Fit
from lightning_gradwatch.fit.packages import AnyModule, AnyTrainer
from lightning_gradwatch.fit.results import Outcome
from lightning_gradwatch.fit.schedule import DEFAULT_EVERY_N_STEPS, Schedule
from lightning_gradwatch.fit.strategies import Joined, join, leads, world_size
from lightning_gradwatch.fit.trainer import (
    accumulates,
    clips,
    current_scale,
    describe,
    end_of,
    folder_of,
    logger_step,
    overrides,
)
from lightning_gradwatch.fit.writing.writer import Sinks
from lightning_gradwatch.judge.evaluator import Evaluator
from lightning_gradwatch.judge.rule import Rule
from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.selection import resolve_rules
from lightning_gradwatch.measure.assemble import StepFacts
from lightning_gradwatch.measure.faults import Faults
from lightning_gradwatch.measure.model.layers import parameters_of
from lightning_gradwatch.measure.probe import Probe
from lightning_gradwatch.measure.trace.compiled import has_compiled_step
from lightning_gradwatch.measure.units.mask import Mask, mask_of
from lightning_gradwatch.record.arguments import check_choice, check_count_or_none, check_function
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.tell.reporter import Reporter, current, errors_only

FailOn = Literal["warning", "error"]


class GradWatch(Telling):
    """Watch gradients and activations of a fit, show them in TensorBoard, and warn when the net stops learning.

    Args:
        every_n_steps: Measure every so many steps; None: the Trainer's ``log_every_n_steps``. Steps 0, 1, 2, 4, 8, …
            below that as well, and after a rule's first hit the next steps, to confirm it; where the loss or a gradient
            jumps, the next 64.
        rules: Rules that replace the default ones of the same code, thresholds being fields:
            ``rules=[VanishingGradient(ratio=1e-2, min_grad_rms=1e-7)]``.
        ignore: Codes of rules to leave out, or prefixes of them: ``("GW202",)``.
        fail_on: Raise `GradWatchError` for a finding of this severity or above: None, ``"warning"`` or ``"error"``.
        max_curves: Up to so many weight layers (and sites) get curves of their own; above, there are summaries and an
            image of the heatmap. None: curves always.
        compiled: ``"skip"``: the activations of compiled modules aren't measured, which the run's coverage says;
            ``"eager"``: measured steps run them eagerly, which may differ from the compiled code by rounding.
        mask: From a batch to a tensor that is True where a position is a sample and False where it is padding, shaped as
            the activations without their unit axis: ``mask=lambda batch: batch["attention_mask"]``; or to such tensors by
            module name, ``{"encoder": …, "decoder": …}``. The units' observations then are the samples.

    Raises:
        TypeError, ValueError: an argument can't be used; the message says which, and what would do.
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        rules: Sequence[Rule] = (),
        ignore: Sequence[str] = (),
        fail_on: FailOn | None = None,
        max_curves: int | None = 64,
        compiled: Literal["skip", "eager"] = "skip",
        mask: Callable[[Any], Mask | None] | None = None,
    ) -> None:
        super().__init__()
        of = GradWatch.__name__
        self._every_n_steps = check_count_or_none(
            of, "every_n_steps", every_n_steps, least=1, none="the Trainer's log_every_n_steps"
        )
        self._max_curves = check_count_or_none(of, "max_curves", max_curves, least=0, none="curves always")
        self._fail_on = check_choice(of, "fail_on", fail_on, (None, "warning", "error"))
        self._compiled = check_choice(of, "compiled", compiled, ("skip", "eager"))
        self._mask = check_function(of, "mask", mask)
        self._rules = resolve_rules(rules, ignore)
        self._restored: Any = None
        self._hooks = BatchHooks()
        self._clipped = self._tracing = False
        """Of the optimizer step under way: whether Lightning clips its gradients, and whether it is inside of a traced pass."""
        self._rest = self._step = 0
        """The batches that go by without a look, the next one included, and the logger's step in the last that had one."""

    # -- Lightning's hooks

    def on_train_start(self, trainer: AnyTrainer, pl_module: AnyModule) -> None:
        self._faults = Faults()  # what failed in an earlier fit may work in this one
        self._start(trainer, pl_module)

    def on_train_batch_start(self, trainer: AnyTrainer, pl_module: AnyModule, batch: Any, batch_idx: int) -> None:
        # First of all, and in nearly all batches all of it: whatever is touched between two steps of a net is cold.
        self._rest -= 1
        if self._rest <= 0:
            self._begin_batch(trainer, pl_module, batch)

    @guarded()
    def _begin_batch(self, trainer: AnyTrainer, pl_module: AnyModule, batch: Any) -> None:
        self._release()
        fit = self._fit
        if fit is None:
            return
        self._step = step = logger_step(trainer)
        if fit.open is not None and not fit.open.meter.steps and not pl_module.automatic_optimization:
            # Manual optimization that steps every few batches: Lightning counts each batch, we wait for the step.
            fit.open.step = step
        opened = fit.begin(step, trainer.optimizers)
        self._live = opened is not None or self._outside
        if opened is not None:
            opened.begin_pass()
            opened.meter.takes_losses = False
            if self._mask is not None:
                with self._faults.guard("activations"):
                    opened.meter.activations.masks = mask_of(self._mask, batch)
            self._hooks.place(
                trainer,
                pl_module,
                opened.meter,
                traced=opened.traced,
                eager=self._compiled == "eager",
                begins=lambda: fit.probe.trained_by(trainer.optimizers),
                before=partial(self._before_step, trainer),
                after=self._after_step,
            )

    @guarded(while_open=True)
    def on_before_backward(self, trainer: AnyTrainer, pl_module: AnyModule, loss: Tensor) -> None:
        self._open_fit.meter.add_loss(loss, current_scale(trainer, loss))

    @guarded(while_open=True)
    def on_after_backward(self, trainer: AnyTrainer, pl_module: AnyModule) -> None:
        meter = self._open_fit.meter
        scale = current_scale(trainer, pl_module)
        if scale is not None and meter.scale is None:
            meter.set_scale(scale)
        own = pl_module.automatic_optimization and overrides(pl_module, "on_after_backward")
        if own and scale is None and not accumulates(trainer):  # the module's own hook comes next, and may clip
            held = [each for optimizer in trainer.optimizers for each in parameters_of(optimizer)]
            meter.clipped([each.grad for each in held if each.grad is not None])

    @guarded(while_open=True)
    def on_before_optimizer_step(self, trainer: AnyTrainer, pl_module: AnyModule, optimizer: Optimizer) -> None:
        for index, known in enumerate(trainer.optimizers):
            if known is optimizer:
                self._before_step(trainer, optimizer, index)

    @guarded(while_open=True)
    def _before_step(self, trainer: AnyTrainer, optimizer: Optimizer, index: int, again: bool = False) -> None:
        """Measure what an optimizer is about to use, and have it say when it has stepped."""
        fit = self._open_fit
        meter = fit.meter
        self._hooks.hear(optimizer, index)
        if fit.probe.before_optimizer_step(optimizer, index, again=again):
            self._clipped = not meter.activations_only and clips(trainer)
            self._tracing = meter.tracer.recording  # manual optimization steps inside `training_step`
            meter.tracer.pause()

    @guarded(while_open=True)
    def _after_step(self, index: int) -> None:
        """Measure what an optimizer has done."""
        meter = self._open_fit.meter
        if meter.awaits(index):
            if self._tracing:
                meter.tracer.resume()
            meter.after_optimizer_step(index, clipped=self._clipped)

    def on_train_batch_end(
        self, trainer: AnyTrainer, pl_module: AnyModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._rest <= 0:
            self._end_batch(trainer, pl_module, batch_idx)

    @guarded()
    def _end_batch(self, trainer: AnyTrainer, pl_module: AnyModule, batch_idx: int) -> None:
        self._release()
        if (fit := self._fit) is None:
            return
        opened = fit.open
        if opened is not None and opened.meter.fault is not None:
            raise opened.meter.fault
        if opened is not None and opened.meter.steps:
            fit.end(
                StepFacts(
                    step=opened.step,
                    batch_idx=batch_idx,
                    partial=pl_module.automatic_optimization and opened.passes < trainer.accumulate_grad_batches,
                    world_size=world_size(trainer),
                    optimizers=len(trainer.optimizers),
                )
            )
        elif opened is not None and not pl_module.automatic_optimization:
            fit.wait_for_step()
        elif opened is None or accumulates(trainer):
            fit.drain(wait=False)
        else:
            fit.skip()
        self._live = fit.open is not None or self._outside
        self._rest = fit.rest(self._step)

    def on_train_end(self, trainer: AnyTrainer, pl_module: AnyModule) -> None:
        self._end(trainer)

    def on_exception(self, trainer: AnyTrainer, pl_module: AnyModule, exception: BaseException) -> None:
        # The Trainer calls no teardown after an exception; what was measured before it is still worth having.
        self._end(trainer, exception)
        self._leave_outcome()

    def teardown(self, trainer: AnyTrainer, pl_module: AnyModule, stage: str) -> None:
        self._end()
        self._leave_outcome()

    def state_dict(self) -> dict[str, Any]:
        """Return the windows and the rules' patience, so that a resumed run goes on judging where it was."""
        if self._fit is None:
            return dict(self._restored) if isinstance(self._restored, Mapping) else {}
        return self._fit.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, for the fit that is about to start; where it is of no use, that begins anew."""
        self._restored = None if isinstance(state_dict, Mapping) and not state_dict else state_dict

    def __getstate__(self) -> dict[str, Any]:
        # Lightning hangs the module's own log methods on the callback, and a fit holds the model: neither is ours to copy.
        left_out = ("log", "log_dict", "_fit", "_received", "_hooks", "_faults", "_asked_in_vain")
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fit, self._hooks, self._asked_in_vain = None, BatchHooks(), False
        self._faults, self._received = Faults(), Outcome()
        self._kin = self._kin.belong_to(self)

    # -- the parts

    @property
    def _open_fit(self) -> Fit:
        """The fit, in a hook for open steps alone."""
        assert self._fit is not None
        return self._fit

    @guarded()
    def _start(self, trainer: AnyTrainer, pl_module: AnyModule) -> None:
        self._faults = Faults(speaks=leads(trainer))
        self._end()
        self._fit, self._received = None, Outcome()
        self._kin.begin(self)
        self._rest = 0
        self._live = self._outside = any(map(has_compiled_step, trainer.optimizers))
        # First of all, as all ranks have to take part, whatever becomes of them afterwards.
        joined = join(trainer, self._faults, automatic=pl_module.automatic_optimization)
        try:
            self._fit = self._make_fit(trainer, pl_module, joined)
        except Exception:
            if joined.ranks is not None:
                joined.ranks.leave()
            raise
        if self._restored is not None:
            self._fit.load_state_dict(self._restored)
            self._restored = None

    def _make_fit(self, trainer: AnyTrainer, pl_module: AnyModule, joined: Joined) -> Fit:
        window = next((rule for rule in self._rules if isinstance(rule, DeadUnits)), DeadUnits())
        every = self._every_n_steps or getattr(trainer, "log_every_n_steps", None) or DEFAULT_EVERY_N_STEPS
        sinks = self._make_sinks(trainer)
        return Fit(
            probe=Probe(
                pl_module,
                trainer.optimizers,
                observations=window.observations,
                least_observations=window.least_observations,
                batch_elements=window.batch_elements,
                compiled=self._compiled,
                faults=self._faults,
                shards=joined.shards,
            ),
            schedule=Schedule(every),
            evaluator=Evaluator(self._rules),
            sinks=sinks,
            nowhere="written nowhere (fast_dev_run)" if getattr(trainer, "fast_dev_run", False) else "",
            describe=lambda info: describe(
                info, trainer, pl_module, every_n_steps=every, eager=self._compiled == "eager"
            ),
            reporter=self._reporter(trainer),
            fail_on=None if self._fail_on is None else Severity[self._fail_on.upper()],
            ranks=joined.ranks,
        )

    def _make_sinks(self, trainer: AnyTrainer) -> Sinks | None:
        """Open what this fit's records are written to; None where nothing is."""
        if not leads(trainer) or getattr(trainer, "fast_dev_run", False):
            return None
        return Sinks(trainer.loggers, folder_of(trainer), max_curves=self._max_curves, faults=self._faults)

    def _reporter(self, trainer: AnyTrainer) -> Reporter:
        """Return what this process's fit is to report to."""
        return current() if leads(trainer) else errors_only(current())

    def _release(self) -> None:
        """Take away what a measured batch puts in place; fine when there is nothing."""
        self._hooks.release()

    @guarded()
    def _end(self, trainer: AnyTrainer | None = None, exception: BaseException | None = None) -> None:
        """End the fit, by an exception perhaps; without a Trainer, how it ended isn't known."""
        self._release()
        if self._fit is not None:
            end = None if trainer is None else end_of(trainer, exception)
            self._fit.finish(end, alone=exception is not None)

    def _stop(self) -> None:
        self._release()
        if self._fit is not None:
            with self._faults.guard("schedule"):
                self._fit.stop()
