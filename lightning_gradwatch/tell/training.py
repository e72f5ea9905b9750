"""Tells what `check_training` saw, as answers to the two questions that a smoke test asks. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.record.wording import counted, listed, number, percent
from lightning_gradwatch.tell.cells import wrapped
from lightning_gradwatch.tell.coverage import columns_text
from lightning_gradwatch.tell.terminal import warning_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_WIDTH = 80
_UNREACHED = {LayerState.NONE: "it gets no gradient", LayerState.ZERO: "its gradient is exactly zero"}


def training_text(
    records: Sequence[StepRecord],
    info: RunInfo | None,
    findings: Sequence[Finding],
    *,
    judged: int,
    unjudged: Mapping[str, str],
    ok: bool,
    trial: str | None = None,
) -> str:
    """Render a check: what was measured, the two answers, the findings, what became of the remedy, what wasn't judged, the outcome."""
    if not records or info is None:
        return "can't judge: nothing was measured, as no optimizer step was completed"
    loss = f"; loss {number(records[0].loss)} at first, {number(records[-1].loss)} at last"
    lines = _wrap(f"{counted(len(records), 'measured step')}, {columns_text(info)}{loss}", "", "  ")
    lines += _wrap(f"Do gradients reach the first layer? {_reach(records, info, findings)}", "  ", "    ")
    lines += _wrap(f"Does a layer die? {_death(records, info, findings)}", "  ", "    ")
    for finding in findings:
        lines += ["", *(f"  {line}" for line in warning_text(finding, width=_WIDTH - 2).splitlines())]
    if findings:
        lines.append("")
    if trial is not None:
        lines += [*_wrap(trial, "  ", "    "), ""]
    for code, reason in unjudged.items():
        lines += _wrap(f"not judged: {code}: {reason}", "  ", "    ")
    lines += _wrap(_outcome(findings, judged, ok=ok), "  ", "    ")
    return "\n".join(lines)


def _reach(records: Sequence[StepRecord], info: RunInfo, findings: Sequence[Finding]) -> str:
    weights = [index for index, layer in enumerate(info.layers) if layer.weight]
    if not weights:
        return "Can't say: there is no trainable weight layer."
    first, last = weights[0], weights[-1]
    name = info.layers[first].name
    states = [int(record.layer_state[first]) for record in records if first < len(record.layer_state)]
    seen = [state for state in states if state not in (LayerState.UNMEASURED, LayerState.UNUSED)]
    if not seen:
        return f"Can't say: the gradient of {name} wasn't measured."
    if seen[-1] in _UNREACHED:
        return f"No: {name} is the first, and {_UNREACHED[LayerState(seen[-1])]}."
    if seen[-1] == LayerState.NON_FINITE:
        return f"Can't say: the gradient of {name} isn't finite."
    rms = [record.values("grad_rms", len(info.layers)) for record in records]
    here, there = (float(np.nanmedian([row[index] for row in rms])) for index in (first, last))
    numbers = f"{name} gets a gradient of rms {number(here)}"
    if last != first:
        numbers += f", the last layer, {info.layers[last].name}, one of {number(there)} (medians over the steps)"
    vanished = any(finding.code == "GW101" for finding in findings)
    return f"{'Hardly, see GW101' if vanished else 'Yes'}: {numbers}."


def _death(records: Sequence[StepRecord], info: RunInfo, findings: Sequence[Finding]) -> str:
    if not info.sites:
        return "Can't say: no activation function was seen."
    dead = np.array([record.values("dead_fraction", len(info.sites)) for record in records])
    if np.isnan(dead).all():
        return "Can't say: no activation's window of observations is full yet; give it more steps or larger batches."
    latest = [column[~np.isnan(column)][-1] if (~np.isnan(column)).any() else np.nan for column in dead.T]
    worst = int(np.nanargmax(latest))
    share = f"{percent(latest[worst])} of the units of {info.sites[worst].name} are dead"
    if any(finding.code == "GW201" and finding.severity >= Severity.WARNING for finding in findings):
        return f"Yes, see GW201: {share}."
    said = f"at most {share}" if latest[worst] else "no unit is dead"
    fill = np.where(info.hidden_mask, records[-1].window_fill, 1.0)
    unread = [name for name, full in zip(info.site_names, (fill >= 1).tolist(), strict=True) if not full]
    if unread:
        least = percent(float(np.minimum.reduce(fill)))
        return f"Not where that is known: {said}; the window of {listed(unread, 'activation')} is {least} full."
    return f"No: {said}."


def _outcome(findings: Sequence[Finding], judged: int, *, ok: bool) -> str:
    if not judged:
        return "can't judge: no rule had what it needs"
    return f"{'passed' if ok else 'failed'}: {counted(len(findings), 'finding')} from {counted(judged, 'rule')} judged"


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return wrapped(text, _WIDTH, first, rest)
