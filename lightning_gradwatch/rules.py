"""What a program imports to judge by rules of its choice: the rules, what runs them, how they are chosen. No torch."""

from __future__ import annotations

from lightning_gradwatch.judge.catalog import DEFAULT_RULES, RULE_BY_CODE, RULES
from lightning_gradwatch.judge.evaluator import Evaluator, evaluate_records, replay
from lightning_gradwatch.judge.root_causes import relate
from lightning_gradwatch.judge.rule import Rule, Verdict
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
from lightning_gradwatch.judge.selection import (
    check_prefixes,
    code_of,
    nearest_rule,
    resolve_rules,
    rules_from_settings,
    settings_of,
)

__all__ = [
    "DEFAULT_RULES",
    "RULES",
    "RULE_BY_CODE",
    "DeadUnits",
    "EvaluationMode",
    "Evaluator",
    "ExplodingGradient",
    "Initialization",
    "NonFiniteGradient",
    "OutputAppliedTwice",
    "OversizedUpdate",
    "Rule",
    "SaturatedUnits",
    "SingleValueNormalization",
    "StaleGradient",
    "StalledUpdate",
    "UnreachedLayer",
    "UntrainedParameter",
    "VanishingGradient",
    "Verdict",
    "check_prefixes",
    "code_of",
    "evaluate_records",
    "nearest_rule",
    "relate",
    "replay",
    "resolve_rules",
    "rules_from_settings",
    "settings_of",
]
