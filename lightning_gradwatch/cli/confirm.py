"""What the live run reported, held against what is left of it: a finding whose records are lost isn't gone. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.judge.evaluator import replay
from lightning_gradwatch.judge.selection import rules_from_settings
from lightning_gradwatch.record.finding import Severity
from lightning_gradwatch.record.wording import listed
from lightning_gradwatch.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lightning_gradwatch.cli.settings import Settings
    from lightning_gradwatch.judge.run import Run
    from lightning_gradwatch.judge.verdict import IgnoredLayers
    from lightning_gradwatch.record.finding import Finding

_NAMED = 3


def confirm(
    run: Run, found: Sequence[Finding], codes: Iterable[str], settings: Settings, ignored: Sequence[IgnoredLayers]
) -> tuple[str, tuple[str, ...]]:
    """Look for what the live run reported among what its records show; say why the run can't be judged without it, and the rest.

    A run that is whole shows what it reported, by construction, and nothing is to be done. Otherwise records are lost;
    or it was resumed in another folder, whose records are before its own; or another release judged it by other rules.

    Args:
        run: The stored run.
        found: What its records show by the settings' rules.
        codes: Of the rules in force.
        settings: What it is judged by.
        ignored: Layers and sites that are left out.
    """
    told = (*(run.earlier_findings if run.damaged else ()), *run.findings)
    asked = set(codes) - settings.thresholds.keys()  # by thresholds that the live run didn't have, it may be no finding
    open_ = [
        each for each in told if each.code in asked and not _is_shown(each, found) and not _is_left_out(each, ignored)
    ]
    if open_:
        whole = replay(run.records, run.infos, rules_from_settings(run.info.rules), run.end).findings
        open_ = [each for each in open_ if not _is_shown(each, whole)]
    failing = [each for each in open_ if each.severity >= settings.fail_on and _is_of(run, each)]
    failure = ""
    if failing:
        spelled = tuple(dict.fromkeys(map(_told, failing)))
        more = f", and {len(spelled) - _NAMED} findings more" if len(spelled) > _NAMED else ""
        failure = f"the live run reported {'; '.join(spelled[:_NAMED])}{more}, which what is left of it can't confirm"
    others = dict.fromkeys(_told(each) for each in open_ if each not in failing)
    return failure, tuple(f"the live run reported {each}, which its records here don't show" for each in others)


def told_by_others(run: Run, codes: Iterable[str]) -> tuple[str, ...]:
    """Say what the live run reported by rules that aren't known here: its records say nothing of that.

    Args:
        run: The stored run.
        codes: Of the rules that aren't known here.
    """
    told = dict.fromkeys(
        _told(each) for each in run.findings if each.code in set(codes) and each.severity > Severity.INFO
    )
    return tuple(f"the live run reported {each}, by a rule that isn't known here" for each in told)


def _is_shown(finding: Finding, among: Iterable[Finding]) -> bool:
    return any(each.code == finding.code and each.severity >= finding.severity for each in among)


def _is_left_out(finding: Finding, ignored: Iterable[IgnoredLayers]) -> bool:
    names = {name for each in ignored if finding.code.startswith(each.rule) for name in each.names}
    return bool(finding.layers) and names.issuperset(finding.layers)


def _is_of(run: Run, finding: Finding) -> bool:
    """Tell whether the run's own records, whole and judged by this release, would have to show a finding."""
    if run.damaged:
        return True
    version = run.info.versions.get("lightning-gradwatch", __version__)
    return version == __version__ and finding.first_step >= run.records[0].step


def _told(finding: Finding) -> str:
    steps = f"step {finding.first_step}" + (
        f" to {finding.last_step}" if finding.last_step > finding.first_step else ""
    )
    layers = f" at {listed(finding.layers)}" if finding.layers else ""
    return f"{finding.code} {finding.name} ({finding.severity.label}){layers} in {steps}"
