"""The formats of a report by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lightning_gradwatch.tell.terminal import summary_text, verdict_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict

_HOMES = {
    "json": "json_report",
    "junit": "junit",
    "github": "github",
    "sarif": "sarif",
    "markdown": "markdown",
    "html": "html_report",
}


def render(verdicts: Sequence[RunVerdict], name: str) -> str:
    """Render verdicts in a format, one of ``text``, ``json``, ``junit``, ``github``, ``sarif``, ``markdown``, ``html``."""
    if name == "text":
        blocks = [verdict_text(verdict, brief=len(verdicts) > 1) for verdict in verdicts]
        return "\n\n".join([*blocks, *([summary_text(verdicts)] if len(verdicts) > 1 else [])])
    module = import_module(f"lightning_gradwatch.tell.{_HOMES[name]}")
    text: str = getattr(module, f"{name}_report")(verdicts)
    return text
