"""What the page shows, as plain data: one model for each host, in a form that JSON holds.

Everything that a view needs to know of a metric, a kind of site or a rule stands in the model, taken from the tables they
come from: a row that a table gets later is shown without a change to what draws it. Text is spelled here for a page
(`Place.PAGE`), so that no view has a way to forget it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.judge.catalog import find_rule, name_of
from lightning_gradwatch.judge.compare import compare_runs
from lightning_gradwatch.judge.selection import rules_from_settings
from lightning_gradwatch.page.matrices import Columns, pack, pack_codes, states_of, values_of
from lightning_gradwatch.page.redact import redacted
from lightning_gradwatch.page.rows import last_signal, paths_of, plain, rows_of, theory_of
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.metrics import METRICS
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.judge.verdict import Comparison
    from lightning_gradwatch.page.runs import PageRun
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo

MODEL_VERSION = 1
MAX_COLUMNS = 1024
"""Columns of a heatmap: a pixel or two each, on most screens."""
_LEAST_COLUMNS = 192
_EXACT_VALUES = 100_000
"""Up to so many values are kept as they are, 1 MB of them."""
_VALUES = 1_500_000
"""So many are packed, 4 MB of them; of more the columns are made fewer, down to the least."""
_MOST_VALUES = 8_000_000
"""So many at most, 22 MB, of however many layers."""
_ALARMS = (LayerState.NONE, LayerState.ZERO, LayerState.NON_FINITE)
_SCALARS = (("loss", "loss"), ("global_grad_norm", "global gradient norm"))


def page_model(runs: Sequence[PageRun], *, redact: bool = False, max_columns: int = MAX_COLUMNS) -> dict[str, Any]:
    """Return what the page shows of some runs; the first is the one that the others are compared with.

    Args:
        runs: As they were read, watched or handed over.
        redact: Leave out paths, host names and settings, and call the runs by numbers.
        max_columns: Columns that the steps of a run are thinned to; fewer where there are many layers.
    """
    most = _columns_for(runs, max_columns)
    model = {
        "version": MODEL_VERSION,
        "tool": __version__,
        "title": "GradWatch",
        "redacted": redact,
        "metrics": _metrics(),
        "states": {str(state.value): state.name.lower().replace("_", " ") for state in LayerState},
        "severities": [severity.label for severity in sorted(Severity)],
        "rules": _rules(runs),
        "runs": [_run(run, most, exact=_values(runs, most) <= _EXACT_VALUES) for run in runs],
        "comparisons": [_compared(runs[0], run, place) for place, run in enumerate(runs) if place],
    }
    if redact:
        model = redacted(model, runs)
    spelled: dict[str, Any] = _spelled(model)
    return spelled


def _columns_for(runs: Sequence[PageRun], most: int) -> int:
    """Return how many columns suit the runs together."""
    series = sum(_series(run) for run in runs) or 1
    wanted = max(_VALUES // series, min(_LEAST_COLUMNS, _MOST_VALUES // series), 1)
    return max(min(most, wanted), 1)


def _series(run: PageRun) -> int:
    return sum(len(run.info.layers if metric.over == "layers" else run.info.sites) for metric in METRICS.values())


def _values(runs: Sequence[PageRun], most: int) -> int:
    return sum(_series(run) * min(len(run.records), most) for run in runs)


def _metrics() -> list[dict[str, Any]]:
    """Describe the metrics by the table that they stand in."""
    return [
        {
            "name": metric.name,
            "of": metric.over,
            "title": metric.title,
            "description": metric.description,
            "log": not metric.is_fraction,
        }
        for metric in METRICS.values()
    ]


def _rules(runs: Iterable[PageRun]) -> dict[str, dict[str, Any]]:
    """Describe each rule that judged, or found something in, one of the runs."""
    codes = {code for run in runs for code in (*run.info.rules, *run.unjudged, *(each.code for each in run.findings))}
    described = {}
    for code in sorted(codes):
        rule = find_rule(code)
        lead = (rule.__doc__ or "").partition("\n")[0] if rule is not None else ""
        described[code] = {"name": name_of(code), "says": lead}
    return described


def _run(run: PageRun, most: int, *, exact: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": run.name,
        "path": run.path,
        "colour": run.colour,
        "failure": run.failure,
        "problems": list(run.problems),
        "settings_file": run.settings_file,
        "unjudged": [{"code": code, "name": name_of(code), "reason": why} for code, why in run.unjudged.items()],
    }
    try:
        shown |= _numbers(run, most, exact=exact) if run.records else _no_numbers()
    except (CannotJudgeError, *DATA_ERRORS) as error:
        shown |= _no_numbers()
        shown["failure"] = shown["failure"] or reason_of(error)
    findings = _sorted(run.findings)
    shown["findings"] = [_finding(finding, place) for place, finding in enumerate(findings)]
    shown["outcome"] = _outcome(run, findings, failure=shown["failure"])
    shown["verdict"] = run.verdict or _verdict(findings, shown["failure"])
    shown["coverage"] = [{"name": each.name, "reason": each.reason} for each in run.info.coverage]
    shown["settings"] = _settings(run.info)
    return shown


def _numbers(run: PageRun, most: int, *, exact: bool) -> dict[str, Any]:
    """Return the columns of a run: its steps, layers and sites, and what was measured of them."""
    info, infos = run.info, run.layouts
    steps = [int(record.step) for record in run.records]
    kept = {step for each in run.findings for step in (each.first_step, each.last_step, each.healed_step or 0)}
    columns = Columns(steps, most, kept)
    layers = _names(info.layer_names, (name for each in infos.values() for name in each.layer_names))
    sites = _names(info.site_names, (name for each in infos.values() for name in each.site_names))
    series: dict[str, Any] = {}
    signal = None
    for metric in METRICS.values():
        values = values_of(run.records, infos, metric.name, layers if metric.over == "layers" else sites)
        if metric.name == "signal_norm":
            signal = last_signal(info, values)
        if np.isnan(values).all():
            continue
        log = not metric.is_fraction
        series[metric.name] = pack(columns.thin(values, log=log), log=log, exact=exact)
    states = columns.thin_codes(states_of(run.records, infos, layers), _ALARMS)
    return {
        "measured": len(steps),
        "steps": {"first": columns.first_steps, "last": columns.last_steps},
        "layers": [*map(_layer, info.layers), *({"name": name, "gone": True} for name in layers[len(info.layers) :])],
        "sites": [
            *(_site(info, column) for column in range(len(info.sites))),
            *({"name": name, "gone": True} for name in sites[len(info.sites) :]),
        ],
        "rows": rows_of(info, layers, sites),
        "paths": paths_of(info, signal),
        "series": series,
        "layer_state": pack_codes(states),
        "scalars": [
            {"name": name, "title": title, "values": [plain(value) for value in _scalar(run, name, columns)]}
            for name, title in _SCALARS
        ],
        "lines": _lines(run.info),
    }


def _no_numbers() -> dict[str, Any]:
    return {
        "measured": 0,
        "steps": {"first": [], "last": []},
        "layers": [],
        "sites": [],
        "rows": [],
        "paths": [],
        "series": {},
        "layer_state": "",
        "scalars": [],
        "lines": [],
    }


def _names(now: Sequence[str], all_of_them: Iterable[str]) -> list[str]:
    return list(dict.fromkeys((*now, *all_of_them)))


def _scalar(run: PageRun, name: str, columns: Columns) -> list[float]:
    values = np.array([float(getattr(record, name)) for record in run.records])
    thinned: list[float] = columns.thin(values[:, None])[:, 0].tolist()
    return thinned


def _layer(layer: Any) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shapes": [list(shape) for shape in layer.shapes],
        "parameters": layer.parameters,
        "weight": layer.weight,
        "used": layer.used,
        "feeds": layer.feeds,
    }


def _site(info: RunInfo, column: int) -> dict[str, Any]:
    site = info.sites[column]
    return {
        "name": site.name,
        "function": site.function,
        "role": site.role,
        "units": site.units,
        "predecessors": list(site.predecessors),
        "theory": theory_of(info, column),
    }


def _lines(info: RunInfo) -> list[dict[str, Any]]:
    """Return where the rules that judge the run have their thresholds on a metric's scale."""
    try:
        rules: tuple[Rule, ...] = rules_from_settings(info.rules)
    except (AttributeError, TypeError, ValueError):
        return []
    return [line for rule in rules for line in _lines_of(rule, info)]


def _lines_of(rule: Rule, info: RunInfo) -> list[dict[str, Any]]:
    try:
        return [
            {
                "code": rule.code,
                "metric": str(line.metric),
                "value": plain(float(line.value)),
                "side": str(line.side),
                "of_last": bool(line.of_last),
            }
            for line in rule.lines(info)
        ]
    except Exception:  # noqa: BLE001 - a rule may be somebody else's, and a chart without its line is a chart
        return []


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    """Return what is said first: what holds, root causes, the worst, the earliest."""
    return sorted(
        findings,
        key=lambda each: (bool(each.consequence_of), -each.severity, each.healed_step is not None, each.first_step),
    )


def _finding(finding: Finding, place: int) -> dict[str, Any]:
    """Return a finding as it is stored, with what names it on the page and what its first sentence says."""
    told = finding.to_dict()
    told["value"], told["threshold"] = plain(finding.value), plain(finding.threshold)
    told["id"] = f"{finding.code}-{place}"
    told["seen"] = finding.seen
    told["words"] = finding.name.replace("-", " ").replace("non ", "non-")
    return told


def _outcome(run: PageRun, findings: Sequence[Finding], *, failure: str) -> str:
    """Return one word: ``unknown``, ``ill``, ``noted`` (information alone) or ``healthy``."""
    if failure or not run.records:
        return "unknown"
    if any(each.severity > Severity.INFO for each in findings):
        return "ill"
    return "noted" if findings else "healthy"


def _verdict(findings: Sequence[Finding], failure: str) -> str:
    if failure:
        return f"can't judge: {failure}"
    told = [each for each in findings if each.severity > Severity.INFO]
    roots = dict.fromkeys(
        f"{each.code} {each.name} ({each.severity.label})" for each in told if not each.consequence_of
    )
    if roots:
        return f"not healthy: {', '.join(roots)}"
    return f"no warning; {len(findings)} information" if findings else "nothing found"


def _settings(info: RunInfo) -> dict[str, Any]:
    """Return what the run was set to, as far as it is stored."""
    return {
        "optimizers": [
            {"name": each.name, "settings": {key: plain(value) for key, value in each.settings.items()}}
            for each in info.optimizers
        ],
        "precision": info.precision,
        "accumulation": info.accumulation,
        "clipping": info.clipping,
        "planned_steps": info.planned_steps,
        "every_n_steps": info.every_n_steps,
        "world_size": info.world_size,
        "strategy": info.strategy,
        "versions": dict(info.versions),
    }


def _compared(base: PageRun, run: PageRun, place: int) -> dict[str, Any]:
    """Return what a comparison of a run with the first one says."""
    told: dict[str, Any] = {"base": 0, "run": place, "failure": "", "compared": "", "worse": [], "gone": [], "new": []}
    if not (base.records and run.records):
        return {**told, "failure": "there is nothing to compare: one of the two has no measured step"}
    try:
        found = compare_runs(_as_run(base), _as_run(run), base.name, (base.findings, run.findings))
    except (CannotJudgeError, *DATA_ERRORS) as error:
        return {**told, "failure": reason_of(error)}
    return {**told, **_comparison(found, run)}


def _as_run(run: PageRun) -> Any:
    from pathlib import Path  # noqa: PLC0415 - for a run's form alone

    from lightning_gradwatch.judge.run import Run  # noqa: PLC0415 - as above

    return Run(path=Path(run.name), info=run.info, infos=run.layouts, records=list(run.records))


def _comparison(found: Comparison, run: PageRun) -> dict[str, Any]:
    return {
        "failure": found.failure,
        "compared": found.compared,
        "worse": [
            {
                "metric": change.metric,
                "name": change.name,
                "base": plain(change.base),
                "run": plain(change.run),
                "ratio": plain(change.ratio if math.isfinite(change.ratio) else math.inf),
                "noise": plain(change.noise),
            }
            for change in found.changes
        ],
        "gone": [f"{each.code} {each.name}" for each in found.gone],
        "new": [f"{each.code} {each.name}" for each in run.findings if each not in found.known],
        "only_base": list(found.only_baseline),
        "only_run": list(found.only_run),
    }


def _spelled(data: Any) -> Any:
    """Return data whose texts can't steer, reorder or hide what stands beside them, and that JSON holds."""
    if isinstance(data, str):
        return data if data.isascii() and data.isprintable() else escape(data, Place.PAGE)
    if isinstance(data, dict):
        return {str(_spelled(key)): _spelled(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        # Of numbers alone there may be thousands.
        if data and isinstance(data[0], (int, float)):
            return [plain(value) for value in data]
        return [_spelled(value) for value in data]
    return (
        data if data is None or isinstance(data, (bool, int)) else plain(data) if isinstance(data, float) else str(data)
    )
