"""All rules, in the order of their codes: a new rule is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.rules.dead import DeadUnits
from lightning_gradwatch.judge.rules.evaluation_mode import EvaluationMode
from lightning_gradwatch.judge.rules.exploding import ExplodingGradient
from lightning_gradwatch.judge.rules.initialization import Initialization
from lightning_gradwatch.judge.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.judge.rules.output_applied_twice import OutputAppliedTwice
from lightning_gradwatch.judge.rules.oversized import OversizedUpdate
from lightning_gradwatch.judge.rules.saturated import SaturatedUnits
from lightning_gradwatch.judge.rules.single_value_normalization import SingleValueNormalization
from lightning_gradwatch.judge.rules.stale_gradient import StaleGradient
from lightning_gradwatch.judge.rules.stalled import StalledUpdate
from lightning_gradwatch.judge.rules.unreached import UnreachedLayer
from lightning_gradwatch.judge.rules.untrained_parameter import UntrainedParameter
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
    OutputAppliedTwice,
    StaleGradient,
    UntrainedParameter,
    SingleValueNormalization,
    EvaluationMode,
)
DEFAULT_RULES: tuple[Rule, ...] = tuple(rule() for rule in RULES)
RULE_BY_CODE: dict[str, type[Rule]] = {rule.code: rule for rule in RULES}
