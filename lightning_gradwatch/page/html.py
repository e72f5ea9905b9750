"""The page as one file: no network, no build step; what it holds can't act, whatever a run's names are.

The policy lets nothing run or load but this file's one script and one style, each by its hash: where a text did get into the
markup, it would do nothing. The data stands in a script element of a type that no browser runs.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.page.bundle import STATIC, bundle

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_ROWS = 200
"""Layers that the table without scripts lists."""
DATA_ID = "gradwatch-data"


def html_page(model: dict[str, Any], *, host: str = "host_file.js") -> str:
    """Return a document that shows a model.

    Args:
        model: What `page_model` gave.
        host: The module that it starts with.
    """
    script, style = bundle(host), (STATIC / "page.css").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; "
        f"script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_escaped(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta name="generator" content="lightning_gradwatch {_escaped(model["tool"])}">',
            f"<title>{_escaped(model['title'])}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            '<div id="gradwatch"></div>',
            f"<noscript>{_without_scripts(model)}</noscript>",
            f'<script id="{DATA_ID}" type="application/json">{_json(model)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        )
    )


def _json(model: dict[str, Any]) -> str:
    """Return JSON in plain ASCII in which no sign means anything to HTML, nor to a CI server whose log it lands in."""
    text = json.dumps(model, allow_nan=False, separators=(",", ":"))
    for sign in "<>&#":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _escaped(text: str) -> str:
    """Return text as HTML has it, in which a CI server finds no command either."""
    return "&#35;".join(map(html.escape, text.split("#")))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _without_scripts(model: dict[str, Any]) -> str:
    """Return what can be said without scripts: each run's verdict, its findings and its layers."""
    parts = [f"<h1>{_escaped(model['title'])}</h1>", "<p>Charts need JavaScript. What was found:</p>"]
    for run in model["runs"]:
        parts += [f"<h2>{_escaped(run['name'])}</h2>", f"<p>{_escaped(run['verdict'])}</p>"]
        notes = [*run["problems"], *([f"settings: {run['settings_file']}"] if run["settings_file"] else [])]
        parts += [f"<p>{_escaped(note)}</p>" for note in notes]
        if run["findings"]:
            heads = ("finding", "severity", "layers", "since step", "what was seen", "cause", "remedy")
            parts.append(_table("findings", heads, map(_finding_cells, run["findings"])))
        named = {name: each["words"] for each in reversed(run["findings"]) for name in each["layers"]}
        rows = [
            (layer["name"], layer.get("kind", ""), str(layer.get("parameters", "")), named.get(layer["name"], ""))
            for layer in run["layers"][:_MOST_ROWS]
        ]
        if rows:
            parts.append(_table("layers", ("layer", "kind", "parameters", "finding"), rows))
        rest = len(run["layers"]) - len(rows)
        if rest:
            parts.append(f"<p>and {rest} more layers</p>")
    return "".join(parts)


def _finding_cells(finding: dict[str, Any]) -> tuple[str, ...]:
    layers = finding["layers"]
    shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return (
        f"{finding['code']} {finding['name']}",
        finding["severity"],
        shown,
        str(finding["first_step"]),
        finding["message"],
        finding["cause"],
        finding["remedy"]["text"],
    )


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def row(tag: str, cells: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{_escaped(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f"<table><caption>{caption}</caption><thead>{row('th', heads)}</thead><tbody>{body}</tbody></table>"
