"""Tells what `check_training` saw, as answers to the two questions that a smoke test asks. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.judge.catalog import find_rule
from lightning_gradwatch.judge.wiring_rule import WiringRule
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.record.wording import counted, listed, number, percent
from lightning_gradwatch.tell.cells import wrapped
from lightning_gradwatch.tell.coverage import columns_text
from lightning_gradwatch.tell.terminal import finding_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_WIDTH = 100
_FALLEN = 0.95
"""Share of the first loss to which the last ones must have come to have fallen, as with every rule."""
_FEW = 8
"""Steps until it can be told at all that a loss stands."""
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
    for _, text in finding_texts(findings, width=_WIDTH - 2):
        lines += ["", *(f"  {line}" for line in text.splitlines())]
    if findings:
        lines.append("")
    if waiting := waiting_for_the_loss(findings, records):
        lines += [*_wrap(_waits(waiting, info), "  ", "    "), ""]
    if trial is not None:
        lines += [*_wrap(trial, "  ", "    "), ""]
    for code, reason in unjudged.items():
        lines += _wrap(f"not judged: {code}: {reason}", "  ", "    ")
    lines += _wrap(_outcome(findings, judged, ok=ok), "  ", "    ")
    return "\n".join(lines)


def waiting_for_the_loss(findings: Sequence[Finding], records: Sequence[StepRecord]) -> list[Finding]:
    """Return what was seen of the wiring that so few steps leave information, though the loss didn't fall in them."""
    losses = [record.loss for record in records if np.isfinite(record.loss)]
    if len(losses) < 2 or not 0 < losses[0] * _FALLEN < float(np.median(losses[-3:])):
        return []
    return [
        finding
        for finding in findings
        if finding.severity is Severity.INFO and finding.healed_step is None and _waits_for_the_loss(finding.code)
    ]


def _waits_for_the_loss(code: str) -> bool:
    rule = find_rule(code)
    return rule is not None and issubclass(rule, WiringRule) and rule.waiting != ()


def _waits(waiting: Sequence[Finding], info: RunInfo) -> str:
    """Say how long the loss must stand for a verdict."""
    codes = list(dict.fromkeys(finding.code for finding in waiting))
    least = max(info.rules.get(code, {}).get("warm_up_steps", WiringRule.warm_up_steps) for code in codes)
    steps = 1 << (least + _FEW).bit_length()
    return (
        f"Is it put together as it should be? {counted(len(waiting), 'thing')} of its wiring may keep it from learning "
        f"({', '.join(codes)}), and the loss didn't fall. Nets may also learn so: a warning once the loss has stood for {least} "
        f"steps, for which max_steps={steps} is enough; try_remedies=True tells sooner."
    )


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
