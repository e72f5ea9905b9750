"""What a rule is: a frozen dataclass of thresholds that reads one record at a time and keeps nothing itself.

A rule's memory is a dictionary of plain data and of `streaks.Columns`, handed in at each record: it travels in a
checkpoint by names, so layers or sites that appear in mid-run can't shift it. The losses in it (`trend.loss_trend`) are the
evaluator's, one for all rules.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias

from lightning_gradwatch.record.finding import Cause, Finding, GradWatchWarning, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import StepRecord

State: TypeAlias = dict[str, Any]

_MOST_COUNTED = 2**53
"""Up to here a float counts without gaps."""


class Explanation(NamedTuple):
    """Why something is so, in a sentence and as data, and what to do about it."""

    cause: str
    remedy: Remedy
    causes: tuple[Cause, ...]
    """What the sentence says, the first of it first."""


class Sentences(NamedTuple):
    """What a finding says in words, and its causes as data."""

    cause: str
    remedy: Remedy
    message: str
    causes: tuple[Cause, ...] = ()
    """As in `Explanation`; none: not known."""


class Sighting(NamedTuple):
    """A finding whose sentences aren't written yet: an ill run has one at each record, and only the last is read."""

    severity: Severity
    layers: tuple[str, ...] | Callable[[], tuple[str, ...]]
    """Or what names them; as `write`."""
    first_step: int
    last_step: int
    value: float
    threshold: float
    write: Callable[[], Sentences]
    """Called at most once, and maybe after later records: it must hold what it needs, and not the rule's memory."""


class Verdict(NamedTuple):
    """What a rule says about one record."""

    findings: Mapping[str, Finding | Sighting] = MappingProxyType({})
    """What holds at this record, by root cause: a key that stays the same as long as the cause does."""
    withdrawn: tuple[str, ...] = ()
    """Keys of earlier findings that those of `findings` which are new have taken in: they aren't news then."""
    healed: Mapping[str, str] = MappingProxyType({})
    """Earlier findings that no longer hold, by key, each with a sentence that says what shows it; may be said again."""
    confirming: bool = False
    """The rule has hit and lacks patience: the next steps would settle it."""
    dated: bool = False
    """While `confirming`: the step by which that is settled is fixed, so what may follow from it can wait so long."""
    unjudged: str = ""
    """Why this record couldn't be judged: starts with ``can't judge`` (an input is missing) or ``not yet``."""
    lapsed: bool = False
    """What earlier records were judged by is no longer known to hold, so that the rule doesn't count as having judged."""


HEALTHY = Verdict()
"""What is said of nearly every record of nearly every run."""


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A rule; its fields are its thresholds, its docstring is the page that ``gradwatch explain`` prints."""

    code: ClassVar[str]
    name: ClassVar[str]
    warning: ClassVar[type[GradWatchWarning]]

    @abstractmethod
    def judge(self, record: StepRecord, info: RunInfo, state: State) -> Verdict:
        """Judge one record; `state` is this rule's memory, changed in place: plain JSON data, or made by `streaks`."""

    def settings(self) -> dict[str, Any]:
        """Return the thresholds by field name, as plain JSON data."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    def _require_between(self, low: float, high: float, *fields: str, optional: bool = False) -> None:
        """Check that fields are numbers in [low, high], low excluded where it is 0."""
        for name in fields:
            value = getattr(self, name)
            if value is None and optional:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            held = not isinstance(value, int) or abs(value) <= sys.float_info.max
            if number and held and low <= value <= high and not (low == 0 and value == 0):
                continue
            span = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a number above {low:g}"
            span += "" if held else f", and at most {sys.float_info.max:.3g}"
            raise ValueError(f"{self._call(name)}: {name} must be {span}{' or None' if optional else ''}")

    def _require_count(self, least: int, *fields: str) -> None:
        """Check that fields are whole numbers of at least `least`."""
        for name in fields:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{self._call(name)}: {name} must be a whole number of at least {least}")
            if value > _MOST_COUNTED:
                raise ValueError(f"{self._call(name)}: {name} must be a whole number of at most {_MOST_COUNTED}")

    def _call(self, name: str) -> str:
        value = getattr(self, name)
        whole = isinstance(value, int) and abs(value) > sys.float_info.max
        told = f"a whole number of {value.bit_length()} bits" if whole else f"{value!r:.200}"
        return f"{type(self).__name__}({name}={told})"
