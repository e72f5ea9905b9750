"""All cases by name, and the half that each belongs to."""

from __future__ import annotations

from benchmarks.galleries.healthy import HEALTHY
from benchmarks.galleries.ill import ILL
from benchmarks.galleries.spec import split

CASES = {case.name: case for case in (*ILL, *HEALTHY)}
HALF_OF = split([*ILL, *HEALTHY])
