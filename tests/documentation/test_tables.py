"""The tables and samples of README and docs say what the program has: rules, metrics, curves, options, output, costs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from documentation.pages import DOCS, README, blocks, read, table, tables
from integration.nets import Classifier, batches, seed, trainer

from benchmarks.galleries.healthy import HEALTHY
from benchmarks.galleries.ill import ILL
from benchmarks.nets import NETS
from lightning_gradwatch import DEFAULT_RULES, GradWatch, RunInfo
from lightning_gradwatch.fit.strategies import STRATEGIES
from lightning_gradwatch.record.metrics import METRICS, is_over_layers
from lightning_gradwatch.record.step import NotCovered
from lightning_gradwatch.record.summaries import DESCRIPTIONS
from lightning_gradwatch.tell.coverage import coverage_line
from lightning_gradwatch.testing.plugin.options import _OPTIONS


def without_numbers(text):
    """A text as it reads, whatever its numbers are and wherever its lines break."""
    return re.sub(r"(?<![\w.])\d[\d.,]*(?:e[-+]?\d+)?(?![\w])", "#", " ".join(text.split()))


def test_both_tables_of_rules_have_each_rule():
    rules = [f"{rule.code} {rule.name}" for rule in DEFAULT_RULES]
    assert [row[0] for row in table(README, ("rule", "what is wrong"))] == rules
    rows = table(DOCS / "rules.md", ("rule", "fires when", "warning class"))
    assert [row[0] for row in rows] == rules
    assert [row[2] for row in rows] == [f"`{rule.warning.__name__}`" for rule in DEFAULT_RULES]


NUMBERS = {
    "GW101": ("patience", "loop_gain"),
    "GW102": ("ratio", "growth"),
    "GW104": ("patience",),
    "GW201": ("warn",),
    "GW202": ("fraction",),
    "GW301": ("ratio", "spread", "reach"),
    "GW302": ("ratio", "patience", "warm_up_steps"),
    "GW304": ("share", "patience", "warm_up_steps"),
    "GW303": ("clip_factor", "patience", "warm_up_steps"),
}
"""The thresholds that the table of rules names."""
SPELLED = {
    0.25: "1/4",
    1e3: "1e3",
    10.0: "10 times",
    3: "three",
    0.9: "90 %",
    0.5: "half",
    1e-5: "1e-5",
    100.0: "100 times",
}
SPELLED |= {0.2: "20 %", 0.1: "a tenth", 24: "step 24"}
SPELLED |= {0.01: "1 %"}


@pytest.mark.parametrize(("code", "field"), [(code, field) for code, fields in NUMBERS.items() for field in fields])
def test_the_table_of_rules_names_the_thresholds_in_force(code, field):
    (rule,) = [each for each in DEFAULT_RULES if each.code == code]
    (row,) = [row for row in table(DOCS / "rules.md", ("rule",)) if row[0].startswith(code)]
    assert SPELLED[getattr(rule, field)] in row[1]


def test_the_table_of_numbers_has_each_metric():
    rows = table(DOCS / "numbers.md", ("metric", "for each"))
    assert [row[0] for row in rows] == [f"`{name}`" for name in METRICS]
    assert [row[1] for row in rows] == ["layer" if is_over_layers(name) else "site" for name in METRICS]


def test_the_table_of_strategies_has_each_row():
    rows = table(DOCS / "distributed.md", ("strategy", "measured", "what it does"))
    assert [tuple(row) for row in rows] == [
        (", ".join(f"`{name}`" for name in row.classes), "no" if row.why_not else "yes", row.trains)
        for row in STRATEGIES
    ]


def test_the_table_of_curves_has_each_group():
    rows = table(DOCS / "tensorboard.md", ("group",))
    assert [row[0] for row in rows][1:-1] == [
        f"`gradwatch.{name}`" for name, metric in METRICS.items() if metric.is_curve
    ]
    assert f"at most {len(DESCRIPTIONS)}" in rows[0][1]


def test_the_table_of_the_plugins_options_has_each_in_each_place():
    rows = table(DOCS / "testing.md", ("to", "command line", "environment", "ini"))
    shown = [tuple(re.match(r"`([\w-]+)", cell)[1] for cell in row[1:]) for row in rows]
    assert sorted(shown) == sorted(
        (option.flag, option.variable, option.ini) for option in _OPTIONS if option.field != "rules"
    )


def test_the_table_of_costs_has_each_net_of_the_benchmark():
    rows = table(DOCS / "cost.md", ("net", "plain step"))
    header = next(each[0] for each in tables(DOCS / "cost.md") if each[0][0] == "net")
    assert len(rows) == len(NETS)
    for row in rows:
        cost = dict(zip(header, row, strict=True))
        idle, all_of_it = float(cost["not measured"]), float(cost["measured, everything"])
        assert 0.9 < idle < all_of_it
        assert re.fullmatch(r"\+\d+\.\d %", cost["amortised"]), row


def test_the_table_of_reading_is_of_the_benchmarks_runs():
    rows = table(DOCS / "cost.md", ("run", "`gradwatch check`"))
    for _, ours, memory, theirs, their_memory in rows:
        assert float(ours.removesuffix(" s")) < float(theirs.removesuffix(" s"))
        assert int(memory.removesuffix(" MB")) < int(their_memory.removesuffix(" MB"))


def test_the_table_of_trust_has_the_nets_that_the_galleries_have():
    page = " ".join(read(DOCS / "accuracy.md").split())
    trusted = re.search(r"(\d+) built to fail and (\d+) built to be healthy", page)
    wired = re.search(r"(\d+) nets whose wiring or rates are wrong .*? and (\d+) that only look so", page)
    later = re.search(r"A further (\d+) nets are .*? beside (\d+) healthy ones", page)
    counts = [sum(int(each[place]) for each in (trusted, wired, later)) for place in (1, 2)]
    assert counts == [len(ILL), len(HEALTHY)]


def sample(page, start):
    (found,) = [block.text for block in blocks(page, "text") if block.text.startswith(start)]
    return found


@pytest.mark.judges
def test_a_fit_says_at_its_start_and_end_what_the_readme_shows(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="lightning_gradwatch")
    monkeypatch.chdir(tmp_path)
    seed()
    trainer("lightning_logs", GradWatch(every_n_steps=50), max_steps=24).fit(Classifier(), batches())
    said = [entry.message for entry in caplog.records if entry.name == "lightning_gradwatch"]
    shown = sample(README, "GradWatch: ").splitlines()

    def form(line):
        """What any healthy fit says, wherever it is written, and whether or not each rule could judge it."""
        return without_numbers(re.sub(r"\S*lightning_logs\S*", "FOLDER", line)).replace("# of # rules", "# rules")

    assert [form(line) for line in shown] == [form(line) for line in said]


def test_the_line_of_what_is_not_covered_is_said_as_the_page_shows():
    shown = sample(DOCS / "coverage.md", "GradWatch: ")
    name, reason = re.search(r"`(.*)` and 1 more \((.*)\)$", shown.strip()).groups()
    said = coverage_line(RunInfo(coverage=(NotCovered(name, reason, 1), NotCovered("another", reason, 1))))
    assert said.partition("; ")[2] == shown.strip().partition("; ")[2]
    assert re.match(r"GradWatch: \d+ layers, \d+ of \d+ activation sites; ", shown)


@pytest.mark.slow
@pytest.mark.judges
def test_the_finding_in_the_readme_is_the_one_that_the_demo_shows(tmp_path):
    command = [sys.executable, "-m", "lightning_gradwatch", "demo", "--steps", "30"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = without_numbers(sample(README, "VanishingGradientWarning"))
    assert shown in without_numbers(done.stderr + done.stdout)
