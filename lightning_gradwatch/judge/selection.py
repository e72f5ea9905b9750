"""Which rules are in force, and their thresholds as data."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.judge.catalog import (
    DEFAULT_RULES,
    OWN_PREFIX,
    check_own,
    find_rule,
    known_rules,
    name_of,
)
from lightning_gradwatch.judge.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def from_configuration(given: Any) -> Any:
    """Return what a configuration of OmegaConf's holds, and anything else as it is.

    Hydra hands to what it builds lists of its own kind, in which each dataclass, as a rule is one, has become a table.
    """
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is None or not omegaconf.OmegaConf.is_config(given):
        return given
    return omegaconf.OmegaConf.to_object(given)


_MOST_COMPARED = 200


def resolve_rules(rules: Sequence[Rule] = (), ignore: Sequence[str] = ()) -> tuple[Rule, ...]:
    """Return the default rules with `rules` put in by code, without those whose code starts with one of `ignore`.

    Raises:
        TypeError: an entry isn't a rule, or isn't a code.
        ValueError: a code is given twice, matches nothing, or is both given and ignored.
    """
    given = _by_code(from_configuration(rules))
    chosen = {rule.code: rule for rule in DEFAULT_RULES} | given
    for prefix in check_prefixes(ignore, "ignore", chosen):
        clash = next((code for code in given if code.startswith(prefix)), None)
        if clash:
            raise ValueError(
                f"rules has {type(given[clash]).__name__} ({clash}) and ignore has {prefix!r}, which leaves it out: drop one of them"
            )
        chosen = {code: rule for code, rule in chosen.items() if not code.startswith(prefix)}
    return tuple(chosen[code] for code in _sorted(chosen))


def code_of(text: str) -> str:
    """Return the code, or its beginning, that a text means: a code in any case, its number alone, or a rule's name.

    >>> code_of("gw101"), code_of("101"), code_of("dead-units"), code_of("DeadUnits")
    ('GW101', 'GW101', 'GW201', 'GW201')
    """
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,3}", text):
        return f"GW{text}"
    letters = _letters(text)
    named = (code for code, rule in known_rules().items() if letters in (_letters(rule.name), _letters(rule.__name__)))
    return next(named, text.upper())


def _sorted(codes: Iterable[str]) -> list[str]:
    """Return this package's codes in front: those that most users mean."""
    return sorted(codes, key=lambda code: (not code.startswith(OWN_PREFIX), code))


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def nearest_rule(text: str, codes: Iterable[str] | None = None) -> str:
    """Say which rule's code or name is most like a text, and which codes there are; None: all that are known."""
    codes = _sorted(known_rules() if codes is None else codes)
    known = {code.lower(): code for code in codes}
    known |= {name: code for code in codes if (name := name_of(code))}
    near = known[difflib.get_close_matches(text.strip().lower()[:_MOST_COMPARED], known, n=1, cutoff=0.0)[0]]
    named = f" ({name_of(near)})" if name_of(near) else ""
    return f"the nearest is {near}{named}, all are {', '.join(codes)}"


def check_prefixes(prefixes: Sequence[str], argument: str, codes: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return code prefixes in upper case, names as the codes they stand for.

    Args:
        prefixes: Codes, their beginnings, or names.
        argument: Where they came from, for the error.
        codes: Those that there are; None: of all rules that are known.

    Raises:
        TypeError: not a sequence of strings.
        ValueError: a prefix that no code starts with.
    """
    if isinstance(prefixes, str) or not hasattr(prefixes, "__iter__"):
        code = prefixes if isinstance(prefixes, str) else "GW202"
        raise TypeError(f"{argument}={prefixes!r} must be a sequence of codes: {argument}=({code!r},)")
    codes = _sorted(known_rules() if codes is None else codes)
    checked = []
    for prefix in prefixes:
        if not isinstance(prefix, str):
            raise TypeError(f"{argument} must hold codes or their beginnings, such as 'GW202'; it has {prefix!r}")
        upper = code_of(prefix)
        if not upper:
            raise ValueError(
                f"{argument}: an entry is empty ({prefix!r}); give codes, their beginnings or names, such as GW202 or saturated-units"
            )
        if not any(code.startswith(upper) for code in codes):
            raise ValueError(
                f"{argument}: no rule's code starts with {prefix!r:.200}, nor is one called so; {nearest_rule(prefix, codes)}"
            )
        checked.append(upper)
    return tuple(checked)


def given_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules to judge by; those of the user's own are checked as `resolve_rules` does.

    Raises:
        ValueError: one has a code that isn't its own.
    """
    chosen = tuple(rules)
    for place, rule in enumerate(chosen):
        if isinstance(rule, Rule):
            check_own(type(rule), f"rules[{place}]")
    return chosen


def settings_of(rules: Iterable[Rule]) -> dict[str, dict[str, Any]]:
    """Return the thresholds in force by code and field: plain JSON data that `rules_from_settings` reads back."""
    return {rule.code: rule.settings() for rule in rules}


def rules_from_settings(settings: Mapping[str, Mapping[str, Any]]) -> tuple[Rule, ...]:
    """Build the rules that `settings_of` described; codes and fields that aren't known here are left out.

    Raises:
        ValueError: a threshold is out of range.
    """
    rules = []
    for code in _sorted(settings):
        cls = find_rule(code)
        if cls is not None:
            known = {entry.name for entry in dataclasses.fields(cls)}
            rules.append(cls(**{name: value for name, value in settings[code].items() if name in known}))
    return tuple(rules)


def _by_code(rules: Sequence[Rule]) -> dict[str, Rule]:
    if isinstance(rules, Rule) or not hasattr(rules, "__iter__"):
        name = type(rules).__name__ if isinstance(rules, Rule) else "VanishingGradient"
        raise TypeError(f"rules={rules!r} must be a sequence: rules=[{name}(...)]")
    given: dict[str, Rule] = {}
    for place, rule in enumerate(rules):
        if isinstance(rule, type) and issubclass(rule, Rule):
            raise TypeError(f"rules[{place}] is the class {rule.__name__}; give an instance: {rule.__name__}()")
        if not isinstance(rule, Rule):
            raise TypeError(f"rules[{place}] must be a rule, such as VanishingGradient(ratio=1e-2); it is {rule!r}")
        check_own(type(rule), f"rules[{place}]")
        if rule.code in given:
            raise ValueError(f"rules[{place}] is a second {type(rule).__name__} ({rule.code}): give each rule once")
        given[rule.code] = rule
    return given
