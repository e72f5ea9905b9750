"""All rules, in the order of their codes: a new rule is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.rules.exploding import ExplodingGradient
from lightning_gradwatch.judge.rules.initialization import Initialization
from lightning_gradwatch.judge.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.judge.rules.vanishing import VanishingGradient

if TYPE_CHECKING:
    from lightning_gradwatch.judge.rule import Rule

RULES: tuple[type[Rule], ...] = (
    VanishingGradient,
    ExplodingGradient,
    NonFiniteGradient,
    UnreachedLayer,
    DeadUnits,
    SaturatedUnits,
    StalledUpdate,
    OversizedUpdate,
    Initialization,
)
DEFAULT_RULES: tuple[Rule, ...] = tuple(rule() for rule in RULES)
RULE_BY_CODE: dict[str, type[Rule]] = {rule.code: rule for rule in RULES}


def name_of(code: str) -> str:
    """Return a rule's name; empty for a rule that isn't known here."""
    rule = RULE_BY_CODE.get(code)
    return "" if rule is None else rule.name


def label_of(code: str) -> str:
    """Return a rule's code and name; the code alone of one that isn't known here.

    >>> label_of("GW101"), label_of("GW999")
    ('GW101 vanishing-gradient', 'GW999')
    """
    return f"{code} {name_of(code)}".rstrip()
