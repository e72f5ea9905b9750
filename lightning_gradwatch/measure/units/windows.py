"""The windows of all sites that have units, and which of them want further steps watched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.measure.units.look_back import Moved, examine
from lightning_gradwatch.measure.units.silence import bar
from lightning_gradwatch.measure.units.window import Window
from lightning_gradwatch.record.checkpoint import named, window_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_gradwatch.measure.model.path import Site
    from lightning_gradwatch.measure.units.silence import WindowEntry
    from lightning_gradwatch.record.step import SiteInfo


class Windows:
    """The windows of all sites with units, by name.

    Args:
        observations, batch_elements, least: See `Window`.
    """

    def __init__(self, observations: int, batch_elements: int, least: int | None = None) -> None:
        self._size = observations, batch_elements, least
        self._windows: dict[str, Window] = {}
        """Those of a checkpoint too whose sites weren't seen again yet."""
        self._full = False
        """Whether all were seen to be; one that has been counts as full."""
        self._suspected: list[Window] = []
        self.wanted = 0
        """How many steps some window wants watched that aren't due; asked at each step until none does."""

    def of(self, sites: Iterable[Site | SiteInfo]) -> list[Window | None]:
        """Return the window of each site, an empty one for one that is new; None for one without units."""
        return [self._of(site.name) if site.units else None for site in sites]

    def _of(self, name: str) -> Window:
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window(*self._size)
            self._full = False
        return window

    @property
    def full(self) -> bool:
        """Whether all of them are or have been; asked at each step, and so worked out only until they are."""
        if not self._full:
            self._full = all(window.filled for window in self._windows.values())
        return self._full

    def take(
        self, sites: Sequence[Site | SiteInfo], chunks: Sequence[WindowEntry | None], *, due: bool = True
    ) -> list[Window | None]:
        """Add a step's counts, and see whether units seem to have died; return the window of each site.

        Args:
            sites: The sites.
            chunks: The counts of each; None for one without, or that wasn't called.
            due: Whether the step makes a record, and isn't watched for the windows' sake alone.
        """
        windows = self.of(sites)
        moved: dict[tuple[int, bool], list[Moved]] = {}
        for site, window, chunk in zip(sites, windows, chunks, strict=True):
            if window is not None and chunk is not None:
                window.add(chunk)
                units = chunk.inactive.size
                if units and window.filled:
                    of_kind = moved.setdefault((units, chunk.saturated is None), [])
                    of_kind.append(Moved(window, site.role == "hidden"))
        count = sum(map(len, moved.values()))
        for alike in moved.values():
            examine(alike, bar(count))
            for window, _ in alike if due else ():
                window.forgive(count)
        self._note_suspected()
        return windows

    def look(self) -> None:
        """Note that a step is watched because one of them asked for it."""
        for window in self._suspected:
            if window.suspicion is not None:
                window.suspicion.looks += 1
        self._note_suspected()

    def _note_suspected(self) -> None:
        self._suspected = [window for window in self._windows.values() if window.suspicion is not None]
        self.wanted = max((window.wanted for window in self._suspected), default=0)

    def state_dict(self) -> dict[str, Any]:
        """Return all of them, for a checkpoint."""
        return {name: window.state_dict() for name, window in self._windows.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateError: it isn't what that gives.
        """
        self._windows.clear()
        self._full = False
        for name, saved in named(state, "windows").items():
            window = self._of(name)
            window.load_state_dict(window_of(saved, f"the window of {name}", like=window.state_dict()))
        self._note_suspected()
