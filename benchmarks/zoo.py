"""What of common architectures is seen, and what a measured step of them costs.

    pip install -e '.[zoo]'
    python -m benchmarks.zoo [NAME …] [--rounds 20]

The nets are tiny (two layers of width 16), so that all of them run in a minute: a step is hardly any arithmetic, which
makes the ratio the worst case, not what a net of ordinary size costs (`benchmarks/overhead.py`). Plain and measured steps
take turns, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings

import torch

from benchmarks.architectures import ZOO
from lightning_gradwatch import Probe


def step(model, batch, optimizer):
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()


def measure(name, rounds):
    """Return a row: layers, sites seen and known, the share of them, ms of a plain step, the measured one's ratio."""
    torch.manual_seed(0)
    architecture = ZOO[name]
    model, batch = architecture.build(), architecture.batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    probe = Probe(model, optimizer)
    ratios, plain_steps = [], []
    for turn in range(rounds + 3):
        start = time.perf_counter()
        step(model, batch, optimizer)
        plain = time.perf_counter() - start
        start = time.perf_counter()
        with probe:
            step(model, batch, optimizer)
        if turn >= 3:  # the first steps fill caches, of torch's as of ours
            ratios.append((time.perf_counter() - start) / plain)
            plain_steps.append(plain)
    info = probe.info
    reasons = dict.fromkeys(entry.reason.partition(":")[0] for entry in info.coverage)
    return (
        name,
        architecture.family,
        f"{len(info.layers)}",
        f"{len(info.sites)} of {info.known_sites}",
        f"{100 * len(info.sites) / info.known_sites:.0f} %",
        f"{1000 * statistics.median(plain_steps):.1f} ms",
        f"{statistics.median(ratios):.2f}",
        "; ".join(reasons),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*ZOO, []], help="architectures; all by default")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}\n")
    head = ("architecture", "family", "layers", "sites", "covered", "plain step", "measured", "not covered")
    print(" | ".join(("", *head, "")).strip())
    print("|".join(("", *["---"] * len(head), "")))
    for name in arguments.names or ZOO:
        print(" | ".join(("", *measure(name, arguments.rounds), "")).strip(), flush=True)


if __name__ == "__main__":
    main()
