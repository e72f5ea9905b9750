"""What sites are called: one look-up a name, however many sites there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.measure.model.call_site import Place
    from lightning_gradwatch.measure.model.path import Site


class FreeNames:
    """Names that are given once each."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._counts: dict[str, int] = {}
        """The number that was given to a name last."""

    def take(self, name: str) -> str:
        """Return a name, with a number where it was given before.

        >>> names = FreeNames()
        >>> [names.take("act"), names.take("act"), names.take("act")]
        ['act', 'act#2', 'act#3']
        """
        free, count = name, self._counts.get(name, 1)
        while free in self._given:
            count += 1
            free = f"{name}#{count}"
        self._counts[name] = count
        self._given.add(free)
        return free


class SiteNames:
    """The names of a model's sites.

    A module that is nothing but an activation function names its site. Where several layers share it, each of its sites
    adds the layer that feeds it. Anywhere else a site has the name of its module and its function.
    """

    def __init__(self) -> None:
        self._free = FreeNames()
        self._inside: dict[str, set[tuple[Place | None, str]]] = {}
        """By module, the functions called in it, with their lines where it is one of the user's own that is a function."""
        self._feeding: dict[str, set[str]] = {}
        """By plain name, the layers that feed the sites of an activation module."""

    def give(self, sites: Sequence[Site]) -> None:
        """Name the sites that one forward pass was the first to call; those named before keep what they have."""
        for site in sites:
            self._inside.setdefault(site.location.module, set()).add((site.location.inner, site.function))
        plain = [self._plain(site) for site in sites]
        for name, site in zip(plain, sites, strict=True):
            if site.location.leaf:
                self._feeding.setdefault(name, set()).add(site.layer)
        for name, site in zip(plain, sites, strict=True):
            shared = site.location.leaf and site.layer and len(self._feeding[name]) > 1
            site.name = self._free.take(f"{name}@{site.layer}" if shared else name)

    def _plain(self, site: Site) -> str:
        module = site.location.module
        alone = site.location.leaf and len(self._inside[module]) == 1
        return module if alone else f"{module}:{site.composite or site.function}"
