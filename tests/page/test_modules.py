"""The page's scripts: each is a module that node can read, and the pure ones do what their tests say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_gradwatch.page.bundle import STATIC, bundle, static_files

NODE = shutil.which("node")
TESTS = Path(__file__).parent / "static"

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node here: apt-get install nodejs")


def run(*arguments, stdin="", cwd=None):
    return subprocess.run(
        [NODE, *arguments], input=stdin, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", [name for name in static_files() if name.endswith(".js")])
def test_a_module_can_be_read(name):
    told = run("--check", "--input-type=module", stdin=(STATIC / name).read_text(encoding="utf-8"))
    assert told.returncode == 0, told.stderr


def test_so_can_the_script_that_all_of_them_become():
    told = run("--check", "--input-type=commonjs", stdin=bundle("host_file.js"))
    assert told.returncode == 0, told.stderr


def test_the_pure_modules_do_what_their_tests_say(tmp_path):
    """Beside copies of the modules, which node takes for such as a package says so."""
    shutil.copytree(STATIC, tmp_path, dirs_exist_ok=True)
    for test in TESTS.glob("*.test.mjs"):
        shutil.copy(test, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    told = run("--test", cwd=tmp_path)
    assert told.returncode == 0, told.stdout[-6000:]
    assert "# fail 0" in told.stdout or "fail 0" in told.stdout
