"""Puts a run beside a known good one: what got worse, per layer and site, by more than the baseline's own steps stray.

Compared are medians over the same stretch of training, column by column, matched by name. Gradient norms and signals
are taken relative to the rest of their own step, so that a loss of another scale, or a run that has converged further,
isn't a difference. Values are compared as logarithms, because they span decades.

The noise is the robust spread of the baseline's steps around their own course: of differences between neighbouring
steps, so that a curve that falls over the whole training isn't noise. It is that of one step, not of a median over many:
two runs differ by their seeds as well, which a single baseline can't tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_gradwatch.judge.verdict import Change, Comparison
from lightning_gradwatch.record.metrics import METRICS, Worse
from lightning_gradwatch.record.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_gradwatch.judge.run import Run
    from lightning_gradwatch.record.finding import Finding
    from lightning_gradwatch.record.step import FloatVector

FACTOR = 3.0
"""A smaller change of a norm or a ratio is never called worse."""
DIFFERENCE = 0.1
"""A smaller rise of a fraction is never called worse."""
_SPREADS = 3.0
"""Of the baseline's own steps: what differs by less happens within one run."""
_LEAST_STEPS = 3
"""Fewer have no spread to compare with."""
_TINY = 1e-300  # stands for an exact 0 in a logarithm


class _Series(NamedTuple):
    """One metric of both runs, over the compared steps; columns are matched."""

    metric: str
    names: Sequence[str]
    pair: tuple[FloatVector, FloatVector]
    """Baseline and run, shapes [B, N] and [R, N]."""
    worse: Worse
    fraction: bool = False


def compare_runs(
    base: Run,
    run: Run,
    path: str,
    findings: tuple[Sequence[Finding], Sequence[Finding]],
    ignored: frozenset[str] = frozenset(),
) -> Comparison:
    """Compare a run with a baseline.

    Args:
        base: The known good run.
        run: The run to judge.
        path: Where the baseline came from.
        findings: Of the baseline and of the run, by the same rules.
        ignored: Layers and sites to leave out.
    """
    names = [_all_names(each) for each in (base, run)]
    only = [tuple(name for name in mine if name not in other) for mine, other in (names, names[::-1])]
    common = [name for name in names[1] if name in names[0] and name not in ignored]
    known, gone = _sort_findings(*findings)
    partial = Comparison(baseline=path, known=known, gone=gone, only_baseline=only[0], only_run=only[1])
    if not common:
        return _failed(partial, f"not comparable with {path}: no layer or site of one has its name in the other")
    first = max(base.records[0].step, run.records[0].step)
    last = min(base.records[-1].step, run.records[-1].step)
    counts = [sum(first <= record.step <= last for record in each.records) for each in (base, run)]
    if min(counts) < _LEAST_STEPS:
        return _failed(
            partial,
            f"not comparable with {path}: steps {base.records[0].step} to {base.records[-1].step} there and "
            f"{run.records[0].step} to {run.records[-1].step} here share fewer than {_LEAST_STEPS} measured steps",
        )
    changes = [change for series in _all_series(base, run, common, first, last) for change in _changes(series)]
    compared = (
        f"steps {first} to {last}, {counted(counts[1], 'measured step')} against {counts[0]}, "
        f"{len(common)} layers and sites of the same name"
    )
    changes.sort(key=_badness, reverse=True)
    return Comparison(**{**vars(partial), "compared": compared, "changes": tuple(changes)})


def _failed(partial: Comparison, failure: str) -> Comparison:
    return Comparison(**{**vars(partial), "failure": failure})


def _all_names(run: Run) -> dict[str, None]:
    return dict.fromkeys((*run.names("grad_norm"), *run.names("signal_norm")))


def _sort_findings(base: Sequence[Finding], run: Sequence[Finding]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the run's findings that the baseline has as well, and the baseline's that the run doesn't have.

    Known is a finding whose layers the baseline's findings of the same rule, at least as severe, cover.
    """

    def covered(finding: Finding, others: Sequence[Finding]) -> bool:
        same = [other for other in others if other.code == finding.code and other.severity >= finding.severity]
        return bool(same) and {name for other in same for name in other.layers}.issuperset(finding.layers)

    known = tuple(finding for finding in run if covered(finding, base))
    codes = {(finding.code, name) for finding in run for name in (finding.layers or ("",))}
    gone = tuple(
        finding
        for finding in base
        if not codes.intersection((finding.code, name) for name in (finding.layers or ("",)))
    )
    return known, gone


def _all_series(base: Run, run: Run, common: Sequence[str], first: int, last: int) -> Iterator[_Series]:
    """Yield each metric of both runs, in the form in which it is compared."""
    pair = (base, run)
    weights = {layer.name for info in run.infos.values() for layer in info.layers if layer.weight}
    layers = [name for name in common if name in weights]
    hidden = {site.name for info in run.infos.values() for site in info.sites if site.role == "hidden"}
    sites = [name for name in common if name in hidden]

    def read(
        metric: str, names: Sequence[str], relative: Callable[[FloatVector], FloatVector]
    ) -> tuple[FloatVector, FloatVector]:
        values = tuple(relative(_values(each, metric, names, first, last)) for each in pair)
        return values[0], values[1]

    def whole(name: str) -> tuple[FloatVector, FloatVector]:
        values = tuple(
            np.array([getattr(record, name) for record in each.records if first <= record.step <= last])[:, None]
            for each in pair
        )
        return values[0], values[1]

    losses = whole("loss")
    if all((values > 0).any() for values in losses):
        yield _Series("loss", ("",), losses, "higher")
    yield _Series("global_grad_norm", ("",), whole("global_grad_norm"), "higher")
    for metric in METRICS.values():
        if metric.compared is not None:
            chosen = layers if metric.over == "layers" else sites
            pair_of = read(metric.name, chosen, _RELATIVE[metric.compared.relative_to])
            yield _Series(metric.name, chosen, pair_of, metric.compared.worse, metric.is_fraction)


def _as_it_is(values: FloatVector) -> FloatVector:
    return values


def _values(run: Run, metric: str, names: Sequence[str], first: int, last: int) -> FloatVector:
    steps, values = run.series(metric)
    column = {name: index for index, name in enumerate(run.names(metric))}
    chosen = values[(steps >= first) & (steps <= last)][:, [column[name] for name in names if name in column]]
    if chosen.shape[1] == len(names):
        return chosen
    full = np.full((len(chosen), len(names)), np.nan)
    full[:, [index for index, name in enumerate(names) if name in column]] = chosen
    return full


def _of_step(values: FloatVector) -> FloatVector:
    """Return gradient norms relative to the largest of their own step: a sum of squares could overflow."""
    if not values.shape[1]:
        return values
    largest = np.fmax.reduce(np.where(np.isfinite(values), values, np.nan), axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(largest > 0, values / largest, np.nan)


def _of_last(values: FloatVector) -> FloatVector:
    """Return signals relative to the last site of their own step."""
    if not values.shape[1]:
        return values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(values[:, -1:] > 0, values / values[:, -1:], np.nan)


_RELATIVE: dict[str, Callable[[FloatVector], FloatVector]] = {"": _as_it_is, "largest": _of_step, "last": _of_last}


def _changes(series: _Series) -> Iterator[Change]:
    for column, name in enumerate(series.names):
        base, run = (values[:, column] for values in series.pair)
        base, run = base[np.isfinite(base)], run[np.isfinite(run)]
        if min(len(base), len(run)) < _LEAST_STEPS:
            continue
        medians = float(np.median(base)), float(np.median(run))
        spread = _spread(base if series.fraction else _log(base))
        if series.fraction:
            worse = medians[1] - medians[0] > max(DIFFERENCE, _SPREADS * spread)
        else:
            before, after = (float(np.log(max(median, _TINY))) for median in medians)
            change = abs(after) - abs(before) if series.worse == "farther" else after - before
            limit = max(float(np.log(FACTOR)), _SPREADS * spread)
            worse = (change < -limit and series.worse in {"lower", "both"}) or (
                change > limit and series.worse != "lower"
            )
        noise = spread if series.fraction else float(np.exp(min(spread, 700.0)))
        if worse:
            yield Change(metric=series.metric, name=name, base=medians[0], run=medians[1], noise=noise, steps=len(run))


def _log(values: FloatVector) -> FloatVector:
    return np.asarray(np.log(np.maximum(np.abs(values), _TINY)), dtype=np.float64)


def _spread(values: FloatVector) -> float:
    """Return the robust standard deviation of values around their own course."""
    if len(values) < 2:
        return 0.0
    moves = np.diff(values)
    return float(1.4826 * np.median(np.abs(moves - np.median(moves))) / np.sqrt(2))


def _badness(change: Change) -> float:
    if change.metric in METRICS and METRICS[change.metric].is_fraction:
        return 10 * (change.run - change.base)
    return abs(float(np.log(max(change.run, _TINY)) - np.log(max(change.base, _TINY))))
