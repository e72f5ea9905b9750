"""What ties a callback to its copies, so that what they see shows on it: on the object that the user holds.

Packages copy the callbacks that they are given (neuralforecast does, and whatever clones its arguments as scikit-learn does), and
it is the copy that watches. Results go up alone, from a copy to all that it descends from and that is still there, and are
kept there when the copy has gone; neither a fit nor a model is kept alive by that.
"""

from __future__ import annotations

import itertools
import uuid
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from lightning_gradwatch.fit.results import Outcome
from lightning_gradwatch.record.step import NotCovered
from lightning_gradwatch.record.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning_gradwatch.record.finding import Finding

    class Watching(Protocol):
        """A callback, as far as it tells of its own fit."""

        @property
        def own_outcome(self) -> Outcome:
            """What it saw itself."""


_NOTE = (
    "seen by copies of this callback, which watched {}: the findings are those of all of them, the rest is of the last"
)
_MOST_FINDINGS = 1000
_clock = itertools.count(1)
_alive: weakref.WeakValueDictionary[str, Kin] = weakref.WeakValueDictionary()
"""By name, as one that is written down and read in the same process is a copy too."""


class Kin:
    """One callback among those that were copied from each other.

    Args:
        ancestors: Those of the callback that it was copied from, and of those before.
    """

    def __init__(self, ancestors: Iterable[Kin] = ()) -> None:
        self.fits = 0
        """How many fits its copies have watched since it began one itself."""
        self._name = uuid.uuid4().hex
        self._ancestors = tuple(map(weakref.ref, ancestors))
        self._copies: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watching: dict[str, tuple[int, weakref.ref[Watching]]] = {}
        """Copies in the middle of a fit, by name, with when it began."""
        self._findings: dict[tuple[str, tuple[str, ...]], Finding] = {}
        self._last = (0, Outcome())
        self._began = 0
        self._belongs = False
        _alive[self._name] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Kin:
        return self._heir()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, ([each._name for each in (*self.ancestors(), self)],)  # noqa: SLF001 - of its own class

    def _heir(self) -> Kin:
        return Kin((*self.ancestors(), self))

    def belong_to(self, watching: Any) -> Kin:
        """Return that of a callback which has just been made: this one, or, where it is another's already, an heir of it."""
        kin = self._heir() if self._belongs else self
        kin._belongs = True  # noqa: SLF001 - of its own class
        for each in kin.ancestors():
            each._copies.add(watching)  # noqa: SLF001 - of its own class
        return kin

    def ancestors(self) -> Iterator[Kin]:
        """Yield those that are still there, the first one first."""
        for each in self._ancestors:
            if (kin := each()) is not None:
                yield kin

    @property
    def inherits(self) -> bool:
        """Whether something that it descends from is still there."""
        return any(True for _ in self.ancestors())

    @property
    def began(self) -> bool:
        """Whether this callback has watched a fit itself."""
        return self._began > 0

    @property
    def copies(self) -> list[Any]:
        """The callbacks that descend from this one and are still there."""
        return list(self._copies)

    def begin(self, watching: Watching) -> None:
        """Note that this callback begins a fit: what its copies saw before is over, and what it sees shows on its ancestors."""
        self._began = next(_clock)
        self.fits, self._last = 0, (0, Outcome())
        self._findings.clear()
        for each in self.ancestors():
            each._add(self._name, self._began, watching)  # noqa: SLF001 - of its own class

    def end(self, outcome: Outcome) -> None:
        """Leave what this callback saw in its fit to its ancestors; fine to call again, and where it has watched none."""
        for each in self.ancestors() if self._began else ():
            each._take(self._name, self._began, outcome)  # noqa: SLF001 - of its own class

    def merged(self, own: Outcome) -> Outcome:
        """Return what this callback saw, and its copies: the findings of all, the rest of the fit that began last."""
        outcomes = [(self._began, own), self._last]
        for began, reference in [*self._watching.values()]:
            if (copy := reference()) is not None:
                outcomes.append((began, copy.own_outcome))
        last = max(outcomes, key=lambda entry: entry[0])[1]
        findings = dict(self._findings)
        for _, outcome in outcomes:
            _merge(findings, outcome.findings)
        told = sorted(findings.values(), key=lambda finding: bool(finding.consequence_of))
        note = NotCovered("", _NOTE.format(counted(self.fits, "fit")))
        return replace(last, findings=tuple(told), coverage=(*last.coverage, note))

    def _add(self, name: str, began: int, watching: Watching) -> None:
        self._watching = {key: entry for key, entry in self._watching.items() if entry[1]() is not None}
        self._watching[name] = began, weakref.ref(watching)
        self.fits += 1

    def _take(self, name: str, began: int, outcome: Outcome) -> None:
        self._watching.pop(name, None)
        if began < self._began:  # of before this one's own fit
            return
        if began >= self._last[0]:
            self._last = began, outcome
        _merge(self._findings, outcome.findings)


def _merge(found: dict[tuple[str, tuple[str, ...]], Finding], findings: Iterable[Finding]) -> None:
    """Add findings of another fit: one a rule and layers, the worst."""
    for finding in findings:
        key = finding.code, finding.layers
        kept = found.get(key)
        if kept is None:
            if len(found) < _MOST_FINDINGS:
                found[key] = finding
        elif finding.severity > kept.severity:
            found[key] = finding


def _restore(ancestors: list[str]) -> Kin:
    """Return that of a callback that was written down, whose ancestors are in this process or aren't."""
    return Kin(kin for name in ancestors if (kin := _alive.get(name)) is not None)
