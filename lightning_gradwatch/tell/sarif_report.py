"""The report as SARIF 2.1.0, which code scanning services read. A layer is a logical location, the run's folder the artefact."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lightning_gradwatch.judge.catalog import is_numbered, known_rules, label_of
from lightning_gradwatch.judge.verdict import CANNOT_JUDGE
from lightning_gradwatch.record.escape import Place, escape, json_text
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.tell.terminal import change_text
from lightning_gradwatch.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.judge.verdict import Comparison, RunVerdict
    from lightning_gradwatch.record.finding import Finding

IN_SHORT = "SARIF 2.1.0 for code scanning"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_WORSE = "baseline"
"""Id of the one rule that has no class: worse than the baseline."""
_LEVELS = {Severity.INFO: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}
_MOST_LAYERS = 100


def sarif_report(verdicts: Sequence[RunVerdict]) -> str:
    """Render verdicts as one SARIF log."""
    driver = {
        "name": "gradwatch",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [
            *map(_rule, known_rules().values()),
            {"id": _WORSE, "shortDescription": {"text": "Worse than the baseline run."}},
        ],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [_invocation(verdicts)],
        "results": [result for verdict in verdicts for result in _results(verdict)],
        "columnKind": "unicodeCodePoints",
    }
    return json_text({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _rule(rule: type[Rule]) -> dict[str, Any]:
    page = inspect.cleandoc(rule.__doc__ or "").replace("``", "`").partition("\n\nAttributes:\n")[0]
    first, _, rest = page.partition("\n\n")
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": _message(first),
        "fullDescription": _message(" ".join(rest.split()) or first),
        "help": {"text": "\n".join(escape(line, Place.SARIF) for line in page.split("\n"))},
        "defaultConfiguration": {"level": "warning"},
    }


def _invocation(verdicts: Sequence[RunVerdict]) -> dict[str, Any]:
    exit_code = max((verdict.exit_code for verdict in verdicts), default=CANNOT_JUDGE)
    files = dict.fromkeys(verdict.settings_file for verdict in verdicts if verdict.settings_file)
    notes = []
    for verdict in verdicts:
        if verdict.failure:
            notes.append(_note("error", f"can't judge {verdict.path}: {verdict.failure}"))
        notes += [
            _note("note", f"{verdict.path}: not judged: {label_of(code)}: {why}")
            for code, why in verdict.unjudged.items()
        ]
        notes += [_note("warning", f"{verdict.path}: {problem}") for problem in verdict.problems]
    return {
        "executionSuccessful": exit_code != CANNOT_JUDGE,
        "exitCode": exit_code,
        "toolExecutionNotifications": notes,
        **({"properties": {"settingsFiles": [escape(file, Place.SARIF_NAME) for file in files]}} if files else {}),
    }


def _note(level: str, text: str) -> dict[str, Any]:
    return {"level": level, "message": _message(text)}


def _message(text: str) -> dict[str, str]:
    return {"text": escape(text, Place.SARIF)}


def _results(verdict: RunVerdict) -> list[dict[str, Any]]:
    codes = [*known_rules()]
    results = []
    for finding in verdict.sorted_findings:
        text = " ".join(part for part in (finding.message, finding.cause, finding.remedy.text) if part)
        if finding.consequence_of:
            text = f"{finding.seen}; {finding.follows}."
        result = _result(verdict, finding.code, _LEVELS[finding.severity], text, finding.layers)
        if finding.code in codes:
            result["ruleIndex"] = codes.index(finding.code)
        result["properties"] = {
            "firstStep": finding.first_step,
            "lastStep": finding.last_step,
            **_numbers(finding),
            "fails": verdict.fails(finding),
            "consequenceOf": finding.consequence_of,
            "healedStep": finding.healed_step,
            "causeKind": finding.cause_kind.value,
        }
        if verdict.comparison is not None and not verdict.comparison.failure:
            result["baselineState"] = _state(verdict, finding)
        results.append(result)
    comparison = verdict.comparison
    if comparison is not None:
        results += _worse(verdict, comparison)
    return results


def _worse(verdict: RunVerdict, comparison: Comparison) -> list[dict[str, Any]]:
    level = "warning" if verdict.changes_fail else "note"
    return [
        {
            **_result(
                verdict, _WORSE, level, change_text(change), (change.name,) if change.name else (), extra=change.metric
            ),
            "ruleIndex": len(known_rules()),
            "baselineState": "new",
        }
        for change in comparison.changes
    ]


def _state(verdict: RunVerdict, finding: Finding) -> str:
    return "unchanged" if verdict.is_known(finding) else "new"


def _result(
    verdict: RunVerdict, rule: str, level: str, text: str, layers: Sequence[str], *, extra: str = ""
) -> dict[str, Any]:
    # Without the path: the same fault in the next run's folder is the same alert.
    print_ = hashlib.sha256("\0".join((rule, extra, *layers)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    location: dict[str, Any] = {
        # Code scanning shows only results with a place in a file.
        "physicalLocation": {"artifactLocation": {"uri": _uri(verdict.path)}, "region": {"startLine": 1}}
    }
    if layers:
        names = dict.fromkeys(escape(name, Place.SARIF_NAME) for name in layers[:_MOST_LAYERS])
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"} for name in names]
    return {
        "ruleId": rule,
        "level": level,
        "message": _message(text),
        "locations": [location],
        "partialFingerprints": {"gradwatch/v1": print_},
    }


def _uri(path: str) -> str:
    absolute = Path(path).is_absolute()
    text = quote(Path(path).as_posix().encode("utf-8", "surrogateescape" if _decodable(path) else "backslashreplace"))
    return f"file://{text}" if absolute else text


def _decodable(path: str) -> bool:
    """Tell whether odd characters in a path are bytes that Python couldn't decode, which an URI can hold."""
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _numbers(finding: Finding) -> dict[str, float | str]:
    if not is_numbered(finding.code):
        return {}
    return {"value": _text_or_number(finding.value), "threshold": _text_or_number(finding.threshold)}


def _text_or_number(value: float) -> float | str:
    return value if value - value == 0 else str(value)
