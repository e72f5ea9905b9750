"""The judge is judged: a fixed part of the galleries at one seed."""

from __future__ import annotations

import contextlib
import dataclasses
import io

import pytest

from benchmarks.galleries.__main__ import main
from benchmarks.galleries.cases import CASES
from benchmarks.galleries.judge import judge
from benchmarks.galleries.remedy import try_remedy
from benchmarks.galleries.runner import run
from lightning_gradwatch.cli.check import judge as check
from lightning_gradwatch.cli.settings import Settings
from lightning_gradwatch.record.finding import Finding, Remedy

SMALL = "vanishing-activation/sigmoid-8-iris"

ILL = [
    "vanishing-activation/sigmoid-8-sgd",
    "vanishing-activation/sigmoid-12-adam",
    "vanishing-activation/hardsigmoid-10",
    "vanishing-start/tanh-20-default-sgd",
    "vanishing-start/relu-8-small-adam",
    "exploding/relu-20-large-sgd",
    "exploding/tanh-12-unit-normal-adam",
    "non-finite/rate-regression",
    "non-finite/log-of-zero",
    "non-finite/inputs-never-vary",
    "dying/bias-4",
    "dying/narrow-4-by-16-cancer",
    "saturation/tanh-wine-raw",
    "rate-small/relu-sgd",
    "rate-large/layer-norm-adam",
    "cut/second-tower",
    "one-unit/softmax-xor",
    "half-precision/true-small-loss",
]
ONE_OF_SEVERAL = {
    "exploding/relu-20-large-sgd",
    "dying/bias-4",
    "dying/narrow-4-by-16-cancer",
    "saturation/tanh-wine-raw",
    "rate-large/layer-norm-adam",
}
"""Several rules fire, and the root cause is found by which of them follows from which."""

HEALTHY = [
    "plain/relu-6-sgd",
    "plain/sigmoid-2-adam",
    "plain/tanh-3-default-sgd",
    "small-data/diabetes",
    "converged/wine-momentum",
    "converged/confident-sigmoid",
    "normalised/batch-norm-10-sgd",
    "residual/zero-branches",
    "attention/warm-up",
    "recurrent/lstm-zen",
    "starts-at-zero/lora",
    "fine-tuning/frozen-half",
    "shapes/sparse-relu",
    "loops/batch-of-2",
    "loops/lbfgs",
    "loss-scales/million-sgd",
    "precision/float16-with-scaler",
    "adversarial/two-critic-steps",
]


@pytest.fixture
def judged(request, tmp_path):
    """Train the case that a test is about, and judge it from its file."""
    name = request.node.callspec.params["name"]
    run(CASES[name], 0, tmp_path)
    found = judge(name, 0, tmp_path)
    assert found.result.faults == ()
    assert found.differs == ""
    return found


@pytest.mark.slow
@pytest.mark.judges
@pytest.mark.parametrize("name", ILL)
def test_an_ill_run_is_warned_of_for_its_root_cause_and_in_time(name, judged, request):
    assert judged.ill
    if name in ONE_OF_SEVERAL and not any(field.name == "consequence_of" for field in dataclasses.fields(Finding)):
        request.applymarker(pytest.mark.xfail(strict=True, reason="awaits one root cause a run"))
    assert judged.named, judged.findings
    assert judged.is_early(judged.warned)


@pytest.mark.slow
@pytest.mark.judges
@pytest.mark.parametrize("name", HEALTHY)
def test_a_run_that_learns_is_not_warned_of(name, judged):
    assert judged.result.outcome.learned
    assert judged.alarms == ()
    assert judged.result.warnings == ()


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Run the program over two small cases; return the folder of runs and what it said."""
    folder = tmp_path_factory.mktemp("runs")
    only = [
        "--only",
        f"*/{SMALL.partition('/')[2]}",
        "--only",
        "small-data/iris",
        "--seeds",
        "1",
        "--runs",
        str(folder),
    ]
    said = []
    for further in ([], ["--judge-only"]):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main([*only, *further])
        said.append(out.getvalue().rpartition("\n\n")[0])  # the last line is the time it took
    return folder, *said


def test_the_program_trains_judges_and_prints(printed):
    _, said, _ = printed
    assert f"| {SMALL} | c | 0.33 (0.33, 0.87) | 0/1 | GW101 | GW101 |" in said
    assert "| GradWatch | 1/1 (100.0 %) | 1/1 (100.0 %) | 1/1 (100.0 %) | 0/1 (0.0 %) | - |" in said
    assert "Replayed otherwise than live: 0" in said


def test_runs_are_judged_again_from_their_files(printed):
    _, said, again = printed
    assert again == said


def test_check_says_what_the_galleries_say(printed):
    folder, *_ = printed
    assert check(str(folder / SMALL / "seed-0"), Settings()).findings == judge(SMALL, 0, folder).findings


def test_without_a_remedy_the_same_run_comes_out_again(printed):
    folder, *_ = printed
    first = judge(SMALL, 0, folder).result.outcome
    assert not first.learned
    assert try_remedy(CASES[SMALL], 0, Remedy(text="")).outcome == first


def test_it_says_what_it_cannot_do(capsys):
    for arguments, said in ((["--judge-only"], "needs --runs"), (["--only", "nothing/*"], "matches no case")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err
