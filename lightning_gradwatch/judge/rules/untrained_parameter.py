"""GW503: parameters that the loss depends on, and that nobody trains.

Which layers are trained may change in mid-run, as in fine-tuning, and is said, as no number shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lightning_gradwatch.judge.evidence.standing_loss import LOSS_FALL
from lightning_gradwatch.judge.rule import NEAR, LazyFinding, Sentences, Verdict
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.judge.wiring_rule import Urgency, WiringRule
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy, Severity, UntrainedParameterWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerState, StepRecord, Wiring
from lightning_gradwatch.record.wording import listed, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.judge.evidence.loss_trend import LossTrend
    from lightning_gradwatch.judge.evidence.standing_loss import Standing

_INITIAL = "unheld-initial"
_UNHELD = "unheld "
"""The key of what is found of layers that no optimizer holds, whatever else is known of them."""
_SMALL_FALL = 0.2
"""Share of the loss at the start: by less, if not to half, it falls for a head that learns of layers that are left to chance."""
_TRAINED = "trained-layers"
_LASTING = 3
"""Measured steps for which a change must last."""
_SHOWN = 4
"""Changes that are told one by one."""


@dataclass(frozen=True, kw_only=True)
class UntrainedParameter(WiringRule):
    """Parameters get a gradient, and no optimizer holds them.

    What: read off the first measured steps. Either the loss depends on tensors that ask for a gradient and that a plain
    attribute of a module holds (a Python list or dictionary of layers, an object that is no ``nn.Module``), which
    ``parameters()`` doesn't find; or a layer of the model gets a gradient, and none of the optimizers holds any parameter of
    it. Inputs that ask for a gradient, as in gradient penalties and physics-informed nets, are none. Information once the
    loss has come down to half; of a layer that no optimizer holds, until the loss is seen to stand, as some are left out on
    purpose; but where such layers lie before one that is trained, are in training mode and are still as they were initialised,
    until step 50, unless the loss falls and is down to 80 % of where it began. Layers that are thawed or frozen in mid-run, once and for good, are information, too.

    Why: such a layer keeps the values that it was initialised with. What was put together to learn is a random function, and
    the rest of the net has to do with what comes out of it. A list's parameters are neither saved nor moved to the device.

    What to do: hold layers in ``nn.ModuleList`` or ``nn.ModuleDict`` and tensors in ``nn.Parameter``; give the optimizer
    ``self.parameters()``. Where it is meant, as for a fixed net that a loss goes through, switch their gradient off with
    ``requires_grad_(False)``, which saves time and memory.

    It has no threshold.
    """

    code: ClassVar[str] = "GW503"
    name: ClassVar[str] = "untrained-parameter"
    warning: ClassVar[type[UntrainedParameterWarning]] = UntrainedParameterWarning
    kinds: ClassVar[tuple[str, ...]] = ("unregistered", "unheld")
    waiting: ClassVar[tuple[str, ...]] = ("unheld",)
    traced: ClassVar[bool] = False

    def _facts(self, wiring: Sequence[Wiring]) -> dict[str, Wiring]:
        """Return them; layers that no optimizer holds with how many stay as they were initialised, where some do."""
        facts = super()._facts(wiring)
        for fact in wiring:
            if fact.kind == _INITIAL and _UNHELD in facts:
                facts[_UNHELD] = replace(facts[_UNHELD], kind=_INITIAL, value=len(fact.names))
        return facts

    def _urgency_of(self, fact: Wiring, trend: LossTrend) -> str:
        if fact.kind == _INITIAL and trend.falls_by(LOSS_FALL) and trend.at_start(_SMALL_FALL):
            return (
                f"The loss falls, by {percent(trend.fall)} since step {trend.since_step}, and is still at {percent(trend.of_first)} "
                "of where it began."
            )
        return super()._urgency_of(fact, trend)

    def _urgency(self, fact: Wiring, step: int, trend: LossTrend, standing: Standing) -> Urgency:
        """Say how urgent a fact is: layers that are left as they were initialised wait for a loss that is far from its start."""
        if fact.kind != _INITIAL:
            return super()._urgency(fact, step, trend, standing)
        learns = trend.learns(LOSS_FALL) and not trend.at_start(_SMALL_FALL)
        open_ = not learns and not trend.unknown
        return Urgency(
            learns=learns,
            due=open_ and step >= self.warm_up_steps,
            nears=open_ and step + NEAR >= self.warm_up_steps,
        )

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Tell of the wiring, and of layers that were thawed or frozen since the run began."""
        verdict = super().look(record, info, state)
        if verdict.unjudged:
            return verdict
        changed = _changed_layers(record, info, state)
        return verdict._replace(findings={**verdict.findings, **changed}) if changed else verdict

    def write(self, fact: Wiring, urgency: str) -> Sentences:
        """Say which."""
        if fact.kind in {"unheld", _INITIAL}:
            names = listed(fact.names)
            still = ""
            if fact.kind == _INITIAL:
                which = "They are" if fact.value == len(fact.names) else f"{fact.value:.0f} of them are"
                still = f"{which} still as initialised, and lie before layers that are trained. "
            return Sentences(
                cause="No optimizer was given their parameters, so they keep the values that they were initialised with.",
                remedy=Remedy(
                    f"Give an optimizer the parameters of {names}, or switch their gradient off with requires_grad_(False).",
                    (Action("add_to_optimizer", fact.names),),
                ),
                headline=f"{names} got a gradient, and no optimizer holds {'it' if len(fact.names) == 1 else 'them'}",
                message=f"{still}{urgency}",
                causes=(Cause(CauseKind.NO_OPTIMIZER),),
            )
        names = listed(fact.names, "attribute")
        entries = "" if fact.value is None else f" {fact.value:,.0f} entries of"
        return Sentences(
            cause="A plain attribute, as a Python list is, doesn't make what it holds a part of the module: parameters() doesn't find "
            "it, so no optimizer trains it, and it is neither saved nor moved to the device.",
            remedy=Remedy(
                f"Hold what is in {names} in nn.ModuleList, nn.ModuleDict or nn.Parameter; or, where it is meant to stay as it is, "
                "switch its gradient off with requires_grad_(False).",
                (Action("register_parameters", fact.names, (("where", fact.line),) if fact.line else ()),),
            ),
            headline=f"The loss depends on{entries} parameters in {names}, which the model doesn't know: no optimizer trains them",
            message=urgency,
            causes=(Cause(CauseKind.UNREGISTERED_PARAMETERS),),
        )


def _changed_layers(record: StepRecord, info: RunInfo, state: State) -> dict[str, LazyFinding]:
    """Return as information which layers were thawed or frozen since the run began, and stayed so.

    Those that change more than once are trained by turns, as the networks of a GAN are: that is no change of the run.
    """
    memory: dict[str, Any] = state.setdefault("trained", {"seen": 0, "as": None, "frozen": {}, "changes": {}})
    columns = np.flatnonzero(record.layer_state == int(LayerState.FROZEN)).tolist()
    memory["seen"] += 1
    if memory["as"] != [info.layout, columns]:
        _note(memory, info, set(columns), int(record.step))
        memory["as"] = [info.layout, columns]
    if not memory["changes"]:
        return {}
    changes: dict[tuple[int, bool], list[str]] = {}
    for name, (step, seen, times) in memory["changes"].items():
        if times == 1 and memory["seen"] - seen >= _LASTING:
            changes.setdefault((step, memory["frozen"][name]), []).append(name)
    if not changes:
        return {}
    names = tuple(name for each in changes.values() for name in each)
    sighting = LazyFinding(
        severity=Severity.INFO,
        layers=names,
        first_step=min(step for step, _ in changes),
        last_step=int(record.step),
        value=float(len(names)),
        threshold=0.0,
        write=partial(_write, changes),
    )
    return {_TRAINED: sighting}


def _note(memory: dict[str, Any], info: RunInfo, columns: set[int], step: int) -> None:
    """Note what changed: a layer that comes later was frozen before, as those that train are known from the first step on."""
    frozen: dict[str, bool] = memory["frozen"]
    first = memory["as"] is None
    for column, name in enumerate(info.layer_names):
        before, now = frozen.get(name, not first), column in columns
        if before != now and not (first and now):
            times = memory["changes"].get(name, (0, 0, 0))[2] + 1
            memory["changes"][name] = [step, memory["seen"], times]
        frozen[name] = now


def _write(changes: Mapping[tuple[int, bool], list[str]]) -> Sentences:
    told = [
        f"by step {step} {listed(names)} {'was' if len(names) == 1 else 'were'} {'frozen' if now else 'thawed'}"
        for (step, now), names in sorted(changes.items())
    ]
    rest = len(told) - _SHOWN
    said = "; ".join([*told[:_SHOWN], *([f"and {rest} further changes"] if rest > 0 else [])])
    return Sentences(
        cause="requires_grad was changed in mid-run, as callbacks for fine-tuning do.",
        remedy=Remedy(
            "Nothing, where it is meant: a rate that suits the head alone may be too high for what is trained from then on."
        ),
        headline=f"{said[:1].upper()}{said[1:]}",
        message="",
    )
