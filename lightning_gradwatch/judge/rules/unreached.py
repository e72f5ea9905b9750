"""GW104: no gradient, or one that is exactly zero, reaches a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.judge.evidence.lost_gradients import may_be_meant, reason
from lightning_gradwatch.judge.evidence.zero_gradients import Unreached, may_be_chance, unreached_cause
from lightning_gradwatch.judge.rule import HEALTHY, LazyFinding, Rule, Sentences, Verdict
from lightning_gradwatch.judge.streaks import (
    Columns,
    Lasting,
    Mask,
    State,
    columns,
    count_hits,
    counts,
    first_step,
    has_gone,
    lasting,
    streaks,
)
from lightning_gradwatch.record.finding import Severity, UnreachedLayerWarning
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerState, StepRecord
from lightning_gradwatch.record.wording import counted, listed

_ROOTS = "roots"
_FEW = "few"
_MANY = 32
"""Measured steps in a row after which even one sample in each isn't chance any more."""
_UNUSED, _NONE, _ZERO = _PLAIN = "unused", "none", "zero"
"""Reasons where the gradient wasn't followed, or where only the step's sites can say more."""
_SEEN = {
    _NONE: "No gradient reaches {layers}",
    _ZERO: "The gradient of {layers} is exactly 0",
}
_NEITHER = "No gradient other than 0 reaches {layers}"


@dataclass(frozen=True, kw_only=True)
class UnreachedLayer(Rule):
    """No gradient, or one that is exactly zero, reaches a layer.

    What: in ``patience`` measured steps in a row, none of a trainable layer's parameters has a gradient, or every entry of
    its gradient is exactly 0. That is decided by the entries, so a gradient of 1e-43 counts as one. There is no warm-up, but
    a layer that is zero in the first steps only (behind a head that starts at zero, in a LoRA adapter) is left alone, and so
    are frozen layers, steps with a learning rate of 0 and steps whose loss is exactly 0. Where a gradient is missing, the
    next step is followed call by call, which shows at which operation it is lost. Layers that lose it for the same reason
    share one finding; one whose layers have had a gradient for ``patience`` measured steps has healed. It is information
    where that may be meant: a layer that the forward pass doesn't use, whose output the loss leaves out, that is given
    zeros, whose output is multiplied by the number 0, or whose gradient is thrown away before the optimizer steps, as long
    as others have one. A few samples may leave all units of a ReLU inactive by chance: that is an error when a full window
    (GW201) says that they are dead, and information before, after 32 measured steps in a row.

    Why: such a layer doesn't learn at all. Nothing passes back through a layer whose units are all dead, through an
    operation that leaves the graph, through a softmax over a single entry or a norm of a single value, or through so many
    small factors that the number format rounds their product to zero. Of two factors that are both exactly 0, as a LoRA's
    matrices may be, each one's gradient has the other's zeros as a factor.

    What to do: for dead layers, a function without a dead side (LeakyReLU, ELU), He's initialisation and a lower learning
    rate; for a cut graph, change the call that the finding names (``detach()``, ``.data``, ``.item()``, ``no_grad``,
    ``argmax``); of two factors that are both 0, initialise the one that the finding names; for underflow, fix what GW101 names, or use a wider format (bf16 or float32, a gradient scaler).

    Attributes:
        patience: measured steps in a row without a gradient.
    """

    code: ClassVar[str] = "GW104"
    name: ClassVar[str] = "unreached-layer"
    warning: ClassVar[type[UnreachedLayerWarning]] = UnreachedLayerWarning

    patience: int = 3

    def __post_init__(self) -> None:
        self._require_count(1, "patience")

    def look(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Count for each layer how many measured steps in a row left it without a gradient."""
        codes = record.layer_state
        begins = state.setdefault("begins", int(record.step))
        lacking = _LACKING[codes]
        held = streaks(state, "streaks", info, "layers")
        if held.blank and not state.get("clear") and not np.count_nonzero(lacking):
            return HEALTHY if np.count_nonzero(_REACHED[codes]) else Verdict(unjudged=_NOTHING_MEASURED)
        hit = lacking if record.loss != 0 else np.zeros_like(lacking)
        if 0 in record.learning_rates:
            hit = hit & _moving(record, info)
        count_hits(held, hit, _SETTLED[codes], record.step)
        due = lasting(held, self.patience)
        groups = columns(state, "groups", info, "layers", rows=2)
        withdrawn: tuple[str, ...] = ()
        findings, waiting = {}, ""
        if due is not None:
            roots: list[_Root] | None = held.derived.get(_ROOTS)
            if roots is None:
                withdrawn = _regroup(groups, state, info, codes, due.where)
                roots = _roots(held, groups, state, due.where)
                if np.array_equal(due.where, held.hit[0]) and _settled(roots):
                    held.derived[_ROOTS] = roots
            for root in roots:
                longest = int(np.maximum.reduce(counts(held)[0][root.members.where]))
                unsure = root.reason == _ZERO and may_be_chance(record, info)
                if (unsure or root.reason == _FEW) and longest < _MANY:
                    waiting = "not yet: so few samples may be where a derivative is 0 by chance"
                else:
                    findings[_key(root.number)] = self._sighting(record, info, held, root, unsure=unsure, begins=begins)
        pending = bool(np.count_nonzero(hit & (groups.values[_NUMBER] == 0)))
        judged = bool(findings) or bool(np.count_nonzero(_REACHED[codes]))
        why = waiting or (self.waits if pending else _NOTHING_MEASURED)
        return Verdict(
            findings,
            withdrawn,
            self._healed(state, held, groups, findings),
            confirming=pending,
            unjudged="" if judged and not waiting else why,
        )

    def _healed(
        self, state: State, held: Columns, groups: Columns, findings: Mapping[str, LazyFinding]
    ) -> Mapping[str, str]:
        """Return the findings whose layers all have a gradient again."""
        keys = set(findings) | set(state.get("clear", ()))
        if not keys:
            return MappingProxyType({})
        missing = {_key(number) for number in groups.values[_NUMBER][counts(held)[0] > 0].tolist()}
        return {
            key: f"all its layers have had a gradient in the last {counted(self.patience, 'measured step')}"
            for key in sorted(keys)
            if has_gone(state, key, holds=key in missing, patience=self.patience)
        }

    def _sighting(
        self, record: StepRecord, info: RunInfo, held: Columns, root: _Root, *, unsure: bool, begins: int
    ) -> LazyFinding:
        members, since, _ = root.members
        longest = int(np.maximum.reduce(counts(held)[0][members]))
        reached = bool(np.count_nonzero(_REACHED[record.layer_state]))
        state = record.layer_state[members]
        form = _SEEN[_ZERO] if (state == LayerState.ZERO).all() else _SEEN[_NONE]
        if root.reason == _UNUSED or len(set(state[_LACKING[state]].tolist())) > 1:
            form = _NEITHER
        meant = root.reason == _UNUSED or (may_be_meant(root.reason) and reached)

        def write() -> Sentences:
            names = root.members.names()
            unreached = Unreached(root.reason, names, since, everything=not reached, lost=since > begins)
            cause, remedy, causes = unreached_cause(unreached, record, info)
            headline = f"{form.format(layers=listed(names))} in {counted(longest, 'measured step')} in a row"
            return Sentences(cause, remedy, "", causes, headline)

        return LazyFinding(
            severity=Severity.INFO if meant or unsure else Severity.ERROR,
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

_MOST_ROOTS = 100
"""Root causes that are told apart; of more, all of a kind share one: nobody reads so many findings."""
_NUMBER, _REASON = 0, 1
"""Rows of the groups: each layer's root cause by number, the oldest lowest, and its place in the list of reasons, from 1 on."""


def _moving(record: StepRecord, info: RunInfo) -> Mask:
    """Return the layers that aren't held by optimizers of rate 0 only: what starts at zero has to stay there."""
    moving, resting = np.zeros((2, len(info.layers)), dtype=bool)
    for held, rate in zip(info.optimizer_columns, record.learning_rates, strict=False):
        (resting if rate == 0 else moving)[held] = True
    return moving | ~resting


class _Root(NamedTuple):
    """A root cause as the readings show it that the streaks are of."""

    number: float
    reason: str
    members: Lasting


def _roots(held: Columns, groups: Columns, state: State, due: Mask) -> list[_Root]:
    """Return the root causes of the due layers, the oldest first."""
    number, kind = groups.values
    roots = []
    for group in sorted(set(number[due].tolist())):
        members = (number == group) & (counts(held)[0] > 0)
        why = state["reasons"][int(kind[members][0]) - 1]
        roots.append(_Root(group, why, Lasting(members, first_step(held, members), groups.names)))
    return roots


def _settled(roots: list[_Root]) -> bool:
    """Tell whether the roots stay what they are: what the forward pass may use yet may get another reason."""
    return all(root.reason != _UNUSED for root in roots)


def _regroup(groups: Columns, state: State, info: RunInfo, codes: npt.NDArray[np.uint8], due: Mask) -> tuple[str, ...]:
    """Give each due layer the number of its root cause; return the keys of those that went."""
    number, kind = groups.values
    reasons: list[str] = state.setdefault("reasons", [])
    columns_due = np.flatnonzero(due).tolist()
    dead = any((lost := info.layers[column].lost) is not None and lost.kind == "inactive" for column in columns_due)
    before, changed = set(number[number > 0].tolist()), False
    for column in columns_due:
        why = _why(info, column, int(codes[column]), dead=dead)
        if why not in reasons and why not in _PLAIN and len(reasons) >= _MOST_ROOTS:
            why = _ZERO if codes[column] == LayerState.ZERO else _NONE
        if why not in reasons:
            reasons.append(why)
        place = reasons.index(why) + 1
        if number[column] == 0 or kind[column] != place:
            state["last_group"] = state.get("last_group", 0) + 1
            number[column], kind[column], changed = state["last_group"], place, True
    if not changed:
        return ()
    for place, why in enumerate(reasons, 1):
        members = (kind == place) & (number > 0)
        if why != _NONE and np.count_nonzero(members):
            number[members] = number[members].min()
    if _NONE in reasons:
        _join_neighbours(number, kind, codes, reasons.index(_NONE) + 1)
        apart = kind == reasons.index(_NONE) + 1
        if len(set(number[apart].tolist())) > _MOST_ROOTS:
            number[apart] = number[apart].min()
    return tuple(map(_key, sorted(before - set(number.tolist()))))


def _join_neighbours(
    number: npt.NDArray[np.float64], kind: npt.NDArray[np.float64], codes: npt.NDArray[np.uint8], place: int
) -> None:
    """Give neighbours whose way wasn't followed one number: of two parts of a net, each may be cut off by itself."""
    order = np.flatnonzero((number > 0) | ~_TRANSPARENT[codes]).tolist()
    for shared, run in groupby(order, key=lambda column: int(kind[column]) if number[column] > 0 else 0):
        if shared == place:
            members = list(run)
            number[members] = number[members].min()


def _why(info: RunInfo, column: int, code: int, *, dead: bool) -> str:
    """Return the reason for which a layer has no gradient; the same text for those that share it.

    Args:
        info: Describes the layers.
        column: The layer's.
        code: Its state.
        dead: Whether some layer's gradient is lost at inactive units, behind which others are given zeros.
    """
    layer = info.layers[column]
    # A layer that the forward pass leaves out, or may leave out where it can't be seen, is no fault.
    if layer.used is False or (layer.used is None and code == LayerState.NONE):
        return _UNUSED
    lost = layer.lost
    if lost is None or lost.kind == "inactive" or (lost.kind == "zero-input" and dead):
        return _ZERO if code == LayerState.ZERO else _NONE
    return reason(lost)


def _key(group: float) -> str:
    return str(int(group))
