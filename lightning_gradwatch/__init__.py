"""A training monitor for PyTorch Lightning: see why a net stops learning.

The public names are imported on first use (PEP 562), so that the command line, TensorBoard and pytest, which all import
this package at start-up, pay for neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.version import __version__

_HOMES = {
    "GradWatch": "fit.callback",
    "Probe": "measure.probe",
    "Run": "judge.run",
    "RunError": "judge.run",
    "read_run": "judge.run",
    "evaluate": "judge.run",
    "TrainingReport": "testing.check_training",
    "RemedyTrial": "testing.trials",
    "apply_action": "testing.remedies",
    "NotApplicableError": "testing.remedies",
    "check_training": "testing.check_training",
    "register_activation": "record.registration",
    "RunInfo": "record.run_info",
    "StepRecord": "record.step",
    "LayerState": "record.step",
    "DEFAULT_RULES": "judge.catalog",
    "register_rule": "judge.catalog",
    "Rule": "judge.rule",
    "VanishingGradient": "judge.rules.vanishing",
    "ExplodingGradient": "judge.rules.exploding",
    "NonFiniteGradient": "judge.rules.nonfinite",
    "UnreachedLayer": "judge.rules.unreached",
    "LossSpike": "judge.rules.loss_spike",
    "DeadUnits": "judge.rules.dead",
    "SaturatedUnits": "judge.rules.saturated",
    "StalledUpdate": "judge.rules.stalled",
    "OversizedUpdate": "judge.rules.oversized",
    "ClippedAway": "judge.rules.clipped_away",
    "DecayDominates": "judge.rules.decay_dominates",
    "Initialization": "judge.rules.initialization",
    "OutputAppliedTwice": "judge.rules.output_applied_twice",
    "StaleGradient": "judge.rules.stale_gradient",
    "UntrainedParameter": "judge.rules.untrained_parameter",
    "SingleValueNormalization": "judge.rules.single_value_normalization",
    "StartFarOff": "judge.rules.start_far_off",
    "EvaluationMode": "judge.rules.evaluation_mode",
    "NoProgress": "judge.rules.no_progress",
    "StarvedPart": "judge.rules.starved_part",
    "Finding": "record.finding",
    "FirstBadStep": "record.first_bad_step",
    "Cause": "record.finding",
    "CauseKind": "record.finding",
    "Remedy": "record.finding",
    "Severity": "record.finding",
    "GradWatchError": "record.finding",
    "GradWatchWarning": "record.finding",
    "VanishingGradientWarning": "record.finding",
    "UnreachedLayerWarning": "record.finding",
    "LossSpikeWarning": "record.finding",
    "ExplodingGradientWarning": "record.finding",
    "NonFiniteGradientWarning": "record.finding",
    "DeadUnitsWarning": "record.finding",
    "SaturatedUnitsWarning": "record.finding",
    "StalledUpdateWarning": "record.finding",
    "OversizedUpdateWarning": "record.finding",
    "ClippedAwayWarning": "record.finding",
    "DecayDominatesWarning": "record.finding",
    "InitializationWarning": "record.finding",
    "OutputAppliedTwiceWarning": "record.finding",
    "StaleGradientWarning": "record.finding",
    "UntrainedParameterWarning": "record.finding",
    "SingleValueNormalizationWarning": "record.finding",
    "StartFarOffWarning": "record.finding",
    "EvaluationModeWarning": "record.finding",
    "NoProgressWarning": "record.finding",
    "StarvedPartWarning": "record.finding",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names are the table's, which a linter can't read

if TYPE_CHECKING:
    from lightning_gradwatch.fit.callback import GradWatch as GradWatch
    from lightning_gradwatch.judge.catalog import DEFAULT_RULES as DEFAULT_RULES
    from lightning_gradwatch.judge.catalog import register_rule as register_rule
    from lightning_gradwatch.judge.rule import Rule as Rule
    from lightning_gradwatch.judge.rules.clipped_away import ClippedAway as ClippedAway
    from lightning_gradwatch.judge.rules.dead import DeadUnits as DeadUnits
    from lightning_gradwatch.judge.rules.decay_dominates import DecayDominates as DecayDominates
    from lightning_gradwatch.judge.rules.evaluation_mode import EvaluationMode as EvaluationMode
    from lightning_gradwatch.judge.rules.exploding import ExplodingGradient as ExplodingGradient
    from lightning_gradwatch.judge.rules.initialization import Initialization as Initialization
    from lightning_gradwatch.judge.rules.loss_spike import LossSpike as LossSpike
    from lightning_gradwatch.judge.rules.no_progress import NoProgress as NoProgress
    from lightning_gradwatch.judge.rules.nonfinite import NonFiniteGradient as NonFiniteGradient
    from lightning_gradwatch.judge.rules.output_applied_twice import OutputAppliedTwice as OutputAppliedTwice
    from lightning_gradwatch.judge.rules.oversized import OversizedUpdate as OversizedUpdate
    from lightning_gradwatch.judge.rules.saturated import SaturatedUnits as SaturatedUnits
    from lightning_gradwatch.judge.rules.single_value_normalization import (
        SingleValueNormalization as SingleValueNormalization,
    )
    from lightning_gradwatch.judge.rules.stale_gradient import StaleGradient as StaleGradient
    from lightning_gradwatch.judge.rules.stalled import StalledUpdate as StalledUpdate
    from lightning_gradwatch.judge.rules.start_far_off import StartFarOff as StartFarOff
    from lightning_gradwatch.judge.rules.starved_part import StarvedPart as StarvedPart
    from lightning_gradwatch.judge.rules.unreached import UnreachedLayer as UnreachedLayer
    from lightning_gradwatch.judge.rules.untrained_parameter import UntrainedParameter as UntrainedParameter
    from lightning_gradwatch.judge.rules.vanishing import VanishingGradient as VanishingGradient
    from lightning_gradwatch.judge.run import Run as Run
    from lightning_gradwatch.judge.run import RunError as RunError
    from lightning_gradwatch.judge.run import evaluate as evaluate
    from lightning_gradwatch.judge.run import read_run as read_run
    from lightning_gradwatch.measure.probe import Probe as Probe
    from lightning_gradwatch.record.finding import Cause as Cause
    from lightning_gradwatch.record.finding import CauseKind as CauseKind
    from lightning_gradwatch.record.finding import ClippedAwayWarning as ClippedAwayWarning
    from lightning_gradwatch.record.finding import DeadUnitsWarning as DeadUnitsWarning
    from lightning_gradwatch.record.finding import DecayDominatesWarning as DecayDominatesWarning
    from lightning_gradwatch.record.finding import EvaluationModeWarning as EvaluationModeWarning
    from lightning_gradwatch.record.finding import ExplodingGradientWarning as ExplodingGradientWarning
    from lightning_gradwatch.record.finding import Finding as Finding
    from lightning_gradwatch.record.finding import GradWatchError as GradWatchError
    from lightning_gradwatch.record.finding import GradWatchWarning as GradWatchWarning
    from lightning_gradwatch.record.finding import InitializationWarning as InitializationWarning
    from lightning_gradwatch.record.finding import LossSpikeWarning as LossSpikeWarning
    from lightning_gradwatch.record.finding import NonFiniteGradientWarning as NonFiniteGradientWarning
    from lightning_gradwatch.record.finding import NoProgressWarning as NoProgressWarning
    from lightning_gradwatch.record.finding import OutputAppliedTwiceWarning as OutputAppliedTwiceWarning
    from lightning_gradwatch.record.finding import OversizedUpdateWarning as OversizedUpdateWarning
    from lightning_gradwatch.record.finding import Remedy as Remedy
    from lightning_gradwatch.record.finding import SaturatedUnitsWarning as SaturatedUnitsWarning
    from lightning_gradwatch.record.finding import Severity as Severity
    from lightning_gradwatch.record.finding import SingleValueNormalizationWarning as SingleValueNormalizationWarning
    from lightning_gradwatch.record.finding import StaleGradientWarning as StaleGradientWarning
    from lightning_gradwatch.record.finding import StalledUpdateWarning as StalledUpdateWarning
    from lightning_gradwatch.record.finding import StartFarOffWarning as StartFarOffWarning
    from lightning_gradwatch.record.finding import StarvedPartWarning as StarvedPartWarning
    from lightning_gradwatch.record.finding import UnreachedLayerWarning as UnreachedLayerWarning
    from lightning_gradwatch.record.finding import UntrainedParameterWarning as UntrainedParameterWarning
    from lightning_gradwatch.record.finding import VanishingGradientWarning as VanishingGradientWarning
    from lightning_gradwatch.record.first_bad_step import FirstBadStep as FirstBadStep
    from lightning_gradwatch.record.registration import register_activation as register_activation
    from lightning_gradwatch.record.run_info import RunInfo as RunInfo
    from lightning_gradwatch.record.step import LayerState as LayerState
    from lightning_gradwatch.record.step import StepRecord as StepRecord
    from lightning_gradwatch.testing.check_training import TrainingReport as TrainingReport
    from lightning_gradwatch.testing.check_training import check_training as check_training
    from lightning_gradwatch.testing.remedies import NotApplicableError as NotApplicableError
    from lightning_gradwatch.testing.remedies import apply_action as apply_action
    from lightning_gradwatch.testing.trials import RemedyTrial as RemedyTrial


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
