"""What it costs to look at the wiring: in a measured step late in a run, where it isn't looked at any more, and in a first one.

    python benchmarks/wiring.py [--nets small …] [--rounds 200]

Three kinds of measured step take turns in one process, on one thread, in processor time: as they come late in a run; the same
with all of the wiring switched off; and as the first four are. Printed is the median of the paired ratios to the second kind.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch

from benchmarks.nets import NETS
from lightning_gradwatch import Probe
from lightning_gradwatch.measure.wiring.watch import FIRST_STEPS, Unwatched, WiringWatch


class Off(WiringWatch):
    """Looks at nothing, ever."""

    def begin(self, *_):
        return Unwatched()


class Ever(WiringWatch):
    """Looks at each step as at the first ones."""

    def begin(self, *arguments):
        self._steps = 1
        step = super().begin(*arguments)
        self._steps = FIRST_STEPS
        return step


def spent(net, batch, optimizer, probe):
    """Return the processor time of a measured step."""
    start = time.process_time()
    with probe:
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
    return time.process_time() - start


def measure(name, rounds):
    torch.manual_seed(0)
    net, batch = NETS[name]()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    probe = Probe(net, optimizer)
    times = {kind: [] for kind in (WiringWatch, Off, Ever)}
    orders = list(itertools.permutations(times))  # each kind follows each other as often
    for turn in range(rounds + 6):
        took = {}
        for kind in orders[turn % len(orders)]:
            probe._wiring.__class__ = kind  # the same probe, whose memory lies where it lay
            took[kind] = spent(net, batch, optimizer, probe)
        if turn >= 6:  # the first steps are watched, and fill caches
            for kind, seconds in took.items():
                times[kind].append(seconds)
    late, off, first = times.values()
    quarters = statistics.quantiles([one / other for one, other in zip(late, off, strict=True)], n=4)
    watched = statistics.median(one / other for one, other in zip(first, off, strict=True))
    print(
        f"| {name} | {1000 * statistics.median(off):.1f} ms | {quarters[1]:.3f} ({quarters[0]:.3f} to {quarters[2]:.3f}) | {watched:.3f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="*", choices=[*NETS], default=["small", "mlp"])
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| net | measured step, wiring off | late in a run (quartiles) | one of the first four |\n|---|---|---|---|")
    for name in options.nets:
        measure(name, options.rounds)


if __name__ == "__main__":
    main()
