"""Measures training steps of any module; knows no training loop, so it serves Lightning's, Fabric's and a plain one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.optim import Optimizer
from typing_extensions import Self

from lightning_gradwatch.measure.assemble import PendingRecord, StepFacts
from lightning_gradwatch.measure.describe import describe
from lightning_gradwatch.measure.faults import Faults
from lightning_gradwatch.measure.instruments import Instruments
from lightning_gradwatch.measure.model.autograd_graph import TOO_LARGE
from lightning_gradwatch.measure.model.call_site import ModuleNames
from lightning_gradwatch.measure.model.layers import Layers, parameters_of, unwrapped
from lightning_gradwatch.measure.model.path import Path
from lightning_gradwatch.measure.model.shards import ALONE, Shards
from lightning_gradwatch.measure.model.sites import Sites
from lightning_gradwatch.measure.optimizer_step import OptimizerSteps
from lightning_gradwatch.measure.step import StepMeter
from lightning_gradwatch.measure.totals import Columns
from lightning_gradwatch.measure.trace.compiled import is_compiled
from lightning_gradwatch.measure.trace.lost_gradients import MOST_STEPS, MOST_TRIES
from lightning_gradwatch.measure.trace.opaque import find_opaque
from lightning_gradwatch.measure.trace.uncovered import BY_GRAD, Note, Uncovered
from lightning_gradwatch.measure.units.batched_reductions import BatchedReductions
from lightning_gradwatch.measure.units.mask import Mask, Masks
from lightning_gradwatch.measure.units.windows import Windows
from lightning_gradwatch.measure.unobserved import unobserved
from lightning_gradwatch.measure.updates import Limits, Snapshots
from lightning_gradwatch.measure.wiring.watch import WiringWatch
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.showing import shown
from lightning_gradwatch.record.step import StepRecord

if TYPE_CHECKING:
    from lightning_gradwatch.measure.model.path import Layer


_MOST_INFOS = 100


class Probe:
    """Measure one training step of a module: the forward and backward passes and the optimizer's step in the block.

    The same probe can be used for many steps, one ``with`` block each; its windows over the units' observations then
    run on from step to step. Outside of the block nothing of it is left on the model or the optimizer.

    Args:
        model: The module that is trained.
        optimizer: The optimizer, or several, that hold its parameters.
        observations: Observations of a unit that its window holds, as far as the net stays as it is.
        least_observations: Observations that make a window full.
        batch_elements: Batch elements that a full window spans at least.
        compiled: ``"eager"``: run compiled modules eagerly in a measured step, so that their activations show.
        mask: True where a position of the batch is a sample, False where it is padding: a tensor shaped as the activations
            without their unit axis, such as [batch, length]; or one by module name for the modules that need each. The
            units' observations then are the samples. An attribute, to be set anew for each batch.
        step: The number of the first measured step. An attribute, which counts measured steps; set it to the loop's own where
            not all are measured: the rules go by steps.
        faults: Where faults of its own are reported; one of its own, by default.
        shards: How the processes that train the model together, and combine what their probes measure, hold its parameters;
            this one alone, by default.

    Raises:
        TypeError: an argument isn't a module, or isn't an optimizer.
        ValueError: the window would hold nothing; or, when a step begins, no optimizer holds a parameter of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        observations: int = 1024,
        least_observations: int = 256,
        batch_elements: int = 32,
        compiled: Literal["skip", "eager"] = "skip",
        mask: Mask | None = None,
        step: int = 0,
        faults: Faults | None = None,
        shards: Shards = ALONE,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} must be a torch.nn.Module, not {type(model).__name__}")
        optimizers = [*optimizer] if isinstance(optimizer, Iterable) else [optimizer]
        for each in optimizers:
            if not isinstance(each, Optimizer):
                raise TypeError(f"optimizer={each!r} must be a torch.optim.Optimizer, not {type(each).__name__}")
        if min(observations, least_observations, batch_elements) < 1:
            raise ValueError(
                f"observations={observations}, least_observations={least_observations} and batch_elements={batch_elements} "
                "must all be at least 1: a window of none can't tell a dead unit from a live one"
            )
        self.faults = faults or Faults()
        self.windows = Windows(observations, batch_elements, least_observations)
        """Over the observations of the sites' units."""
        self._optimizers = list(optimizers)
        self._shards = shards
        self._eager = compiled == "eager"
        self.mask = mask
        self._meter: StepMeter | None = None
        self._block = ExitStack()
        self.step = step
        self._estimated = False
        self._record: StepRecord | None = None
        self._info: RunInfo | None = None
        self._infos: dict[str, RunInfo] = {}
        """By layout."""
        self._layout = ""
        self._described: tuple[object, ...] = ()
        self._arranged = 0
        """How often the order of the layers and sites has changed."""
        self._arranged_by: tuple[int, ...] = ()
        self._compiled = 0
        """Modules that are compiled."""
        self._changes = 0
        """How often the optimizers were replaced."""
        self._audited = -1
        """Sites there were when the last audit had ended."""
        self._writes = 0
        """Into parameters, when the step began; not asked any more once an optimizer was seen to step."""
        self._followed = 0
        """Steps in which the gradients of some layers were looked for."""
        try:
            self._prepare(model)
        except Exception as error:
            if faults is not None:  # whose they are ends the run's measuring
                raise
            self.faults.report("schedule", error)

    def _prepare(self, model: nn.Module) -> None:
        self._model = unwrapped(model)
        self._path = Path()
        self._layers = Layers(model, self._path)
        self._names = ModuleNames(self._model)
        self._sites = Sites(self._path)
        self._unseen = Uncovered()
        self._wiring = WiringWatch(self._model, self._layers, self._names, self.faults)
        self._instruments = Instruments(
            layers=self._layers,
            sites=self._sites,
            path=self._path,
            names=self._names,
            shards=self._shards,
            staging=BatchedReductions(),
            snapshots=Snapshots(Limits()),
            unseen=self._unseen,
            wiring=self._wiring,
            faults=self.faults,
            eager=self._eager,
        )

    # -- one step of a plain loop

    def __enter__(self) -> Self:
        if not self.faults.on("schedule"):
            return self
        trained = True
        with self.faults.guard("schedule"):
            own = {id(parameter) for parameter in self._model.parameters()}
            trained = any(id(parameter) in own for each in self._optimizers for parameter in parameters_of(each))
        if not trained:
            raise ValueError(
                f"optimizer={self._optimizers!r} holds no parameter of the model: make it of model.parameters()"
            )
        with self.faults.guard("schedule"):
            self._open()
        return self

    def _open(self) -> None:
        """Put in place what measures the block."""
        try:
            with ExitStack() as placed:
                meter = self.begin()
                placed.enter_context(meter.tracing())
                for index, optimizer in enumerate(self._optimizers):
                    placed.callback(self._hear(optimizer, index, meter).remove)
                self._block = placed.pop_all()
        except Exception:
            self.abort()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.faults.guard("schedule"):
            self._end(failed=error is not None)

    def _end(self, *, failed: bool) -> None:
        """Take away what measured the block, and build its record, unless it failed."""
        meter = self._meter
        try:
            self._block.close()
            if meter is None or failed:
                return
            if meter.fault is not None:
                raise meter.fault
            with unobserved():
                pending = self.finish(self._facts())
                record = pending.resolve()
        finally:
            self.abort()
        assert record is not None  # only a step of activations alone makes none
        self._record, self._info, self._layout = record, pending.info, record.layout
        self._infos.pop(record.layout, None)
        self._infos[record.layout] = pending.info
        if len(self._infos) > _MOST_INFOS:
            del self._infos[next(iter(self._infos))]
        self._described = self._known()
        self.step += 1

    def _facts(self) -> StepFacts:
        return StepFacts(step=self.step, batch_idx=self.step, optimizers=len(self._optimizers))

    def _hear(self, optimizer: Optimizer, index: int, meter: StepMeter) -> OptimizerSteps:
        """Have an optimizer tell when it steps."""

        def before(again: bool) -> None:
            meter.tracer.pause()
            self.before_optimizer_step(optimizer, index, again=again)

        def after() -> None:
            if meter.awaits(index):
                meter.after_optimizer_step(index)
            meter.tracer.resume()

        return OptimizerSteps(optimizer, index, meter, before=before, after=after, eager=self._eager)

    @property
    def record(self) -> StepRecord:
        """The measured step.

        Raises:
            RuntimeError: no ``with`` block has ended yet.
        """
        if self._record is None:
            raise RuntimeError("Probe.record: no step was measured yet; it is there when the `with` block has ended")
        return self._record

    @property
    def info(self) -> RunInfo:
        """The layers, the sites and what isn't covered, as far as they were seen."""
        if self._info is None:
            self._info = self._describe()
        return self._info

    @property
    def infos(self) -> tuple[RunInfo, ...]:
        """One description for each list of layers and sites that measured steps had, the newest last (at most 100)."""
        return tuple(self._infos.values()) or (self.info,)

    def __repr__(self) -> str:
        measured = "no step measured yet" if self._record is None else f"step {self._record.step} measured last"
        return f"<Probe: {measured}>"

    def _repr_html_(self) -> str | None:
        """Show the step that was measured last as the page, in a notebook."""
        return None if self._record is None else shown("of_step", (self._record, self.infos))

    # -- the parts of a step, for a loop that calls back

    @unobserved()
    def begin(self, *, activations_only: bool = False, optimizers: Sequence[Optimizer] | None = None) -> StepMeter:
        """Start to measure a step; one that wasn't finished is given up.

        Args:
            activations_only: Count the units' observations, and measure nothing else.
            optimizers: Those that train the model from now on; None: as before.
        """
        self.abort()
        self.trained_by(self._optimizers if optimizers is None else optimizers)
        self._names.begin_step()
        # Looked for in each step, as a module may be compiled, or put in, at any time.
        opaque_modules = find_opaque(self._model)
        self._compiled = sum(map(is_compiled, opaque_modules))
        self._layers.step += 1
        if not self._unseen.stepped:
            self._writes = self._layers.writes
        suspects = () if activations_only else self._suspects()
        audited = not activations_only and not suspects and self._audited != len(self._sites.ordered)
        self._meter = StepMeter(
            self._instruments,
            measure_early=self._measure_early,
            optimizers=lambda: self._optimizers,
            opaque_modules=opaque_modules,
            activations_only=activations_only,
            audited=audited,
            suspects=suspects,
        )
        self._meter.activations.masks = Masks(self.mask)
        return self._meter

    @unobserved()
    def trained_by(self, optimizers: Sequence[Optimizer]) -> None:
        """Take in which optimizers train the model from now on, and what parameters they brought."""
        if [*optimizers] != self._optimizers:
            self._optimizers = [*optimizers]
            self._changes += 1
        self._take_in_new_parameters()

    def _measure_early(self, index: int, *, again: bool) -> None:
        """Measure what an optimizer will use before it begins to step."""
        self.before_optimizer_step(self._optimizers[index], index, again=again, early=True)

    @unobserved()
    def before_optimizer_step(
        self, optimizer: Optimizer, index: int, *, again: bool = False, early: bool = False
    ) -> bool:
        """Measure what an optimizer is about to use; whether it is its first step in this one, or is to be measured again."""
        assert self._meter is not None
        if index >= len(self._optimizers) or self._optimizers[index] is not optimizer:
            self._optimizers[index : index + 1] = [optimizer]
            self._changes += 1
        self._take_in_new_parameters()  # shards that whole parameters stood in for when the step began
        self._layers.list_unused()
        return self._meter.before_optimizer_step(optimizer, index, again=again, early=early)

    @unobserved()
    def finish(self, facts: StepFacts) -> PendingRecord:
        """End the step: every hook goes, and its numbers start on their way to the host."""
        assert self._meter is not None
        meter, self._meter = self._meter, None
        measured = meter.finish()
        if meter.audited:
            self._audited = len(self._sites.ordered)
        if measured.losses and not measured.activations_only:
            self._unseen.take_signals(measured.sums)
        if meter.activations.by_grad and measured.steps and not (measured.losses or measured.activations_only):
            self._unseen.note(BY_GRAD, Note("", BY_GRAD, len(self._sites.ordered)))
        if not measured.activations_only:
            changed = not self._unseen.stepped and bool(self._optimizers) and self._layers.writes != self._writes
            self._unseen.take_steps(stepped=bool(measured.steps), changed=changed)
        self._unseen.take_units()
        if meter.lost:
            self._unseen.note(TOO_LARGE, Note("", TOO_LARGE, 0))
        for step in measured.steps.values():
            if step.gradients is not None:
                self._unseen.take_unreadable(step.gradients.unreadable)
        self._estimated = self._estimated or any(
            step.snapshot is not None and step.snapshot.estimated for step in measured.steps.values()
        )
        with self.faults.guard("signal"):
            self._arrange()
        if self._shards.processes == 1:
            self.windows.of(self._sites.ordered)
        if self._info is None or self._described != self._known():
            self._info = self._describe()
            self._layout = self._info.layout
            self._described = self._known()
        layers = list(self._layers.ordered)
        columns = Columns(
            layout=self._layout,
            layers=layers,
            sites=list(self._sites.ordered),
            frozen=[layer.frozen for layer in layers],
            used=[self._layers.uses(layer) for layer in layers],
            known=[layer.used for layer in layers],
        )
        return PendingRecord(measured, columns, facts, self._info, self.windows)

    def abort(self) -> None:
        """Give up a step that is under way; fine when there is none."""
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    def state_dict(self) -> dict[str, Any]:
        """Return the windows by the name of their site, for a checkpoint."""
        return self.windows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.windows.load_state_dict(state)

    def _suspects(self) -> Sequence[Layer]:
        """Return the layers whose gradient, or a parameter's, was missing and is to be looked for in the step that begins."""
        if self._followed >= MOST_STEPS:
            return ()
        suspects = [
            layer
            for layer in self._layers.ordered
            if layer.lacks and layer.lost is None and layer.used and not layer.frozen and layer.followed < MOST_TRIES
        ]
        for layer in suspects:
            layer.followed += 1
        partly = [layer for layer in self._layers.ordered if layer.partly and not layer.looked_at]
        for layer in partly:
            layer.looked_at = True
        suspects += partly
        self._followed += bool(suspects)
        return suspects

    @property
    def places(self) -> dict[str, list[str]]:
        """The names of the layers and sites as they became known, by which curves are numbered; empty where columns say it."""
        known = {"layers": list(self._layers.places), "sites": list(self._sites.places)}
        columns = {
            "layers": [layer.name for layer in self._layers.ordered],
            "sites": [site.name for site in self._sites.ordered],
        }
        return {kind: names for kind, names in known.items() if names != columns[kind]}

    @places.setter
    def places(self, known: Mapping[str, Sequence[str]]) -> None:
        for kind, names in known.items():
            places = self._layers.places if kind == "layers" else self._sites.places
            places.update({name: place for place, name in enumerate(names)})

    def _take_in_new_parameters(self) -> None:
        if any(self._layers.unknown(each) for each in self._optimizers):
            self._layers.refresh()

    def _arrange(self) -> None:
        """Put layers and sites in the order of the path, where something was learned of it."""
        known = (self._path.known, len(self._layers.ordered), len(self._sites.ordered), self._layers.changes)
        if known != self._arranged_by:
            self._arranged_by = known
            sites = self._sites.arrange()
            self._arranged += self._layers.arrange(self._sites.ordered) or sites

    def _known(self) -> tuple[object, ...]:
        """Return what changes when there is something new to describe."""
        return (
            len(self._layers.ordered),
            self._layers.unused,
            len(self._sites.ordered),
            self._path.connections,
            self._arranged,
            self._sites.corrections,
            self._unseen.changes,
            self._wiring.facts.changes,
            self._estimated,
            self._changes,
            self._layers.changes,
            self._compiled,
            *(hash(layer.lost) for layer in self._layers.ordered if layer.lost is not None),
        )

    def _describe(self) -> RunInfo:
        return describe(
            self._model,
            self._layers,
            self._sites,
            self._optimizers,
            self._unseen,
            facts=self._wiring.facts,
            estimated=self._estimated,
            eager=self._eager,
        )
