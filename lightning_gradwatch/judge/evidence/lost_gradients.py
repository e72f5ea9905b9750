"""What to say of a gradient whose way was followed: at which operation it is lost, and whether that may be meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_gradwatch.judge.rule import Explanation
from lightning_gradwatch.record.finding import Action, Cause, CauseKind, Remedy
from lightning_gradwatch.record.wording import counted, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import LayerInfo, LostGradient, LostKind

_MEANT: frozenset[LostKind] = frozenset(("discarded", "zero-input", "left-out", "escaped", "times-zero"))
"""What many a program does on purpose: information."""
_BY_PLACE: frozenset[LostKind] = frozenset(
    ("cut", "escaped", "zero-weights", "clamped", "rounded", "dropped", "masked", "other")
)
"""Kinds of which each operation, or each place, is a cause of its own."""
_NO_MATTER = "If that is meant, nothing; else "
_OUTSIDE = "the training step itself"
"""Where no module's forward is running but the whole model's, if that; said where the line isn't known."""
_SPELLED = {"data": ".data", "no_grad": "torch.no_grad()"}


class Lost(NamedTuple):
    """What is known of some layers that lose their gradient for the same reason."""

    names: tuple[str, ...]
    """Of the layers."""
    places: tuple[LostGradient, ...]
    """Where, each place once."""
    layers: Sequence[LayerInfo] = ()
    """All of the run."""

    @property
    def operation(self) -> str:
        """How the operation reads in code."""
        return spelled(self.places[0])

    @property
    def where(self) -> str:
        """Where it is called: the modules; the function and its line, where there is one."""
        modules = tuple(dict.fromkeys(place.module for place in self.places))
        line = _spelled_lines(self.places[0].lines) if len(self.places) == 1 else ""
        if modules == ("",):
            return line or _OUTSIDE
        named = listed([each or _OUTSIDE for each in modules], "module")
        return f"{named}, {line}" if line and self.places[0].kind != "zero-weights" else named


def _spelled_lines(lines: Sequence[str]) -> str:
    """Name lines of code, those of one function together.

    >>> _spelled_lines(["training_step (gan.py:18)", "training_step (gan.py:20)", "loss.py:4"])
    'training_step (gan.py:18, 20) and loss.py:4'
    """
    numbers: dict[str, list[str]] = {}
    for line in lines:
        function, _, number = line.removesuffix(")").rpartition(":")
        numbers.setdefault(function, []).append(number)
    return " and ".join(
        f"{function}:{', '.join(each)}{')' if '(' in function else ''}" for function, each in numbers.items()
    )


def spelled(place: LostGradient) -> str:
    """Return an operation as it reads in code."""
    return _SPELLED.get(place.operation, f"{place.operation.strip('_')}()")


def reason(place: LostGradient) -> str:
    """Return text that is the same for layers that lose their gradient for the same reason."""
    if (
        place.kind == "cut" and place.operation == "no_grad"
    ):  # each module that runs under it is a place, and it is one cause
        return f"{place.kind}|{place.operation}"
    if place.kind == "zero-weights":
        return f"{place.kind}|{place.module}"
    return f"{place.kind}|{place.operation}|{place.module}" if place.kind in _BY_PLACE else place.kind


def may_be_meant(reason: str) -> bool:
    """Tell whether what `reason` gave is what many a program does on purpose."""
    return reason.partition("|")[0] in _MEANT


def lost_of(info: RunInfo, names: Sequence[str]) -> Lost | None:
    """Return what is known of some layers; None where their gradient wasn't followed."""
    by_name = {layer.name: layer.lost for layer in info.layers}
    places = tuple(dict.fromkeys(place for name in names if (place := by_name.get(name)) is not None))
    return Lost(tuple(names), places, info.layers) if places else None


def lost_cause(lost: Lost, *, everything: bool) -> Explanation | None:
    """Return cause and remedy; None where the sites of the step know more (units that are inactive).

    Args:
        lost: What is known.
        everything: Whether no layer at all has a gradient.
    """
    kind = lost.places[0].kind
    if kind == "discarded":
        return _discarded(lost, everything=everything)
    told = _TOLD.get(kind)
    return None if told is None else told(lost)


def _discarded(lost: Lost, *, everything: bool) -> Explanation:
    cause = (
        "A gradient arrives at its parameters, and is gone when the optimizer steps: something sets it to None or to 0 in "
        "between."
    )
    look = "look for zero_grad(), .grad = None or a hook on the gradient between backward() and the optimizer's step"
    if everything:
        remedy = (
            f"{look[:1].upper()}{look[1:]}: nothing is trained. zero_grad() belongs before backward(), or after step()."
        )
    else:
        remedy = f"If that is meant (a layer that is held back at first), nothing; else {look}."
    return Explanation(
        cause, Remedy(remedy, (Action("keep_gradient", lost.names),)), (Cause(CauseKind.DISCARDED_GRADIENT),)
    )


def _zero_input(lost: Lost) -> Explanation:
    if lost.places[0].operation == "embedding":
        given = "it is given nothing but padding, which has no gradient"
    else:
        given = "all that it is given is exactly 0, and the gradient of its weights is that times the signal"
    return Explanation(
        f"A gradient arrives at what it puts out; {given}.",
        Remedy(f"{_NO_MATTER}look at what {listed(lost.names)} is given.", (Action("use_or_remove", lost.names),)),
        (Cause(CauseKind.ZERO_INPUT),),
    )


def _left_out(lost: Lost) -> Explanation:
    return Explanation(
        "The forward pass uses it, and no loss depends on what it puts out: the program leaves that out.",
        Remedy(
            f"{_NO_MATTER}let the loss depend on what {listed(lost.names)} puts out, or remove it.",
            (Action("use_or_remove", lost.names),),
        ),
        (Cause(CauseKind.LEFT_OUT_OF_LOSS),),
    )


def _escaped(lost: Lost) -> Explanation:
    return Explanation(
        (
            f"No loss depends on it that torch could know of: {lost.operation}, called in {lost.where}, takes its values out "
            "of the autograd graph."
        ),
        Remedy(
            "If they are only looked at (logged, printed), nothing; else keep them in tensors until they are in the loss.",
            (Action("reconnect_graph", lost.names),),
        ),
        (Cause(CauseKind.VALUES_TAKEN_OUT),),
    )


def _cut(lost: Lost) -> Explanation:
    if lost.places[0].operation == "no_grad":  # it is known what ran under it, not where it begins
        return Explanation(
            "The loss depends on it, and no gradient comes back: the graph is cut by torch.no_grad(), under which it ran.",
            Remedy(
                f"{_called_elsewhere(lost)} torch.no_grad(), inference_mode() and the like.",
                (Action("reconnect_graph", lost.names),),
            ),
            (Cause(CauseKind.GRAPH_CUT),),
        )
    several = len(lost.places[0].lines) > 1
    remedy = f"Take {lost.operation} in {lost.where} out of the gradient's way"
    return Explanation(
        f"The loss depends on it, and no gradient comes back: the graph is cut by {lost.operation}, called in {lost.where}.",
        Remedy(
            f"{remedy}, where it is on the way to the loss that should train it." if several else f"{remedy}.",
            (Action("reconnect_graph", lost.names),),
        ),
        (Cause(CauseKind.GRAPH_CUT),),
    )


def _called_elsewhere(lost: Lost) -> str:
    modules = tuple(dict.fromkeys(place.module for place in lost.places if place.module))
    return f"Call {listed(modules, 'module')} outside of" if modules else f"Move the call in {lost.where} out of"


def _softmax_of_one(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.SOFTMAX_OF_ONE,
        "Softmax over a single entry: {operation}, called in {where}, runs over an axis of length 1, so the weight is 1 whatever "
        "comes in and nothing passes back.",
        "Attention over a single key can't learn what to attend to: give it inputs that leave more than one position, or leave it "
        "out there. Elsewhere, run softmax over another axis, or use Sigmoid.",
    )


def _softmax_certain(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.CERTAIN_SOFTMAX,
        "Softmax puts everything on one entry, exactly: in {where}, the others of each row are masked, or so far behind that "
        "they round to 0, so nothing passes back.",
        "Look at the mask; if it leaves more than one entry, make what goes into the softmax smaller (divide by the root of the "
        "width, normalise queries and keys).",
    )


def _norm_of_one(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.NORM_OF_ONE,
        "A norm of a single value: {operation}, called in {where}, runs over one value, which is its own mean, so what comes out "
        "is the same whatever comes in and nothing passes back.",
        "Normalise over an axis with more than one value (fewer groups, larger inputs), or leave the norm out there.",
    )


def _times_zero(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.TIMES_ZERO,
        "What it puts out is multiplied by the number 0, in {where}.",
        "If that is meant (a weight of the loss that is 0 for now), nothing; else give the factor another value.",
    )


def _zero_factor(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.ZERO_FACTOR,
        "What it puts out is multiplied by what is exactly 0 ({operation}, called in {where}) and isn't learned, or has no gradient "
        "either.",
        "Let the factor be trained, and see that the optimizer holds it; or start it at another value than 0.",
    )


def _zero_factors(lost: Lost) -> Explanation:
    factors = dict.fromkeys(name for place in lost.places for name in place.factors)
    kept = dict.fromkeys(place.factors[-1] for place in lost.places)
    drawn = tuple(name for name in factors if name not in kept)
    owners = {layer.name: layer for layer in lost.layers}
    owned = [(name, owners.get(name.rpartition(".")[0] or name)) for name in drawn]
    matrices = all(owner is None or any(len(shape) > 1 for shape in owner.shapes) for _, owner in owned)
    # A module that owns nothing else is named itself, as anybody's initialisation goes by modules.
    targets = tuple(owner.name if owner is not None and len(owner.shapes) == 1 else name for name, owner in owned)
    method, how = ("xavier_uniform_", "at random (Xavier)") if matrices else ("normal_", "at random (normal)")
    each = lost.places[0].factors
    example = f"{' and '.join((', '.join(each[:-1]), each[-1]))} are {'both' if len(each) == 2 else 'all'} exactly 0, and are multiplied"
    first = Lost(lost.names, lost.places[:1])
    more = "" if len(lost.places) == 1 else f", as in {counted(len(lost.places) - 1, 'further place')}"
    return Explanation(
        f"{example} ({first.operation}, called in {first.where}){more}. Each one's gradient has the other's zeros as a factor, "
        "so none of them ever leaves 0, and nothing passes back to what comes before.",
        Remedy(
            f"Initialise {listed(drawn, 'parameter')} {how} and leave {listed(tuple(kept), 'parameter')} at 0: the net then starts as "
            "it does now, and all of them learn.",
            (Action("initialize", targets, (("method", method),)),),
        ),
        (Cause(CauseKind.ZERO_FACTORS),),
    )


def _zero_weights(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.ZERO_WEIGHTS,
        "What it puts out goes through the weights of {where}, which are exactly 0 and stay so.",
        "See that the optimizer holds {where} and that its own gradient isn't 0; or start its weights at small values.",
    )


def _clamped(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.CLAMPED,
        "Each value that {operation}, called in {where}, is given is outside of its range, where the derivative is 0.",
        "Widen the range, or bring the values into it: a clamp that is reached by all is no output.",
    )


def _rounded(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.ROUNDED,
        "{operation}, called in {where}, has a derivative of 0 everywhere.",
        "Round behind the loss, or pass the gradient straight through: x + (x.round() - x).detach().",
    )


def _dropped(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.DROPPED,
        "{operation}, called in {where}, lets nothing through.",
        "Lower the probability with which it drops.",
    )


def _masked(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.MASKED,
        "{operation}, called in {where}, takes none of its values.",
        "Look at the mask, or at the condition.",
    )


def _other(lost: Lost) -> Explanation:
    return _at_operation(
        lost,
        CauseKind.ZERO_DERIVATIVE,
        "The gradient arrives at {operation}, called in {where}, and passes it as exactly 0.",
        "Look at {operation} in {where}: a value at which its derivative is 0, or values that it doesn't take.",
    )


def _at_operation(lost: Lost, kind: CauseKind, cause: str, remedy: str) -> Explanation:
    facts = {"operation": lost.operation, "where": lost.where}
    text = cause.format(**facts)
    return Explanation(
        f"{text[:1].upper()}{text[1:]}",
        Remedy(remedy.format(**facts), (Action("trace_gradient"),)),
        (Cause(kind),),
    )


_TOLD: Mapping[str, Callable[[Lost], Explanation]] = {
    "zero-input": _zero_input,
    "left-out": _left_out,
    "escaped": _escaped,
    "cut": _cut,
    "softmax-of-one": _softmax_of_one,
    "softmax-certain": _softmax_certain,
    "norm-of-one": _norm_of_one,
    "times-zero": _times_zero,
    "zero-factor": _zero_factor,
    "zero-factors": _zero_factors,
    "zero-weights": _zero_weights,
    "clamped": _clamped,
    "rounded": _rounded,
    "dropped": _dropped,
    "masked": _masked,
    "few": _other,
    "other": _other,
}
