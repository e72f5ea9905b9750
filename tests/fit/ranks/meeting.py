"""Ranks that are threads: what several processes exchange, without starting any."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

from lightning_gradwatch.fit.ranks.ranks import Ranks
from lightning_gradwatch.measure.assemble import StepFacts
from lightning_gradwatch.measure.faults import Faults
from lightning_gradwatch.measure.totals import Totals
from lightning_gradwatch.measure.units.silence import WindowEntry
from lightning_gradwatch.measure.units.windows import Windows
from lightning_gradwatch.record.metrics import OfLayer, OfSite
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo

SECONDS = 20


class Meeting:
    """Adds up what all of its ranks bring."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size)
        self.brought = [None] * size

    def all_bring(self, rank, what):
        self.brought[rank] = what
        self.barrier.wait(SECONDS)
        together = list(self.brought)
        self.barrier.wait(SECONDS)
        return together


class Exchange:
    """As `ranks.exchange.Exchange`; counts its collectives."""

    def __init__(self, meeting, rank):
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.calls = []

    def begin_sum(self, vector):
        def wait():
            self.calls.append("sum")
            vectors = self._meeting.all_bring(self.rank, vector.copy())
            assert len({len(each) for each in vectors}) == 1, "vectors of different lengths would hang"
            return np.sum(vectors, axis=0)

        return SimpleNamespace(wait=wait)

    def begin_last_sum(self, vector):
        threading.Thread(target=self.begin_sum(vector).wait, daemon=True).start()

    def gather(self, message, lengths):
        self.calls.append("gather")
        messages = self._meeting.all_bring(self.rank, message)
        assert list(map(len, messages)) == lengths
        return messages

    def close(self):
        pass


def ranks_of(meeting, *, replicas=None, optimizers=1):
    """Return each rank's part, and its faults; ranks of one replica follow each other."""
    replicas = replicas or meeting.size
    share = meeting.size // replicas
    made = []
    for rank in range(meeting.size):
        faults = Faults(speaks=rank == 0)
        made.append(
            Ranks(
                Exchange(meeting, rank), faults, optimizers=optimizers, replica=rank // share, replicas=replicas, lag=0
            )
        )
    return made


def together(calls):
    """Run a call for each rank at the same time; return what they returned."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result(SECONDS) for each in [pool.submit(call) for call in calls]]


def site(name, *, function="relu", units=4, role="hidden", features=0, predecessors=(), key=None):
    info = SiteInfo(name=name, function=function, role=role, units=units, predecessors=tuple(predecessors))
    return SimpleNamespace(info=info, key=key or f"key of {name}", features=features, name=name, units=units)


def layer(name, *, used=True):
    return LayerInfo(name=name, kind="Linear", shapes=((4, 4),), parameters=16, weight=True, used=used)


def pending(*, sites=(), layers=(), step=0, coverage=(), info=None, **numbers):
    """Return a measured step of one rank."""
    info = info or RunInfo(layers=tuple(layers), sites=tuple(each.info for each in sites), coverage=tuple(coverage))
    tally = tally_of(len(info.layers), len(sites), **numbers)
    return SimpleNamespace(
        facts=StepFacts(step=step, world_size=2),
        info=info,
        columns=SimpleNamespace(sites=list(sites)),
        windows=Windows(8, 1),
        activations_only=False,
        read=lambda: tally,
    )


def tally_of(layers, sites, *, of_layers=None, of_sites=None, chunks=None, starts=None, **others):
    rows = np.zeros((layers, len(OfLayer)))
    rows[:, [OfLayer.TRAINED, OfLayer.USED, OfLayer.KNOWN, OfLayer.HELD, OfLayer.GRADIENTS, OfLayer.NONZERO]] = 1
    for column, values in (of_layers or {}).items():
        rows[:, column] = values
    of = np.zeros((sites, len(OfSite)))
    of[:, [OfSite.SEEN, OfSite.SIGNALS, OfSite.GRAD_OUTPUTS]] = 1
    for column, values in (of_sites or {}).items():
        of[:, column] = values
    return Totals(
        layers=rows,
        sites=of,
        chunks=chunks or [None] * sites,
        starts=starts or [None] * sites,
        stepped=(0,),
        learning_rates=(0.1,),
        **others,
    )


def chunk(inactive, observations=4, saturated=None):
    counts = np.array(inactive, dtype=np.int64)
    return WindowEntry(
        counts, None if saturated is None else np.array(saturated, dtype=np.int64), observations, observations
    )
