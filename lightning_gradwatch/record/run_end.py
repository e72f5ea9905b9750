"""How a fit ended: known to who ran it alone, so it is stored behind the last step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPLETED, STOPPED, INTERRUPTED, FAILED = "completed", "stopped", "interrupted", "failed"
_OURS = "GradWatchError"


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a fit ended."""

    how: str
    """``completed``: it did what was planned; ``stopped``: before that, as a callback or a limit wanted it; ``interrupted``: by
    hand; ``failed``: by an exception. A newer release may know others."""
    steps: int
    """How many steps had been taken, as the loggers count them."""
    planned_steps: int | None = None
    """How many were planned; None where nothing known limited them."""
    error: str = ""
    """The exception's class; empty where none ended it."""

    @property
    def by_finding(self) -> bool:
        """Whether a finding ended it (``fail_on``)."""
        return self.error == _OURS

    @property
    def sentence(self) -> str:
        """Say how, up to the number of steps."""
        told = {COMPLETED: "was completed", STOPPED: "was stopped", INTERRUPTED: "was interrupted"}
        if self.how == FAILED:
            return f"The run failed ({self.error})" if self.error else "The run failed"
        return f"The run {told.get(self.how, 'ended')}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunEnd:
        """Build from what `to_dict` gave; keys of a newer release are left out.

        Raises:
            TypeError: the data isn't a run's end.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})
