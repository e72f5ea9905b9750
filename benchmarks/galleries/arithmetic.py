"""The arithmetics that one processor can compute in: what a run says in each is what other machines will see.

The same net, seed and release of PyTorch differ in the last bits between processors, and a chaotic run has another story
then. The variables are read when torch is imported, so each arithmetic needs processes of its own.

    python -m benchmarks.galleries.arithmetic [NAME]    the processor and what it offers, or the variables of one
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CPUINFO = Path("/proc/cpuinfo")

ARITHMETICS: dict[str, dict[str, str]] = {
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    # The first alone leaves matrix products (MKL's) and convolutions (oneDNN's) as they are.
    "lowest": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
_NEEDS = {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}}
"""What PyTorch asks of a processor. Told to compute with what isn't there, it dies of an illegal instruction."""


def processor() -> str:
    """Return the processor's name and the arithmetics it offers."""
    return f"{_entry('model name') or 'an unknown processor'}, which offers {', '.join(offered())}"


def offered() -> list[str]:
    """Return the arithmetics that this processor can compute in; where it can't be asked, those that any can."""
    flags = set(_entry("flags").split())
    return [name for name in ARITHMETICS if flags >= _NEEDS.get(name, set())]


def parse(names: str) -> list[str]:
    """Read a list of arithmetics, ``default,avx2``.

    Raises:
        ValueError: one has no such name.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in ARITHMETICS:
            raise ValueError(f"no arithmetic is called {name!r}; there are {', '.join(ARITHMETICS)}")
    return chosen


def refused(names: Sequence[str]) -> str:
    """Say why this processor can't compute so; empty where it can."""
    missing = [name for name in names if name and name not in offered()]
    return f"{', '.join(missing)} can't run here: this is {processor()}" if missing else ""


@contextmanager
def computing_in(name: str) -> Iterator[None]:
    """Have processes that start in this block compute so; in an empty one, as this process does."""
    before = {variable: os.environ.get(variable) for variable in ARITHMETICS["lowest"]}
    if name:
        for variable in before:
            os.environ.pop(variable, None)
        os.environ.update(ARITHMETICS[name])
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def _entry(name: str) -> str:
    """Return the first core's entry."""
    try:
        found = re.search(rf"^{name}\s*: (.*)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(processor())
        return 0
    (name,) = parse(arguments[0])
    if why := refused([name]):
        sys.stderr.write(f"{why}\n")
        return 2
    print(" ".join(f"{variable}={value}" for variable, value in ARITHMETICS[name].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
