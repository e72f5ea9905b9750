"""What TensorBoard is told of the tab; imported when it starts, and what its parts share."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin

PLUGIN = "gradwatch"
"""As the events name it."""
ENTRY = "/tab.js"
"""The module that the tab starts with."""


class RefusedError(Exception):
    """A question that isn't answered; the message says why.

    Args:
        code: Of the response.
        reason: The message.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frontend_metadata() -> Any:
    """Return what the tab is called, and what it starts with."""
    return base_plugin.FrontendMetadata(es_module_path=ENTRY, tab_name="GradWatch")
