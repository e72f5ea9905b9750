"""Beside a known good run: what got worse is told with its noise, and what can't be compared is said."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from written import make_info, write_run

from lightning_gradwatch.cli import command
from lightning_gradwatch.cli.check import judge
from lightning_gradwatch.cli.settings import Settings


@pytest.fixture
def compared(tmp_path):
    """Write a baseline and a run, and compare them."""

    def compare(base, run, *, base_info=None, run_info=None, **settings):
        good, _ = write_run(tmp_path / "good", base_info, **{"noise": 0.2, "seed": 1, **base})
        new, _ = write_run(tmp_path / "new", run_info, **{"noise": 0.2, "seed": 2, **run})
        return judge(new, Settings(baseline=good, **settings))

    return compare


def worse(verdict):
    return [(change.metric, change.name) for change in verdict.comparison.changes]


@pytest.mark.parametrize("seed", range(5))
def test_another_seed_is_not_worse(compared, seed):
    verdict = compared({"seed": 10 + seed}, {"seed": 20 + seed})
    assert worse(verdict) == []
    assert verdict.exit_code == 0


def test_the_run_itself_is_not_worse(compared):
    assert worse(compared({"seed": 1}, {"seed": 1})) == []


def test_a_fading_signal_is_told_per_layer_and_site(compared):
    verdict = compared({}, {"attenuation": 0.02})
    assert ("signal_norm", "net.1") in worse(verdict)
    assert ("grad_norm", "net.0") in worse(verdict)
    assert not {name for _, name in worse(verdict)} & {"net.8", "net.9", "net.10"}
    (first,) = [change for change in verdict.comparison.changes if change.name == "net.1"]
    assert first.base == pytest.approx(0.5, rel=0.3)
    assert first.run == pytest.approx(0.02, rel=0.3)
    assert first.ratio == pytest.approx(0.04, rel=0.4)
    assert 1.1 < first.noise < 1.6
    assert verdict.exit_code == 1


def test_the_worst_comes_first(compared):
    badness = [abs(np.log(change.ratio)) for change in compared({}, {"attenuation": 1e-4}).comparison.changes]
    assert badness == sorted(badness, reverse=True)


def test_a_signal_that_got_better_is_not_worse(compared):
    assert worse(compared({"attenuation": 0.01}, {"attenuation": 0.5})) == []


@pytest.mark.parametrize(("ratio", "found"), [(1e-3, []), (1e-5, "all"), (1e-1, "all")])
def test_updates_may_become_neither_much_smaller_nor_much_larger(compared, ratio, found):
    names = {name for metric, name in worse(compared({}, {"update_ratio": ratio})) if metric == "update_ratio"}
    assert names == (set() if not found else {f"net.{place}" for place in range(0, 12, 2)})


@pytest.mark.parametrize(("dead", "count"), [(0.05, 0), (0.3, 5)])
def test_a_fraction_is_compared_by_difference(compared, dead, count):
    assert [metric for metric, _ in worse(compared({}, {"dead_fraction": dead}))] == ["dead_fraction"] * count


@pytest.mark.parametrize(("loss", "found"), [(2.5, []), (9.0, [("loss", "")]), (0.1, [])])
def test_the_loss_may_not_be_much_higher(compared, loss, found):
    assert worse(compared({}, {"loss": loss})) == found


@pytest.mark.parametrize(("noise", "found"), [(0.1, True), (1.1, False)])
def test_a_change_that_the_baselines_own_steps_make_too_is_not_worse(compared, noise, found):
    assert bool(worse(compared({"noise": noise}, {"noise": 0.1, "attenuation": 0.1}))) == found


def test_a_falling_curve_is_not_noise(tmp_path):
    """Over 60 steps the baseline's loss falls a thousandfold; ten times its value at the same steps is worse."""
    for name, factor in (("good", 1.0), ("new", 10.0)):
        for part, steps in enumerate(np.split(np.arange(60), 60)):
            write_run(tmp_path / name, steps=steps.tolist(), loss=factor * 10 ** (-part / 20))
    verdict = judge(str(tmp_path / "new"), Settings(baseline=str(tmp_path / "good")))
    assert worse(verdict) == [("loss", "")]


def test_runs_of_different_length_are_compared_where_both_were_measured(compared):
    verdict = compared({"steps": range(0, 300, 5)}, {"steps": range(0, 100, 10), "attenuation": 1e-3})
    assert verdict.comparison.compared.startswith("steps 0 to 90, 10 measured steps against 19, 11 layers and sites")
    assert worse(verdict)


@pytest.mark.parametrize("steps", [range(100, 200, 10), range(50, 60, 5)])
def test_too_few_steps_in_common_are_not_comparable(compared, steps):
    verdict = compared({}, {"steps": steps})
    assert verdict.exit_code == 2
    assert "share fewer than 3 measured steps" in verdict.failure


def test_renamed_layers_are_not_comparable(compared):
    verdict = compared({}, {}, run_info=make_info(prefix="model."))
    assert verdict.exit_code == 2
    assert "no layer or site of one has its name in the other" in verdict.failure
    assert len(verdict.comparison.only_baseline) == len(verdict.comparison.only_run) == 11


def test_a_longer_net_is_compared_by_name_and_the_rest_is_said(compared):
    verdict = compared({}, {}, run_info=make_info(8))
    assert verdict.exit_code == 0
    assert verdict.comparison.only_run == ("net.12", "net.14", "net.11", "net.13")
    assert verdict.comparison.only_baseline == ()


class TestFindings:
    def test_what_the_baseline_has_too_is_known_and_does_not_fail(self, compared):
        verdict = compared({"attenuation": 1e-6}, {"attenuation": 1e-6})
        assert [finding.code for finding in verdict.findings] == ["GW101"]
        assert verdict.comparison.known == verdict.findings
        assert verdict.exit_code == 0

    def test_what_it_has_not_is_new_and_fails(self, compared):
        verdict = compared({}, {"dead_fraction": 0.95})
        assert verdict.comparison.known == ()
        assert verdict.exit_code == 1

    def test_more_layers_or_a_higher_severity_is_new(self, compared):
        verdict = compared({"dead_fraction": 0.92}, {"dead_fraction": 1.0})
        assert verdict.comparison.known == ()
        verdict = compared({"dead_fraction": [0.95, 0, 0, 0, 0]}, {"dead_fraction": [0.95, 0.95, 0, 0, 0]})
        assert verdict.comparison.known == ()

    def test_what_went_is_said(self, compared):
        verdict = compared({"attenuation": 1e-6}, {})
        assert [finding.code for finding in verdict.comparison.gone] == ["GW101"]
        assert verdict.exit_code == 0


class TestCommand:
    @pytest.fixture
    def runs(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_run("good", noise=0.2, seed=1)
        write_run("same", noise=0.2, seed=2)
        write_run("faded", noise=0.2, seed=3, attenuation=0.02)
        write_run("short", noise=0.2, seed=4, steps=range(4))
        write_run("renamed", make_info(prefix="model."))

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            ("compare good same", 0),
            ("compare good faded", 1),
            ("compare good faded --fail-on error", 0),
            ("compare good renamed", 2),
            ("compare good nowhere", 2),
            ("compare nowhere good", 2),
            ("compare good same faded", 1),
            ("compare good same nowhere faded", 2),
            ("compare good", 2),
            ("compare faded good", 0),
            ("check good same --baseline good", 0),
            ("check faded --baseline good", 1),
            ("check faded --baseline faded", 0),
            ("check same --baseline nowhere", 2),
            ("check same --baseline renamed", 2),
        ],
    )
    def test_exit_codes(self, runs, arguments, code, capsys):
        assert command.main(arguments.split()) == code
        assert "internal error" not in capsys.readouterr().err

    def test_a_comparison_needs_no_rule_that_can_judge(self, runs, tmp_path, capsys):
        write_run("early", noise=0.2, seed=5, steps=range(4))
        assert command.main(["check", "early", "--select", "GW101", "--baseline", "short"]) == 2
        assert command.main(["compare", "short", "early", "--select", "GW101"]) == 0

    def test_it_tells_numbers_ratio_and_noise(self, runs, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        command.main(["compare", "good", "faded"])
        said = capsys.readouterr().out
        assert "  compared with good: steps 0 to 57, 20 measured steps against 20, 11 layers and sites of" in said
        line = (
            r"  worse: grad_norm of net\.0: 0\.\d+ → 0\.0\d+, 0\.0\d+ times \(spread of the baseline: 1\.\d+ times\)\n"
        )
        assert re.search(line, said)
        assert said.endswith("  failed: 7 numbers worse than good; 18 rules judged, nothing found\n")

    def test_json_has_it_all(self, runs, capsys):
        command.main(["compare", "good", "faded", "--format", "json"])
        (run,) = json.loads(capsys.readouterr().out)["runs"]
        assert {change["metric"] for change in run["comparison"]["worse"]} == {"grad_norm", "signal_norm"}
