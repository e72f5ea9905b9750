"""What the tab is served: its files, which runs there are, and the model of those that are looked at.

Each route is guarded: what goes wrong in it is said in the tab, and is no matter of TensorBoard's. Files are found in a table made at
the start, never by a path that was asked for. What reads and judges is imported by the first question, as TensorBoard's start would
wait for it.
"""

from __future__ import annotations

import gzip
import json
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard import errors, plugin_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lightning_gradwatch.page.bundle import static_files
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.tab.frontend import PLUGIN, RefusedError, frontend_metadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_gradwatch.tab.answers import Answers

_LONGEST_QUERY = 1 << 16
_SMALL = 1400
"""Bytes of an answer that aren't worth packing."""
_TYPES = {".js": "text/javascript", ".css": "text/css"}
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
        self._context = context
        self._files = {f"page/{name}": path for name, path in static_files().items()}
        self._files |= {path.name: path for path in sorted(_OWN.iterdir()) if path.suffix in _TYPES}

    @cached_property
    def _answers(self) -> Answers:
        from lightning_gradwatch.tab.answers import Answers  # noqa: PLC0415 - see above

        return Answers(self._context.data_provider, self._context.sampling_hints)

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
            except RefusedError as error:
                return _refused(request, error.code, str(error))
            except errors.PublicError as error:
                return _refused(request, error.http_code, f"TensorBoard: {error}")
            except Exception as error:  # noqa: BLE001 - a fault of ours is said in the tab, and ends nothing of TensorBoard
                _log.exception("GradWatch's tab: %s failed", request.path)
                return _refused(request, 500, f"a fault of GradWatch: {type(error).__name__}: {error}")

        return wrappers.Request.application(answer)

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        """Answer which runs there are, each with a version that changes when steps come in."""
        return _answer(request, _json(self._answers.runs(*_asked_in(request))), "application/json")

    def _model(self, request: wrappers.Request) -> wrappers.Response:
        """Answer with what the page shows of some runs, in the order of the list of runs."""
        names, colours = request.args.getlist("run"), request.args.getlist("colour")
        body = self._answers.model(*_asked_in(request), names=names, colours=colours)
        return _answer(request, body, "application/json", packed=True)


def _asked_in(request: wrappers.Request) -> tuple[Any, str]:
    """Return TensorBoard's context of a request, and the experiment."""
    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)


def _json(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def _refused(request: wrappers.Request, code: int, reason: str) -> wrappers.Response:
    return _answer(request, _json({"refused": escape(reason[:2000], Place.PAGE)}), "application/json", code=code)


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
