"""Which finding is a consequence of which, as data: one root cause a run, and no chain between what isn't linked.

A relation holds between two findings of a run, whatever the order in which they came in: so live, replayed and resumed
findings are related alike. Information is never the cause of a warning: what may not be wrong can't explain what is.
What follows from another finding has no remedy of its own, which might undo that one's; and no text names a finding that
the run doesn't have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_gradwatch.record.finding import CauseKind, Finding, Remedy, Severity
from lightning_gradwatch.record.wording import mentioning_none_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


def _always(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001 - the form of a condition
    return True


def _before(cause: Finding, effect: Finding) -> bool:
    return (cause.first_step, _rank(cause)) < (effect.first_step, _rank(effect))


def _too_small(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """GW401: the signal fades at the start, its threshold being a ratio below 1."""
    return cause.threshold < 1


def _too_large(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    return cause.threshold > 1


def _by_steps(cause: Finding, effect: Finding) -> bool:
    """The effect began later, and blames steps, or nothing that was there before them."""
    return _before(cause, effect) and not _kinds(effect).isdisjoint(_OF_STEPS)


_OF_STEPS = {CauseKind.HIGH_LEARNING_RATE, CauseKind.UNSCALED_TARGETS, CauseKind.EXPLOSION, CauseKind.UNKNOWN}
_OF_START = {CauseKind.UNSCALED_TARGETS, CauseKind.UNSCALED_INPUTS, CauseKind.LARGE_WEIGHTS}
_OF_FUNCTIONS = {CauseKind.SMALL_SLOPE, CauseKind.FLAT_REGION, CauseKind.DEAD_UNITS, CauseKind.DEAD_LAYER}
_DEAD = {CauseKind.DEAD_UNITS, CauseKind.DEAD_LAYER}
_FADING = {CauseKind.UNDERFLOW, CauseKind.FLAT_REGION}
_APART = {
    CauseKind.UNUSED_LAYER,
    CauseKind.LEFT_OUT_OF_LOSS,
    CauseKind.ZERO_INPUT,
    CauseKind.GRAPH_CUT,
    CauseKind.VALUES_TAKEN_OUT,
}
"""What keeps a layer from the rest of the net, and says nothing about that."""


def _blames_its_units(cause: Finding, effect: Finding) -> bool:
    """The effect blames dead units of sites that the cause is about."""
    return not set(cause.layers).isdisjoint(_dead_sites(effect))


def _leaves_functions(cause: Finding, effect: Finding) -> bool:
    """The cause is the weights', and not all of a layer is dead."""
    return _kinds(cause).isdisjoint(_OF_FUNCTIONS) and not _whole(effect)


def _fades_to_zero(cause: Finding, effect: Finding) -> bool:
    """GW104 by underflow in layers to which the signal fades."""
    shared = not set(cause.layers).isdisjoint(effect.layers)
    kinds = _kinds(effect)
    return shared and not kinds.isdisjoint(_FADING) and kinds.isdisjoint({CauseKind.UNSCALED_INPUTS, *_DEAD})


def _is_flat(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """GW104 because derivatives that aren't 0 round to it."""
    kinds = _kinds(effect)
    return CauseKind.UNSCALED_INPUTS in kinds and kinds.isdisjoint(_DEAD)


def _blames_the_same(cause: Finding, effect: Finding) -> bool:
    """Both blame dead units of the same sites."""
    return not _dead_sites(cause).isdisjoint(_dead_sites(effect))


def _is_zero(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """GW104 by a gradient that is 0; a graph that is cut, or a layer that isn't used, says nothing about the rest."""
    return _kinds(cause).isdisjoint(_APART)


def _killed(cause: Finding, effect: Finding) -> bool:
    """GW104 by a dead layer."""
    return bool(_dead_sites(effect)) and _before(cause, effect)


def _multiplies_zeros(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """GW104 by parameters that are all 0, and by nothing else."""
    return _kinds(cause) == {CauseKind.ZERO_FACTORS}


def _shares_layers(cause: Finding, effect: Finding) -> bool:
    return not set(cause.layers).isdisjoint(effect.layers)


def _sinks_to_zero(cause: Finding, effect: Finding) -> bool:
    """GW104 in layers of the part, after it had a gradient; a cut, or factors that are 0, isn't the part's."""
    known = _APART | {CauseKind.ZERO_FACTORS, *_DEAD}
    return _shares_layers(cause, effect) and _kinds(effect).isdisjoint(known) and effect.first_step > 0


def _is_cut_by_norm(cause: Finding, effect: Finding) -> bool:
    """GW504 over a single value, and GW104 by a norm."""
    return CauseKind.NORM_OF_ONE in _kinds(cause) & _kinds(effect)


def _is_of_norm(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """GW504 over a single value."""
    return CauseKind.NORM_OF_ONE in _kinds(cause)


def _is_of_loss(cause: Finding, effect: Finding) -> bool:  # noqa: ARG001
    """GW501 by what the loss does, and not by a saturated output."""
    return CauseKind.SATURATED_UNITS not in _kinds(cause)


def _is_saturated(cause: Finding, effect: Finding) -> bool:
    """GW501 by a saturated output, and GW104 by a gradient that is 0."""
    return CauseKind.SATURATED_UNITS in _kinds(cause) and _is_zero(effect, effect) and not _is_of_one(effect, cause)


def _is_of_one(cause: Finding, effect: Finding) -> bool:
    """GW104 by a softmax of a single entry, and GW501 by a saturated output."""
    kinds = _kinds(cause)
    return (
        CauseKind.SOFTMAX_OF_ONE in kinds and kinds.isdisjoint(_FADING) and CauseKind.SATURATED_UNITS in _kinds(effect)
    )


def _throws_output(cause: Finding, effect: Finding) -> bool:
    """GW501 by an output that is saturated later on."""
    return CauseKind.SATURATED_UNITS in _kinds(effect) and cause.first_step < effect.first_step


def _is_start(cause: Finding, effect: Finding) -> bool:
    """Both blame the same of what a run starts with: inputs or targets that aren't scaled, weights that are too large."""
    return bool(_kinds(cause) & _kinds(effect) & _OF_START)


def _is_no_start(cause: Finding, effect: Finding) -> bool:
    """The start is information only, or is far off for a reason of its own."""
    return effect.severity < Severity.WARNING or not _is_start(cause, effect)


class Relation(NamedTuple):
    """One finding can bring another about."""

    cause: str
    effect: str
    reason: str
    when: Callable[[Finding, Finding], bool] = _always


RELATIONS: tuple[Relation, ...] = (
    # Wiring: what is put together wrongly shows in the signal, the units and the steps.
    Relation("GW501", "GW103", "the logarithm of a probability that has rounded to 0 is infinite", _is_of_loss),
    Relation("GW501", "GW301", "a softmax that is applied twice passes next to nothing back"),
    Relation("GW501", "GW104", "far enough out, the derivative of an output rounds to 0", _is_saturated),
    Relation("GW501", "GW101", "a softmax that is applied twice passes next to nothing back"),
    *(
        Relation("GW502", effect, "the sum of all gradients so far makes steps that grow and grow")
        for effect in ("GW101", "GW102", "GW103", "GW104", "GW201", "GW202", "GW301", "GW302")
    ),
    Relation("GW104", "GW501", "a softmax of a single entry is 1, whatever that is", _is_of_one),
    *(
        Relation(cause, "GW501", "steps that are too large lead to where an output is flat", _throws_output)
        for cause in ("GW102", "GW302", "GW502", "GW506")
    ),
    Relation("GW503", "GW101", "layers that nobody trains stay as they were initialised"),
    Relation("GW503", "GW301", "layers that nobody trains leave the others little to learn"),
    Relation("GW504", "GW104", "what is normalised by itself is 0, and passes nothing back", _is_cut_by_norm),
    *(
        Relation("GW504", effect, "what is normalised by itself is 0, and passes nothing back", _is_of_norm)
        for effect in ("GW101", "GW201")
    ),
    Relation("GW504", "GW301", "what is normalised by itself tells the layers behind it little"),
    *(
        Relation("GW506", effect, "a batch normalisation in evaluation mode normalises nothing")
        for effect in ("GW101", "GW102", "GW103", "GW201", "GW202", "GW302", "GW401")
    ),
    # Knobs of the steps.
    Relation("GW303", "GW301", "steps that are clipped away hardly change the weights"),
    *(
        Relation("GW304", effect, "weights that decay pulls to 0 pass less and less on, and each step is much of them")
        for effect in ("GW101", "GW201", "GW301", "GW302")
    ),
    Relation("GW102", "GW303", "a gradient that explodes is clipped to next to nothing"),
    Relation("GW401", "GW303", "a signal that grows at each layer is clipped to next to nothing", _too_large),
    # Weights at the start.
    Relation("GW401", "GW101", "weights that start too small weaken the signal at each layer", _too_small),
    Relation("GW401", "GW104", "so many of them take it below the smallest number", _fades_to_zero),
    Relation("GW401", "GW201", "a signal that shrinks forward as well leaves each unit to its bias", _too_small),
    Relation("GW401", "GW301", "a gradient that fades moves the early layers no more"),
    Relation("GW401", "GW102", "weights that start too large make the signal grow at each layer", _too_large),
    Relation("GW401", "GW103", "a signal that grows at each layer overflows", _too_large),
    Relation("GW401", "GW201", "what grows forward throws units far to either side", _too_large),
    Relation("GW401", "GW202", "what grows forward ends where functions are flat", _too_large),
    Relation("GW401", "GW101", "where the functions have become flat, nothing passes back", _too_large),
    Relation("GW401", "GW302", "the steps are wrong for weights of the wrong size"),
    # Units.
    Relation("GW201", "GW104", "nothing passes back through a layer that is dead", _blames_its_units),
    Relation("GW201", "GW101", "hardly anything passes back through units that are dead", _blames_its_units),
    Relation("GW201", "GW301", "layers before dead units get hardly any gradient"),
    Relation("GW202", "GW101", "saturated units pass back next to nothing"),
    Relation("GW202", "GW104", "far enough out, the derivative rounds to 0", _is_flat),
    Relation("GW202", "GW301", "layers before saturated units get hardly any gradient"),
    # The signal.
    Relation("GW101", "GW104", "a signal that fades ends below the smallest number", _fades_to_zero),
    Relation("GW101", "GW201", "a signal that shrinks forward as well leaves each unit to its bias", _leaves_functions),
    Relation("GW101", "GW301", "the early layers' gradient is too weak to move them"),
    Relation("GW104", "GW301", "where layers get no gradient, the others soon have nothing left to learn", _is_zero),
    Relation("GW104", "GW101", "behind a dead layer the signal is 0", _blames_the_same),
    Relation("GW104", "GW201", "what weights of 0 put out is 0, where units are inactive", _multiplies_zeros),
    Relation("GW106", "GW301", "what gets next to no gradient any more hardly moves", _shares_layers),
    Relation("GW106", "GW104", "a gradient that sinks ends at exactly 0", _sinks_to_zero),
    # What comes first throws the net where the rest follows.
    Relation("GW102", "GW103", "what grows long enough overflows", _before),
    Relation("GW102", "GW201", "a gradient that explodes throws units to the side where they are dead", _before),
    Relation(
        "GW102", "GW202", "what makes the gradient grow makes the activations grow; saturation only weakens it", _before
    ),
    Relation("GW102", "GW101", "an explosion throws the net to where the functions are flat", _before),
    Relation("GW102", "GW301", "weights that were thrown far out hardly change any more", _before),
    Relation("GW102", "GW302", "the steps are in proportion to the gradient", _before),
    Relation("GW302", "GW101", "a step that is too large throws the net to where nothing passes back", _by_steps),
    Relation("GW302", "GW102", "steps that are too large lead where the gradient is larger still", _before),
    Relation("GW302", "GW103", "steps that are too large lead to where numbers end", _before),
    Relation("GW302", "GW201", "a step that is too large throws units to the side where they are dead", _before),
    Relation("GW302", "GW202", "a step that is too large throws units to where they are flat", _before),
    Relation("GW302", "GW104", "a step that is too large kills a layer", _killed),
    Relation("GW102", "GW104", "a step that is too large kills a layer", _killed),
    Relation("GW302", "GW301", "weights that were thrown far out hardly change any more", _before),
    Relation("GW302", "GW105", "a step that is too large throws the loss up", _before),
    Relation("GW102", "GW105", "a gradient that explodes throws the loss up", _before),
    *(
        Relation("GW103", effect, "after a NaN in the weights no number means anything", _before)
        for effect in ("GW101", "GW102", "GW104", "GW106", "GW201", "GW202", "GW301", "GW302")
    ),
    # Where the loss stands says nothing of why.
    *(
        Relation(cause, "GW505", "a net that can't learn stays where it began")
        for cause in (
            *("GW101", "GW102", "GW103", "GW104", "GW201", "GW202", "GW302", "GW303", "GW401"),
            *("GW501", "GW502", "GW503", "GW504", "GW506"),
        )
    ),
    Relation("GW301", "GW505", "a net that can't learn stays where it began", _is_no_start),
    Relation("GW505", "GW301", "beside outputs or targets that are far too large, steps are far too small", _is_start),
    *(
        Relation(cause, "GW601", "a net that can't learn comes to nothing")
        for cause in (
            *(
                "GW101",
                "GW102",
                "GW103",
                "GW104",
                "GW106",
                "GW201",
                "GW202",
                "GW301",
                "GW302",
                "GW303",
                "GW304",
                "GW401",
            ),
            *("GW501", "GW502", "GW503", "GW504", "GW505", "GW506"),
        )
    ),
)
_MENTIONED = {code for relation in RELATIONS for code in (relation.cause, relation.effect)}
"""Codes that sentences of other rules name."""
_CAUSES: dict[str, list[Relation]] = {}
for _relation in RELATIONS:
    _CAUSES.setdefault(_relation.effect, []).append(_relation)

_ORDER = (
    "GW501",
    "GW502",
    "GW503",
    "GW504",
    "GW506",
    "GW103",
    "GW104",
    "GW201",
    "GW401",
    "GW202",
    "GW102",
    "GW101",
    "GW106",
    "GW201",
    "GW303",
    "GW304",
    "GW301",
    "GW302",
    "GW105",
    "GW505",
    "GW601",
)
"""Which of several causes is named, and which root is listed first; GW201 stands first where a whole layer is dead."""


def relate(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings with their root causes named: roots first, the worst of them in front.

    Args:
        findings: Each as its rule gave it: one that was related before may lack what its relations are told by.
    """
    return tuple(sorted(related(list(findings)), key=in_order))


def related(findings: Sequence[Finding]) -> list[Finding]:
    """Return the same, in the order in which they were given."""
    there = {finding.code for finding in findings}
    return [_told_beside(finding, _root(finding, findings), there) for finding in findings]


def in_order(finding: Finding) -> tuple[Any, ...]:
    """Return by what related findings are sorted."""
    return bool(finding.consequence_of), -finding.severity, _rank(finding)


def awaits_root(
    finding: Finding, among: Sequence[Finding], untold: Collection[Finding], under_way: Mapping[str, int]
) -> bool:
    """Tell whether what a finding follows from may be about to be found.

    Args:
        finding: One of `among`.
        among: All findings of the run, as their rules gave them.
        untold: Those that nobody was told of: where the root is another, there is nothing to wait for.
        under_way: Rules that have hit and lack patience, by code, each with the step since which it has.
    """
    root = _root(finding, among)
    if root is not finding and root not in untold:
        return False
    return any(_may_follow(each, code, since) for each in (finding, root) for code, since in under_way.items())


def _may_follow(effect: Finding, code: str, since: int) -> bool:
    """Tell whether some finding of a rule, seen since a step, would bring about another one."""
    if effect.code == "GW103":  # after a NaN, whoever waits for more waits in vain
        return False
    # What it will be about, and blame, is open: so it is given the best chance.
    likely = replace(effect, code=code, first_step=since, layers=(*effect.layers, *sorted(_dead_sites(effect))))
    open_ = replace(likely, cause_kind=CauseKind.UNKNOWN, causes=())
    return any(_brings_about(each, effect) for each in (likely, open_))


def _told_beside(finding: Finding, root: Finding, there: set[str]) -> Finding:
    """Return a finding as it is told beside others of those codes, one of which is its root (itself, where it has none)."""
    remedy, others = finding.remedy, _MENTIONED - there
    if root is not finding:
        remedy = Remedy(f"Fix {root.code} first.")
    elif (text := mentioning_none_of(remedy.text, others)) != remedy.text:
        remedy = replace(remedy, text=text)
    return replace(
        finding,
        consequence_of="" if root is finding else root.code,
        cause=mentioning_none_of(finding.cause, others),
        message=mentioning_none_of(finding.message, others),
        headline=mentioning_none_of(finding.headline, others),
        evidence=mentioning_none_of(finding.evidence, others),
        remedy=remedy,
    )


def _root(finding: Finding, findings: Sequence[Finding]) -> Finding:
    """Follow the causes to the one that has none; the conditions of the relations leave no circle."""
    while causes := [cause for cause in findings if _brings_about(cause, finding)]:
        finding = min(causes, key=_precedence)
    return finding


def _precedence(cause: Finding) -> tuple[Any, ...]:
    """Return by what one of several causes is named: all that a relation asks about, so that their order decides nothing."""
    numbers = cause.threshold, cause.value
    blamed = tuple((each.kind.value, each.sites) for each in cause.causes)
    return _rank(cause), cause.first_step, -cause.severity, cause.layers, numbers, cause.cause_kind.value, blamed


def _brings_about(cause: Finding, effect: Finding) -> bool:
    if cause.severity < min(effect.severity, Severity.WARNING):
        return False
    return any(
        relation.cause == cause.code and relation.when(cause, effect) for relation in _CAUSES.get(effect.code, ())
    )


def _rank(finding: Finding) -> int:
    if finding.code not in _ORDER:
        return len(_ORDER)
    first = _ORDER.index(finding.code)
    return first if finding.code != "GW201" or _whole(finding) else _ORDER.index(finding.code, first + 1)


def _whole(finding: Finding) -> bool:
    return finding.value == 1


def _kinds(finding: Finding) -> set[CauseKind]:
    return {finding.cause_kind, *(cause.kind for cause in finding.causes)}


def _dead_sites(finding: Finding) -> set[str]:
    """Return the sites whose dead units a finding blames."""
    return {name for cause in finding.causes if cause.kind in _DEAD for name in cause.sites}
