"""What was found to be wired wrongly, or oddly; each kind of it once, with all that it is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_gradwatch.measure.model.path import Site
from lightning_gradwatch.record.step import Wiring

if TYPE_CHECKING:
    from lightning_gradwatch.record.step import WiringKind

_MOST_NAMES = 1000


@dataclass
class _Found:
    """One kind of it, by one operation."""

    line: str
    value: float | None
    origin: str
    of: dict[Site | str, None] = field(default_factory=dict)


class Facts:
    """The facts of a run."""

    def __init__(self) -> None:
        self._found: dict[tuple[WiringKind, str], _Found] = {}
        self.changes = 0
        """How often something was added, for whoever has described the run already."""

    def note(
        self,
        kind: WiringKind,
        of: Site | str,
        *,
        operation: str = "",
        line: str = "",
        value: float | None = None,
        origin: str = "",
    ) -> None:
        """Add a fact; lines and value are those of the first of its kind.

        Args:
            kind: What is wrong.
            of: The site, layer, module or attribute that it is about.
            operation: The torch function, or the kind of module.
            line: Where that is called.
            value: See `Wiring.value`.
            origin: See `Wiring.origin`.
        """
        found = self._found.setdefault((kind, operation), _Found(line, value, origin))
        if of not in found.of and len(found.of) < _MOST_NAMES:
            found.of[of] = None
            self.changes += 1

    def described(self) -> tuple[Wiring, ...]:
        """Return them; a site that turned out to be part of another one is left out."""
        told = []
        for (kind, operation), found in self._found.items():
            names = tuple(each.name if isinstance(each, Site) else each for each in found.of)
            known = tuple(
                name for each, name in zip(found.of, names, strict=True) if name or not isinstance(each, Site)
            )
            if known:
                told.append(Wiring(kind, known, operation, found.line, found.value, found.origin))
        return tuple(told)
