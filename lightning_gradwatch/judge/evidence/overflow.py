"""Where NaN or infinity began and how the run was heading there: facts as plain data, and the sentences on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.judge.evidence.initial_weights import read_start, starting_remedy
from lightning_gradwatch.judge.evidence.loss_trend import middle
from lightning_gradwatch.judge.evidence.unscaled_targets import unscaled_targets
from lightning_gradwatch.judge.rates import rate_factor
from lightning_gradwatch.judge.readings import hidden_sites, layer_values
from lightning_gradwatch.judge.remedies import CLIP_GRADIENTS, SCALE_TARGETS
from lightning_gradwatch.judge.rule import Sentences
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import counted, number

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from lightning_gradwatch.judge.streaks import Mask, State
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_KEPT = 6
_EXPLODED = 10
"""How many times the loss or the gradient norm must have grown: batches differ by less."""
_THROWN = 2.0
"""Update ratio of a step that replaces what a layer held, and more."""
_WATCHED = 16
"""Records whose updates are looked at, and steps after which what they did would have shown."""
_MOST = 1e100
_THROWN_OUT = frozenset((CauseKind.EXPLOSION, CauseKind.HIGH_LEARNING_RATE))
"""Steps have led there, so that smaller ones are a remedy."""
_UNDEFINED = (
    "log(0), a division by 0, the square root or the norm of 0, a softmax over a row that is masked as a whole, NaN in the "
    "data; torch.autograd.set_detect_anomaly(True) names the operation"
)
_WHERE = {
    "weights": "The weights of {name} hold NaN or infinity already, so it began in an earlier step.",
    "output": "It began in the forward pass: the output of {name} is the first that isn't finite.",
    "gradient": "It began in the backward pass: {name} is the layer nearest to the loss whose gradient isn't finite.",
    "loss": "What was measured of the forward pass is finite and the loss isn't, so it began after {name}.",
}


def note_heading(state: State, record: StepRecord, info: RunInfo) -> None:
    """Remember loss and gradient norm of the last few finite records, and once whether the weights start large."""
    if "large" not in state:
        sites = [site for _, site in hidden_sites(info)]
        state["large"] = read_start(record, info, sites).is_off(low=False)
        state["unscaled"] = unscaled_targets(record, info)
        state["update"] = _largest_update(record, info)
    if (seen := state.get("seen", 0)) < _WATCHED:
        state["seen"] = seen + 1
        if (update := _largest_update(record, info)) >= _THROWN:
            state["thrown"] = [int(record.step), update]
    past = state.setdefault("past", [])
    past.append(_reading(record))
    del past[:-_KEPT]


def find_beginning(
    record: StepRecord, info: RunInfo, state: State, *, loss: bool, sites: Mask, layers: Mask
) -> dict[str, Any]:
    """Return the facts of the first record that isn't finite, as plain data.

    Args:
        record: The record.
        info: Its description.
        state: What `note_heading` remembers.
        loss: Whether the loss isn't finite.
        sites: Which sites have an output that isn't.
        layers: Which layers have a gradient that isn't.
    """
    past = state.get("past", [])
    # Before a first finite record, a weight that wasn't measured looks the same as one that is NaN.
    spoiled = layers & info.weight_mask & ~np.isfinite(layer_values(record, info, "weight_rms")) & bool(past)
    if np.count_nonzero(spoiled):
        place, name = "weights", info.layer_names[int(np.flatnonzero(spoiled)[-1])]
    elif np.count_nonzero(sites):
        place, name = "output", info.sites[int(np.argmax(sites))].name
    elif loss or not np.count_nonzero(layers):
        place, name = "loss", info.layer_names[-1]
    else:
        place, name = "gradient", info.layer_names[int(np.flatnonzero(layers)[-1])]
    return {
        "step": int(record.step),
        "place": place,
        "name": name,
        "loss": str(record.loss) if loss else "",
        "layers": [int(layers.sum()), len(layers)],
        "sites": [int(sites.sum()), len(sites)],
        "past": [*past, _reading(record)],
        "large": state.get("large", False),
        "unscaled": state.get("unscaled", False),
        "update": state.get("update", 0.0),
        "thrown": state.get("thrown"),
    }


def write_beginning(facts: dict[str, Any], info: RunInfo) -> Sentences:
    """Say what isn't finite, where it began and how the run was heading."""
    *past, now = facts["past"]
    grown = _growth(facts["past"])
    thrown = _thrown(facts)
    kind = CauseKind.UNDEFINED_OPERATION
    if grown:
        kind, heading = CauseKind.EXPLOSION, f"The net exploded: {grown}."
    elif thrown is not None:
        step, update = thrown
        kind = CauseKind.HIGH_LEARNING_RATE
        heading = (
            f"Step {step} changed weights by up to {number(update)} times their size: the learning rate is too high."
        )
    elif not past:
        kind = CauseKind.BROKEN_FROM_START
        heading = "It was so in the first measured step: look at inputs, targets and weights."
    elif now[0] - past[-1][0] <= 1:
        heading = f"It came out of nothing, as nothing had grown before. Look for {_UNDEFINED}."
    else:
        heading = (
            f"Nothing had grown up to step {past[-1][0]}; the {now[0] - past[-1][0] - 1} steps after it weren't measured. If it "
            f"didn't explode in them, look for {_UNDEFINED}."
        )
    causes = [Cause(kind)]
    if kind in _THROWN_OUT:
        causes += [Cause(CauseKind.LARGE_WEIGHTS)] if facts["large"] else []
        causes += [Cause(CauseKind.UNSCALED_TARGETS)] if facts["unscaled"] else []
    return Sentences(
        cause=f"{_WHERE[facts['place']].format(name=facts['name'])} {heading}",
        remedy=_remedy(info, facts, {cause.kind for cause in causes}),
        causes=tuple(causes),
        headline=f"NaN or infinity from step {facts['step']} on, first at {facts['name']}: in {_seen(facts)}",
        message="",
    )


def _thrown(facts: dict[str, Any]) -> tuple[int, float] | None:
    """Return the last step before that changed weights by more than their size, and by how much; None: none, or long ago."""
    thrown = facts.get("thrown")
    if thrown is None or facts["step"] - thrown[0] > _WATCHED:
        return None
    return thrown[0], thrown[1]


def write_skipped(count: int, layer: str, info: RunInfo) -> Sentences:
    """Say that the gradient scaler lets no step through."""
    return Sentences(
        cause=(
            f"The scaled gradients of {info.precision} hold NaN or infinity however far the scaler lowers its factor, so the "
            "gradients themselves do, or are beyond the largest float16 (65504)."
        ),
        remedy=Remedy(
            'Train with precision="bf16-mixed", which has the range of float32. If it stays, the forward pass is to blame: '
            f"look for {_UNDEFINED}.",
            (Action("set_precision", (), (("to", "bf16-mixed"),)),),
        ),
        causes=(Cause(CauseKind.NUMBER_FORMAT),),
        headline=(
            f"No step is taken: the gradient scaler left {counted(count, 'measured step')} in a row out, as gradients aren't finite, such "
            f"as that of {layer}"
        ),
        message="",
    )


def _reading(record: StepRecord) -> list[float | int | None]:
    return [int(record.step), _finite(record.loss), _finite(record.global_grad_norm)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _growth(readings: list[list[Any]]) -> str:
    """Say by how much loss or gradient norm had grown, whichever grew more; empty where neither grew tenfold."""
    found = (float(_EXPLODED), "")
    for place, what in ((1, "the loss"), (2, "the gradient norm")):
        known = [(reading[0], reading[place]) for reading in readings if reading[place] is not None]
        if len(known) < 2:
            continue
        *before, (last_step, last) = known
        usual = middle(sorted([value for _, value in before]))
        if usual > 0 and last / usual >= found[0]:
            found = (
                last / usual,
                f"{what} grew from {number(before[0][1])} at step {before[0][0]} to {number(last)} at step {last_step}",
            )
    return found[1]


def _seen(facts: dict[str, Any]) -> str:
    parts = [f"the loss ({facts['loss']})"] if facts["loss"] else []
    for key, what, noun in (("layers", "the gradients", "layer"), ("sites", "the outputs", "activation")):
        bad, of = facts[key]
        if bad:
            parts.append(f"{what} of {bad} of {counted(of, noun)}")
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _largest_update(record: StepRecord, info: RunInfo) -> float:
    """Return by how much of itself, or of its usual start, a step changes a weight layer at most; 0 where unknown."""
    ratios = layer_values(record, info, "update_ratio")
    sizes = np.fmax(layer_values(record, info, "weight_rms") / info.default_rms, 1.0)
    known = info.weight_mask & np.isfinite(ratios) & np.isfinite(sizes)
    return min(float(np.max(ratios[known] * sizes[known], initial=0.0)), _MOST)


def _remedy(info: RunInfo, facts: dict[str, Any], kinds: AbstractSet[CauseKind]) -> Remedy:
    actions, said = [], []
    if info.precision.startswith("16"):
        actions.append(Action("set_precision", (), (("to", "bf16-mixed"),)))
        said.append('Train with precision="bf16-mixed", which has the range of float32.')
    if CauseKind.BROKEN_FROM_START in kinds:
        actions.append(Action("normalize_inputs"))
        said.append("Clean the data of NaN and scale the inputs to mean 0 and variance 1.")
    if CauseKind.LARGE_WEIGHTS in kinds:
        start = starting_remedy(info, [site for _, site in hidden_sites(info)])
        actions += start.actions
        said.append(start.text)
    if CauseKind.UNSCALED_TARGETS in kinds:
        actions += SCALE_TARGETS.actions
        said.append(SCALE_TARGETS.text)
    else:
        factor = min(rate_factor(info, facts["update"]), 0.1)
        actions += [
            Action("set_learning_rate", (), (("factor", factor),)),
            CLIP_GRADIENTS,
        ]
        said.append(f"Multiply the learning rate by {factor:g} and clip the gradient norm to 1.")
    if kinds.isdisjoint(_THROWN_OUT):
        said.append(
            "Where an operation is undefined, keep its argument away from there (clamp, eps) before the operation."
        )
    return Remedy(" ".join(said), tuple(actions))
