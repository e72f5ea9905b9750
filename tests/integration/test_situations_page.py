"""The page of situations names every row of the table, and no test that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

from integration.table import SITUATIONS

HERE = Path(__file__).parent
PAGE = (HERE / "SITUATIONS.md").read_text(encoding="utf-8")


def test_every_situation_is_on_the_page_once():
    tables = PAGE[: PAGE.index("## Lifecycle")]
    rows = [row for row in tables.splitlines() if row.startswith("| ")]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[2])]
    assert sorted(named) == sorted(SITUATIONS)


def test_every_test_that_the_page_names_is_there():
    for name in re.findall(r"`((?:tests/measure/)?test_[a-z_]+\.py)`", PAGE):
        assert (HERE / name).is_file() or (HERE.parents[1] / name).is_file(), name
