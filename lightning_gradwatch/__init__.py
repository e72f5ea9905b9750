"""A training monitor for PyTorch Lightning: see why a net stops learning.

The public names are imported on first use (PEP 562), so that the command line, TensorBoard and pytest, which all import
this package at start-up, pay for neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.version import __version__

_HOMES = {
    "GradWatch": "callback",
    "Probe": "probe",
    "Run": "run",
    "RunError": "run",
    "read_run": "run",
    "evaluate": "run",
    "TrainingReport": "smoke",
    "check_training": "smoke",
    "RunInfo": "record",
    "StepRecord": "record",
    "LayerState": "record",
    "DEFAULT_RULES": "rules",
    "VanishingGradient": "rules",
    "ExplodingGradient": "rules",
    "NonFiniteGradient": "rules",
    "UnreachedLayer": "rules",
    "DeadUnits": "rules",
    "SaturatedUnits": "rules",
    "StalledUpdate": "rules",
    "OversizedUpdate": "rules",
    "Initialization": "rules",
    "Finding": "findings",
    "Remedy": "findings",
    "Severity": "findings",
    "GradWatchError": "findings",
    "GradWatchWarning": "findings",
    "VanishingGradientWarning": "findings",
    "UnreachedLayerWarning": "findings",
    "ExplodingGradientWarning": "findings",
    "NonFiniteGradientWarning": "findings",
    "DeadUnitsWarning": "findings",
    "SaturatedUnitsWarning": "findings",
    "StalledUpdateWarning": "findings",
    "OversizedUpdateWarning": "findings",
    "InitializationWarning": "findings",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names are the table's, which a linter can't read

if TYPE_CHECKING:
    from lightning_gradwatch.callback import GradWatch as GradWatch
    from lightning_gradwatch.findings import DeadUnitsWarning as DeadUnitsWarning
    from lightning_gradwatch.findings import ExplodingGradientWarning as ExplodingGradientWarning
    from lightning_gradwatch.findings import Finding as Finding
    from lightning_gradwatch.findings import GradWatchError as GradWatchError
    from lightning_gradwatch.findings import GradWatchWarning as GradWatchWarning
    from lightning_gradwatch.findings import InitializationWarning as InitializationWarning
    from lightning_gradwatch.findings import NonFiniteGradientWarning as NonFiniteGradientWarning
    from lightning_gradwatch.findings import OversizedUpdateWarning as OversizedUpdateWarning
    from lightning_gradwatch.findings import Remedy as Remedy
    from lightning_gradwatch.findings import SaturatedUnitsWarning as SaturatedUnitsWarning
    from lightning_gradwatch.findings import Severity as Severity
    from lightning_gradwatch.findings import StalledUpdateWarning as StalledUpdateWarning
    from lightning_gradwatch.findings import UnreachedLayerWarning as UnreachedLayerWarning
    from lightning_gradwatch.findings import VanishingGradientWarning as VanishingGradientWarning
    from lightning_gradwatch.probe import Probe as Probe
    from lightning_gradwatch.record import LayerState as LayerState
    from lightning_gradwatch.record import RunInfo as RunInfo
    from lightning_gradwatch.record import StepRecord as StepRecord
    from lightning_gradwatch.rules import DEFAULT_RULES as DEFAULT_RULES
    from lightning_gradwatch.rules import DeadUnits as DeadUnits
    from lightning_gradwatch.rules import ExplodingGradient as ExplodingGradient
    from lightning_gradwatch.rules import Initialization as Initialization
    from lightning_gradwatch.rules import NonFiniteGradient as NonFiniteGradient
    from lightning_gradwatch.rules import OversizedUpdate as OversizedUpdate
    from lightning_gradwatch.rules import SaturatedUnits as SaturatedUnits
    from lightning_gradwatch.rules import StalledUpdate as StalledUpdate
    from lightning_gradwatch.rules import UnreachedLayer as UnreachedLayer
    from lightning_gradwatch.rules import VanishingGradient as VanishingGradient
    from lightning_gradwatch.run import Run as Run
    from lightning_gradwatch.run import RunError as RunError
    from lightning_gradwatch.run import evaluate as evaluate
    from lightning_gradwatch.run import read_run as read_run
    from lightning_gradwatch.smoke import TrainingReport as TrainingReport
    from lightning_gradwatch.smoke import check_training as check_training


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
