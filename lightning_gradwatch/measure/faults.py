"""What happens when the monitor itself fails: one warning, the faulty part goes off, training goes on.

Tests set `RAISE`, so that a bug shows as a failure and isn't swallowed.
"""

from __future__ import annotations

import warnings
from typing import Literal, TypeAlias

from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.finding import GradWatchWarning

Part: TypeAlias = Literal[
    "activations", "signal", "gradients", "updates", "wiring", "record", "rules", "writing", "schedule"
]

MEASURING: tuple[Part, ...] = ("activations", "signal", "gradients", "updates", "wiring")
"""Parts that measure. Where one fails on one of several ranks it goes off on all, and the others go on."""

RAISE = False


class GivenUp(Exception):  # noqa: N818 - it is no error of the process that measures nothing more
    """Nothing more can be measured, for a reason that isn't found here."""

    what = "nothing more is measured"


class Unsupported(GivenUp):
    """Nothing of the fit can be measured."""

    what = "nothing is measured"


class Faults:
    """The parts that were switched off, and why.

    Args:
        speaks: Whether this process warns of what all ranks come to know.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.reasons: dict[str, str] = {}
        self._losses: list[str] = []
        self._speaks = speaks
        self._given_up = False
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
        if self._speaks or part not in MEASURING:
            self._warn(part)

    def adopt(self, part: Part, reason: str) -> None:
        """Switch a part off that failed on some rank; told here if it wasn't yet, and this process is the one that tells."""
        told = part in self.reasons
        self.reasons[part] = reason
        if self._speaks and not told:
            self._warn(part)

    def give_up(self, reason: GivenUp) -> None:
        """Measure nothing more."""
        self.reasons["schedule"] = f"{reason.what}: {reason}"
        self._given_up = True
        if self._speaks:
            _tell(f"GradWatch: {self.reasons['schedule']}. Training goes on.")

    def lose(self, what: str, *, warning: str) -> None:
        """Warn of something that is lost for a reason that lies outside of us; `told` has `what` among the rest."""
        self._losses.append(what)
        _tell(warning)

    @property
    def told(self) -> tuple[str, ...]:
        """What is off or lost and why, in a sentence each."""
        off = (
            why if part == "schedule" and self._given_up else f"{part} switched off: {why}"
            for part, why in self.reasons.items()
        )
        return (*off, *self._losses)

    def _warn(self, part: Part) -> None:
        _tell(
            f"GradWatch switched its {part} off after an internal error ({self.reasons[part]}). "
            "Training goes on; please report this."
        )


def _tell(message: str) -> None:
    warnings.warn_explicit(escape(message, Place.WARNING), GradWatchWarning, filename=__file__, lineno=0, registry={})


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
