"""What a check can be told, and how each value is read, wherever it came from. No files, no environment."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.judge.catalog import find_rule
from lightning_gradwatch.judge.selection import check_prefixes, code_of, nearest_rule
from lightning_gradwatch.judge.verdict import IgnoredLayers
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.tell.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

LEVELS = ("warning", "error")
MEASURED = {"GW201": ("observations", "batch_elements")}
"""Thresholds that decide how a run is measured: a stored run can't be judged by others."""
_MOST_SHOWN = 200
_LONGEST = 4096
"""Characters of a pattern and of a reason: a report wraps them, which takes the square of a long word."""
_TOO_LARGE = f"must be a number that a float can hold, at most {sys.float_info.max:.3g}"
_IGNORE_KEYS = ("rules", "layers", "reason")


class ConfigError(ValueError):
    """A setting that can't be used; the message says which, and where it came from."""


@dataclass(frozen=True)
class Threshold:
    """A threshold that replaces the one stored in the run."""

    value: float | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a check is told to do."""

    select: tuple[str, ...] | None = None
    """None: the rules that the run was watched by."""
    ignore: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    fail_on: Severity = Severity.WARNING
    format: str = "text"
    baseline: str | None = None
    thresholds: Mapping[str, Mapping[str, Threshold]] = field(default_factory=dict)
    """By code and field."""
    ignore_layers: tuple[IgnoredLayers, ...] = ()
    file: str | None = None
    """The file that some of it was read from."""
    notes: tuple[str, ...] = ()
    """What is to be said of where settings came from."""


def _read_codes(value: Any, where: str) -> tuple[str, ...]:
    prefixes = value.split(",") if isinstance(value, str) else value
    if not isinstance(prefixes, (list, tuple)) or not all(isinstance(prefix, str) for prefix in prefixes):
        raise ConfigError(f'{where}: must be a list of codes or their beginnings, such as ["GW1", "GW201"]')
    try:
        return check_prefixes(prefixes, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _read_level(value: Any, where: str) -> Severity:
    return Severity[_one_of(value, LEVELS, where).upper()]


def _read_format(value: Any, where: str) -> str:
    return _one_of(value, FORMATS, where)


def _read_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: must be text, not {told(value)}")
    return value


def _one_of(value: Any, choices: Iterable[str], where: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{where}: must be one of {', '.join(choices)}, not {told(value)}")
    return value


SCALARS: dict[str, Callable[[Any, str], Any]] = {
    "select": _read_codes,
    "ignore": _read_codes,
    "require": _read_codes,
    "fail-on": _read_level,
    "format": _read_format,
    "baseline": _read_text,
}
KEYS = (*SCALARS, "ignore-layers", "rules")


def read_thresholds(value: Any, where: str) -> dict[str, dict[str, Threshold]]:
    """Read ``{"GW101": {"ratio": 0.01}}`` from a file, or ``["GW101.ratio=0.01"]``."""
    found: dict[str, dict[str, Threshold]] = {}
    if isinstance(value, list):
        for text in value:
            target, mark, number = text.partition("=")
            code, dot, name = target.strip().partition(".")
            if not mark or not dot:
                raise ConfigError(f"{where} {text}: must be CODE.THRESHOLD=NUMBER, such as GW101.ratio=1e-2")
            place = f"{where} {text}"
            found.setdefault(_code(code, place), {})[_field(code, name, place)] = Threshold(
                _number(number, place), place
            )
        return found
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a table of rules, such as [tool.gradwatch.rules.GW101]")
    for code, fields in value.items():
        place = f"{where}.{code}"
        if not isinstance(fields, dict):
            raise ConfigError(f"{place}: must be a table of thresholds, such as ratio = 1e-2")
        read = found.setdefault(_code(code, place), {})
        for name, entry in fields.items():
            at = f"{place}.{name}"
            field = _field(code, name, at)
            if field in read:  # TOML takes a code and its name for two tables
                raise ConfigError(f"{at}: is given as {read[field].where} already, which is the same rule")
            read[field] = Threshold(_number(entry, at), at)
    return found


def _code(text: str, where: str) -> str:
    code = code_of(text)
    if find_rule(code) is None:
        raise ConfigError(f"{where}: no rule has the code or the name {told(text)}; {nearest_rule(text)}")
    return code


def _field(code: str, name: str, where: str) -> str:
    code = code_of(code)
    rule = find_rule(code)
    names = [entry.name for entry in dataclasses.fields(rule)] if rule is not None else []
    if name not in names:
        raise ConfigError(f"{where}: {code} has no threshold {told(name)}; {nearest(name, names)}")
    if name in MEASURED.get(code, ()):
        raise ConfigError(
            f"{where}: decides how a run is measured, so it can't be changed afterwards; give it to GradWatch(rules=[…])"
        )
    return name


def _number(value: Any, where: str) -> float | None:
    if isinstance(value, str):
        text = value.strip().lower()
        if text == "none":
            return None
        for kind in (int, float):
            try:
                value = kind(text)
                break
            except ValueError:
                continue
        if value in (math.inf, -math.inf) and "inf" not in text:
            raise ConfigError(f"{where}: {_TOO_LARGE}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f'{where}: must be a number or "none", not {told(value)}')
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ConfigError(f"{where}: {_TOO_LARGE}")
    return value


def read_ignores(value: Any, where: str) -> list[IgnoredLayers]:
    """Read tables from a file, or texts such as ``GW201:head.*``."""
    if not isinstance(value, list):
        raise ConfigError(f"{where}: must be an array of tables, [[tool.gradwatch.ignore-layers]]")
    found = []
    for place, entry in enumerate(value):
        found += (
            _read_ignore_text(entry, where)
            if isinstance(entry, str)
            else _read_ignore_table(entry, f"{where}[{place}]")
        )
    return found


def _read_ignore_text(text: str, where: str) -> list[IgnoredLayers]:
    # At the first colon: a site such as `block.2:relu` has one of its own.
    code, _, pattern = text.partition(":")
    if not pattern:
        raise ConfigError(f"{where} {text}: must be CODE:PATTERN, such as GW201:head.*")
    (rule,) = _read_codes([code], f"{where} {text}")
    return [IgnoredLayers(rule=rule, pattern=pattern, reason=f"given by {where}")]


def _read_ignore_table(table: Any, where: str) -> list[IgnoredLayers]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: must be a table with {', '.join(_IGNORE_KEYS)}")
    for key in table:
        if key not in _IGNORE_KEYS:
            raise ConfigError(f"{where}: unknown key {told(key)}; {nearest(key, _IGNORE_KEYS)}")
    for key in _IGNORE_KEYS:
        if not table.get(key):
            raise ConfigError(f"{where}: {key!r} is missing; an entry has {', '.join(_IGNORE_KEYS)}")
    rules, patterns, reason = (table[key] for key in _IGNORE_KEYS)
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f'{where}: layers must be a list of patterns, such as ["head.*"]')
    for key, texts in (("layers", patterns), ("reason", [_read_text(reason, f"{where}.reason")])):
        if any(len(text) > _LONGEST for text in texts):
            raise ConfigError(f"{where}: {key} may have {_LONGEST:,} characters at most")
    reason = " ".join(reason.split())
    return [
        IgnoredLayers(rule=rule, pattern=pattern, reason=reason)
        for rule in _read_codes(rules, f"{where}.rules")
        for pattern in patterns
    ]


def told(value: Any) -> str:
    """Return a value as a message shows it: the beginning of a long one, and of a number with too many digits how many bits."""
    try:
        text = repr(value)
    except ValueError:  # Python turns no number of so many digits into text
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which of the known words is most like the given one, and which there are."""
    known = list(known)
    near = difflib.get_close_matches(word[:_MOST_SHOWN], known, n=1, cutoff=0.0)
    return f"the nearest is {near[0]}, all are {', '.join(known)}"
