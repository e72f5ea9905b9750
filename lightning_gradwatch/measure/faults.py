"""What happens when the monitor itself fails: one warning, the faulty part goes off, training goes on.

Tests set `RAISE`, so that a bug shows as a failure and isn't swallowed.
"""

from __future__ import annotations

import warnings
from typing import Literal, TypeAlias

from lightning_gradwatch.findings import GradWatchWarning

Part: TypeAlias = Literal["activations", "signal", "gradients", "updates", "record", "rules", "writing", "schedule"]

RAISE = False


class Faults:
    """The parts that were switched off, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def on(self, part: Part) -> bool:
        """Whether a part still works."""
        return part not in self.reasons

    def report(self, part: Part, error: Exception) -> None:
        """Switch a part off and warn once; called from the ``except`` of the part.

        Raises:
            Exception: `error` itself, where `RAISE` is set.
            GradWatchWarning: the user's filter turns our warnings into errors.
        """
        if RAISE or isinstance(error, GradWatchWarning):
            raise error
        if part in self.reasons:
            return
        self.reasons[part] = f"{type(error).__name__}: {error}"
        warnings.warn_explicit(
            f"GradWatch switched its {part} off after an internal error ({self.reasons[part]}). "
            "Training goes on; please report this.",
            GradWatchWarning,
            filename=__file__,
            lineno=0,
            registry={},
        )
