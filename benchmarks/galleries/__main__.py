"""Train the galleries and judge the judge.

    python -m benchmarks.galleries [--only PATTERN] [--seeds 5] [--runs FOLDER] [--judge-only | --resume] [--remedies] [--jobs 2]
        [--arithmetic default,avx2]

Ill nets that should be warned of, for the right reason and soon; healthy nets that should not. Each is trained by a real
Trainer with GradWatch() in its defaults, at five seeds; what a run is, its outcome says and not its name. The rules of
other detectors read the same runs. `--arithmetic` trains all of it in each of the arithmetics that are named, as further
seeds, and prints how far the verdicts spread. `--remedies` does what the root finding of each ill run recommends and trains again.
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

from benchmarks.galleries.arithmetic import ARITHMETICS, parse, processor, refused
from benchmarks.galleries.cases import CASES
from benchmarks.galleries.judge import judge_all
from benchmarks.galleries.remedy import try_remedies
from benchmarks.galleries.runner import run_all
from benchmarks.galleries.spec import SEEDS
from benchmarks.galleries.table import arithmetic_table, case_table, notable, remedy_table, totals_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.galleries.judge import Judged
    from benchmarks.galleries.remedy import Trial


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
    parser.add_argument(
        "--arithmetic",
        metavar="NAMES",
        type=_arithmetics,
        default=[""],
        help=f"{', '.join(ARITHMETICS)}, as far as the processor offers them; without it, as it computes by itself",
    )
    options = parser.parse_args(arguments)
    if options.judge_only and options.runs is None:
        parser.error("--judge-only needs --runs FOLDER: the runs to judge")
    if not options.judge_only and (why := refused(options.arithmetic)):
        parser.error(f"--arithmetic: {why}")
    names = [name for name in CASES if not options.only or any(fnmatchcase(name, each) for each in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} matches no case")
    with tempfile.TemporaryDirectory() as temporary:
        _judge(names, options, options.runs or Path(temporary))
    return 0


def _judge(names: Sequence[str], options: argparse.Namespace, runs: Path) -> None:
    seeds = SEEDS[: options.seeds]
    started = time.monotonic()
    for arithmetic in options.arithmetic if not options.judge_only else ():
        run_all(
            [CASES[name] for name in names],
            seeds,
            runs,
            jobs=options.jobs,
            resume=options.resume,
            arithmetic=arithmetic,
        )
    judged = judge_all(names, seeds, runs, options.arithmetic)
    _print(f"{processor()}; Python {platform.python_version()}, torch {torch.__version__}; seeds {seeds}\n")
    _print("## Cases\n", case_table(judged))
    _print("\n## Totals", totals_table(judged))
    if len(options.arithmetic) > 1:
        _print("\n## By arithmetic\n", arithmetic_table(judged))
    _print("\n## To look at", notable(judged))
    if options.remedies:
        ill = [run for run in judged if run.ill]
        _print("\n## Remedies tried\n", remedy_table(_try(ill, options)))
    _print(f"\n{time.monotonic() - started:.0f} s")


def _try(ill: Sequence[Judged], options: argparse.Namespace) -> list[tuple[Judged, Trial | None]]:
    """Try the root remedy of each ill run, in the arithmetic that the run was trained in."""
    trials: dict[int, Trial] = {}
    for arithmetic in options.arithmetic:
        chosen = [run for run in ill if run.root is not None and run.result.arithmetic == arithmetic]
        wanted = [(run.case, run.result.seed, run.root.remedy) for run in chosen if run.root is not None]
        tried = try_remedies(wanted, jobs=options.jobs, arithmetic=arithmetic)
        trials.update(zip(map(id, chosen), tried, strict=True))
    return [(run, trials.get(id(run))) for run in ill]


def _arithmetics(names: str) -> list[str]:
    try:
        return parse(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _print(title: str, lines: Iterable[str] = ()) -> None:
    print(title)
    for line in lines:
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
