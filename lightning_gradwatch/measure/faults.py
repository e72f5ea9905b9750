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
        self._guards: dict[Part, _Guard] = {}

    def guard(self, part: Part) -> _Guard:
        """Return a context in which an exception is a fault of a part of ours, and goes no further."""
        guard = self._guards.get(part)
        if guard is None:
            guard = self._guards[part] = _Guard(self, part)
        return guard

    def on(self, part: Part) -> bool:
        """Whether a part still works."""
        return part not in self.reasons

    def report(self, part: Part, error: Exception) -> None:
        """Switch a part off, and warn once.

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


class _Guard:
    """Reports what is raised inside it; stateless, as the block may be entered again within itself."""

    __slots__ = ("_faults", "_part")

    def __init__(self, faults: Faults, part: Part) -> None:
        self._faults = faults
        self._part: Part = part

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._faults.report(self._part, error)
        return True
