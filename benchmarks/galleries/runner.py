"""Trains cases under GradWatch's defaults, each into a folder of its own, so that they can be judged again from files."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.loggers import TensorBoardLogger

from benchmarks.galleries.arithmetic import ARITHMETICS, computing_in
from benchmarks.galleries.cases import CASES
from benchmarks.galleries.outcome import Outcome, outcome
from benchmarks.galleries.peers import PeerWatch, Readings
from benchmarks.galleries.training import prepare, quiet, train
from lightning_gradwatch import Finding, GradWatch, GradWatchWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.galleries.spec import Case

_RESULT = "result.json"
_PEERS = "peers.npz"


@dataclass(frozen=True)
class Result:
    """What is known of a run besides its event file."""

    case: str
    seed: int
    outcome: Outcome
    findings: tuple[Finding, ...]
    """The live run's."""
    warnings: tuple[str, ...]
    """Classes of the warnings that the live run raised, in order."""
    faults: tuple[str, ...]
    """Parts of the monitor that were switched off."""
    seconds: float
    arithmetic: str = ""
    """A row of `arithmetic.ARITHMETICS`; empty: as the processor computes by itself."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {**asdict(self), "findings": [finding.to_dict() for finding in self.findings]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """Build from what `to_dict` gave."""
        return cls(
            **{
                **data,
                "outcome": Outcome(**data["outcome"]),
                "findings": tuple(map(Finding.from_dict, data["findings"])),
                "warnings": tuple(data["warnings"]),
                "faults": tuple(data["faults"]),
            }
        )


def run_folder(runs: Path, case: str, seed: int, arithmetic: str = "") -> Path:
    """Return where a run is stored."""
    return runs / arithmetic / case / f"seed-{seed}"


def run(case: Case, seed: int, runs: Path, arithmetic: str = "") -> Result:
    """Train a case at a seed, watched by GradWatch in its defaults and by its peers; this process must compute so."""
    folder = run_folder(runs, case.name, seed, arithmetic)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    watch, peers = GradWatch(), PeerWatch(case.training.steps)
    with quiet() as raised:
        prepared = prepare(case, seed)
        train(prepared, [watch, peers], TensorBoardLogger(folder.parent, name="", version=folder.name))
        result = Result(
            case=case.name,
            seed=seed,
            outcome=outcome(prepared),
            findings=watch.findings,
            warnings=tuple(each.category.__name__ for each in raised if issubclass(each.category, GradWatchWarning)),
            faults=tuple(entry.reason for entry in watch.coverage if "switched off" in entry.reason),
            seconds=time.perf_counter() - started,
            arithmetic=arithmetic,
        )
    peers.readings.save(folder / _PEERS)
    (folder / _RESULT).write_text(json.dumps(result.to_dict()))
    return result


def run_all(
    cases: Sequence[Case], seeds: Sequence[int], runs: Path, *, jobs: int, resume: bool = False, arithmetic: str = ""
) -> None:
    """Train all cases at all seeds, on so many processes; with `resume` those only that aren't there yet."""
    wanted = [
        (case.name, seed, runs, arithmetic)
        for seed in seeds
        for case in cases
        if not (resume and (run_folder(runs, case.name, seed, arithmetic) / _RESULT).exists())
    ]
    if jobs == 1 and not arithmetic:
        _follow((_run_named(*each) for each in wanted), len(wanted))
        return
    context = multiprocessing.get_context("spawn")
    with computing_in(arithmetic), ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(_run_named, *each) for each in wanted]
        _follow((future.result() for future in as_completed(futures)), len(wanted))


def load(runs: Path, case: str, seed: int, arithmetic: str = "") -> tuple[Result, Readings]:
    """Read what `run` stored.

    Raises:
        FileNotFoundError: there is no such run.
    """
    folder = run_folder(runs, case, seed, arithmetic)
    return Result.from_dict(json.loads((folder / _RESULT).read_text())), Readings.load(folder / _PEERS)


def _run_named(name: str, seed: int, runs: Path, arithmetic: str) -> Result:
    if arithmetic:
        wanted, used = ARITHMETICS[arithmetic]["ATEN_CPU_CAPABILITY"], torch.backends.cpu.get_cpu_capability().lower()
        assert used == wanted, f"this process computes in {used}: torch was imported before it was told {wanted}"
    return run(CASES[name], seed, runs, arithmetic)


def _follow(results: Iterable[Result], count: int) -> None:
    started = time.monotonic()
    for number, result in enumerate(results, 1):
        how = "learned" if result.outcome.learned else "didn't learn"
        said = f"{result.case} {result.seed} {result.arithmetic}: {how}, {result.seconds:.1f} s"
        sys.stderr.write(f"\r\033[K{number}/{count} ({time.monotonic() - started:.0f} s) {said}")
        sys.stderr.flush()
    sys.stderr.write("\n")
