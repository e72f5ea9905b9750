"""GW104: no gradient, or one that is exactly zero, reaches a layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np

from lightning_gradwatch.findings import Finding, Severity, UnreachedLayerWarning
from lightning_gradwatch.record import LayerInfo, LayerState, RunInfo, StepRecord
from lightning_gradwatch.rules.blocking import unreached_cause
from lightning_gradwatch.rules.protocol import Rule, State, Verdict
from lightning_gradwatch.rules.readings import count_hit
from lightning_gradwatch.rules.wording import counted, listed

_SEEN = {
    "none": "No parameter of {layers} has a gradient",
    "zero": "Every entry of the gradient of {layers} is exactly 0",
    "unused": "No parameter of {layers} has a gradient other than 0",
}


@dataclass(frozen=True, kw_only=True)
class UnreachedLayer(Rule):
    """No gradient, or one that is exactly zero, reaches a layer.

    What: in ``patience`` measured steps in a row, none of a trainable layer's parameters has a gradient, or every entry of
    its gradient is exactly 0. That is decided by the entries, so a gradient of 1e-43 counts as one. There is no warm-up, but
    a layer that is zero in the first steps only (behind a head that starts at zero, in a LoRA adapter) is left alone, and so
    are frozen layers, steps with a learning rate of 0 and steps whose loss is exactly 0. A layer that the forward pass
    doesn't use is information only. Neighbouring layers share one finding.

    Why: such a layer doesn't learn at all. Nothing passes back through a layer whose units are all dead, through an
    operation that leaves the graph, or through so many small factors that the number format rounds their product to zero.

    What to do: for dead layers, a function without a dead side (LeakyReLU, ELU), He's initialisation and a lower learning
    rate; for a detached graph, find the ``detach()``, ``.data``, ``.item()``, ``no_grad`` or ``argmax`` between the layer
    and the loss; for underflow, mend what GW101 names, or use a wider format (bf16 or float32, a gradient scaler).

    Attributes:
        patience: measured steps in a row without a gradient.
    """

    code: ClassVar[str] = "GW104"
    name: ClassVar[str] = "unreached-layer"
    warning: ClassVar[type[UnreachedLayerWarning]] = UnreachedLayerWarning

    patience: int = 3

    def __post_init__(self) -> None:
        self._require_count(1, "patience")

    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Count for each layer how many measured steps in a row left it without a gradient."""
        if record.skipped:
            return Verdict(unjudged="not yet: the optimizer step was skipped")
        streaks = state.setdefault("streaks", {})
        groups = state.setdefault("groups", {})
        codes = record.layer_state
        lacking = (codes == LayerState.NONE) | (codes == LayerState.ZERO)
        reached = (codes == LayerState.OK) | (codes == LayerState.NON_FINITE)
        if not lacking.any():
            if streaks:
                _forget(streaks, info, reached | (codes == LayerState.FROZEN))
            return Verdict(unjudged="" if reached.any() else _NOTHING_MEASURED)
        _forget(streaks, info, reached | (codes == LayerState.FROZEN))
        resting = _resting_layers(record, info)
        hit = []
        for column in np.flatnonzero(lacking):
            layer = info.layers[column]
            if layer.name in resting or record.loss == 0:
                continue
            count_hit(streaks, layer.name, record.step)
            hit.append((layer, _kind(layer, LayerState(int(codes[column])))))
        due = [(layer, kind) for layer, kind in hit if streaks[layer.name]["count"] >= self.patience]
        withdrawn = _regroup(groups, record, info, due)
        findings = self._findings(record, info, state, {layer.name for layer, _ in due})
        pending = any(layer.name not in groups for layer, _ in hit)
        judged = bool(due) or bool(reached.any())
        reason = (
            f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if pending else _NOTHING_MEASURED
        )
        return Verdict(findings, withdrawn, confirming=pending, unjudged="" if judged else reason)

    def _findings(self, record: StepRecord, info: RunInfo, state: State, due: set[str]) -> dict[str, Finding]:
        """Return a finding for each group that has a layer still without a gradient."""
        members: dict[str, list[str]] = {}
        for layer in info.layers:
            if layer.name in state["groups"]:
                members.setdefault(state["groups"][layer.name], []).append(layer.name)
        return {
            key: self._group_finding(record, info, state["streaks"], key, names)
            for key, names in members.items()
            if due.intersection(names)
        }

    def _group_finding(self, record: StepRecord, info: RunInfo, streaks: State, key: str, names: list[str]) -> Finding:
        kind = _kind_of(key)
        cause, remedy = unreached_cause(kind, record, info, names)
        current = [streaks[name] for name in names if name in streaks]
        longest = max(streak["count"] for streak in current)
        seen = _SEEN[kind].format(layers=listed(names))
        return Finding(
            code=self.code,
            name=self.name,
            severity=Severity.INFO if kind == "unused" else Severity.ERROR,
            layers=tuple(names),
            first_step=min(streak["since"] for streak in current),
            last_step=int(record.step),
            value=longest,
            threshold=self.patience,
            cause=cause,
            remedy=remedy,
            message=f"{seen} in {counted(longest, 'measured step')} in a row. Reported from {self.patience} on.",
        )


_NOTHING_MEASURED = "not yet: no trainable layer was measured"


def _kind(layer: LayerInfo, state: LayerState) -> str:
    """Tell a fault from a layer that the forward pass leaves out, or may leave out where it can't be seen."""
    if layer.used is False or (layer.used is None and state == LayerState.NONE):
        return "unused"
    return "zero" if state == LayerState.ZERO else "none"


def _forget(streaks: State, info: RunInfo, settled: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    """End the streak of each layer that has a gradient again, or that is frozen now."""
    for column in np.flatnonzero(settled):
        streaks.pop(info.layers[column].name, None)


def _resting_layers(record: StepRecord, info: RunInfo) -> set[str]:
    """Return the layers that are held by optimizers of rate 0 only: what starts at zero has to stay there."""
    moving: set[str] = set()
    resting: set[str] = set()
    for optimizer, rate in zip(info.optimizers, record.learning_rates, strict=False):
        (resting if rate == 0 else moving).update(optimizer.layers)
    return resting - moving


def _regroup(groups: State, record: StepRecord, info: RunInfo, due: list[tuple[LayerInfo, str]]) -> tuple[str, ...]:
    """Give each layer the key of its root cause, which neighbours of one kind share; return keys that went."""
    before = list(dict.fromkeys(groups.values()))
    for layer, kind in due:
        kept = _kind_of(groups.get(layer.name, ""))
        if not kept or (kept == "unused" and kind != "unused"):
            groups[layer.name] = f"{kind}:{layer.name}"
    if list(dict.fromkeys(groups.values())) == before:
        return ()
    # A layer that can't have a gradient anyway, such as a frozen one, doesn't part its neighbours.
    transparent = {LayerState.FROZEN, LayerState.UNMEASURED}
    order = [
        layer.name
        for column, layer in enumerate(info.layers)
        if layer.name in groups or record.layer_state[column] not in transparent
    ]
    for _, run in groupby(order, key=lambda name: _kind_of(groups.get(name, ""))):
        members = [name for name in run if name in groups]
        keys = {groups[name] for name in members}
        if len(keys) > 1:
            oldest = next((key for key in before if key in keys), groups[members[0]])
            groups.update(dict.fromkeys(members, oldest))
    return tuple(key for key in before if key not in groups.values())


def _kind_of(key: str) -> str:
    return key.partition(":")[0]
