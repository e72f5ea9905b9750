"""What keeps a gradient from a layer, told from the sites of the same step: dead layers, underflow, a detached graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.findings import Action, Remedy
from lightning_gradwatch.rules.functions import look_up
from lightning_gradwatch.rules.readings import hidden_sites, site_values, weight_layers
from lightning_gradwatch.rules.wording import listed, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record import RunInfo, StepRecord

_SMALLEST = {"16": 6e-8, "bf16": 9.2e-41, "32": 1.4e-45, "64": 4.9e-324}
_NEAR_UNDERFLOW = 1e8  # a signal this close above the smallest number of its format is lost within a few layers


def unreached_cause(kind: str, record: StepRecord, info: RunInfo, names: Sequence[str]) -> tuple[str, Remedy]:
    """Return cause and remedy for layers that get no gradient; `kind` is none, zero or unused."""
    if kind == "unused":
        return (
            "The forward pass wasn't seen to use it (a compiled one can't be seen), so most likely the loss doesn't depend on it.",
            Remedy(
                f"If that is meant, nothing; else call {listed(names)} in forward, or remove it.",
                (Action("use_or_remove", tuple(names)),),
            ),
        )
    if kind == "none":
        return (
            "The forward pass uses it, and the loss doesn't depend on it: the graph is cut between this layer and the loss.",
            Remedy(
                "Look between this layer and the loss for detach(), .data, .item(), torch.no_grad(), argmax, a new tensor made "
                "from values, or a branch that the loss leaves out.",
                (Action("reconnect_graph", tuple(names)),),
            ),
        )
    return _dead(record, info) or _underflow(record, info) or _unknown(record, info)


def _dead(record: StepRecord, info: RunInfo) -> tuple[str, Remedy] | None:
    dead = site_values(record, info, "dead_fraction")
    inactive = site_values(record, info, "inactive_share")
    blocking = [
        site
        for column, site in hidden_sites(info)
        if dead[column] == 1 or (inactive[column] == 1 and look_up(site.function).flat_zero)
    ]
    if not blocking:
        return None
    targets = tuple(site.name for site in blocking)
    functions = " and ".join(dict.fromkeys(look_up(site.function).module for site in blocking))
    where = f"{functions} at {listed(targets, 'site')}"
    cause = (
        f"Dead layer: each unit of {where} is inactive in every observation, so its derivative is exactly 0 and nothing passes "
        "back through it (GW201)."
    )
    return (
        cause,
        Remedy(
            f"Replace {where} by LeakyReLU or ELU, initialise the weights with kaiming_normal_ and the biases with 0, and lower "
            "the learning rate if the layer died during training.",
            (
                Action("replace_activation", targets, (("with", "LeakyReLU"),)),
                Action("initialize", tuple(weight_layers(info)), (("method", "kaiming_normal_"), ("bias", 0.0))),
                Action("set_learning_rate", (), (("factor", 0.1),)),
            ),
        ),
    )


def _underflow(record: StepRecord, info: RunInfo) -> tuple[str, Remedy] | None:
    """See a signal that is tiny where it was last above zero, and zero before."""
    signal = site_values(record, info, "signal_norm")
    hidden = hidden_sites(info)
    positive = [(float(signal[column]), site) for column, site in hidden if signal[column] > 0]
    zero = [site for column, site in hidden if signal[column] == 0]
    if not positive or not zero:
        return None
    smallest, last = min(positive, key=lambda pair: pair[0])
    limit = _SMALLEST.get(info.precision.partition("-")[0], _SMALLEST["32"])
    if smallest > limit * _NEAR_UNDERFLOW:
        return None
    sites = tuple(site.name for _, site in hidden)
    cause = (
        f"Underflow of the number format: the gradient signal shrinks to {number(smallest)} at {last.name}, and before it is "
        f"below the smallest number of {info.precision} ({number(limit)}), so it reads exactly 0. It vanishes step by "
        "step (GW101); no layer is dead."
    )
    return (
        cause,
        Remedy(
            "Mend the vanishing first: ReLU, LeakyReLU or ELU with kaiming_normal_, skip connections, normalisation. In half "
            "precision, use a gradient scaler or bf16.",
            (
                Action("replace_activation", sites, (("with", "ReLU"),)),
                Action("initialize", tuple(weight_layers(info)), (("method", "kaiming_normal_"),)),
                Action("add_skip_connections", sites),
            ),
        ),
    )


def _unknown(record: StepRecord, info: RunInfo) -> tuple[str, Remedy]:
    inactive = site_values(record, info, "inactive_share")
    flat = tuple(site.name for column, site in hidden_sites(info) if inactive[column] == 1)
    hint = (
        f" Every observation at {listed(flat, 'site')} is on a flat side, where the derivative rounds to 0."
        if flat
        else ""
    )
    cause = (
        f"The gradient is there and exactly 0; the measured sites show neither a dead layer nor underflow.{hint} Usual causes: "
        "softmax over a single unit, a clamp outside its range, a factor of exactly 0 (an output layer or branch that starts "
        "at zero and doesn't learn), a rounding operation."
    )
    return (
        cause,
        Remedy(
            "Follow the gradient from the loss: the first tensor with a gradient of 0 names the operation.",
            (Action("trace_gradient"),),
        ),
    )
