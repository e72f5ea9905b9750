"""Train the galleries and judge the judge.

    python -m benchmarks.galleries [--only PATTERN] [--seeds 5] [--runs FOLDER] [--judge-only | --resume] [--remedies] [--jobs 2]

Ill nets that should be warned of, for the right reason and soon; healthy nets that should not. Each is trained by a real
Trainer with GradWatch() in its defaults, at five seeds; what a run is, its outcome says and not its name. The rules of
other detectors read the same runs. `--remedies` does what the root finding of each ill run recommends and trains again.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.galleries.cases import CASES
from benchmarks.galleries.judge import judge_all
from benchmarks.galleries.remedy import try_remedies
from benchmarks.galleries.runner import run_all
from benchmarks.galleries.spec import SEEDS
from benchmarks.galleries.table import case_table, notable, remedy_table, totals_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.galleries",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="PATTERN", action="append", help="cases, such as 'dying/*'; may be repeated")
    parser.add_argument("--seeds", metavar="N", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--runs", metavar="FOLDER", type=Path, help="where runs are written, or read by --judge-only")
    parser.add_argument("--judge-only", action="store_true", help="judge the runs that are in FOLDER, train nothing")
    parser.add_argument("--resume", action="store_true", help="train only what isn't in FOLDER yet")
    parser.add_argument("--remedies", action="store_true", help="apply what is recommended to ill runs and train again")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes that train")
    options = parser.parse_args(arguments)
    if options.judge_only and options.runs is None:
        parser.error("--judge-only needs --runs FOLDER: the runs to judge")
    names = [name for name in CASES if not options.only or any(fnmatchcase(name, each) for each in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} matches no case")
    with tempfile.TemporaryDirectory() as temporary:
        _judge(names, options, options.runs or Path(temporary))
    return 0


def _judge(names: Sequence[str], options: argparse.Namespace, runs: Path) -> None:
    seeds = SEEDS[: options.seeds]
    started = time.monotonic()
    if not options.judge_only:
        run_all([CASES[name] for name in names], seeds, runs, jobs=options.jobs, resume=options.resume)
    judged = judge_all(names, seeds, runs)
    _print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}; seeds {seeds}\n")
    _print("## Cases\n", case_table(judged))
    _print("\n## Totals", totals_table(judged))
    _print("\n## To look at", notable(judged))
    if options.remedies:
        ill = [run for run in judged if run.ill]
        wanted = [(run.case, run.result.seed, run.root.remedy) for run in ill if run.root is not None]
        trials = iter(try_remedies(wanted, jobs=options.jobs))
        _print("\n## Remedies tried\n", remedy_table([(run, next(trials) if run.root else None) for run in ill]))
    _print(f"\n{time.monotonic() - started:.0f} s")


def _print(title: str, lines: Iterable[str] = ()) -> None:
    print(title)
    for line in lines:
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
