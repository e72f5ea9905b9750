"""How what a user holds shows itself: in a line, and in a notebook as the page.

What holds it lies below the page that draws it, and so asks for that by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_PAGE = "lightning_gradwatch.page.notebook"


def shown(what: str, thing: Any) -> str | None:
    """Return HTML for a notebook; None where there is nothing to see, and the notebook shows text.

    Args:
        what: Name of the function of the page that draws it.
        thing: What is drawn.
    """
    try:
        drawn: str | None = getattr(import_module(_PAGE), what)(thing)
    except Exception as error:  # noqa: BLE001 - a cell that shows a run must not fail by it
        told = escape(f"{type(error).__name__}: {error}"[:2000], Place.PAGE)
        for sign, spelled in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            told = told.replace(sign, spelled)
        return f"<pre>GradWatch can't show this: {told}</pre>"
    return drawn


def contents_text(records: Sequence[StepRecord], info: RunInfo | None, findings: Sequence[Finding]) -> str:
    """Say in a few words what there is, such as ``36 measured steps (0 to 299), 51 layers, 50 sites; findings: GW101``."""
    if not records or info is None:
        return "nothing measured yet"
    steps = f"{counted(len(records), 'measured step')} ({records[0].step} to {records[-1].step})"
    codes = ", ".join(dict.fromkeys(finding.code for finding in findings))
    columns = f"{counted(len(info.layers), 'layer')}, {counted(len(info.sites), 'site')}"
    return f"{steps}, {columns}; {f'findings: {escape(codes)}' if codes else 'no findings'}"
