"""What a program imports to judge by rules of its choice, or to make one: the rules, what runs them, how they are chosen. No torch."""

from __future__ import annotations

from lightning_gradwatch.judge.catalog import DEFAULT_RULES, RULE_BY_CODE, RULES, register_rule
from lightning_gradwatch.judge.evaluator import Evaluator, evaluate_records, replay
from lightning_gradwatch.judge.root_causes import relate
from lightning_gradwatch.judge.rule import (
    Found,
    Line,
    Rule,
    Seen,
    Sentences,
    Verdict,
    cant_judge,
    not_yet,
)
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
from lightning_gradwatch.judge.selection import (
    check_prefixes,
    code_of,
    nearest_rule,
    resolve_rules,
    rules_from_settings,
    settings_of,
)
from lightning_gradwatch.judge.streaks import State
from lightning_gradwatch.record.run_end import RunEnd

__all__ = [
    "DEFAULT_RULES",
    "RULES",
    "RULE_BY_CODE",
    "ClippedAway",
    "DeadUnits",
    "DecayDominates",
    "EvaluationMode",
    "Evaluator",
    "ExplodingGradient",
    "Found",
    "Initialization",
    "Line",
    "LossSpike",
    "NoProgress",
    "NonFiniteGradient",
    "OutputAppliedTwice",
    "OversizedUpdate",
    "Rule",
    "RunEnd",
    "SaturatedUnits",
    "Seen",
    "Sentences",
    "SingleValueNormalization",
    "StaleGradient",
    "StalledUpdate",
    "StartFarOff",
    "StarvedPart",
    "State",
    "UnreachedLayer",
    "UntrainedParameter",
    "VanishingGradient",
    "Verdict",
    "cant_judge",
    "check_prefixes",
    "code_of",
    "evaluate_records",
    "nearest_rule",
    "not_yet",
    "register_rule",
    "relate",
    "replay",
    "resolve_rules",
    "rules_from_settings",
    "settings_of",
]
