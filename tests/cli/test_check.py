"""`gradwatch check` on real event files: which runs, which rules, which output, which exit code."""

from __future__ import annotations

import json
import os
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from written import make_info, write_run

from lightning_gradwatch.cli import command
from lightning_gradwatch.cli.check import find_runs
from lightning_gradwatch.tell.formats import FORMATS


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A folder of runs, and nothing of the environment's."""
    for name in list(os.environ):
        if name.startswith(("GRADWATCH_", "GITHUB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    write_run("logs/good")
    write_run("logs/ill", attenuation=1e-4)
    write_run("logs/gone", attenuation=1e-9)
    write_run("logs/dead", dead_fraction=[0, 1.0, 0, 0.95, 0])
    write_run("early", steps=(0, 1))
    write_run("partly", make_info(rules={"GW101": {}, "GW104": {}}))
    (tmp_path / ".git").mkdir()  # the search for settings ends here
    return tmp_path


def check(arguments):
    return command.main(["check", *arguments.split()])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("logs/good", 0),
        ("logs/good --require GW101", 0),
        ("logs/good --require GW1,GW2", 0),
        ("logs/ill --require GW101", 1),
        ("early", 0),
        ("early --require GW104", 0),
        ("early --require GW101", 2),
        ("early --require GW1", 2),
        ("logs/ill early --require GW101", 2),
        ("partly", 0),
        ("partly --require GW201", 2),
        ("partly --require GW201 --select GW201", 0),
        ("logs/good --require GW101 --ignore GW101", 2),
        ("logs/good --require GW9", 2),
        ("logs/ill --set GW101.ratio=1e-5", 0),
        ("logs/ill --set GW101.ratio=1e-5 --set GW101.min_grad_rms=1e-3", 1),
        ("logs/good --set GW101.ratio=0.9 --set GW101.gain=0.99", 1),
        ("logs/ill --set GW101.ratio=none", 1),
        ("logs/good --set GW101.ratio=7", 2),
        ("logs/good --set GW101.ration=0.5", 2),
        ("logs/good --set GW201.observations=7", 2),
        ("logs/dead", 1),
        ("logs/dead --fail-on error", 1),
        ("logs/dead --ignore-layers GW201:net.3 --fail-on error", 0),
        ("logs/dead --ignore-layers GW201:net.3", 1),
        ("logs/dead --ignore-layers GW2:net.3 --ignore-layers GW201:net.[78]", 0),
        ("logs/dead --ignore-layers GW101:net.*", 1),
        ("logs/dead --ignore-layers GW201:* --require GW201", 2),
        ("logs/ill --ignore-layers GW101:net.*", 0),
        ("logs/good --ignore-layers net.3", 2),
        ("logs/*", 1),
        ("logs/g*d", 0),
        ("logs/nothing*", 2),
        ("logs/*/events*", 1),
        ("**", 1),
        ("logs", 1),
    ],
)
def test_exit_codes(arguments, code, capsys):
    assert check(arguments) == code
    said = capsys.readouterr()
    assert "internal error" not in said.err
    assert said.out + said.err


class TestWhichRuns:
    def test_a_glob_means_run_folders_in_natural_order(self, runs):
        for number in (10, 9, 1):
            write_run(f"v/version_{number}")
        (runs / "v" / "notes.txt").touch()
        (runs / "v" / "version_empty").mkdir()
        assert find_runs("v/*") == ["v/version_1", "v/version_9", "v/version_10"]

    def test_files_are_taken_where_their_folder_is_not(self):
        assert find_runs("logs/**") == ["logs/dead", "logs/gone", "logs/good", "logs/ill"]
        (only,) = find_runs("logs/good/*")
        assert "tfevents" in only

    def test_a_path_with_a_bracket_that_exists_is_no_glob(self):
        write_run("run[1]")
        assert find_runs("run[1]") == ["run[1]"]

    def test_a_glob_that_matches_nothing_is_said(self, capsys):
        assert check("logs/nothing*") == 2
        assert "can't judge: no such run: logs/nothing*" in capsys.readouterr().out

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_a_folder_that_may_not_be_listed_stops_no_other_run(self, runs, capsys):
        (runs / "logs" / "locked").mkdir(mode=0)
        assert check("logs/*") == 2
        said = capsys.readouterr().out
        assert "can't judge: logs/locked can't be read: Permission denied" in said
        assert "5 runs: " in said

    def test_many_runs_end_with_an_overview(self, capsys):
        check("logs/* nowhere")
        said = capsys.readouterr().out
        overview = said[said.index("5 runs: ") :].splitlines()
        assert overview[0] == "5 runs: 1 healthy, 3 failed, 1 can't be judged"
        assert [line.split()[0] for line in overview[2:]] == ["logs/dead", "logs/gone", "logs/ill", "nowhere"]


class TestRules:
    def test_a_threshold_that_replaced_the_stored_one_is_the_findings(self, capsys):
        check("logs/ill --set GW101.ratio=0.01 --format json")
        (run,) = json.loads(capsys.readouterr().out)["runs"]
        assert run["findings"][0]["threshold"] == 0.01
        assert run["judged"][0]["thresholds"]["ratio"] == 0.01
        assert run["judged"][0]["thresholds"]["gain"] == 0.75

    def test_a_threshold_out_of_range_names_where_it_came_from(self, capsys):
        check("logs/ill --set GW101.ratio=7")
        assert "ratio must be between 0 and 1 or None (from --set GW101.ratio=7)" in " ".join(
            capsys.readouterr().out.split()
        )

    def test_a_threshold_of_a_rule_that_does_not_judge_is_said(self, capsys):
        assert check("partly --set GW201.warn=0.6") == 0
        assert "note: a threshold of GW201 is set, and the run was watched without" in capsys.readouterr().out

    def test_a_required_rule_that_cannot_judge_is_named_with_its_reason(self, capsys):
        check("early --require GW101")
        said = " ".join(capsys.readouterr().out.split())
        assert "can't judge: required GW101 vanishing-gradient could not judge: not yet: the first 10 steps" in said
        check("partly --require GW201")
        said = " ".join(capsys.readouterr().out.split())
        assert "required GW201 dead-units is not among the rules that judge this run" in said


class TestIgnoredLayers:
    def found(self, arguments, capsys):
        check(f"logs/dead --format json {arguments}")
        (run,) = json.loads(capsys.readouterr().out)["runs"]
        return run

    def test_numbers_and_severity_are_those_of_the_layers_that_are_left(self, capsys):
        (finding,) = self.found("", capsys)["findings"]
        assert (finding["severity"], finding["layers"], finding["value"]) == ("error", ["net.3", "net.7"], 1.0)
        run = self.found("--ignore-layers GW201:net.3", capsys)
        (finding,) = run["findings"]
        assert (finding["severity"], finding["layers"], finding["value"]) == ("warning", ["net.7"], 0.95)
        assert run["ignored_layers"] == [
            {"rule": "GW201", "pattern": "net.3", "reason": "given by --ignore-layers", "layers": ["net.3"]}
        ]

    def test_a_layer_without_a_gradient_can_be_ignored(self):
        write_run("frozen", layer_state=np.array([1, 3, 1, 1, 3, 1], np.uint8))
        assert check("frozen") == 1
        assert check("frozen --ignore-layers GW104:net.2") == 1
        assert check("frozen --ignore-layers GW104:net.2 --ignore-layers GW104:net.8") == 0

    def test_the_other_rules_still_see_them(self, capsys):
        run = self.found("--ignore-layers GW101:net.3", capsys)
        assert [finding["layers"] for finding in run["findings"]] == [["net.3", "net.7"]]

    def test_a_pattern_that_matches_nothing_is_said(self, capsys):
        run = self.found("--ignore-layers GW201:nte.*", capsys)
        assert run["problems"] == [
            "GW201:nte.* (given by --ignore-layers) matches no layer and no activation of this run"
        ]

    def test_the_reason_is_shown(self, capsys, runs):
        (runs / "gradwatch.toml").write_text(
            "[[ignore-layers]]\nrules = ['GW201']\nlayers = ['net.3', 'net.7']\nreason = 'by design'\n"
        )
        assert check("logs/dead") == 0
        assert "ignored: GW201 at net.7 (net.7): by design" in capsys.readouterr().out


class TestSettings:
    def test_file_environment_and_command_line_in_this_order(self, runs, monkeypatch):
        assert check("logs/ill") == 1
        (runs / "gradwatch.toml").write_text("fail-on = 'error'\n")
        assert check("logs/ill") == 0
        monkeypatch.setenv("GRADWATCH_FAIL_ON", "warning")
        assert check("logs/ill") == 1
        assert check("logs/ill --fail-on error") == 0
        monkeypatch.delenv("GRADWATCH_FAIL_ON")
        assert check("logs/ill --no-config") == 1

    def test_a_mistake_is_one_line_and_exit_2(self, runs, capsys):
        (runs / "gradwatch.toml").write_text("fail_on = 'error'\n")
        assert check("logs/good") == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert re.fullmatch(
            r"gradwatch: .*gradwatch\.toml: unknown key 'fail_on'; the nearest is fail-on, all are .*\n", said.err
        )

    def test_a_baseline_in_the_file_is_beside_the_file(self, runs, monkeypatch):
        (runs / "gradwatch.toml").write_text("baseline = 'logs/ill'\n")
        monkeypatch.chdir(runs / "logs")
        assert check("ill") == 0


class TestOutput:
    @pytest.mark.parametrize("name", FORMATS)
    def test_a_format_goes_to_the_terminal_or_to_a_file(self, name, runs, capsys):
        assert check(f"logs/ill --format {name}") == 1
        printed = capsys.readouterr().out
        assert check(f"logs/ill --format {name} --output report") == 1
        assert (runs / "report").read_text() == printed or name == "text"
        assert "GW101" in (runs / "report").read_text()
        assert "failed: 1 warning from 18 rules judged" in capsys.readouterr().out

    def test_documents_are_whole(self, capsys):
        for name, parse in (
            ("json", json.loads),
            ("sarif", json.loads),
            ("junit", lambda text: ET.fromstring(text.encode())),
        ):
            check(f"logs/good logs/ill --format {name}")
            parse(capsys.readouterr().out)

    def test_a_file_that_cannot_be_written_is_exit_2(self, runs, capsys):
        assert check("logs/good --format json --output no/such/folder") == 2
        assert "no/such/folder: No such file or directory" in capsys.readouterr().err

    def test_the_step_summary_is_added_to(self, runs, monkeypatch, capsys):
        summary = runs / "summary.md"
        summary.write_text("before\n")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
        check("logs/ill")
        assert summary.read_text() == "before\n"
        check("logs/ill --format github")
        assert summary.read_text().startswith("before\n## GradWatch\n")
        assert "::warning title=GW101" in capsys.readouterr().out

    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_the_text_is_as_wide_as_the_terminal(self, width, monkeypatch, capsys):
        monkeypatch.setenv("COLUMNS", str(width))
        check("logs/ill logs/dead")
        longest = max(map(len, capsys.readouterr().out.splitlines()))
        assert min(width, 100) - 15 < longest <= min(width, 100)

    def test_a_rule_is_a_line_of_the_table(self, capsys):
        check("logs/ill")
        lines = capsys.readouterr().out.splitlines()
        place = next(place for place, line in enumerate(lines) if line.startswith("  rule "))
        assert [line.split() for line in lines[place : place + 14]] == [
            ["rule", "verdict", "layers", "since", "number", "threshold"],
            ["GW101", "vanishing-gradient", "warning", "net.0,", "net.2", "12", "0.0001", "0.003"],
            ["GW102", "exploding-gradient", "healthy"],
            ["GW103", "non-finite", "healthy"],
            ["GW104", "unreached-layer", "healthy"],
            ["GW105", "loss-spike", "healthy"],
            ["GW106", "starved-part", "healthy"],
            ["GW201", "dead-units", "healthy"],
            ["GW202", "saturated-units", "healthy"],
            ["GW301", "stalled-update", "healthy"],
            ["GW302", "oversized-update", "healthy"],
            ["GW303", "clipped-away", "healthy"],
            ["GW304", "decay-dominates", "healthy"],
            ["GW401", "initialization", "healthy"],
        ]


@pytest.mark.parametrize("runs_", ["logs/good", "logs/good logs/ill"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_report_names_the_file_that_settings_came_from(form, runs_, runs, capsys):
    """Whoever reads a verdict sees whose thresholds it is by."""
    (runs / "gradwatch.toml").write_text("fail-on = 'error'")
    check(f"{runs_} --format {form}")
    told = capsys.readouterr().out.replace("&#45;", "-").replace("&#95;", "_")
    assert "".join(str(runs / "gradwatch.toml").split()) in "".join(told.split())
    if form == "json":
        assert {run["settings_file"] for run in json.loads(told)["runs"]} == {str(runs / "gradwatch.toml")}
    check(f"{runs_} --format {form} --no-config")
    assert "gradwatch.toml" not in capsys.readouterr().out


def test_a_file_above_that_belongs_to_no_repository_of_ours_decides_nothing(runs, capsys, monkeypatch):
    (runs / "gradwatch.toml").write_text('ignore = ["GW1"]\n')
    (runs / "mine").mkdir()
    monkeypatch.chdir(runs / "mine")
    assert check("../logs/ill") == 0
    assert str(runs / "gradwatch.toml") in "".join(capsys.readouterr().out.split())
    (runs / ".git").rmdir()
    assert check("../logs/ill") == 1
    assert "gradwatch.toml" not in capsys.readouterr().out
