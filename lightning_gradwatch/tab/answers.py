"""What the tab is told: which runs there are, and the model of those that are looked at."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.judge.run import RunError
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.runs import PageRun
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of
from lightning_gradwatch.tab.frontend import RefusedError
from lightning_gradwatch.tab.stored import ListedRun, StoredRuns, samples_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_gradwatch.tab.stored import StoredRun

MOST_RUNS = 8
"""That are shown side by side."""
_MOST_LISTED = 2000
_MODELS_KEPT = 4
_COLOUR = re.compile("#[0-9a-f]{6}")

_log = logging.getLogger("lightning_gradwatch.tab")


class Answers:
    """Answers for the runs of a TensorBoard server.

    Args:
        data_provider: TensorBoard's; None where it has none.
        hints: How many points of a series TensorBoard was told to keep, by plugin.
    """

    def __init__(self, data_provider: Any, hints: Mapping[str, Any] | None) -> None:
        self._stored = StoredRuns(data_provider, samples=samples_of(hints))
        self._models: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._lock = Lock()

    def runs(self, context: Any, experiment: str) -> dict[str, Any]:
        """Return which runs there are, each with a version that changes when steps come in."""
        listed = self._listed(context, experiment)
        return {
            "runs": [{"name": each.name, "shown": _shown(each.name), "version": each.version} for each in listed],
            "most": MOST_RUNS,
        }

    def model(self, context: Any, experiment: str, *, names: Sequence[str], colours: Sequence[str]) -> bytes:
        """Return what the page shows of some runs, as JSON that is packed by gzip.

        Args:
            context: TensorBoard's, of the request.
            experiment: Its name.
            names: Of the runs.
            colours: Of the runs, such as ``#425066``; anything else leaves the choice to the page.

        Raises:
            RefusedError: there is no such run, or there are too many.
        """
        named = list(dict.fromkeys(names))
        if not 0 < len(named) <= MOST_RUNS:
            raise RefusedError(400, f"between 1 and {MOST_RUNS} runs are shown; {len(named)} were asked for")
        by_name = {each.name: each for each in self._listed(context, experiment)}
        missing = next((name for name in named if name not in by_name), None)
        if missing is not None:
            raise RefusedError(404, f"TensorBoard has no run {missing} with steps of GradWatch")
        chosen = {name: hue for name, hue in zip(names, colours, strict=False) if _COLOUR.fullmatch(hue)}
        wanted = [by_name[name] for name in named]
        key = (experiment, *wanted, *chosen.items())
        with self._lock:
            found = self._models.get(key)
        if found is None:
            found = self._drawn(context, experiment, wanted, chosen)
            with self._lock:
                self._models[key] = found
                while len(self._models) > _MODELS_KEPT:
                    self._models.popitem(last=False)
        return found

    def _listed(self, context: Any, experiment: str) -> list[ListedRun]:
        return self._stored.listed(context, experiment)[:_MOST_LISTED]

    def _drawn(self, context: Any, experiment: str, wanted: Sequence[ListedRun], colours: Mapping[str, str]) -> bytes:
        runs = [self._page_run(context, experiment, each, colours.get(each.name, "")) for each in wanted]
        said = [f"{_shown(run.name)}: {_shown(run.problems[0])}" for run, sampled in runs if sampled and run.problems]
        model = {**page_model([run for run, _ in runs]), "said": said}
        return gzip.compress(json.dumps(model, allow_nan=False, separators=(",", ":")).encode(), compresslevel=1)

    def _page_run(self, context: Any, experiment: str, listed: ListedRun, colour: str) -> tuple[PageRun, bool]:
        """Return a run as the page takes it, and whether TensorBoard dropped some of its steps."""
        try:
            stored = self._stored.read(context, experiment, listed)
            return _judged(stored, listed.name, colour), stored.sampled
        except (CannotJudgeError, *DATA_ERRORS) as error:
            return PageRun.failed(listed.name, reason_of(error)), False


def _judged(stored: StoredRun, name: str, colour: str) -> PageRun:
    """Return a run with its findings: judged again where all its steps are there, as reported where they aren't."""
    if not stored.sampled and not stored.run.damaged:
        try:
            return PageRun.of(stored.run, name=name, colour=colour)
        except RunError as error:
            _log.debug("%s can't be judged: %s", name, error)
    run = PageRun.of(stored.run, name=name, findings=stored.run.findings, colour=colour)
    return replace(run, findings=(), failure=stored.findings_lost) if stored.findings_lost else run


def _shown(name: str) -> str:
    return escape(name, Place.PAGE)
