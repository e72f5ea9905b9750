"""All rules, in the order of their codes: a new rule is one file and one line here; and rules that others bring along."""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from lightning_gradwatch.judge.rule import Rule
from lightning_gradwatch.judge.rules.clipped_away import ClippedAway
from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.rules.decay_dominates import DecayDominates
from lightning_gradwatch.judge.rules.evaluation_mode import EvaluationMode
from lightning_gradwatch.judge.rules.exploding import ExplodingGradient
from lightning_gradwatch.judge.rules.initialization import Initialization
from lightning_gradwatch.judge.rules.loss_spike import LossSpike
from lightning_gradwatch.judge.rules.no_progress import NoProgress
from lightning_gradwatch.judge.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.judge.rules.output_applied_twice import OutputAppliedTwice
from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.judge.rules.single_value_normalization import SingleValueNormalization
from lightning_gradwatch.judge.rules.stale_gradient import StaleGradient
from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.judge.rules.start_far_off import StartFarOff
from lightning_gradwatch.judge.rules.starved_part import StarvedPart
from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.judge.rules.untrained_parameter import UntrainedParameter
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

RULES: tuple[type[Rule], ...] = (
    VanishingGradient,
    ExplodingGradient,
    NonFiniteGradient,
    UnreachedLayer,
    LossSpike,
    StarvedPart,
    DeadUnits,
    SaturatedUnits,
    StalledUpdate,
    OversizedUpdate,
    ClippedAway,
    DecayDominates,
    Initialization,
    OutputAppliedTwice,
    StaleGradient,
    UntrainedParameter,
    SingleValueNormalization,
    StartFarOff,
    EvaluationMode,
    NoProgress,
)
DEFAULT_RULES: tuple[Rule, ...] = tuple(rule() for rule in RULES)
RULE_BY_CODE: dict[str, type[Rule]] = {rule.code: rule for rule in RULES}

GROUP = "lightning_gradwatch.rules"
"""Entry points of installed packages, each named by the code of the rule that it is: ``LAB001 = "lab.rules:LoudLayer"``."""
OWN_PREFIX = "GW"
"""Of this package's codes: so what a later release adds is never somebody else's."""
_registered: dict[str, type[Rule]] = {}
_CODE = re.compile(r"[A-Z]{1,16}[0-9]{1,6}")
_NAME = re.compile(r"[a-z]+(-[a-z]+)*")
_R = TypeVar("_R", bound=type[Rule])


def register_rule(rule: _R) -> _R:
    """Make a rule of your own known in this process, so that stored runs are judged by it again; a class decorator.

    A package that is installed says so with an entry point of the group ``lightning_gradwatch.rules`` instead.

    Raises:
        TypeError: it is no rule.
        ValueError: its code, its name or its thresholds aren't such as a rule of your own may have.
    """
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError(f"register_rule: {rule!r:.200} is no subclass of Rule")
    check_own(rule, "register_rule")
    _registered[rule.code] = rule
    return rule


def check_own(rule: type[Rule], where: str) -> None:
    """Check a rule that isn't this package's own; those that are, and what is derived from one, pass.

    Raises:
        ValueError: its code has this package's prefix, or it lacks what a rule has.
    """
    code, name = getattr(rule, "code", None), getattr(rule, "name", None)
    ours = RULE_BY_CODE.get(code) if isinstance(code, str) else None
    if ours is not None and issubclass(rule, ours):
        return
    told = f"{where}: {rule.__name__} has code {code!r:.200}"
    if isinstance(code, str) and code.upper().startswith(OWN_PREFIX):
        raise ValueError(
            f"{told}, and codes that begin with {OWN_PREFIX} are this package's own: give it a prefix of yours, such as LAB001"
        )
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise ValueError(f"{told}; give it capitals and a number, such as LAB001")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: {rule.__name__} has name {name!r:.200}; give it words in lower case, such as loud-layer"
        )
    same = next((each for each in RULES if each.name == name), None)
    if same is not None:
        raise ValueError(
            f"{where}: {rule.__name__} has name {name!r}, which is that of {same.code}: give it another one"
        )
    fields = [each for each, kind in inspect.get_annotations(rule).items() if "ClassVar" not in str(kind)]
    if fields and "__dataclass_fields__" not in vars(rule):
        raise ValueError(
            f"{where}: {rule.__name__} isn't a dataclass, so {fields[0]} is no threshold: put @dataclass(frozen=True, kw_only=True) above it"
        )


def find_rule(code: str) -> type[Rule] | None:
    """Return the rule of a code: this package's, one that was registered, or an installed package's; None: there is none."""
    return RULE_BY_CODE.get(code) or _registered.get(code) or _installed(code)[0]


def known_rules() -> dict[str, type[Rule]]:
    """Return all rules that are known here by code: this package's first, then others in the order of their codes."""
    others = {code: rule for code in {*_registered, *_entries()} if (rule := find_rule(code)) is not None}
    return {**RULE_BY_CODE, **{code: others[code] for code in sorted(others)}}


def why_unknown(code: str) -> str:
    """Say why a rule that a run was watched with can't judge it here."""
    if code.startswith(OWN_PREFIX):
        return "this release doesn't know it"
    fault = _installed(code)[1] or "the package that has this rule isn't installed here"
    return f"can't judge: {fault}"


@lru_cache(maxsize=1)
def _entries() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - looks through all packages, and few runs need it

    return {entry.name: entry for entry in entry_points(group=GROUP)}


@lru_cache(maxsize=128)
def _installed(code: str) -> tuple[type[Rule] | None, str]:
    """Return an installed package's rule, or what is wrong with it; neither where no package has it."""
    entry = _entries().get(code)
    if entry is None:
        return None, ""
    try:
        rule = _checked(entry.load(), entry.value, code)
    except Exception as error:  # noqa: BLE001 - the code is somebody else's, and must not take the other rules away
        return (
            None,
            f"{entry.value}, which an installed package names for it, can't be used: {type(error).__name__}: {error}",
        )
    return rule, ""


def _checked(rule: object, where: str, code: str) -> type[Rule]:
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise TypeError("it is no subclass of Rule")
    check_own(rule, where)
    if rule.code != code:
        raise ValueError(f"its code is {rule.code}")
    return rule


def name_of(code: str) -> str:
    """Return a rule's name; empty for a rule that isn't known here."""
    rule = find_rule(code)
    return "" if rule is None else rule.name


def is_numbered(code: str) -> bool:
    """Whether the number and threshold of a rule's findings say something; of one that isn't known here, they may."""
    rule = find_rule(code)
    return rule is None or rule.numbered


def label_of(code: str) -> str:
    """Return a rule's code and name; the code alone of one that isn't known here.

    >>> label_of("GW101"), label_of("GW999")
    ('GW101 vanishing-gradient', 'GW999')
    """
    return f"{code} {name_of(code)}".rstrip()
