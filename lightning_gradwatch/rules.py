"""Judging: rules read records and return findings, the same way live and from a file. No torch, no rendering."""

from __future__ import annotations

from lightning_gradwatch.rules.causes import relate
from lightning_gradwatch.rules.dead import DeadUnits
from lightning_gradwatch.rules.evaluator import Evaluator, evaluate_records, replay
from lightning_gradwatch.rules.exploding import ExplodingGradient
from lightning_gradwatch.rules.initialization import Initialization
from lightning_gradwatch.rules.nonfinite import NonFiniteGradient
from lightning_gradwatch.rules.oversized import OversizedUpdate
from lightning_gradwatch.rules.protocol import Rule, Verdict
from lightning_gradwatch.rules.registry import DEFAULT_RULES, RULE_BY_CODE, RULES
from lightning_gradwatch.rules.saturated import SaturatedUnits
from lightning_gradwatch.rules.selection import (
    check_prefixes,
    code_of,
    nearest_rule,
    resolve_rules,
    rules_from_settings,
    settings_of,
)
from lightning_gradwatch.rules.stalled import StalledUpdate
from lightning_gradwatch.rules.unreached import UnreachedLayer
from lightning_gradwatch.rules.vanishing import VanishingGradient

__all__ = [
    "DEFAULT_RULES",
    "RULES",
    "RULE_BY_CODE",
    "DeadUnits",
    "Evaluator",
    "ExplodingGradient",
    "Initialization",
    "NonFiniteGradient",
    "OversizedUpdate",
    "Rule",
    "SaturatedUnits",
    "StalledUpdate",
    "UnreachedLayer",
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
