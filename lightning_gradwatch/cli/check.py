"""Judges stored runs: which files an argument means, which rules judge them, what comes out. No torch, no rendering."""

from __future__ import annotations

import glob
import os
import re
import traceback
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.cli.confirm import confirm, told_by_others
from lightning_gradwatch.judge.catalog import known_rules, label_of, why_unknown
from lightning_gradwatch.judge.compare import compare_runs
from lightning_gradwatch.judge.evaluator import replay
from lightning_gradwatch.judge.root_causes import relate
from lightning_gradwatch.judge.selection import rules_from_settings
from lightning_gradwatch.judge.verdict import CANNOT_JUDGE, FOUND, HEALTHY, Comparison, IgnoredLayers, RunVerdict
from lightning_gradwatch.record.metrics import is_over_layers
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of
from lightning_gradwatch.record.run_folders import holds_event_files, is_event_file, natural, runs_below
from lightning_gradwatch.record.step import LayerState
from lightning_gradwatch.record.wording import counted
from lightning_gradwatch.tell.coverage import columns_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.cli.settings import Settings, Threshold
    from lightning_gradwatch.judge.rule import Rule
    from lightning_gradwatch.judge.run import Run
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_WILD = re.compile(r"[*?\[]")


def find_runs(argument: str) -> list[str]:
    """Return the runs that an argument of the command line means, in natural order.

    A folder that is no run means the runs below it. A glob means the run folders among what it matches, and event files that
    lie in none of them. What is neither, or matches nothing, is returned as it is: reading it says what is wrong.

    Raises:
        CannotJudgeError: a folder has more below it than is looked through.
    """
    if not _WILD.search(argument) or os.path.exists(argument):  # noqa: PTH110 - Path's raises where a folder can't be read
        path = Path(argument)
        if os.path.isdir(argument) and not holds_event_files(path):  # noqa: PTH112 - as above
            return [str(each) for each in runs_below(path)] or [argument]
        return [argument]
    matches = [Path(match) for match in glob.glob(argument, recursive=True)]  # noqa: PTH207 - Path's takes no absolute patterns
    folders = {path for path in matches if path.is_dir() and holds_event_files(path)}
    files = {path for path in matches if is_event_file(path) and path.parent not in folders}
    return [str(path) for path in sorted(folders | files, key=natural)] or [argument]


def judge(path: str, settings: Settings, *, rules_needed: bool = True, keep_run: bool = False) -> RunVerdict:
    """Judge a run, and compare it with the baseline where the settings name one.

    Args:
        path: A run folder or an event file.
        settings: What to judge by.
        rules_needed: Whether a run that no rule can judge can't be judged. Not so where only the comparison matters.
        keep_run: Whether the verdict holds the run itself, for a report that shows its numbers.
    """
    try:
        return _verdict(path, settings, rules_needed=rules_needed, keep_run=keep_run)
    except Exception as error:  # noqa: BLE001 - what one file holds must not take away the report on the others
        return cannot_judge(path, error, settings)


def cannot_judge(path: str, error: Exception, settings: Settings) -> RunVerdict:
    """Return the verdict on a run that can't be judged, or told, because of an error."""
    failure, fault = f"{path}: {reason_of(error)}", ""
    if isinstance(error, CannotJudgeError):
        failure = str(error)
    elif isinstance(error, OSError):
        failure = f"{path} can't be read: {error.strerror}"
    elif not isinstance(error, (MemoryError, RecursionError)):
        fault = _place(error)  # reading and judging make a reason of what data bring about; this is something else
    return RunVerdict(
        path=path, unjudged={}, failure=failure, fault=fault, exit_code=CANNOT_JUDGE, fail_on=settings.fail_on
    )


def _place(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def _verdict(path: str, settings: Settings, *, rules_needed: bool, keep_run: bool) -> RunVerdict:
    from lightning_gradwatch.judge.run import read_run  # noqa: PLC0415 - the other commands read no runs

    run = read_run(path)
    judged = _judge_run(run, settings)
    unconfirmed, told = confirm(run, judged.findings, judged.in_force, settings, judged.ignored)
    comparison = None
    if settings.baseline is not None:
        comparison = _compare(run, judged, settings)
    verdict = RunVerdict(
        path=path,
        findings=judged.findings,
        unjudged=judged.unjudged,
        judged=len(judged.rules),
        measured=_measured(run),
        problems=(*(str(problem) for problem in run.problems), *judged.notes, *told),
        failure=unconfirmed or (judged.failure if rules_needed else ""),
        fail_on=settings.fail_on,
        rules={rule.code: rule.settings() for rule in judged.rules},
        counts=_counts(run),
        ignored=judged.ignored,
        comparison=comparison,
        run=run if keep_run else None,
    )
    if comparison is not None and comparison.failure and not verdict.failure:
        verdict = replace(verdict, failure=comparison.failure)
    return replace(verdict, exit_code=_exit_code(verdict))


@dataclass(frozen=True)
class _Judged:
    """What the rules say about a run."""

    findings: tuple[Finding, ...]
    in_force: tuple[str, ...]
    """Codes of the rules that were asked."""
    rules: tuple[Rule, ...]
    """Those that could judge."""
    unjudged: Mapping[str, str]
    ignored: tuple[IgnoredLayers, ...]
    notes: tuple[str, ...]
    failure: str


def _judge_run(run: Run, settings: Settings) -> _Judged:
    rules, unknown, notes = _rules_for(run, settings)
    ignored = tuple(_match(run, ignore) for ignore in settings.ignore_layers)
    notes += [
        f"{each.rule}:{each.pattern} ({each.reason}) matches no layer and no activation of this run"
        for each in ignored
        if not each.names
    ]
    findings: list[Finding] = []
    unjudged: dict[str, str] = {}
    for group, names in _by_ignored(rules, ignored):
        records: Iterable[StepRecord] = run.records
        if names:
            records = (_without(record, run.infos[record.layout], names) for record in run.records)
        evaluator = replay(records, run.infos, group, run.end)
        findings += _strip(evaluator.alone, names)
        unjudged |= evaluator.unjudged
    required = _required(rules, unjudged, settings)
    judged = tuple(rule for rule in rules if rule.code not in unjudged)
    reasons = {code: unjudged[code] for code in sorted(unjudged)}
    reasons |= {code: why_unknown(code) for code in unknown}
    notes += told_by_others(run, unknown)
    failure = required or ("" if judged else _why_nothing(run, rules))
    in_force = tuple(rule.code for rule in rules)
    return _Judged(relate(findings), in_force, judged, reasons, ignored, tuple(notes), failure)


def _rules_for(run: Run, settings: Settings) -> tuple[tuple[Rule, ...], list[str], list[str]]:
    """Return the rules to judge a run by, the codes of those that aren't known here, and notes."""
    stored = _stored_rules(run)
    known = known_rules()
    unknown = [code for code in run.info.rules if code not in known]
    if settings.select is None:
        chosen = stored
    else:
        # A rule that the run itself left out can still be asked for, with its defaults.
        chosen = {code: stored.get(code) or cls() for code, cls in known.items() if code.startswith(settings.select)}
        unknown = [code for code in unknown if code.startswith(settings.select)]
    chosen = {code: rule for code, rule in chosen.items() if not code.startswith(settings.ignore)}
    unknown = [code for code in unknown if not code.startswith(settings.ignore)]
    notes = []
    for code, fields in settings.thresholds.items():
        if code in chosen:
            chosen[code] = _with_thresholds(chosen[code], fields)
        elif settings.select is None and not code.startswith(settings.ignore):
            notes.append(f"a threshold of {code} is set, and the run was watched without that rule: --select {code}")
    return tuple(chosen.values()), unknown, notes


def _stored_rules(run: Run) -> dict[str, Rule]:
    try:
        return {rule.code: rule for rule in rules_from_settings(run.info.rules)}
    except (AttributeError, TypeError, ValueError) as error:
        raise CannotJudgeError(f"the rules stored in the run can't be used: {error}") from error


def _with_thresholds(rule: Rule, fields: Mapping[str, Threshold]) -> Rule:
    try:
        return replace(rule, **{name: threshold.value for name, threshold in fields.items()})
    except ValueError as error:
        where = ", ".join(threshold.where for threshold in fields.values())
        raise CannotJudgeError(f"{error} (from {where})") from error


def _required(rules: Sequence[Rule], unjudged: Mapping[str, str], settings: Settings) -> str:
    """Say which required rules couldn't judge; empty where all could."""
    if not settings.require:
        return ""
    in_force = {rule.code for rule in rules}
    lacking = []
    for code in known_rules():
        if not code.startswith(settings.require):
            continue
        if code not in in_force:
            lacking.append(f"required {label_of(code)} is not among the rules that judge this run")
        elif code in unjudged:
            lacking.append(f"required {label_of(code)} could not judge: {unjudged[code]}")
    return "; ".join(lacking)


def _why_nothing(run: Run, rules: Sequence[Rule]) -> str:
    if not run.records:
        return "the run has no measured step"
    if rules:
        return "none of the selected rules could be judged"
    return "no rule is left to judge by; see --select, --ignore and the rules stored in the run"


def _exit_code(verdict: RunVerdict) -> int:
    if verdict.failure:
        return CANNOT_JUDGE
    return FOUND if verdict.changes_fail or any(map(verdict.fails, verdict.findings)) else HEALTHY


def _compare(run: Run, judged: _Judged, settings: Settings) -> Comparison:
    """Judge the baseline by the same settings and put the run beside it."""
    from lightning_gradwatch.judge.run import read_run  # noqa: PLC0415 - the other commands read no runs

    path = str(settings.baseline)
    try:
        path = _only_run(path)
        base = read_run(path)
        found = _judge_run(base, settings).findings
    except (CannotJudgeError, *DATA_ERRORS) as error:
        return Comparison(baseline=path, failure=f"the baseline can't be read: {reason_of(error)}")
    ignored = frozenset(name for each in judged.ignored if each.rule in {"G", "GW"} for name in each.names)
    try:
        return compare_runs(base, run, path, (found, judged.findings), ignored)
    except (CannotJudgeError, *DATA_ERRORS) as error:
        return Comparison(baseline=path, failure=f"not comparable with {path}: {reason_of(error)}")


def _only_run(path: str) -> str:
    """Return the run that a path means.

    Raises:
        CannotJudgeError: there are several below it.
    """
    runs = find_runs(path) if os.path.isdir(path) else [path]  # noqa: PTH112 - Path's raises where a folder can't be read
    if len(runs) == 1:
        return runs[0]
    raise CannotJudgeError(f"there are {len(runs)} runs below {path}, the last of them {runs[-1]}: name one")


def _match(run: Run, ignore: IgnoredLayers) -> IgnoredLayers:
    names = dict.fromkeys((*run.names("grad_norm"), *run.names("dead_fraction")))
    matched = tuple(name for name in names if fnmatchcase(name, ignore.pattern))
    return replace(ignore, names=matched)


def _by_ignored(
    rules: Sequence[Rule], ignored: Sequence[IgnoredLayers]
) -> list[tuple[tuple[Rule, ...], frozenset[str]]]:
    """Group the rules by what they leave out: each group reads the records once."""
    groups: dict[frozenset[str], list[Rule]] = {}
    for rule in rules:
        names = frozenset(name for each in ignored if rule.code.startswith(each.rule) for name in each.names)
        groups.setdefault(names, []).append(rule)
    return [(tuple(group), names) for names, group in groups.items()]


def _without(record: StepRecord, info: RunInfo, names: frozenset[str]) -> StepRecord:
    """Return the record as if the named layers and sites hadn't been measured."""
    layers = np.array([layer.name in names for layer in info.layers], dtype=bool)
    sites = np.array([site.name in names for site in info.sites], dtype=bool)
    return replace(
        record,
        metrics={
            name: np.where(layers if is_over_layers(name) else sites, np.nan, vector)
            for name, vector in record.metrics.items()
        },
        layer_state=np.where(layers, np.uint8(LayerState.UNMEASURED), record.layer_state),
        window_fill=np.where(sites, np.nan, record.window_fill),
        forward_rms=np.where(sites, np.nan, record.forward_rms),
        loop_calls=np.where(sites, np.nan, record.loop_calls) if len(record.loop_calls) else record.loop_calls,
    )


def _strip(findings: Iterable[Finding], names: frozenset[str]) -> list[Finding]:
    """Leave ignored layers out of findings: a rule that reads sites may still name the layers between them."""
    kept = []
    for finding in findings:
        layers = tuple(name for name in finding.layers if name not in names)
        if layers or not finding.layers:
            kept.append(replace(finding, layers=layers))
    return kept


def _counts(run: Run) -> dict[str, int]:
    steps = [int(record.step) for record in run.records]
    span = {"first_step": min(steps), "last_step": max(steps)} if steps else {}
    return {"steps": len(steps), **span, "layers": len(run.info.layers), "sites": len(run.info.sites)}


def _measured(run: Run) -> str:
    counts = _counts(run)
    span = f" ({counts['first_step']} to {counts['last_step']})" if counts["steps"] else ""
    return f"{counted(counts['steps'], 'measured step')}{span}, {columns_text(run.info)}"
