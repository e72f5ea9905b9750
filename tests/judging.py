"""Which tests judge a training run, and so are run in more than one arithmetic: those marked ``judges``."""

from __future__ import annotations

LEAST_RECORDS = 10
"""Records from which on rules are past their warm-up: a shorter run is made for something else, or marked by hand."""


def why_unmarked(records, markers):
    """Say why a test whose longest run has so many records needs the marker; empty where it doesn't, or has it."""
    if records < LEAST_RECORDS or any(marker.name == "judges" for marker in markers):
        return ""
    return (
        f"rules judged {records} records of a run here: mark the test `judges`, so that .ci/run tries it in a second "
        "arithmetic (pyproject.toml), and let it assert what holds in each"
    )
