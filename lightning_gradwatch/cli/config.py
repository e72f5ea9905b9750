"""Where a check's settings come from: command line, environment, file; in this order each beats the next.

A list of codes from a stronger place replaces a weaker one's, thresholds are merged field by field, and layers to ignore
add up. Whatever isn't understood is an error that names the place it came from: a typo must not weaken a check.

The search for a file ends at the repository's root: what lies above, in a folder that others can write to, is theirs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.cli.settings import (
    KEYS,
    SCALARS,
    ConfigError,
    Settings,
    Threshold,
    nearest,
    read_ignores,
    read_thresholds,
    told,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_gradwatch.judge.verdict import IgnoredLayers

PREFIX = "GRADWATCH_"
_MOST_BYTES = 1 << 20
"""Of a settings file."""


def load_settings(
    given: Mapping[str, Any], *, environment: Mapping[str, str], folder: Path | None, file: str | None = None
) -> Settings:
    """Merge the settings of all places.

    Args:
        given: Values from the command line by key, such as ``fail-on``; None for an option that wasn't given.
        environment: Such as `os.environ`.
        folder: Where the search for a file starts; it goes on upwards to the repository's root, and not at all without one.
            None: it is gone, and nothing is searched.
        file: A file to use instead of searching; an empty text for none.

    Raises:
        ConfigError: a setting that can't be used.
    """
    if file is None:
        file = environment.get(f"{PREFIX}CONFIG")
    path, notes = _find_file(folder) if file is None and folder is not None else (Path(file) if file else None, ())
    places = [_from_command_line(given), _from_environment(environment), _from_file(path)]
    chosen: dict[str, Any] = {}
    thresholds: dict[str, dict[str, Threshold]] = {}
    ignores: list[IgnoredLayers] = []
    for values in places:
        for key, (value, where) in values.items():
            if key == "rules":
                for code, fields in read_thresholds(value, where).items():
                    thresholds[code] = fields | thresholds.get(code, {})
            elif key == "ignore-layers":
                ignores += read_ignores(value, where)
            else:
                read = SCALARS[key](value, where)
                chosen.setdefault(key.replace("-", "_"), read)
    return Settings(
        **chosen,
        thresholds=thresholds,
        ignore_layers=tuple(dict.fromkeys(ignores)),
        file=str(path) if places[-1] else None,
        notes=notes,
    )


def _from_command_line(given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    options = {"rules": "--set"}
    return {key: (value, options.get(key, f"--{key}")) for key, value in given.items() if value is not None}


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    names = {PREFIX + key.upper().replace("-", "_"): key for key in KEYS if key != "rules"}
    names |= {f"{PREFIX}SET": "rules"}
    values: dict[str, tuple[Any, str]] = {}
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name == f"{PREFIX}CONFIG":
            continue
        if name not in names:
            raise ConfigError(f"unknown environment variable {name}; {nearest(name, [*names, f'{PREFIX}CONFIG'])}")
        text = environment[name]
        if text.strip():  # an empty variable is how a pipeline says "not set"
            several = names[name] in {"rules", "ignore-layers"}
            values[names[name]] = (text.split() if several else text.strip(), name)
    return values


def _find_file(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """Return the nearest file from a folder up to its repository's root, and what is to be said of one that isn't used."""
    above = (folder, *folder.parents)
    root = next((parent for parent in above if (parent / ".git").exists()), None)
    if root is not None and _is_strangers(root / ".git", folder):
        return None, (
            f"no settings are read from the repository at {root}, which belongs to another user: see --config",
        )
    for parent in above[: 1 if root is None else above.index(root) + 1]:
        found = _file_in(parent)
        if found is not None and root is None and _is_strangers(found, folder):
            return None, (f"{found} isn't read, as it belongs to another user and lies in no repository: see --config",)
        if found is not None:
            return found, ()
    return None, ()


def _file_in(folder: Path) -> Path | None:
    """Return the settings file of a folder; what bears its name and is none is told when it is read."""
    own, project = folder / "gradwatch.toml", folder / "pyproject.toml"
    # A link that leads nowhere is there too: a check must not get laxer by it.
    if os.path.lexists(own) and not own.is_dir():
        return own
    return project if os.path.lexists(project) and not project.is_dir() and _table(project) is not None else None


def _is_strangers(path: Path, folder: Path) -> bool:
    """Whether a file, or what it links to, is neither this user's nor the system's nor that of the folder's owner."""
    own = os.geteuid() if hasattr(os, "geteuid") else 0  # Windows has no such owners
    known = {own, 0, folder.stat().st_uid}
    owners = {path.lstat().st_uid}
    with contextlib.suppress(OSError):  # it leads nowhere, which is told when it is read
        owners.add(path.stat().st_uid)
    return not owners <= known


def _from_file(path: Path | None) -> dict[str, tuple[Any, str]]:
    if path is None:
        return {}
    table = _table(path)
    if table is None:
        raise ConfigError(f"{path} has no table [tool.gradwatch]")
    place = f"{path} [tool.gradwatch]" if path.name == "pyproject.toml" else str(path)
    if not isinstance(table, dict):
        raise ConfigError(f"{place}: must be a table")
    values = {}
    for key, value in table.items():
        if key == "tool" and path.name != "pyproject.toml":
            raise ConfigError(f"{place}: the keys stand alone here; [tool.gradwatch] is for pyproject.toml")
        if key not in KEYS:
            raise ConfigError(f"{place}: unknown key {told(key)}; {nearest(key, KEYS)}")
        if key == "baseline" and isinstance(value, str):
            value = str(path.parent / value)  # noqa: PLW2901 - a path in a file is relative to the file
        values[key] = (value, f"{place}: {key}")
    return values


def _bytes_of(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: it can't be read, isn't a file (a pipe or a device may have no end), or is larger than settings are.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:  # noqa: PTH123 - of a handle
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {_MOST_BYTES >> 20} MB")
    return content


def _table(path: Path) -> Any:
    """Return the file's own table; None for a pyproject.toml that has none."""
    try:
        data = tomllib.loads(_bytes_of(path).decode("utf-8-sig"))  # as Notepad and PowerShell write it
    except OSError as error:
        target = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise ConfigError(f"{path}{target} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} isn't TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} can't be read: it is nested too deeply") from error
    if path.name != "pyproject.toml":
        return data
    tools = data.get("tool")
    return tools.get("gradwatch") if isinstance(tools, dict) else None
