"""What TensorBoard imports when it starts, in every environment that has this package: next to nothing.

An error here, or in `fix_flags`, would end the user's server. So the plugin itself is imported in `load`, and where that fails, a
tab takes its place that says why.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

from tensorboard.plugins import base_plugin

from lightning_gradwatch.tab.frontend import ENTRY, PLUGIN, frontend_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SAMPLES = 2000
"""Measured steps of a run that TensorBoard is asked to hold, where the user doesn't say: by default it keeps 10, or 100."""

_log = logging.getLogger("lightning_gradwatch.tab")


class GradWatchLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard ships no types
    """What the entry point names."""

    def fix_flags(self, flags: Any) -> None:
        """Have TensorBoard keep more of our steps than of others' images; what the user asks for stays."""
        with contextlib.suppress(Exception):  # an error here would end the user's TensorBoard
            flags.samples_per_plugin.setdefault(PLUGIN, SAMPLES)

    def load(self, context: Any) -> Any:
        """Return the plugin; where it can't be loaded, one that says so in its tab."""
        try:
            from lightning_gradwatch.tab.plugin import GradWatchPlugin  # noqa: PLC0415 - see above

            return GradWatchPlugin(context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the user's TensorBoard goes on
            _log.warning("GradWatch's tab can't be shown: %s: %s", type(error).__name__, error)
            return Unavailable(f"{type(error).__name__}: {error}")


class Unavailable(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard ships no types
    """The tab that says why there is none."""

    plugin_name = PLUGIN

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the only file, which the tab starts with."""
        return {ENTRY: self._serve}

    def is_active(self) -> bool:
        """Leave it to TensorBoard, which shows the tab where there are data of ours."""
        return False

    def frontend_metadata(self) -> Any:
        """Return what the tab is called, and what it starts with."""
        return frontend_metadata()

    def _serve(self, environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        del environ
        text = json.dumps(f"GradWatch's tab can't be shown. {self._reason[:2000]}")
        body = f"export function render() {{ document.body.textContent = {text}; }}\n".encode()
        start_response(
            "200 OK",
            [
                ("Content-Type", "text/javascript; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]
