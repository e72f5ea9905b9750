"""The page's ES modules as one script: for a file that may load nothing.

Each module becomes a function that returns what it exports, in an order in which none comes before one that it imports. The
modules keep to what this reads: ``import { a, b } from "./x.js";`` on lines of its own, and ``export`` in front of a
declaration. Anything else is refused, so that a module that the browser would load can't be bundled into something else.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from posixpath import dirname, join, normpath

STATIC = Path(__file__).parent / "static"
"""Where the page's scripts and styles lie."""

_IMPORT = re.compile(r'^import \{(?P<names>[^}]*)\} from "(?P<module>\.{1,2}/[\w./]+\.js)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|const|class) (?P<name>\w+))", re.MULTILINE)
_UNREAD = re.compile(r"^\s*(?:import\b(?!\s*\()|export\b).*", re.MULTILINE)
_NAME = re.compile(r"\w+")


def static_files() -> dict[str, Path]:
    """Return the page's scripts and styles by their paths from `STATIC`, such as ``views/layer.js``."""
    found = (path for path in STATIC.rglob("*") if path.suffix in (".js", ".css"))
    return {path.relative_to(STATIC).as_posix(): path for path in sorted(found)}


@lru_cache(maxsize=8)
def bundle(entry: str) -> str:
    """Return a module and all that it imports, directly or not, as one script.

    Args:
        entry: Its path from `STATIC`.

    Raises:
        ValueError: a module has an import or an export in a form that isn't read here, or imports in a circle.
    """
    sources = {name: path.read_text(encoding="utf-8") for name, path in static_files().items()}
    return bundle_sources(sources, entry)


def bundle_sources(sources: dict[str, str], entry: str) -> str:
    r"""Return modules, by path, as one script.

    >>> print(bundle_sources({"a.js": 'import { b } from "./b.js";\nb();', "b.js": "export const b = () => 1;"}, "a.js"))
    "use strict";
    const m0 = (() => {
    const b = () => 1;
    return { b };
    })();
    const m1 = (() => {
    const { b } = m0;
    b();
    return {  };
    })();
    """
    order: list[str] = []
    _visit(sources, entry, order, ())
    parts = ['"use strict";']
    for place, name in enumerate(order):
        body, exported = _as_function(sources[name], name, order[:place])
        parts.append(f"const m{place} = (() => {{\n{body.strip()}\nreturn {{ {', '.join(exported)} }};\n}})();")
    return "\n".join(parts)


def _visit(sources: dict[str, str], name: str, order: list[str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules import each other in a circle: {' → '.join((*above, name))}")
    if name in order:
        return
    if name not in sources:
        raise ValueError(f"{above[-1] if above else 'the page'} imports {name}, and there is no such module")
    for match in _IMPORT.finditer(sources[name]):
        _visit(sources, _resolved(match["module"], name), order, (*above, name))
    order.append(name)


def _resolved(module: str, importer: str) -> str:
    return normpath(join(dirname(importer), module))


def _as_function(source: str, name: str, before: list[str]) -> tuple[str, list[str]]:
    """Return a module's body without imports and exports, and the names that it exports."""

    def imported(match: re.Match[str]) -> str:
        names = [part.strip() for part in match["names"].split(",") if part.strip()]
        odd = next((each for each in names if not _NAME.fullmatch(each)), None)
        if odd is not None:
            raise ValueError(f"{name} imports {odd!r}: only plain names are read")
        return f"const {{ {', '.join(names)} }} = m{before.index(_resolved(match['module'], name))};"

    exported = [match["name"] for match in _EXPORT.finditer(source)]
    body = _EXPORT.sub("", _IMPORT.sub(imported, source))
    unread = _UNREAD.search(body)
    if unread:
        raise ValueError(f"{name} has {unread[0].strip()!r:.100}, which isn't read; see bundle.py")
    return body, exported
