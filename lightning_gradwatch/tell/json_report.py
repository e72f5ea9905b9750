"""The report as JSON: everything a check knows, in a versioned form that `cli/schemas/report.schema.json` describes.

Plain ASCII, so that no name in it can steer a terminal; a number that JSON can't hold is one of three words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.judge.catalog import name_of
from lightning_gradwatch.record.escape import Place, escape, json_text
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.judge.verdict import Comparison, RunVerdict

IN_SHORT = "everything, in a versioned schema"
REPORT_VERSION = 1


def json_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as one JSON document."""
    data = {
        "report_version": REPORT_VERSION,
        "tool": {"name": "gradwatch", "version": __version__},
        "exit_code": max((verdict.exit_code for verdict in verdicts), default=2),
        "runs": [_run(verdict) for verdict in verdicts],
    }
    return json_text(_plain(data))


def _run(verdict: RunVerdict) -> dict[str, Any]:
    return {
        "path": verdict.path,
        "exit_code": verdict.exit_code,
        "outcome": verdict.outcome,
        "failure": verdict.failure,
        "fail_on": verdict.fail_on.label,
        "measured": dict(verdict.counts),
        "findings": [
            {**finding.to_dict(), "fails": verdict.fails(finding), "known": verdict.is_known(finding)}
            for finding in verdict.sorted_findings
        ],
        "judged": [{**_rule(code), "thresholds": dict(fields)} for code, fields in verdict.rules.items()],
        "unjudged": [{**_rule(code), "reason": reason} for code, reason in verdict.unjudged.items()],
        "ignored_layers": [
            {"rule": each.rule, "pattern": each.pattern, "reason": each.reason, "layers": list(each.names)}
            for each in verdict.ignored
        ],
        "problems": list(verdict.problems),
        "settings_file": verdict.settings_file or None,
        "comparison": None if verdict.comparison is None else _comparison(verdict.comparison),
    }


def _rule(code: str) -> dict[str, str]:
    return {"code": code, "name": name_of(code)}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "baseline": comparison.baseline,
        "failure": comparison.failure,
        "compared": comparison.compared,
        "worse": [
            {
                "metric": change.metric,
                "name": change.name,
                "baseline": change.base,
                "run": change.run,
                "ratio": change.ratio,
                "noise": change.noise,
                "steps": change.steps,
            }
            for change in comparison.changes
        ],
        "gone": [finding.to_dict() for finding in comparison.gone],
        "only_baseline": list(comparison.only_baseline),
        "only_run": list(comparison.only_run),
    }


def _plain(data: Any) -> Any:
    """Replace what JSON can't hold: numbers that aren't finite, halves of characters."""
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    if isinstance(data, str):
        return escape(data, Place.JSON)
    if isinstance(data, dict):
        mapping: Mapping[Any, Any] = data
        return {_plain(str(key)): _plain(value) for key, value in mapping.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, Severity):
        return data.label
    return data
