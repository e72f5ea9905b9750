"""The page in a notebook's cell: a line that every viewer shows, and the page in a frame that can reach nothing of the notebook.

A viewer that doesn't trust a notebook leaves the frame out; the line and its findings remain. The page is thinned further than in a
file, as each cell that shows it keeps a copy.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.page.html import html_page
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.runs import PageRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.judge.run import Run
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

MAX_COLUMNS = 128
"""Columns that the steps are thinned to."""
_HEIGHT = 760
_MOST_FINDINGS = 20
_ONE_STEP = (
    "one measured step isn't judged: collect probe.record of each step, and show Run.from_records(records, probe.infos)"
)


def notebook_html(run: PageRun) -> str:
    """Return what a cell shows of a run."""
    model = page_model([run], max_columns=MAX_COLUMNS)
    document = html_page(model, host="host_notebook.js")
    # Between single quotes, as the data are full of double ones.
    held = document.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")
    frame = (
        f"<iframe title='GradWatch' sandbox='allow-scripts allow-downloads' referrerpolicy='no-referrer' "
        f"style='width: 100%; height: {_HEIGHT}px; border: 1px solid #8888; border-radius: 4px' srcdoc='{held}'></iframe>"
    )
    return f"<div>{_summary(model['runs'][0])}{frame}</div>"


def of_run(run: Run) -> str:
    """Return what a cell shows of a stored run."""
    return notebook_html(PageRun.of(run))


def of_watched(outcome: Any, *, name: str = "this fit") -> str | None:
    """Return what a cell shows of what a fit came to, or a check; None where nothing was measured.

    Args:
        outcome: Has `records`, `infos`, `findings` and `unjudged`.
        name: What the page calls it.
    """
    infos = {info.layout: info for info in outcome.infos}
    records = [record for record in outcome.records if record.layout in infos]
    if not records:
        return None
    return notebook_html(
        PageRun(
            name=name,
            info=infos[records[-1].layout],
            infos=infos,
            records=_rising(records),
            findings=outcome.findings,
            unjudged=outcome.unjudged,
        )
    )


def of_report(report: Any) -> str | None:
    """Return what a cell shows of the report of `check_training`."""
    return of_watched(report, name="check_training")


def of_step(measured: tuple[StepRecord, Sequence[RunInfo]]) -> str:
    """Return what a cell shows of one measured step, given with what describes it; one step isn't judged."""
    record, infos = measured
    info = next(info for info in infos if info.layout == record.layout)
    return notebook_html(PageRun(name="the probe's last step", info=info, records=[record], failure=_ONE_STEP))


def _rising(records: Sequence[Any]) -> list[Any]:
    """Return records by step; of a step that was measured again, as after a resumed epoch, the later one."""
    by_step = {record.step: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _summary(run: dict[str, Any]) -> str:
    """Return a line with the verdict, which opens to the findings."""
    told = f"GradWatch, {run['name']}: {run['verdict']}"
    findings = run["findings"][:_MOST_FINDINGS]
    if not findings:
        return f"<p>{html.escape(told)}</p>"
    items = "".join(f"<li>{html.escape(_line(finding))}</li>" for finding in findings if not finding["consequence_of"])
    return f"<details><summary>{html.escape(told)}</summary><ul>{items}</ul></details>"


def _line(finding: dict[str, Any]) -> str:
    layers = finding["layers"]
    where = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    since = f"since step {finding['first_step']}"
    return (
        f"{finding['code']} {finding['name']} ({finding['severity']}) {since}, at {where}. {finding['remedy']['text']}"
    )
