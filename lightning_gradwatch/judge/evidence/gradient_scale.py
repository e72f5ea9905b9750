"""Half precision under a gradient scaler: what no scale helps, and a scale that has sunk too far.

A scaler halves its factor at each step whose gradients aren't finite. Where the loss already isn't a number, that was the
forward pass, in which the factor has no part: the scaler goes on halving for nothing, until the gradients of the other steps
are multiplied by so little that float16 has no number for them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.judge.readings import broken_layers, masking_sites
from lightning_gradwatch.judge.rule import Sentences
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import counted, number

if TYPE_CHECKING:
    from lightning_gradwatch.judge.streaks import State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import FloatVector, StepRecord

SURELY = 3
"""Measured steps that make sure: a single one that is left out does no harm."""
_QUIET = 20
"""Measured steps without another, after which one or two were odd batches."""
_SETTLED = 16
"""Steps in which a scaler may still come down from where it starts."""
_SPAN = 64
"""Steps in which halvings are counted together."""
HELD = f"the gradient scale wasn't halved {SURELY} times in the last {_SPAN} steps"
"""What shows that it doesn't sink any more."""
_LARGEST = 65504
_NEAR = 1 / 16
"""Share of that which is near for an rms: among the tens of thousands of entries that a batch has, the largest is four times as large
where they are normal, and what adds up several of them, as a residual stream does, is larger still."""
_TO_BF16 = Action("set_precision", (), (("to", "bf16-mixed"),))


def note_scale(state: State, record: StepRecord, info: RunInfo) -> None:
    """Remember skipped steps whose loss isn't a number, and steps with a scale that has come down below 1."""
    scale = float(record.gradient_scale)
    first = state.setdefault("first_scale", scale)
    if 0 < scale < math.inf and record.step >= _SETTLED:
        scales = state.setdefault("scales", [])
        scales.append([int(record.step), math.log2(scale)])
        del scales[: sum(step < record.step - _SPAN for step, _ in scales)]
    if record.skipped and _broke_forward(record, info):
        facts = state.setdefault("forward", {"since": int(record.step), "steps": 0, **_place(record, info)})
        facts |= {"steps": facts["steps"] + 1, "quiet": 0}
    elif (facts := state.get("forward")) is not None:
        facts["quiet"] += 1
        if facts["steps"] < SURELY and facts["quiet"] >= _QUIET:
            del state["forward"]
    if "forward" in state:
        state["forward"]["scale"] = scale
    if not scale < 1 <= first:
        state.pop("sunk", None)
        return
    sunk = state.setdefault("sunk", {"since": int(record.step), "steps": 0, "from": first})
    sunk |= {"steps": sunk["steps"] + 1, "name": info.layer_names[-1] if info.layers else "", "scale": scale}


def halvings(state: State) -> int:
    """Return how often the scale was halved of late: so many steps were left out, also of those that weren't measured."""
    scales = [scale for _, scale in state.get("scales", ())]
    return round(max(scales) - scales[-1]) if scales else 0


def largest_output(record: StepRecord, info: RunInfo) -> tuple[str, float] | None:
    """Return the activation whose outputs are largest, and their rms; None where that isn't near float16's largest number."""
    outputs = _outputs(record, info)
    if not np.count_nonzero(outputs >= _NEAR * _LARGEST):
        return None
    largest = int(np.nanargmax(outputs))
    return info.site_names[largest], float(outputs[largest])


def _broke_forward(record: StepRecord, info: RunInfo) -> bool:
    """Tell whether the loss wasn't a number before there was a gradient.

    An infinite one may be a loss in float16 that the scale alone took out of its range, unless an activation shows it too.
    """
    if not np.count_nonzero(broken_layers(record)):
        return False
    return math.isnan(record.loss) or (math.isinf(record.loss) and bool(np.isinf(_outputs(record, info)).any()))


def _outputs(record: StepRecord, info: RunInfo) -> FloatVector:
    return np.where(masking_sites(info), np.nan, record.forward_rms[: len(info.sites)])


def _place(record: StepRecord, info: RunInfo) -> dict[str, Any]:
    """Return where the forward pass broke, as far as its activations show it, and how large they are before."""
    outputs = _outputs(record, info)
    broken = np.flatnonzero(np.isinf(outputs))
    before = outputs[: broken[0]] if broken.size else outputs
    known = np.flatnonzero(np.isfinite(before))
    largest = int(known[np.argmax(before[known])]) if known.size else None
    if broken.size:
        name = info.site_names[int(broken[0])]
    else:
        name = info.site_names[int(known[-1])] if known.size else info.layer_names[-1]
    return {
        "name": name,
        "seen": bool(broken.size),
        "largest": None if largest is None else [info.site_names[largest], float(before[largest])],
    }


def write_forward(facts: dict[str, Any], info: RunInfo) -> Sentences:
    """Say where the forward pass leaves the range of its numbers, and that no scale helps there."""
    del info
    where = (
        f"the output of {facts['name']} is the first that isn't finite"
        if facts["seen"]
        else f"what was measured of the activations is finite, so it begins behind {facts['name']}"
    )
    sizes = ""
    if facts["largest"] is not None:
        name, rms = facts["largest"]
        sizes = f" The largest activation before that is {name}, whose outputs have an rms of {number(rms)}."
    return Sentences(
        cause=(
            f"The forward pass leaves the range of float16, whose largest number is {_LARGEST}: {where}.{sizes} The gradient scale "
            f"has no part in it, and is halved for nothing each time: it is {number(facts['scale'])} now."
        ),
        remedy=Remedy(
            'Train with precision="bf16-mixed", which has the range of float32. If it stays, an operation is undefined there: '
            "log(0), a division by 0, a softmax over a row that is masked as a whole.",
            (_TO_BF16,),
        ),
        causes=(Cause(CauseKind.NUMBER_FORMAT),),
        headline=(
            f"In {counted(facts['steps'], 'measured step')} from step {facts['since']} on, no step is taken: the forward pass isn't "
            f"finite, {'from' if facts['seen'] else 'behind'} {facts['name']} on"
        ),
        message="The gradient scaler leaves such a step out.",
    )


def write_near(halved: int, near: tuple[str, float], scale: float) -> Sentences:
    """Say that steps are left out between those that were measured, and that activations are nearly too large."""
    name, rms = near
    return Sentences(
        cause=(
            f"Steps were left out between those that are measured. The outputs of {name} have an rms of {number(rms)}, and float16's largest "
            f"number is {_LARGEST}: single entries, and sums of several, go beyond it in the forward pass, which no gradient scale helps."
        ),
        remedy=Remedy(
            'Train with precision="bf16-mixed", which has the range of float32; or keep the activations small: normalise them, or '
            "scale the inputs.",
            (_TO_BF16,),
        ),
        causes=(Cause(CauseKind.NUMBER_FORMAT),),
        headline=(
            f"The gradient scale was halved {halved} times within {_SPAN} steps, to {scale:,g}, while the outputs of {name} are "
            f"within a factor of {number(_LARGEST / rms)} of float16's largest number"
        ),
        message="",
    )


def write_sunk(facts: dict[str, Any], info: RunInfo) -> Sentences:
    """Say that the scale, which is there to keep small gradients, takes them away."""
    del info
    return Sentences(
        cause=(
            f"Gradients go beyond float16's largest number, {_LARGEST}, again and again, so the scaler has halved its factor from "
            f"{number(facts['from'])} to {number(facts['scale'])}. Below 1 it takes small gradients out of the range that it is there "
            "to keep them in: they become 0."
        ),
        remedy=Remedy(
            'Train with precision="bf16-mixed", which has the range of float32 and needs no scaler.', (_TO_BF16,)
        ),
        causes=(Cause(CauseKind.NUMBER_FORMAT),),
        headline=(
            f"The gradient scale has sunk to {number(facts['scale'])}, which is below 1 since step {facts['since']} "
            f"({counted(facts['steps'], 'measured step')})"
        ),
        message="",
    )
