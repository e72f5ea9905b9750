"""What the tab is served: its files, which runs there are, and the model of those that are looked at.

Each route is guarded: what goes wrong in it is said in the tab, and is no matter of TensorBoard's. Files are found in a table made at
the start, never by a path that was asked for.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from tensorboard import errors, plugin_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lightning_gradwatch.judge.run import RunError
from lightning_gradwatch.page.bundle import static_files
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.runs import PageRun
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.reasons import DATA_ERRORS, CannotJudgeError, reason_of
from lightning_gradwatch.tab.frontend import PLUGIN, frontend_metadata
from lightning_gradwatch.tab.stored import ListedRun, StoredRuns, samples_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_gradwatch.tab.stored import StoredRun

MOST_RUNS = 8
"""That are shown side by side."""
_MOST_LISTED = 2000
_LONGEST_QUERY = 1 << 16
_MODELS_KEPT = 4
_SMALL = 1400
"""Bytes of an answer that aren't worth packing."""
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_COLOUR = re.compile("#[0-9a-f]{6}")
_POLICY = "default-src 'none'; frame-ancestors 'self'"
_OWN = Path(__file__).parent / "static"

_log = logging.getLogger("lightning_gradwatch.tab")


class GradWatchPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """The tab.

    Args:
        context: TensorBoard's; any part of it may be missing.
    """

    plugin_name = PLUGIN

    def __init__(self, context: Any) -> None:
        self._stored = StoredRuns(context.data_provider, samples=samples_of(context.sampling_hints))
        self._files = {f"page/{name}": path for name, path in static_files().items()}
        self._files |= {path.name: path for path in sorted(_OWN.iterdir()) if path.suffix in _TYPES}
        self._models: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._lock = Lock()

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return what answers to which path below the plugin's own."""
        files = {f"/{name}": self._file_app(name) for name in self._files}
        return {**files, "/runs": self._guarded(self._runs), "/model": self._guarded(self._model)}

    def is_active(self) -> bool:
        """Leave it to TensorBoard, which shows the tab where there are data of ours."""
        return False

    def frontend_metadata(self) -> Any:
        """Return what the tab is called, and what it starts with."""
        return frontend_metadata()

    def _file_app(self, name: str) -> Any:
        path = self._files[name]

        def read(request: wrappers.Request) -> wrappers.Response:
            return _answer(request, path.read_bytes(), _TYPES[path.suffix])

        return self._guarded(read)

    def _guarded(self, app: Callable[[wrappers.Request], wrappers.Response]) -> Any:
        """Return a WSGI application that answers with a sentence whatever goes wrong."""

        def answer(request: wrappers.Request) -> wrappers.Response:
            if request.method not in ("GET", "HEAD"):
                return _refused(request, 405, "only GET is answered")
            if len(request.query_string) > _LONGEST_QUERY:
                return _refused(request, 414, f"the query is longer than {_LONGEST_QUERY:,} bytes")
            try:
                return app(request)
            except errors.PublicError as error:
                return _refused(request, error.http_code, f"TensorBoard: {error}")
            except Exception as error:  # noqa: BLE001 - a fault of ours is said in the tab, and ends nothing of TensorBoard
                _log.exception("GradWatch's tab: %s failed", request.path)
                return _refused(request, 500, f"a fault of GradWatch: {type(error).__name__}: {error}")

        return wrappers.Request.application(answer)

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        """Answer which runs there are, each with a version that changes when steps come in."""
        listed = self._listed(request)
        return _answer(
            request,
            _json(
                {
                    "runs": [
                        {"name": each.name, "shown": _shown(each.name), "version": each.version} for each in listed
                    ],
                    "most": MOST_RUNS,
                }
            ),
            "application/json",
        )

    def _listed(self, request: wrappers.Request) -> list[ListedRun]:
        context, experiment = plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)
        return self._stored.listed(context, experiment)[:_MOST_LISTED]

    def _model(self, request: wrappers.Request) -> wrappers.Response:
        """Answer with what the page shows of some runs, in the order in which they are asked for."""
        names = list(dict.fromkeys(request.args.getlist("run")))
        colours = {
            name: colour
            for name, colour in zip(request.args.getlist("run"), request.args.getlist("colour"), strict=False)
            if _COLOUR.fullmatch(colour)
        }
        if not 0 < len(names) <= MOST_RUNS:
            return _refused(request, 400, f"between 1 and {MOST_RUNS} runs are shown; {len(names)} were asked for")
        by_name = {each.name: each for each in self._listed(request)}
        missing = next((name for name in names if name not in by_name), None)
        if missing is not None:
            return _refused(request, 404, f"TensorBoard has no run {_shown(missing)} with steps of GradWatch")
        wanted = [by_name[name] for name in names]
        experiment = plugin_util.experiment_id(request.environ)
        key = (experiment, *wanted, *colours.items())
        with self._lock:
            body = self._models.get(key)
        if body is None:
            context = plugin_util.context(request.environ)
            runs = [self._page_run(context, experiment, each, colours.get(each.name, "")) for each in wanted]
            body = gzip.compress(_json(page_model(runs)), compresslevel=1)
            with self._lock:
                self._models[key] = body
                while len(self._models) > _MODELS_KEPT:
                    self._models.popitem(last=False)
        return _answer(request, body, "application/json", packed=True)

    def _page_run(self, context: Any, experiment: str, listed: ListedRun, colour: str) -> PageRun:
        try:
            stored = self._stored.read(context, experiment, listed)
            return _judged(stored, listed.name, colour)
        except (CannotJudgeError, *DATA_ERRORS) as error:
            return PageRun.failed(listed.name, reason_of(error))


def _judged(stored: StoredRun, name: str, colour: str) -> PageRun:
    """Return a run with its findings: judged again where all its steps are there, as reported where they aren't."""
    if not stored.sampled and not stored.run.damaged:
        try:
            return PageRun.of(stored.run, name=name, colour=colour)
        except RunError as error:
            _log.debug("%s can't be judged: %s", name, error)
    run = PageRun.of(stored.run, name=name, findings=stored.run.findings, colour=colour)
    if not stored.findings_lost:
        return run
    return PageRun(
        name=run.name,
        info=run.info,
        infos=run.infos,
        records=run.records,
        problems=run.problems,
        failure=stored.findings_lost,
        path=run.path,
        colour=colour,
    )


def _shown(name: str) -> str:
    return escape(name, Place.PAGE)


def _json(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def _refused(request: wrappers.Request, code: int, reason: str) -> wrappers.Response:
    return _answer(request, _json({"refused": _shown(reason[:2000])}), "application/json", code=code)


def _answer(
    request: wrappers.Request, body: bytes, content_type: str, *, code: int = 200, packed: bool = False
) -> wrappers.Response:
    """Return a response that no browser takes for anything else than it is.

    Args:
        request: What is answered.
        body: Of the response.
        content_type: Of the body.
        code: Of the response.
        packed: Whether the body is gzipped already.
    """
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    takes_packed = "gzip" in request.headers.get("Accept-Encoding", "")
    if packed and not takes_packed:
        body = gzip.decompress(body)
    elif not packed and takes_packed and len(body) > _SMALL:
        body = gzip.compress(body, compresslevel=1)
        packed = True
    if packed and takes_packed:
        headers["Content-Encoding"] = "gzip"
    return wrappers.Response(body, status=code, headers=headers, content_type=f"{content_type}; charset=utf-8")
