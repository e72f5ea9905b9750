"""Arithmetics as further seeds: who offers which, and that a child process computes in the one it is told."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.galleries import arithmetic
from benchmarks.galleries.__main__ import main
from benchmarks.galleries.arithmetic import ARITHMETICS, computing_in, offered, parse, processor, refused
from benchmarks.galleries.judge import judge_all
from benchmarks.galleries.runner import load, run_folder
from benchmarks.galleries.table import arithmetic_table

ILL = "vanishing-activation/sigmoid-8-iris"
AVX2 = "sse4_1 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Say what the processor's flags are."""

    def say(flags):
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nmodel name\t: Some Processor 7\nflags\t\t: {flags}\n" * 2)
        monkeypatch.setattr(arithmetic, "CPUINFO", path)

    return say


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("sse4_1", ["default", "lowest"]),
        (AVX2, ["default", "avx2", "lowest"]),
        (AVX512, ["default", "avx2", "avx512", "lowest"]),
        (f"{AVX2} avx512f", ["default", "avx2", "lowest"]),  # the first ones had no more of it
    ],
)
def test_what_a_processor_offers_is_read_off_its_flags(flags, names, cpuinfo):
    cpuinfo(flags)
    assert offered() == names
    assert processor() == f"Some Processor 7, which offers {', '.join(names)}"
    assert refused(names) == refused([""]) == ""


def test_what_it_doesnt_offer_is_refused_before_it_would_die_of_it(cpuinfo, capsys):
    cpuinfo(AVX2)
    with pytest.raises(SystemExit):
        main(["--arithmetic", "avx2,avx512"])
    assert "avx512 can't run here: this is Some Processor 7, which offers default, avx2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--arithmetic", "avx3"])
    assert "no arithmetic is called 'avx3'" in capsys.readouterr().err
    assert parse("avx2, default,avx2") == ["avx2", "default"]


def test_where_a_processor_cant_be_asked_only_what_any_can_is_offered(tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic, "CPUINFO", tmp_path / "nothing")
    assert offered() == ["default", "lowest"]


@pytest.mark.parametrize("name", ["default", "lowest", *({"avx2"} & set(offered()))])
def test_a_process_that_starts_within_computes_so_and_this_one_is_as_before(name, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    before = dict(os.environ)
    with computing_in(name):
        assert {key: value for key, value in os.environ.items() if key in ARITHMETICS["lowest"]} == ARITHMETICS[name]
        program = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == ARITHMETICS[name]["ATEN_CPU_CAPABILITY"]
    assert dict(os.environ) == before


@pytest.mark.slow
def test_each_run_is_trained_in_each_arithmetic_and_the_spread_is_printed(tmp_path):
    only = ["--only", "small-data/iris", "--only", ILL, "--seeds", "1"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main([*only, "--runs", str(tmp_path), "--arithmetic", "default,lowest"])
    for name in ("default", "lowest"):
        result, _ = load(tmp_path, "small-data/iris", 0, name)
        assert result.arithmetic == name
        assert run_folder(tmp_path, "small-data/iris", 0, name).is_dir()
        assert f"| {name} | 1/1 (100.0 %) | 1/1 (100.0 %) | 1/1 (100.0 %) | 0/1 (0.0 %) |" in out.getvalue()
    assert "| spread | 100.0 to 100.0 % | 100.0 to 100.0 % | 100.0 to 100.0 % | 0.0 to 0.0 % |" in out.getvalue()
    assert "turns with the arithmetic in 0/2 (0.0 %) of the cases and seeds" in out.getvalue()
    assert "2/2 (100.0 %) | 2/2 (100.0 %) | 2/2 (100.0 %) | 0/2 (0.0 %)" in out.getvalue()

    judged = judge_all([ILL, "small-data/iris"], (0,), tmp_path, ["default", "lowest"])
    silent = [replace(run, findings=()) if run.result.arithmetic == "lowest" else run for run in judged]
    told = "\n".join(arithmetic_table(silent))
    assert "| lowest | 0/1 (0.0 %) | 0/1 (0.0 %) |" in told
    assert "| spread | 0.0 to 100.0 % | 0.0 to 100.0 % |" in told
    assert "turns with the arithmetic in 1/2 (50.0 %) of the cases and seeds" in told
    assert f"- {ILL} seed 0: default GW101 (0.33); lowest - (0.33)" in told
