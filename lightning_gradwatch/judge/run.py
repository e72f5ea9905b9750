"""A run as it was stored: read it, look at it, judge it again. No torch.

A file may be cut off, damaged, foreign or hostile: what is good is kept, what is lost is said.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.record import run_info
from lightning_gradwatch.record.escape import escape
from lightning_gradwatch.record.finding import Finding
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of
from lightning_gradwatch.record.remote import is_remote, local_path
from lightning_gradwatch.record.run_end import RunEnd
from lightning_gradwatch.record.run_files import Problems, Written, read_files, tell_missing_fits
from lightning_gradwatch.record.run_folders import is_event_file
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.showing import contents_text, shown
from lightning_gradwatch.record.step import FloatVector, StepRecord
from lightning_gradwatch.record.validation import check_lengths

_MOST_GONE = 4_000_000


class RunError(CannotJudgeError):
    """There is no run that could be judged; the message says where and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))  # it may be shown by Python itself, and names in it are anybody's


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A stored run."""

    path: Path
    info: RunInfo
    """The newest description."""
    infos: Mapping[str, RunInfo]
    """By layout, in the order they were written."""
    records: list[StepRecord]
    """By step, rising; where a resumed run measured a step again, its record."""
    findings: tuple[Finding, ...] = ()
    """As the live run reported them last."""
    problems: tuple[str, ...] = ()
    """What couldn't be read, a sentence each; empty for a sound file."""
    damaged: bool = False
    """Whether some of it is lost."""
    earlier_findings: tuple[Finding, ...] = ()
    """What earlier fits reported last about steps that none of the later ones measured again."""
    end: RunEnd | None = None
    """How the last fit ended; None where that isn't known: it goes on, was killed, or is of a release that didn't store it."""

    @classmethod
    def from_records(cls, records: Iterable[StepRecord], info: RunInfo | Iterable[RunInfo]) -> Run:
        """Build a run from records in memory, such as a plain loop has collected from its `Probe`.

        Args:
            records: In the order in which they were measured: ``probe.record`` of each step. Where their steps don't rise, as
                those of a new `Probe` a step don't, they are numbered from 0 on.
            info: What describes them: ``probe.infos``, or ``probe.info`` where no layer or site came up in mid-run; of several
                probes those of all.

        Raises:
            TypeError: something else was given.
            ValueError: there is no record, or one that no description fits.
        """
        infos = _described(info)
        taken = _numbered(records)
        for record in taken:
            if record.layout not in infos:
                raise ValueError(
                    f"step {record.step} was measured with other layers or sites than info describes; give "
                    "all that the probe had: info=probe.infos"
                )
            check_lengths(record, infos[record.layout])
        return cls(path=Path("the records"), info=infos[taken[-1].layout], infos=infos, records=taken)

    def names(self, metric: str) -> tuple[str, ...]:
        """Return a metric's columns: the newest layout's in order, then those that only older ones have.

        Raises:
            ValueError: no metric has that name.
        """
        older = (name for info in self.infos.values() for name in info.names(metric))
        return tuple(dict.fromkeys((*self.info.names(metric), *older)))

    def series(self, metric: str) -> tuple[npt.NDArray[np.int64], FloatVector]:
        """Return steps, int64[S], and values, float64[S, N], with columns `names(metric)`; NaN where not measured.

        Raises:
            ValueError: no metric has that name.
            RunError: nearly all of it would be NaN, and far larger than what is known.
        """
        try:
            return run_info.series(self.records, self.infos, metric, self.names(metric))
        except CannotJudgeError as error:
            raise RunError(f"{self.path}: {error}") from error

    def __repr__(self) -> str:
        return f"Run({escape(str(self.path))!r}: {contents_text(self.records, self.info, self.findings)})"

    def _repr_html_(self) -> str | None:
        """Show the page in a notebook."""
        return shown("of_run", self)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run folder with all its event files, or one event file.

    Raises:
        RunError: there is no such run, no GradWatch record in it, or it is damaged before the first one.
    """
    if is_remote(path):
        raise RunError(
            f"{os.fspath(path)} is remote, and event files are read from a disk: copy the run here first, as with "
            "fsspec.filesystem(…).get(…, recursive=True) or the provider's own command"
        )
    path = local_path(path)
    try:
        return _read(path)
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}") from error
    except DATA_ERRORS as error:
        raise RunError(f"{path} can't be read: {reason_of(error)}") from error


def _read(path: Path) -> Run:
    problems = Problems()
    paths = _event_files(path)
    written = read_files(paths, problems)
    if path.is_dir():
        tell_missing_fits(written, problems)
    run = assembled(path, written, problems)
    if run is None:
        raise RunError(_nothing(path, paths, written, problems))
    return run


def assembled(path: Path, written: Sequence[Written], problems: Problems) -> Run | None:
    """Build a run from what fits wrote, in the order of writing; None where there is no record that fits its description.

    Raises:
        RunError: it holds descriptions that have little in common.
    """
    infos: dict[str, RunInfo] = {}
    for info in (info for part in written for info in part.infos):
        infos.pop(info.layout, None)
        infos[info.layout] = info
    by_step = {record.step: record for part in written for record in part.records}
    records = _fitting((by_step[step] for step in sorted(by_step)), infos, problems)
    if not records:
        return None
    _check_growth(infos)
    told = [part.findings for part in written if part.findings is not None]
    return Run(
        path=path,
        info=next(reversed(infos.values())),
        infos=infos,
        records=records,
        findings=told[-1] if told else (),
        problems=problems.sentences,
        damaged=problems.losses > 0,
        earlier_findings=_earlier_findings(written),
        end=written[-1].end,
    )


@overload
def evaluate(run: Run, rules: Sequence[Any] | None = None) -> tuple[Finding, ...]: ...


@overload
def evaluate(
    run: Iterable[StepRecord], rules: Sequence[Any] | None = None, *, info: RunInfo | Iterable[RunInfo]
) -> tuple[Finding, ...]: ...


def evaluate(
    run: Run | Iterable[StepRecord],
    rules: Sequence[Any] | None = None,
    *,
    info: RunInfo | Iterable[RunInfo] | None = None,
) -> tuple[Finding, ...]:
    """Judge a run, or the records of a plain loop.

    Args:
        run: What `read_run` gave; or records that a `Probe` measured, with `info`.
        rules: None: the rules and thresholds stored in the run, which gives the live findings again, as far as these rules are
            known here (`register_rule`); the default ones for records of a plain loop.
        info: What describes the records, as `Run.from_records` takes it.

    Raises:
        RunError: it holds what can't be judged.
        TypeError, ValueError: records without what describes them, or rules that are none.
    """
    from lightning_gradwatch.judge.evaluator import evaluate_records  # noqa: PLC0415 - reading needs no rules
    from lightning_gradwatch.judge.selection import from_configuration, given_rules, rules_from_settings  # noqa: PLC0415 - as above

    if not isinstance(run, Run):
        if info is None:
            raise TypeError("evaluate: records are judged with what describes them: evaluate(records, info=probe.info)")
        run = Run.from_records(run, info)
    elif info is not None:
        raise TypeError("evaluate: info goes with records; a run has its own")
    try:
        chosen = rules_from_settings(run.info.rules) if rules is None else given_rules(from_configuration(rules))
    except (AttributeError, TypeError, ValueError) as error:
        if rules is not None:
            raise
        raise RunError(f"the rules stored in the run can't be used: {error}") from error
    try:
        found: tuple[Finding, ...] = evaluate_records(run.records, run.infos, chosen, end=run.end)
    except CannotJudgeError as error:
        raise RunError(f"{run.path}: {error}") from error
    return found


def _described(info: Any) -> dict[str, RunInfo]:
    """Return descriptions by layout, each with rules to judge by; those of a plain loop have none.

    Raises:
        TypeError: something isn't a description.
    """
    from lightning_gradwatch.judge.catalog import DEFAULT_RULES  # noqa: PLC0415 - reading needs no rules
    from lightning_gradwatch.judge.selection import settings_of  # noqa: PLC0415 - reading needs no rules

    infos: dict[str, RunInfo] = {}
    for each in info if isinstance(info, Iterable) and not isinstance(info, str) else (info,):
        if not isinstance(each, RunInfo):
            raise TypeError(
                f"info must be what describes the records, probe.info, or several of them; it has {each!r:.100}"
            )
        infos[each.layout] = each if each.rules else replace(each, rules=settings_of(DEFAULT_RULES))
    return infos


def _numbered(records: Any) -> list[StepRecord]:
    """Return records as a list, by steps that rise.

    Raises:
        TypeError: something isn't a record.
        ValueError: there is none.
    """
    taken = list(records) if isinstance(records, Iterable) and not isinstance(records, (str, bytes)) else [records]
    for each in taken:
        if not isinstance(each, StepRecord):
            raise TypeError(f"records must be what was measured, [probe.record, …]; there is {each!r:.100}")
    if not taken:
        raise ValueError("there is no record to judge: collect probe.record of each measured step")
    if all(one.step < two.step for one, two in itertools.pairwise(taken)):
        return taken
    return [replace(record, step=step) for step, record in enumerate(taken)]


def _event_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        siblings = path.parent.glob("*/*tfevents*")
        raise RunError(f"no such run: {path}{_hint(path.parent, siblings)}")
    if not path.is_dir():
        raise RunError(f"{path} is neither a folder nor a file")
    try:
        files = _named_events(path.iterdir())
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}") from error
    if not files:
        below = itertools.chain(path.glob("*/*tfevents*"), path.glob("*/*/*tfevents*"))
        raise RunError(f"no TensorBoard event file in {path}{_hint(path, below)}")
    return files


def _named_events(paths: Any) -> list[Path]:
    # TensorBoard's own test; `is_file` leaves out pipes, which would block, and broken links.
    return sorted(
        filter(is_event_file, paths), key=lambda path: [int(part) for part in re.findall(r"[0-9]{1,18}", path.name)]
    )


def _hint(path: Path, files: Iterable[Path]) -> str:
    folders = sorted({file.parent for file in files}, key=lambda folder: (len(folder.parts), folder.name))
    if len(folders) < 2:
        return f"; did you mean {folders[0]}?" if folders else ""
    named = ", ".join(str(folder) for folder in folders[-3:])
    return f"; did you mean one of the {len(folders)} below {path}, such as {named}?"


def _earlier_findings(written: Sequence[Written]) -> tuple[Finding, ...]:
    """Return what each but the last report said of steps before all that were measured after it."""
    found: list[Finding] = []
    first = None
    for part in reversed(written):
        if part.findings is not None and first is not None:
            found += [finding for finding in part.findings if finding.last_step < first]
        steps = [record.step for record in part.records]
        if steps:
            first = min(steps) if first is None else min(first, *steps)
    return tuple(found[::-1])


def _fitting(records: Iterable[StepRecord], infos: Mapping[str, RunInfo], problems: Problems) -> list[StepRecord]:
    """Return the records whose layout is described and whose vectors have its lengths."""
    found: list[StepRecord] = []
    right = None
    for record in records:
        metrics = record.metrics
        lengths = (
            *(record.layout, *metrics, *map(len, metrics.values())),
            *(len(record.layer_state), len(record.window_fill), len(record.forward_rms)),
            *(len(record.loop_calls), len(record.loop_attenuation)),
        )
        if lengths == right:  # as those of the record before, mostly
            found.append(record)
        elif record.layout not in infos:
            problems.tell(f"step {record.step}: its layout {record.layout!r:.100} is described nowhere")
        else:
            try:
                check_lengths(record, infos[record.layout])
            except ValueError as error:
                problems.tell(str(error))
            else:
                right = lengths
                found.append(record)
    return found


def _check_growth(infos: dict[str, RunInfo]) -> None:
    """Refuse descriptions that have little in common: rules carry what they know of a name through all that follow.

    Raises:
        RunError: they have more that is gone than nets have whose layers grow.
    """
    if len(infos) == 1:
        return
    now = {*(newest := next(reversed(infos.values()))).layer_names, *newest.site_names}
    gone = {name for info in infos.values() for name in (*info.layer_names, *info.site_names) if name not in now}
    if len(gone) * len(infos) > _MOST_GONE:
        raise RunError(
            f"it has {len(infos):,} descriptions of layers and sites, with {len(gone):,} that the last one hasn't"
        )


def _nothing(path: Path, paths: Sequence[Path], written: Sequence[Written], problems: Problems) -> str:
    from lightning_gradwatch.record.events.lightning_curves import describe_curves, gradient_curves  # noqa: PLC0415 - only where nothing is ours

    if not any(file.stat().st_size for file in paths):
        return f"nothing is written yet in {path}: {', '.join(file.name for file in paths[:3])} is empty"
    curves = gradient_curves(paths)
    shown = f". {describe_curves(curves)}" if curves else ""
    told = [finding for part in written for finding in part.findings or ()]
    if told:
        codes = ", ".join(dict.fromkeys(f"{finding.code} {finding.name}" for finding in told))
        shown = f"; while it ran, it reported {codes}{shown}"
    if problems.count:
        return f"{path} has no GradWatch record that can be read: {'; '.join(problems.sentences)}{shown}"
    return f"no GradWatch records in {path}: add GradWatch() to the Trainer's callbacks{shown}"
