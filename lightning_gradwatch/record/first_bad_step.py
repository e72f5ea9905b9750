"""Where a jump or a NaN began, as a finding carries it: data, and a sentence. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lightning_gradwatch.record.wording import number

_QUANTITIES = {
    "weight_rms": "rms of its weights",
    "forward_rms": "rms of its output",
    "grad_norm": "gradient norm",
    "update_ratio": "update ratio",
    "loss": "loss",
}


@dataclass(frozen=True, kw_only=True)
class FirstBadStep:
    """Where a jump or a NaN began: the layer that left its own range first, between which two measured steps."""

    layer: str
    """The layer; the site where no layer is known to feed it; empty where nothing but the loss left its range."""
    metric: str
    """What left it: ``weight_rms``, ``forward_rms``, ``grad_norm``, ``update_ratio`` or ``loss``."""
    before: float | None
    """It in the last good measured step; None where it wasn't measured there."""
    after: float | None
    """It in the first bad one; None where it isn't finite."""
    step: int
    """The first bad measured step."""
    batch: int
    """Index of its batch, of several micro-batches the last."""
    last_good_step: int | None
    """The last good measured step; between the two nothing was measured. None where there was none."""
    last_good_batch: int | None
    learning_rate: float | None
    """Of the layer, in the first bad step; None where it isn't known."""
    learning_rate_before: float | None = None
    """In the last good one."""
    site: str = ""
    """Of ``forward_rms`` the site whose output it is."""

    @property
    def exact(self) -> bool:
        """Whether no step lies between the two."""
        return self.last_good_step is not None and self.step - self.last_good_step == 1

    @property
    def sentence(self) -> str:
        """Say it."""
        who = f"{self.layer} left its own range first" if self.layer else "The loss alone left its own range"
        what = f"rms of the output of {self.site}" if self.site else _QUANTITIES.get(self.metric, self.metric)
        now = "not finite" if self.after is None else number(self.after)
        then = "" if self.before is None else f", {number(self.before)} before"
        old, rate = self.learning_rate_before, ""
        if self.learning_rate is not None:
            was = "" if old is None or old == self.learning_rate else f", {number(old)} before"
            rate = f"; learning rate {number(self.learning_rate)}{was}"
        return f"{who}, {self._between}: {what} {now}{then}{rate}."

    @property
    def _between(self) -> str:
        good, bad = f"step {self.last_good_step} (batch {self.last_good_batch}", f"step {self.step} (batch {self.batch}"
        if self.last_good_step is None:
            return f"at {bad}), the first that was measured"
        return f"at {bad}), {good}) was good" if self.exact else f"between {good}, good) and {bad}, bad)"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FirstBadStep:
        """Build from what `to_dict` gave, in this release or in another one.

        Raises:
            KeyError, TypeError, ValueError: the data isn't that.
        """
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})
