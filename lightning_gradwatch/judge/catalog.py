"""All rules, in the order of their codes: a new rule is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.rules.dead import DeadUnits
from lightning_gradwatch.rules.exploding import ExplodingGradient
from lightning_gradwatch.rules.initialization import Initialization
from lightning_gradwatch.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.rules.oversized import OversizedUpdate
from lightning_gradwatch.rules.saturated import SaturatedUnits
from lightning_gradwatch.rules.stalled import StalledUpdate
from lightning_gradwatch.rules.unreached import UnreachedLayer
from lightning_gradwatch.rules.vanishing import VanishingGradient

if TYPE_CHECKING:
    from lightning_gradwatch.rules.protocol import Rule

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
