"""No test that judges a training run goes without its marker, as far as a program can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from judging import LEAST_RECORDS, why_unmarked

TESTS = Path(__file__).parent
STARTS_PROCESSES = re.compile(
    r"^(import|from) (subprocess|multiprocessing|integration\.(processes|ranked))\b|runpytest_subprocess", re.MULTILINE
)
MARKED = re.compile(r"\bpytest\.mark\.judges\b")
JUDGES_NONE = {
    "cli/test_command.py": "reads runs that are written by hand",
    "cli/test_colour.py": "reads runs that are written by hand",
    "record/events/test_file.py": "writes bytes",
    "tell/test_formats.py": "the command line, on no run at all",
    "test_light_import.py": "imports",
    "tab/test_loader.py": "imports",
    "fit/test_packages.py": "imports, and a few steps",
    "test_what_arrives.py": "what is installed",
    "fit/test_plain_data.py": "data that processes hand on",
    "fit/test_results.py": "what spawned processes hand back of a few steps",
    "measure/model/test_autograd_graph.py": "whether a few steps end",
    "galleries/test_arithmetic.py": "about the arithmetics themselves",
    "judge/test_rules.py": "judges records that are written by hand",
    "judge/test_own_rule.py": "judges records that are written by hand",
    "page/test_modules.py": "node, on the page's scripts",
    "integration/test_distributed.py": "compares numbers of a few steps",
    "integration/test_distributed_faults.py": "a few steps, about the faults in them",
    "integration/test_streams.py": "the command line, on runs that are written by hand",
    "integration/test_killed.py": "what is left of a file",
    "integration/test_lightning_packages.py": "a few steps, about what is imported",
}
"""Test files whose processes of their own judge no run; the fixture that counts records sees only this one."""


def test_a_test_that_judges_without_the_marker_fails():
    mark = pytest.mark.judges.mark
    assert "mark the test `judges`" in why_unmarked(LEAST_RECORDS, [pytest.mark.slow.mark])
    assert why_unmarked(LEAST_RECORDS, [pytest.mark.slow.mark, mark]) == why_unmarked(LEAST_RECORDS - 1, []) == ""


def test_the_fixture_sees_the_records_of_a_fit(tmp_path, request):
    """Were it not told, this test would fail as well: its marker is added while it runs."""
    from integration.nets import Classifier, batches, trainer  # noqa: PLC0415

    from lightning_gradwatch import GradWatch  # noqa: PLC0415
    from lightning_gradwatch.fit.fit import Fit  # noqa: PLC0415

    assert "conftest" in Fit._take.__code__.co_filename
    watch = GradWatch(every_n_steps=1)
    trainer(tmp_path, watch, max_steps=LEAST_RECORDS).fit(Classifier(), batches(LEAST_RECORDS))
    assert len(watch.records) == LEAST_RECORDS
    request.applymarker("judges")


def test_each_file_that_starts_processes_has_been_looked_at():
    """What is trained there can't be seen from here: a file says that it judges a run, or why it doesn't."""
    texts = {str(path.relative_to(TESTS)): path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    starting = {name for name, text in texts.items() if STARTS_PROCESSES.search(text)}
    marked = {name for name in starting if MARKED.search(texts[name])}
    assert starting - marked == set(JUDGES_NONE), (
        "mark what judges a run `judges`; else say in JUDGES_NONE what it does"
    )
