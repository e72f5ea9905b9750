"""GW104: no gradient, or one that is exactly zero, reaches a layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.findings import Severity, UnreachedLayerWarning
from lightning_gradwatch.record import LayerState, RunInfo, StepRecord
from lightning_gradwatch.rules.blocking import Unreached, unreached_cause
from lightning_gradwatch.rules.memory import (
    Columns,
    Lasting,
    Mask,
    columns,
    count_hits,
    counts,
    first_step,
    lasting,
    streaks,
)
from lightning_gradwatch.rules.protocol import HEALTHY, Rule, Sentences, Sighting, State, Verdict
from lightning_gradwatch.rules.wording import counted, listed

_ROOTS = "roots"
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
    operation that leaves the graph, through a softmax over a single unit, or through so many small factors that the number
    format rounds their product to zero.

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
        codes = record.layer_state
        lacking = _LACKING[codes]
        held = streaks(state, "streaks", info, "layers")
        if held.blank and not np.count_nonzero(lacking):
            return HEALTHY if np.count_nonzero(_REACHED[codes]) else Verdict(unjudged=_NOTHING_MEASURED)
        hit = lacking if record.loss != 0 else np.zeros_like(lacking)
        if 0 in record.learning_rates:
            hit = hit & _moving(record, info)
        count_hits(held, hit, _SETTLED[codes], record.step)
        due = lasting(held, self.patience)
        groups = columns(state, "groups", info, "layers", rows=2)
        withdrawn: tuple[str, ...] = ()
        findings = {}
        if due is not None:
            roots: list[_Root] | None = held.derived.get(_ROOTS)
            if roots is None or any(root.kind == "unused" for root in roots):
                withdrawn = _regroup(groups, state, info, codes, due.where)
                roots = _roots(held, groups, due.where)
                if np.array_equal(due.where, held.hit[0]):
                    held.derived[_ROOTS] = roots
            for root in roots:
                findings[_key(root.number)] = self._sighting(record, info, held, root)
        pending = bool(np.count_nonzero(hit & (groups.values[_NUMBER] == 0)))
        judged = bool(findings) or bool(np.count_nonzero(_REACHED[codes]))
        reason = (
            f"not yet: {counted(self.patience, 'measured step')} in a row must agree" if pending else _NOTHING_MEASURED
        )
        return Verdict(findings, withdrawn, confirming=pending, unjudged="" if judged else reason)

    def _sighting(self, record: StepRecord, info: RunInfo, held: Columns, root: _Root) -> Sighting:
        kind, (members, since, _) = root.kind, root.members
        longest = int(np.maximum.reduce(counts(held)[0][members]))

        def write() -> Sentences:
            names = root.members.names()
            cause, remedy = unreached_cause(Unreached(kind, names, since), record, info)
            seen = _SEEN[kind].format(layers=listed(names))
            message = f"{seen} in {counted(longest, 'measured step')} in a row. Reported from {self.patience} on."
            return Sentences(cause, remedy, message)

        return Sighting(
            severity=Severity.INFO if kind == "unused" else Severity.ERROR,
            layers=root.members.names,
            first_step=since,
            last_step=int(record.step),
            value=longest,
            threshold=self.patience,
            write=write,
        )


_NOTHING_MEASURED = "not yet: no trainable layer was measured"


def _among(*states: LayerState) -> Mask:
    """Return a table by code; of any byte, as a newer release may know more states."""
    return np.isin(np.arange(256), states)


_LACKING = _among(LayerState.NONE, LayerState.ZERO)
_REACHED = _among(LayerState.OK, LayerState.NON_FINITE)
_SETTLED = _among(LayerState.OK, LayerState.NON_FINITE, LayerState.FROZEN)
_TRANSPARENT = _among(LayerState.FROZEN, LayerState.UNMEASURED, LayerState.UNUSED)
"""A layer that can't have a gradient anyway doesn't part its neighbours."""

_Kind: TypeAlias = Literal["", "unused", "none", "zero"]
_KINDS: tuple[_Kind, ...] = ("", "unused", "none", "zero")
_UNUSED, _NONE, _ZERO = 1, 2, 3
_MOST_ROOTS = 100
"""Root causes that are told apart; of more, all of a kind share one: nobody reads so many findings."""
_NUMBER, _KIND = 0, 1
"""Rows of the groups: each layer's root cause by number, the oldest lowest, and its kind; neighbours of a kind share one."""


def _moving(record: StepRecord, info: RunInfo) -> Mask:
    """Return the layers that aren't held by optimizers of rate 0 only: what starts at zero has to stay there."""
    moving, resting = np.zeros((2, len(info.layers)), dtype=bool)
    for held, rate in zip(info.optimizer_columns, record.learning_rates, strict=False):
        (resting if rate == 0 else moving)[held] = True
    return moving | ~resting


class _Root(NamedTuple):
    """A root cause as the readings show it that the streaks are of."""

    number: float
    kind: _Kind
    members: Lasting


def _roots(held: Columns, groups: Columns, due: Mask) -> list[_Root]:
    """Return the root causes of the due layers, the oldest first."""
    number, kind = groups.values
    roots = []
    for group in sorted(set(number[due].tolist())):
        members = number == group
        since = first_step(held, members & (counts(held)[0] > 0))
        roots.append(_Root(group, _KINDS[int(kind[members][0])], Lasting(members, since, groups.names)))
    return roots


def _regroup(groups: Columns, state: State, info: RunInfo, codes: npt.NDArray[np.uint8], due: Mask) -> tuple[str, ...]:
    """Give each due layer the number of its root cause; return the keys of those that went."""
    number, kind = groups.values
    if not np.count_nonzero(due & (kind <= _UNUSED)):
        return ()
    # A layer that the forward pass leaves out, or may leave out where it can't be seen, is no fault.
    unused = (info.layer_used == 0) | (np.isnan(info.layer_used) & (codes == LayerState.NONE))
    now = np.where(unused, _UNUSED, np.where(codes == LayerState.ZERO, _ZERO, _NONE))
    new = due & ((number == 0) | ((kind == _UNUSED) & ~unused))
    if not np.count_nonzero(new):
        return ()
    before = set(number.tolist())
    last = state.get("last_group", 0)
    state["last_group"] = last + int(np.count_nonzero(new))
    number[new] = np.arange(last, state["last_group"]) + 1
    kind[new] = now[new]
    order = np.flatnonzero((number > 0) | ~_TRANSPARENT[codes]).tolist()
    for shared, run in groupby(order, key=lambda column: int(kind[column])):
        if shared:
            members = list(run)
            number[members] = number[members].min()
    held = number > 0
    if len(set(number[held].tolist())) > _MOST_ROOTS:
        for each in set(kind[held].tolist()):
            number[held & (kind == each)] = number[held & (kind == each)].min()
    return tuple(map(_key, sorted(before - set(number.tolist()))))


def _key(group: float) -> str:
    return str(int(group))
