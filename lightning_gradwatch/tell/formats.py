"""The formats of a report: each is a module of this folder that bears its name, and is imported when it is asked for.

`junit_report.py` is the format ``junit``: it has `IN_SHORT`, which ``gradwatch check --help`` says of it, and `junit_report`,
which renders verdicts; `SHOWS_RUNS`, if it needs the runs themselves beside what was found. So a format is one file.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_gradwatch import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict

_REPORT = "_report"
_FIRST = "text"
"""What is written where nothing is asked for."""
_found = {
    module.name.removesuffix(_REPORT) for module in pkgutil.iter_modules(tell.__path__) if module.name.endswith(_REPORT)
}
FORMATS: tuple[str, ...] = (_FIRST, *sorted(_found - {_FIRST}))
"""By name."""


def render(verdicts: Sequence[RunVerdict], name: str) -> str:
    """Render verdicts in a format, by its name."""
    text: str = getattr(_module(name), f"{name}{_REPORT}")(verdicts)
    return text


def shows_runs(name: str) -> bool:
    """Tell whether verdicts must hold their runs to be rendered in a format."""
    return getattr(_module(name), "SHOWS_RUNS", False)


def in_short() -> dict[str, str]:
    """Return what each format is, in a line."""
    return {name: _module(name).IN_SHORT for name in FORMATS}


def _module(name: str) -> Any:
    return import_module(f"lightning_gradwatch.tell.{name}{_REPORT}")
