"""Prints what was found, as Markdown: a row a case, then the totals, then each run that someone should look at."""

from __future__ import annotations

from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.galleries.peer_rules import PEERS
from benchmarks.galleries.spec import HALVES
from benchmarks.galleries.totals import Share, count, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.galleries.judge import Judged
    from benchmarks.galleries.remedy import Trial

_HALF_LETTERS = {"calibration": "c", "report": "r"}


def case_table(runs: Sequence[Judged]) -> Iterator[str]:
    """Yield a row for each case: outcomes, our root causes and first warning, the peers' alarms."""
    yield _row("case", "half", "score (chance, needed)", "learned", "built in", "root found", "first warning", *PEERS)
    yield _row(*["---"] * (7 + len(PEERS)))
    for name, group in groupby(runs, key=lambda run: run.case.name):
        of_case = list(group)
        outcomes = [run.result.outcome for run in of_case]
        scores = sorted(each.score for each in outcomes)
        warned = [run.warned for run in of_case if run.warned is not None]
        yield _row(
            name,
            _HALF_LETTERS[of_case[0].half],
            f"{median(scores):.2f} ({outcomes[0].chance:.2f}, {outcomes[0].needed:.2f})",
            f"{sum(each.learned for each in outcomes)}/{len(outcomes)}",
            " or ".join(of_case[0].case.roots) or "healthy",
            spread([_root(run) for run in of_case]),
            f"{median(warned):.0f} of {of_case[0].case.training.steps}" if warned else "-",
            *(f"{sum(bool(run.peers[peer]) for run in of_case)}/{len(of_case)}" for peer in PEERS),
        )


def totals_table(runs: Sequence[Judged]) -> Iterator[str]:
    """Yield the totals of GradWatch and of its peers, half by half and over all."""
    heads = (
        "judge",
        "ill runs warned of",
        "root cause named",
        "in time",
        "false alarms, healthy",
        "false alarms, ill but learned",
    )
    for half in (*HALVES, "both halves"):
        chosen = [run for run in runs if half in {run.half, "both halves"}]
        yield f"\n### {half}: {len({run.case.name for run in chosen})} cases, {len(chosen)} runs\n"
        yield _row(*heads)
        yield _row(*["---"] * len(heads))
        for judge in ("GradWatch", *PEERS):
            of = count(chosen, peer=None if judge == "GradWatch" else judge)
            yield _row(judge, of.recall, of.named, of.in_time, of.false_alarms, of.false_on_ill)


def arithmetic_table(runs: Sequence[Judged]) -> Iterator[str]:
    """Yield GradWatch's totals by arithmetic, how far they spread, and the runs whose verdict turns with it."""
    columns = {
        "ill runs warned of": lambda of: of.recall,
        "root cause named": lambda of: of.named,
        "in time": lambda of: of.in_time,
        "false alarms, healthy": lambda of: of.false_alarms,
    }
    yield _row("arithmetic", *columns)
    yield _row(*["---"] * (1 + len(columns)))
    names = list(dict.fromkeys(run.result.arithmetic for run in runs))
    totals = [count([run for run in runs if run.result.arithmetic == name]) for name in names]
    for name, of in zip(names, totals, strict=True):
        yield _row(name, *(column(of) for column in columns.values()))
    yield _row("all", *(column(count(runs)) for column in columns.values()))
    yield _row("spread", *(_range([column(of) for of in totals]) for column in columns.values()))
    pairs: dict[tuple[str, int], list[Judged]] = {}
    for run in runs:
        pairs.setdefault((run.case.name, run.result.seed), []).append(run)
    turned = {pair: group for pair, group in pairs.items() if len({_root(run) for run in group}) > 1}
    yield f"\nThe root finding turns with the arithmetic in {Share(len(turned), len(pairs))} of the cases and seeds:\n"
    for (case, seed), group in turned.items():
        yield f"- {case} seed {seed}: " + "; ".join(
            f"{run.result.arithmetic} {_root(run)} ({run.result.outcome.score:.2f})" for run in group
        )


def notable(runs: Sequence[Judged]) -> Iterator[str]:
    """Yield each run that isn't as it should be, by what is wrong."""
    lists = {
        "Ill, and no warning": [run for run in runs if run.ill and not run.alarms],
        "Ill, and another root cause named": [run for run in runs if run.ill and run.alarms and not run.named],
        "Ill, and warned of late": [
            run for run in runs if run.ill and run.warned is not None and not run.is_early(run.warned)
        ],
        "False alarm: healthy, learned, and warned of": [
            run for run in runs if not run.case.ill and run.result.outcome.learned and run.alarms
        ],
        "Meant ill, learned all the same": [run for run in runs if run.case.ill and run.result.outcome.learned],
        "Meant healthy, didn't learn": [run for run in runs if not run.case.ill and not run.result.outcome.learned],
    }
    for title, found in lists.items():
        yield from _listed(title, [(run, _findings(run)) for run in found])
    yield from _listed("Replayed otherwise than live", [(run, run.differs) for run in runs if run.differs])
    faulty = [(run, "; ".join(run.result.faults)) for run in runs if run.result.faults]
    yield from _listed("Parts of the monitor switched off", faulty)


def remedy_table(trials: Sequence[tuple[Judged, Trial | None]]) -> Iterator[str]:
    """Yield, for each ill case, in how many runs the remedy of the root finding makes the net learn."""
    yield _row("case", "half", "root found", "actions", "learns then", "scores", "not applied")
    yield _row(*["---"] * 7)
    for name, group in groupby(trials, key=lambda pair: pair[0].case.name):
        pairs = list(group)
        tried = [trial for _, trial in pairs if trial is not None]
        yield _row(
            name,
            _HALF_LETTERS[pairs[0][0].half],
            spread([_root(run) for run, _ in pairs]),
            spread([_actions(run) for run, _ in pairs]),
            Share(sum(trial.outcome.learned for trial in tried), len(pairs)),
            " ".join(f"{trial.outcome.score:.2f}" for trial in tried),
            spread([reason for trial in tried for reason in trial.refused]) or "-",
        )
    for half in (*HALVES, "both halves"):
        chosen = [trial for run, trial in trials if half in {run.half, "both halves"}]
        mended = sum(trial is not None and trial.outcome.learned for trial in chosen)
        yield f"\n{half}: {Share(mended, len(chosen))} of the ill runs learn with the remedy of their root finding"


def _listed(title: str, found: Sequence[tuple[Judged, str]]) -> Iterator[str]:
    yield f"\n### {title}: {len(found)}\n"
    for run, detail in found:
        where = f" {run.result.arithmetic}" if run.result.arithmetic else ""
        yield f"- {run.case.name} seed {run.result.seed}{where} ({run.half}; {run.result.outcome.score:.2f}): {detail}"


def _range(shares: Sequence[Share]) -> str:
    """Return the lowest and the highest of shares, in percent."""
    percents = [100 * share.part / share.whole for share in shares if share.whole]
    return f"{min(percents):.1f} to {max(percents):.1f} %" if percents else "-"


def _root(run: Judged) -> str:
    return run.root.code if run.root else "-"


def _actions(run: Judged) -> str:
    return " + ".join(action.kind for action in run.root.remedy.actions) if run.root else "-"


def _findings(run: Judged) -> str:
    if not run.findings:
        return "nothing found"
    first = "" if run.warned is None else f"; first warning at step {run.warned}"
    told = "; ".join(
        f"{finding.code} {finding.severity.label} from step {finding.first_step}, {finding.value:.3g} against {finding.threshold:.3g}"
        + (f" (consequence of {finding.consequence_of})" if finding.consequence_of else "")
        for finding in run.findings
    )
    return told + first


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
