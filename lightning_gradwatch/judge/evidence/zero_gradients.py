"""What keeps a gradient from a layer, told from the sites of the same step: dead layers, underflow, a detached graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.judge.evidence.attenuation import diagnose, explain_fading
from lightning_gradwatch.judge.evidence.lost_gradients import lost_cause, lost_of
from lightning_gradwatch.judge.evidence.zero_signal import blocking_cause, blocking_sites, underflow
from lightning_gradwatch.judge.readings import hidden_sites, site_values
from lightning_gradwatch.judge.remedies import Prescription
from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.record.wording import listed, mention, percent

if TYPE_CHECKING:
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_SOFTMAX = {"softmax", "log_softmax"}
_MOSTLY_FLAT = 0.95
"""Share of a saturated site's observations in the step itself from which what the others pass back is next to nothing."""


class Unreached(NamedTuple):
    """Layers that get no gradient."""

    reason: str
    """``none``, ``zero``, ``unused``, or a reason of `lost_gradients`."""
    names: tuple[str, ...]
    since: int
    """First step without one."""
    everything: bool = False
    """Whether no layer at all has one."""
    lost: bool = False
    """Whether they had one before, in a record of this run: what goes on with another may begin without."""


def unreached_cause(unreached: Unreached, record: StepRecord, info: RunInfo) -> Explanation:
    """Say why layers get no gradient, and what to do."""
    names = unreached.names
    if unreached.reason == "unused":
        return Explanation(
            "The forward pass wasn't seen to use it (a compiled one can't be seen), so most likely the loss doesn't depend on it.",
            Remedy(
                f"If that is meant, nothing; else call {listed(names)} in forward, or remove it.",
                (Action("use_or_remove", names),),
            ),
            (Cause(CauseKind.UNUSED_LAYER),),
        )
    output = _softmax_of_one(names, info)
    lost = lost_of(info, names)
    followed = None if lost is None else lost_cause(lost, everything=unreached.everything)
    if unreached.reason == "none":
        return _detached(names)
    if unreached.reason != "zero":
        return output or _rounded_away(followed, record, info) or _driven(unreached, followed, info) or _unknown()
    return (
        output
        or _dead(unreached, record, info)
        or _underflow(record, info)
        or _flat(record, info)
        or _half(record, info)
        or _unknown()
    )


def _driven(unreached: Unreached, followed: Explanation | None, info: RunInfo) -> Explanation | None:
    """Add to a softmax that has become certain that steps have made it so; return what else was followed as it is."""
    if followed is None or not unreached.lost or followed.causes[0].kind is not CauseKind.CERTAIN_SOFTMAX:
        return followed
    cure = Prescription(info)
    cure.lower_learning_rate(float("nan"))
    slower = cure.remedy()
    return Explanation(
        f"{followed.cause} It began at step {unreached.since}, most likely by a step that was too large.",
        Remedy(
            f"{slower.text} If it stays so: {followed.remedy.text[:1].lower()}{followed.remedy.text[1:]}",
            slower.actions,
        ),
        (*followed.causes, Cause(CauseKind.HIGH_LEARNING_RATE)),
    )


def _detached(names: tuple[str, ...]) -> Explanation:
    """Say that the graph is cut, where that wasn't followed."""
    return Explanation(
        "The forward pass uses it, and no gradient comes back: the graph is cut behind it, or the loss leaves it out.",
        Remedy(
            f"Look behind {names[-1]} for detach(), .data, .item(), torch.no_grad(), argmax, a new tensor made from values, or a "
            "branch that the loss leaves out.",
            (Action("reconnect_graph", names),),
        ),
        (Cause(CauseKind.GRAPH_CUT),),
    )


def may_be_chance(record: StepRecord, info: RunInfo) -> bool:
    """Tell whether a gradient of exactly 0 may come from units that few samples leave inactive, dead or not.

    Their window says whether they are dead; before it is full, and while it says that they aren't, nothing is known.
    """
    dead, inactive = site_values(record, info, "dead_fraction"), site_values(record, info, "inactive_share")
    saturated = site_values(record, info, "saturated_fraction")
    chance = False
    for column, site in enumerate(info.sites):
        if inactive[column] != 1:
            continue
        if dead[column] == 1 or (saturated[column] >= 0 and not site.activation.flat_zero):
            return False
        chance = True
    return chance


def _softmax_of_one(names: tuple[str, ...], info: RunInfo) -> Explanation | None:
    softmax = next((site.name for site in info.sites if site.role == "output" and site.function in _SOFTMAX), None)
    if softmax is None or not info.weight_columns:
        return None
    last = info.layers[info.weight_columns[-1]]
    if last.name not in names or last.shapes[0][0] != 1:
        return None
    return Explanation(
        (
            f"Softmax over a single unit: {softmax} follows {last.name}, which has one output, so it is 1 whatever the net does "
            "and its derivative is exactly 0."
        ),
        Remedy(
            "Replace the softmax by Sigmoid, with binary_cross_entropy; or give the last layer an output a class.",
            (Action("replace_output", (), (("with", "Sigmoid"),)),),
        ),
        (Cause(CauseKind.SOFTMAX_OF_ONE),),
    )


def _dead(unreached: Unreached, record: StepRecord, info: RunInfo) -> Explanation | None:
    blocking = blocking_sites(record, info)
    if not blocking:
        return None
    cure = Prescription(info)
    cure.replace(blocking, "dies")
    if unreached.lost:
        cure.lower_learning_rate(float("nan"))
    else:
        cure.initialize()
    cure.add_skip_connections()
    dead = site_values(record, info, "dead_fraction")
    lasts = any(not dead[info.site_names.index(site.name)] < 1 for site in blocking)
    died = (
        f" It had a gradient before step {unreached.since}, so most likely a step that was too large killed it."
        if unreached.lost and lasts
        else ""
    )
    causes = [Cause(CauseKind.DEAD_LAYER, tuple(site.name for site in blocking))]
    if died:
        causes.append(Cause(CauseKind.HIGH_LEARNING_RATE))
    return Explanation(blocking_cause(blocking, record, info) + died, cure.remedy(), tuple(causes))


def _underflow(record: StepRecord, info: RunInfo) -> Explanation | None:
    """See a signal that is tiny where it was last above zero, and zero before."""
    ended = underflow(record, info)
    if ended is None:
        return None
    signal = site_values(record, info, "signal_norm")
    paths = [path[signal[path] >= 0] for path in info.site_paths.along(signal)]
    # The one at whose beginning nothing is left.
    columns = next((path for path in paths if len(path) and signal[path[0]] == 0), np.empty(0, dtype=np.intp))
    found = diagnose(record, info, columns, float("nan"))
    unscaled = _wider(info) if info.precision.startswith("16") and record.gradient_scale == 1 else None
    if unscaled is not None and found.gains is None:
        # It doesn't fade: it is small from the start.
        return Explanation(ended.sentence(), unscaled, (Cause(CauseKind.NUMBER_FORMAT),))
    cause, remedy, causes = explain_fading(info, found)
    if unscaled is not None:
        remedy = Remedy(f"{remedy.text} {unscaled.text}", remedy.actions + unscaled.actions)
    return Explanation(
        f"{ended.sentence()} It vanishes step by step{mention('GW101')}; no layer is dead. {cause}",
        remedy,
        (Cause(CauseKind.UNDERFLOW), *causes),
    )


def _rounded_away(followed: Explanation | None, record: StepRecord, info: RunInfo) -> Explanation | None:
    """See half precision behind a function that passes on exactly 0, and whose derivative isn't known to be 0."""
    if followed is None or followed.causes[0].kind is not CauseKind.ZERO_DERIVATIVE:
        return None
    return _underflow(record, info) or _half(record, info) if info.precision.startswith("16") else None


def _half(record: StepRecord, info: RunInfo) -> Explanation | None:
    """See half precision without a scale, where even the last layer has no gradient."""
    weights = list(info.weight_columns)
    if not info.precision.startswith("16") or record.gradient_scale != 1 or not weights:
        return None
    if record.layer_state[weights[-1]] != LayerState.ZERO:
        return None
    return Explanation(
        (
            f"Underflow of the number format: the gradient is exactly 0 up to the last layer, in {info.precision}, whose "
            "smallest number is 6e-8, and without a gradient scaler."
        ),
        _wider(info),
        (Cause(CauseKind.NUMBER_FORMAT),),
    )


def _wider(info: RunInfo) -> Remedy:
    if info.precision == "16-mixed":
        return Remedy("Scale the loss with a gradient scaler, or use bf16-mixed.", (Action("use_gradient_scaler"),))
    return Remedy("Use bf16-mixed, or 32-true.", (Action("set_precision", (), (("to", "bf16-mixed"),)),))


def _flat(record: StepRecord, info: RunInfo) -> Explanation | None:
    """See units so far out that the derivative, which isn't 0, rounds to it."""
    inactive, signal = site_values(record, info, "inactive_share"), site_values(record, info, "signal_norm")
    middle = [site for column, site in hidden_sites(info) if signal[column] == 0 and site.activation.flat_middle]
    if middle:
        cure = Prescription(info)
        cure.replace(middle, "fades")
        cure.initialize()
        cure.add_skip_connections()
        functions = " and ".join(dict.fromkeys(site.activation.module for site in middle))
        where = listed([site.name for site in middle], "activation")
        cause = (
            f"The derivative of {functions}, at {where}, is 0 at 0: of what is small it passes on next to nothing in either "
            "direction, so after some layers nothing is left."
        )
        return Explanation(cause, cure.remedy(), (Cause(CauseKind.FLAT_REGION, tuple(site.name for site in middle)),))
    columns = [column for column, _ in hidden_sites(info) if inactive[column] == 1]
    if not columns:
        saturated = site_values(record, info, "saturated_fraction")
        full = (saturated == 1) & (inactive >= _MOSTLY_FLAT)
        columns = [column for column, _ in hidden_sites(info) if full[column]]
    if not columns:
        return None
    share, flat = float(np.fmin.reduce(inactive[columns])), [info.sites[column] for column in columns]
    cure = Prescription(info)
    cure.replace([site for site in flat if site.activation.steepest < 1], "fades")
    cure.initialize()
    cure.normalize_inputs()
    functions = " and ".join(dict.fromkeys(site.activation.module for site in flat))
    return Explanation(
        (
            f"{'Every observation' if share == 1 else f'{percent(share)} or more of the observations'} of {functions} at "
            f"{listed([site.name for site in flat], 'activation')} {'is' if share == 1 else 'are'} on a flat side, so far out that the "
            f"derivative rounds to 0{mention('GW202')}."
        ),
        cure.remedy(),
        (
            Cause(CauseKind.SATURATED_UNITS, tuple(site.name for site in flat)),
            Cause(CauseKind.UNSCALED_INPUTS),
        ),
    )


def _unknown() -> Explanation:
    return Explanation(
        (
            "The gradient is there and exactly 0; the measured activations show neither a dead layer nor underflow. Usual causes: a "
            "clamp outside its range, a factor of exactly 0 (an output layer or branch that starts at zero and doesn't learn), "
            "a rounding operation, a softmax over a single unit."
        ),
        Remedy(
            "Follow the gradient from the loss: the first tensor with a gradient of 0 names the operation.",
            (Action("trace_gradient"),),
        ),
        (Cause(CauseKind.UNKNOWN),),
    )
