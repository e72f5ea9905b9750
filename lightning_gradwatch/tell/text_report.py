"""The report as text for people: a run a block, or of several a line each, and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.tell.terminal import summary_text, verdict_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.verdict import RunVerdict

IN_SHORT = "for people; in colour on a terminal, unless NO_COLOR is set"


def text_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as text."""
    blocks = [verdict_text(verdict, brief=len(verdicts) > 1) for verdict in verdicts]
    return "\n\n".join([*blocks, *([summary_text(verdicts)] if len(verdicts) > 1 else [])])
