"""The workflow in docs/ci.md does what it says: its shell parts are run here, as GitHub runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documentation.pages import DOCS, ROOT, read

pytestmark = pytest.mark.judges

NETWORK = ("pip install",)


def run_parts(yaml):
    """Return the `run:` parts of a workflow: those of one line, and blocks without their indentation."""
    parts, lines = [], yaml.splitlines()
    for number, line in enumerate(lines):
        found = re.fullmatch(r"( *)(?:- )?run: (.*)", line)
        if not found:
            continue
        if found[2] != "|":
            parts.append(found[2])
            continue
        depth = len(found[1]) + 2
        block = []
        for each in lines[number + 1 :]:
            if each.strip() and not each.startswith(" " * depth):
                break
            block.append(each[depth:])
        parts.append("\n".join(block))
    return parts


def workflow():
    (yaml,) = re.findall(r"```yaml\n(name: training\n.*?)```", read(DOCS / "ci.md"), re.DOTALL)
    return yaml


def act(folder, parts):
    """Run parts until one fails, as a job does; return the last exit code, the log and the summary."""
    (folder / "examples").symlink_to(ROOT / "examples")
    summary = folder / "summary.md"
    summary.touch()
    environment = os.environ | {
        "GITHUB_STEP_SUMMARY": str(summary),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUTF8": "1",
    }
    log = ""
    for part in parts:
        command = ["bash", "-e", "-c", part]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", check=False, cwd=folder, env=environment, timeout=300
        )
        log += done.stdout + done.stderr
        if done.returncode:
            break
    return done.returncode, log, summary.read_text(encoding="utf-8")


def test_parts_are_found_as_github_reads_them():
    assert run_parts("- run: one\n- name: x\n  run: |\n    two\n      three\n\n    four\n- uses: y") == [
        "one",
        "two\n  three\n\nfour",
    ]
    parts = run_parts(workflow())
    assert len(parts) == workflow().count("run: ")
    assert sum(part.startswith(NETWORK) for part in parts) == 1


def test_workflow_keeps_the_run_that_it_judges():
    assert set(re.findall(r"smoke-run", workflow().split("upload-artifact")[1])) == {"smoke-run"}
    assert "if: always()" in workflow()


@pytest.mark.slow
@pytest.mark.parametrize(("net", "code"), [("relu", 0), ("sigmoid", 1)])
def test_shell_parts_pass_a_healthy_net_and_fail_an_ill_one(tmp_path, net, code):
    parts = [part for part in run_parts(workflow()) if not part.startswith(NETWORK)]
    parts[0] += f" --net {net}"
    returned, log, summary = act(tmp_path, parts)
    assert returned == code, log
    assert ("::error " in log) == (code == 1)
    assert ("GW101" in summary) == (code == 1)
    assert "GradWatch" in summary
    assert list((tmp_path / "smoke-run" / "gradwatch" / "version_0").iterdir())


@pytest.mark.slow
def test_shell_parts_fail_where_no_run_was_kept(tmp_path):
    parts = [part for part in run_parts(workflow()) if not part.startswith(NETWORK)]
    returned, log, _ = act(tmp_path, parts[1:])
    assert returned == 2, log
