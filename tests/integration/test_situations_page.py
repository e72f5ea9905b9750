"""The page of situations names every row of the table, and no test that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

from integration.table import SITUATIONS

HERE = Path(__file__).parent
PAGE = (HERE / "SITUATIONS.md").read_text(encoding="utf-8")


def test_every_situation_is_on_the_page_once():
    tables = PAGE[: PAGE.index("## Several processes")]
    rows = [row for row in tables.splitlines() if row.startswith("| ")]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[2])]
    assert sorted(named) == sorted(SITUATIONS)


PLACE = r"`((?:tests/measure/(?:[a-z]+/)?)?test_[a-z_0-9]+\.py)(?:::(test_[a-z_0-9]+))?`"


def test_every_test_that_the_page_names_is_there():
    named = re.findall(PLACE, PAGE)
    assert len(named) > 60
    for file, test in named:
        path = next(folder / file for folder in (HERE, HERE.parents[1]) if (folder / file).is_file())
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), (file, test)


def test_every_row_names_a_test_that_proves_it():
    """A row of the first tables is one of `test_every_situation.py`; all others name theirs."""
    for part in PAGE[PAGE.index("## Precision") : PAGE.index("## What isn't covered")].split("\n## "):
        for row in part.splitlines():
            if row.startswith("| ") and not row.startswith("| situation"):
                names = re.findall(r"`([a-z0-9-]+)`", row.split("|")[2])
                assert set(names) & set(SITUATIONS) or any(test for _, test in re.findall(PLACE, row)), row
