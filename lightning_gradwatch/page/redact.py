"""What a page gives away of where a run was made, and the same page without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.page.runs import PageRun

_LINE_OF_CODE = re.compile(r"[\w./\\<>-]+\.(?:py|ipynb):\d+")
_EVENT_FILE = re.compile(r"\S*tfevents\S*")
_PATH = re.compile(r"(?<![\w/])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+-]+){2,}[/\\]?")
_HOST = re.compile(r"tfevents\.\d+\.(?P<host>.+?)\.\d+\.\d+")


def redacted(model: dict[str, Any], runs: Sequence[PageRun]) -> dict[str, Any]:
    """Return a model without paths, host names and settings, whose runs are numbered.

    Names of layers and what was measured stay: without them it would show nothing.
    """
    model = {**model, "runs": [dict(run) for run in model["runs"]]}
    names: dict[str, str] = {}
    for place, (shown, run) in enumerate(zip(model["runs"], runs, strict=True)):
        numbered = f"run {place + 1}"
        names |= {name: numbered for name in (run.path, run.name) if name}
        shown.update(name=numbered, path="", settings={}, settings_file="")
    # A path may begin with another one.
    longest_first = sorted(names, key=len, reverse=True)
    kept = {name for run in model["runs"] for each in (*run["layers"], *run["sites"]) for name in (each["name"],)}

    def without(text: str) -> str:
        if text in kept:
            return text
        for name in longest_first:
            # A run may be called by a letter, which other words have.
            text = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", names[name], text)
        for pattern, instead in ((_EVENT_FILE, "an event file"), (_LINE_OF_CODE, "your code"), (_PATH, "a path")):
            text = pattern.sub(instead, text)
        return text

    for run in model["runs"]:
        for key in ("failure", "problems", "unjudged", "verdict", "findings", "coverage"):
            run[key] = _replaced(run[key], without)
    model["comparisons"] = _replaced(model["comparisons"], without)
    return model


def given_away(model: dict[str, Any]) -> list[str]:
    """Say what a page tells of where its runs were made, a phrase each; nothing where it is redacted."""
    if model["redacted"]:
        return []
    paths = [path for run in model["runs"] for path in (run["path"], run["settings_file"]) if path]
    texts = _texts([[run["path"], run["problems"], run["failure"], run["findings"]] for run in model["runs"]])
    hosts = sorted({match["host"] for text in texts for match in _HOST.finditer(text)})
    lines = sorted({match[0] for text in texts for match in _LINE_OF_CODE.finditer(text)})
    settings = sorted(
        {
            *(
                f"{each['name']}'s {key}"
                for run in model["runs"]
                for each in _optimizers(run)
                for key in each["settings"]
            ),
            *(f"version of {name}" for run in model["runs"] for name in run["settings"].get("versions", {})),
        }
    )
    told = [("paths", paths), ("host names", hosts), ("lines of code", lines), ("settings", settings)]
    return [f"{what}: {', '.join(dict.fromkeys(each))}" for what, each in told if each]


def _optimizers(run: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run["settings"].get("optimizers", [])
    return found


def _texts(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    if isinstance(data, dict):
        return [text for value in data.values() for text in _texts(value)]
    return [text for value in data for text in _texts(value)] if isinstance(data, list) else []


def _replaced(data: Any, without: Any) -> Any:
    if isinstance(data, str):
        return without(data)
    if isinstance(data, dict):
        return {key: _replaced(value, without) for key, value in data.items()}
    return [_replaced(value, without) for value in data] if isinstance(data, list) else data
