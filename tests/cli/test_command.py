"""The command line's exit codes and texts; runs are given by a stand-in for the reader of event files."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_gradwatch.cli import command as cli
from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.run import Run, RunError, read_run
from lightning_gradwatch.judge.selection import settings_of
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, OptimizerInfo, SiteInfo, StepRecord

INFO = RunInfo(
    layers=tuple(LayerInfo(f"net.{place}", "Linear", ((4, 4),), 16, weight=True) for place in range(0, 8, 2)),
    sites=tuple(SiteInfo(f"net.{place}", "sigmoid", "hidden", 4) for place in range(1, 6, 2)),
    optimizers=(OptimizerInfo("SGD", {"lr": 0.1}),),
    rules=settings_of(DEFAULT_RULES),
)


def stored(signal=(0.5, 0.7, 1.0), *, steps=range(9, 14), info=INFO, dead=0.0, problems=()):
    records = [
        StepRecord(
            step=step,
            layout=info.layout,
            metrics={
                "signal_norm": np.array(signal),
                "dead_fraction": np.full(3, dead),
                "saturated_fraction": np.zeros(3),
            },
            layer_state=np.ones(4, dtype=np.uint8),
            window_fill=np.ones(3),
            forward_rms=np.ones(3),
            loss=2.3,
            learning_rates=(0.1,),
        )
        for step in steps
    ]
    return Run(path=Path("stored"), info=info, infos={info.layout: info}, records=records, problems=problems)


RUNS = {
    "healthy": stored(),
    "vanishing": stored((1e-4, 1e-2, 1.0)),
    "gone": stored((1e-9, 1e-4, 1.0)),
    "information": stored(dead=0.6),
    "short": stored(steps=()),
    "unseen": stored(info=replace(INFO, rules={"GW101": {}}), steps=(0, 1)),
    "ruleless": stored(info=replace(INFO, rules={})),
    "newer": stored(info=replace(INFO, rules={**INFO.rules, "GW999": {"x": 1}}), problems=("1 event lost",)),
    "misset": stored(info=replace(INFO, rules={"GW101": {"ratio": 7}})),
}


REAL_READER = read_run


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    def read_run(path):
        if path == "broken":
            raise ZeroDivisionError("a bug\nof ours")
        if path not in RUNS:
            raise RunError(f"no such run: {path}")
        return RUNS[path]

    monkeypatch.setattr("lightning_gradwatch.judge.run.read_run", read_run)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("check healthy", 0),
        ("check vanishing", 1),
        ("check gone", 1),
        ("check information", 0),
        ("check nowhere", 2),
        ("check short", 2),
        ("check unseen", 2),
        ("check ruleless", 2),
        ("check ruleless --select GW101", 0),
        ("check newer", 0),
        ("check misset", 2),
        ("check broken", 2),
        ("check vanishing --fail-on error", 0),
        ("check gone --fail-on error", 1),
        ("check vanishing --ignore GW101", 0),
        ("check vanishing --ignore gw1", 0),
        ("check vanishing --select GW104,GW2", 0),
        ("check vanishing --select GW101", 1),
        ("check vanishing --select GW101 --ignore GW1", 2),
        ("check healthy --select GW9", 2),
        ("check healthy --ignore GW9", 2),
        ("check healthy --select ,", 2),
        ("check healthy --fail-on never", 2),
        ("check", 2),
        ("check healthy --config a.toml --no-config", 2),
        ("", 2),
        ("frobnicate", 2),
        ("check healthy healthy", 0),
        ("check healthy vanishing", 1),
        ("check vanishing healthy", 1),
        ("check nowhere vanishing healthy", 2),
        ("check vanishing nowhere", 2),
        ("explain GW101", 0),
        ("explain gw202", 0),
        ("explain GW9", 2),
        ("rules", 0),
        ("--version", 0),
        ("--help", 0),
        ("check --help", 0),
    ],
)
def test_exit_codes(arguments, code, capsys):
    assert cli.main(arguments.split()) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.out + said.err


def test_a_check_tells_rule_layers_numbers_cause_and_remedy(capsys):
    cli.main(["check", "vanishing"])
    said = capsys.readouterr().out
    assert said.startswith("vanishing: 5 measured steps (9 to 13), 4 layers, 3 activation sites\n")
    for part in (
        "GW101 The gradient shrinks by a factor of 0.01 per layer: net.1 gets 0.0001 of the signal of net.5.",
        "vanishing-gradient, warning since step 10, last seen at step 13 (threshold 0.003)",
        "at most 1/4",
        "Replace Sigmoid at net.1, net.3, net.5 by ReLU",
        "failed: 1 warning from 15 rules judged",
    ):
        assert part in " ".join(said.split())


def test_every_run_gets_its_verdict_even_after_one_that_failed(capsys):
    cli.main(["check", "nowhere", "healthy"])
    said = capsys.readouterr().out
    assert "nowhere\n  can't judge: no such run: nowhere\n\nhealthy: 5" in said
    assert "\n  healthy: 15 rules judged, nothing found\n" in said
    assert "\n2 runs: 1 healthy, 1 can't be judged\n" in said


@pytest.mark.parametrize(("name", "code"), [("healthy", 0), ("vanishing", 1)])
def test_a_real_event_file_gives_the_same_verdict(name, code, tmp_path, monkeypatch, capsys):
    with EventFile(tmp_path) as file:
        for place, record in enumerate(RUNS[name].records):
            file.write(step_event(record, RUNS[name].info, describe=place == 0))
    cli.main(["check", name])
    expected = capsys.readouterr().out
    monkeypatch.setattr("lightning_gradwatch.judge.run.read_run", REAL_READER)
    assert cli.main(["check", str(tmp_path)]) == code
    assert capsys.readouterr().out.splitlines()[2:] == expected.splitlines()[1:]


def test_what_a_newer_release_judged_and_what_was_lost_is_said(capsys):
    cli.main(["check", "newer"])
    said = capsys.readouterr().out
    assert "not judged: GW999: this release doesn't know it" in said
    assert "note: 1 event lost" in said


def test_what_couldnt_be_judged_is_said(capsys):
    cli.main(["check", "unseen"])
    said = capsys.readouterr().out
    assert "not judged: GW101 vanishing-gradient: not yet: the first 10 steps are warm-up" in said
    assert "can't judge: none of the selected rules could be judged" in said


def test_thresholds_are_the_runs_own(monkeypatch):
    info = replace(INFO, rules={"GW101": {"ratio": 1e-5}})
    monkeypatch.setitem(RUNS, "lax", stored((1e-4, 1e-2, 1.0), info=info))
    assert cli.main(["check", "lax"]) == 0


def test_a_fault_of_ours_is_one_line_that_says_where(capsys):
    assert cli.main(["check", "broken"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gradwatch: internal error, please report it: ZeroDivisionError: a bug\\nof ours (")
    assert len(said.splitlines()) == 1


def test_a_terminal_that_knows_ascii_only_is_no_error(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setitem(RUNS, "vänishing\udcff", RUNS["vanishing"])
    assert cli.main(["check", "vänishing\udcff"]) == 1
    assert b"v\\xe4nishing\\udcff" in raw.getvalue()


def test_an_empty_run_is_not_this_folder(capsys):
    assert cli.main(["check", "healthy", ""]) == 2
    assert capsys.readouterr().err == "gradwatch: RUN: is empty; give a run folder, an event file or a glob\n"


def test_a_mistake_is_told_in_the_characters_that_a_terminal_has(capsys):
    assert cli.main(["check", "healthy", "--set", "GW201.observations=9"]) == 2
    assert capsys.readouterr().err.endswith("give it to GradWatch(rules=[…])\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_that_is_full_is_said():
    command = [sys.executable, "-m", "lightning_gradwatch", "rules"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.startswith("gradwatch: the output: No space left on device\n")
    assert done.returncode


def test_an_interrupt_ends_quietly(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_gradwatch.judge.run.read_run", interrupt)
    assert cli.main(["check", "healthy"]) == 130
    assert capsys.readouterr().err == ""


def test_rules_lists_a_line_a_rule(capsys):
    cli.main(["rules"])
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["GW101", "vanishing-gradient"],
        ["GW102", "exploding-gradient"],
        ["GW103", "non-finite"],
        ["GW104", "unreached-layer"],
        ["GW105", "loss-spike"],
        ["GW106", "starved-part"],
        ["GW201", "dead-units"],
        ["GW202", "saturated-units"],
        ["GW301", "stalled-update"],
        ["GW302", "oversized-update"],
        ["GW303", "clipped-away"],
        ["GW304", "decay-dominates"],
        ["GW401", "initialization"],
        ["GW501", "output-applied-twice"],
        ["GW502", "stale-gradient"],
        ["GW503", "untrained-parameter"],
        ["GW504", "single-value-normalization"],
        ["GW505", "start-far-off"],
        ["GW506", "evaluation-mode"],
        ["GW601", "no-progress"],
    ]


class TestDemo:
    @pytest.fixture
    def calls(self, monkeypatch):
        seen = []
        module = types.ModuleType("lightning_gradwatch.demo.main")
        module.run = lambda **given: seen.append(given) or 0
        monkeypatch.setitem(sys.modules, "lightning_gradwatch.demo.main", module)
        return seen

    def test_hands_its_options_on(self, calls):
        assert cli.main(["demo"]) == 0
        assert cli.main(["demo", "--logdir", "x", "--seed", "3", "--steps", "7"]) == 0
        assert calls == [{"logdir": "gradwatch-demo", "seed": 0}, {"logdir": "x", "seed": 3, "steps": 7}]

    def test_without_scikit_learn_says_what_to_install(self, calls, monkeypatch, capsys):
        def missing(**_):
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets")

        monkeypatch.setattr(sys.modules["lightning_gradwatch.demo.main"], "run", missing)
        assert cli.main(["demo"]) == 2
        assert "pip install 'lightning-gradwatch[demo]'" in capsys.readouterr().err


def test_runs_as_a_module_and_into_a_closed_pipe():
    command = f"{sys.executable} -m lightning_gradwatch rules"
    done = subprocess.run(["sh", "-c", f"{command}; {command} | true"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("GW101  vanishing-gradient")
    assert done.stderr == ""


def test_an_empty_code_is_called_empty(capsys):
    assert cli.main(["explain", " "]) == 2
    assert "CODE is empty" in capsys.readouterr().err
