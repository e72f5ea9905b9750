"""What the pytest plugin can be told, and where from: marker, command line, environment, ini; each beats the next.

No rule is imported unless codes are to be checked.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pytest

Level = Literal["warning", "error"]
LEVELS: tuple[Level, ...] = ("warning", "error")
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


class OptionError(ValueError):
    """An option that can't be used; the message says which, where it came from, and what would do."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a test is watched."""

    enabled: bool = False
    fail_on: Level = "warning"
    rules: tuple[Any, ...] = ()
    ignore: tuple[str, ...] = ()
    every_n_steps: int = 1


@dataclass(frozen=True)
class _Option:
    """One option as it is spelled in each place."""

    field: str
    help: str
    read: Callable[[Any, str], Any]

    @property
    def ini(self) -> str:
        return "gradwatch" if self.field == "enabled" else f"gradwatch_{self.field}"

    @property
    def flag(self) -> str:
        return "--" + self.ini.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"PYTEST_{self.ini.upper()}"


def _read_enabled(value: Any, source: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in _YES + _NO:
        raise OptionError(f"gradwatch={value!r} (from {source}): must be true or false")
    return text in _YES


def _read_fail_on(value: Any, source: str) -> Level:
    for level in LEVELS:
        if value == level:
            return level
    raise OptionError(f"gradwatch: fail_on={value!r} (from {source}): must be one of {', '.join(map(repr, LEVELS))}")


def _read_every(value: Any, source: str) -> int:
    text = value.strip() if isinstance(value, str) else value
    number = int(text) if isinstance(text, str) and text.isdecimal() else text
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise OptionError(
            f"gradwatch: every_n_steps={value!r} (from {source}): must be an integer of at least 1 (1: every step)"
        )
    return number


def _read_ignore(value: Any, source: str) -> tuple[str, ...]:
    from lightning_gradwatch.judge.selection import check_prefixes  # noqa: PLC0415 - numpy, only where codes are given

    prefixes = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        return check_prefixes(prefixes, "ignore")
    except (TypeError, ValueError) as error:
        raise OptionError(f"gradwatch (from {source}): {error}") from error


def _check_rules(rules: Any, ignore: tuple[str, ...], source: str) -> tuple[Any, ...]:
    from lightning_gradwatch.judge.selection import resolve_rules  # noqa: PLC0415 - as above

    try:
        resolve_rules(rules, ignore)
    except (TypeError, ValueError) as error:
        raise OptionError(f"gradwatch (from {source}): {error}") from error
    return tuple(rules)


_OPTIONS = (
    _Option("enabled", "watch every Trainer that any test fits", _read_enabled),
    _Option("fail_on", "severity from which on a finding fails its test: warning or error (warning)", _read_fail_on),
    _Option("ignore", "codes of rules to leave out, or their beginnings: GW202,GW3", _read_ignore),
    _Option("every_n_steps", "measure every so many steps (1)", _read_every),
)
_MARKER: dict[str, Callable[[Any, str], Any]] = {
    **{option.field: option.read for option in _OPTIONS},
    "rules": lambda value, source: _check_rules(value, (), source),
}


def add_options(parser: pytest.Parser) -> None:
    """Declare command line and ini options."""
    group = parser.getgroup("gradwatch", "gradients and activations of the Trainers that tests fit")
    for option in _OPTIONS:
        help_ = f"{option.help}; also {option.variable}=… and ini {option.ini}"
        if option.field == "enabled":
            group.addoption(option.flag, dest=option.ini, action="store_const", const="true", help=help_)
        else:
            group.addoption(option.flag, dest=option.ini, metavar=option.field.upper(), help=help_)
        parser.addini(option.ini, option.help, default="")


def read_options(config: pytest.Config, environment: Mapping[str, str]) -> Options:
    """Return the options for tests without a marker.

    Raises:
        OptionError: a value can't be used.
    """
    values = {}
    for option in _OPTIONS:
        places = (
            (config.getoption(option.ini), option.flag),
            (environment.get(option.variable), f"environment variable {option.variable}"),
            (config.getini(option.ini), f"{option.ini} in {config.inipath or 'the ini file'}"),
        )
        for value, source in places:
            if value is not None and value != "":
                values[option.field] = option.read(value, source)
                break
    return Options(**values)


def read_markers(markers: Iterable[pytest.Mark], default: Options) -> Options:
    """Return the options of a marked test: the closest marker that names one, then the suite's.

    Raises:
        OptionError: an argument can't be used.
    """
    values: dict[str, Any] = {}
    for marker in markers:
        if marker.args:
            raise OptionError(
                f"@pytest.mark.gradwatch takes keyword arguments only, not {marker.args[0]!r}: "
                f"{', '.join(f'{name}=' for name in _MARKER)}"
            )
        for name, value in marker.kwargs.items():
            read = _MARKER.get(name)
            if read is None:
                near = difflib.get_close_matches(name, _MARKER, n=1, cutoff=0.0)[0]
                raise OptionError(
                    f"@pytest.mark.gradwatch has no argument {name!r}; the nearest is {near!r}, all are {', '.join(_MARKER)}"
                )
            if name not in values:
                values[name] = read(value, "@pytest.mark.gradwatch")
    given = {name: getattr(default, name) for name in ("fail_on", "ignore", "every_n_steps")}
    options = Options(**{"enabled": True, **given, **values})
    if options.rules:
        _check_rules(options.rules, options.ignore, "@pytest.mark.gradwatch")
    return options
