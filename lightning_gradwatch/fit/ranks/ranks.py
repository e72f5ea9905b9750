"""The exchange of one measured step: what all ranks saw, put together on each of them.

One sum over all ranks a measured step. Only where some rank has news, a layer or a site that it hasn't told of yet (as a
rule in the first step), the ranks tell each other what they have, and the sum is taken again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_gradwatch.fit.ranks.columns import Description, Table
from lightning_gradwatch.fit.ranks.vector import Head, Layout, Parts, Status, fill, leave_out, read
from lightning_gradwatch.measure.assemble import assemble
from lightning_gradwatch.measure.faults import MEASURING, GivenUp

if TYPE_CHECKING:
    from lightning_gradwatch.fit.ranks.exchange import Exchange
    from lightning_gradwatch.measure.assemble import PendingRecord
    from lightning_gradwatch.measure.faults import Faults, Part
    from lightning_gradwatch.measure.totals import Totals
    from lightning_gradwatch.record.run_info import RunInfo
    from lightning_gradwatch.record.step import StepRecord

_DISAGREED = "steps that only some of the ranks took aren't measured"
_UNCOMBINED = "not the same on the ranks that share the work on one part of the data, nor split by units"


class Ranks:
    """One rank's part in the exchanges.

    Args:
        exchange: Adds up over the ranks.
        faults: Of this rank's monitor.
        optimizers: How many the run has.
        replica: The part of the data that this rank sees, of so many `replicas`.
        lag: How many batches have to begin after a measured step before its numbers are exchanged, the same on all ranks.
            With 0 their transfer to the host is waited for; with 2 it has a whole training step.
    """

    def __init__(
        self, exchange: Exchange, faults: Faults, *, optimizers: int, replica: int, replicas: int, lag: int
    ) -> None:
        self.lag = lag
        self.batches = 0
        """Batches so far."""
        self._exchange = exchange
        self._faults = faults
        self._optimizers = optimizers
        self._replica = replica
        self._table = Table(exchange.size, replicas)
        self._described: RunInfo | None = None
        self._off: set[Part] = set()
        """Parts of which this rank has told, or was told, that they are switched off."""
        self._open = True

    def share(self, pending: PendingRecord) -> SharedRecord:
        """Make a measured step of this rank one of all ranks."""
        return SharedRecord(self, self.batches, pending.facts.step, pending)

    def skip(self, step: int) -> SharedRecord:
        """Make one of a step that no optimizer of this rank took, though it may have been taken elsewhere."""
        return SharedRecord(self, self.batches, step, None)

    def combine(self, pending: PendingRecord) -> Totals | None:
        """Return the tally of all ranks, by the columns of `info`; None for a step that not all of them took.

        Raises:
            GivenUp: the monitor of another rank has failed.
            RuntimeError: a rank is gone.
        """
        parts, layout = self._exchange_step(pending.facts.step, pending, pending.read())
        if (parts.head[:, Head.STATUS] != Status.STEPPED).any():
            self._table.note("", _DISAGREED)
            return None
        tally, uncombined = read(parts, layout)
        for place in uncombined:
            self._table.note(self._table.info.sites[place].name, _UNCOMBINED)
        leave_out(tally, self._table.off)
        return tally

    def all_wait(self, step: int) -> bool:
        """Return whether no optimizer of any rank stepped in the batch; what the others measured is let go otherwise.

        Raises:
            GivenUp, RuntimeError: as above.
        """
        parts, _ = self._exchange_step(step)
        waiting = bool((parts.head[:, Head.STATUS] == Status.WAITING).all())
        if not waiting:
            self._table.note("", _DISAGREED)
        return waiting

    @property
    def info(self) -> RunInfo:
        """The description of the run as all ranks have it."""
        return self._table.info

    def leave(self) -> None:
        """Tell the others, when they come by, that this rank's monitor has failed; fine to call again."""
        if self._open:
            self._open = False
            self._exchange.begin_last_sum(Layout.of(self._table, self._optimizers).empty().vector)

    def close(self) -> None:
        """End it; fine to call again."""
        self._open = False
        self._exchange.close()

    def _exchange_step(
        self, step: int, pending: PendingRecord | None = None, tally: Totals | None = None
    ) -> tuple[Parts, Layout]:
        news = b"" if pending is None else self._news(pending)
        rank = self._exchange.rank
        while True:
            layout = Layout.of(self._table, self._optimizers)
            parts = layout.empty()
            if tally is not None and not news:  # by columns that the others don't know yet
                fill(parts, layout, rank, tally)
            parts.head[rank, Head.STATUS] = Status.WAITING if tally is None else Status.STEPPED
            parts.head[rank, Head.NEWS], parts.head[rank, Head.STEP] = len(news), step
            parts = layout.parts(self._exchange.begin_sum(parts.vector).wait())
            self._check(parts)
            lengths = parts.head[:, Head.NEWS].astype(int).tolist()
            if not any(lengths):
                return parts, layout
            self._hear(self._exchange.gather(news, lengths))
            news = b""

    def _check(self, parts: Parts) -> None:
        left = (parts.head[:, Head.STATUS] == Status.LEFT).nonzero()[0].tolist()
        if left:
            self.close()
            raise GivenUp(f"the monitor of rank {left[0]} has failed, and said why there")
        if (parts.head[:, Head.STEP] != parts.head[0, Head.STEP]).any():
            raise RuntimeError(f"ranks measured different steps: {parts.head[:, Head.STEP].astype(int).tolist()}")

    def _news(self, pending: PendingRecord) -> bytes:
        faults = {
            part: self._faults.reasons[part]
            for part in MEASURING
            if not self._faults.on(part) and part not in self._off
        }
        if pending.info is self._described and not faults:
            return b""
        self._described = pending.info
        sites = pending.columns.sites
        return Description(
            replica=self._replica,
            info=pending.info,
            keys=tuple(site.key for site in sites),
            features=tuple(site.features for site in sites),
            faults=faults,
        ).to_bytes()

    def _hear(self, messages: list[bytes]) -> None:
        described = [Description.from_bytes(message) if message else None for message in messages]
        self._table.update(described)
        for part, why in self._table.off.items():
            if part not in self._off:
                self._off.add(part)
                self._faults.adopt(part, why)


@dataclass
class SharedRecord:
    """A measured step, to be made one of all ranks; resolved in the order of the steps, by all ranks."""

    ranks: Ranks
    batch: int
    """Batches there were when it ended."""
    step: int
    pending: PendingRecord | None
    """None where no optimizer of this rank took the step."""

    @property
    def arrived(self) -> bool:
        """Whether it is to be resolved: at the same time on all ranks, whenever this one's numbers are there."""
        return self.ranks.batches - self.batch >= self.ranks.lag

    @property
    def info(self) -> RunInfo:
        """The description of the run, once resolved."""
        return self.ranks.info

    def resolve(self) -> StepRecord | None:
        """Combine it with the other ranks'; None where it makes no record.

        Raises:
            GivenUp, RuntimeError: see `Ranks.combine`.
        """
        if self.pending is None:
            self.ranks.all_wait(self.step)
            return None
        tally = self.ranks.combine(self.pending)
        if tally is None:
            return None
        info = self.ranks.info
        due = not self.pending.activations_only
        windows = self.pending.windows.take(info.sites, tally.chunks, due=due)
        return None if not due else assemble(tally, info.layout, windows, self.pending.facts)
