"""What README and docs show runs: each block of code, each command, each setting, each name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from documentation.pages import DOCS, PAGES, README, ROOT, blocks, inline, title
from integration.nets import QUIET, Classifier, batches
from torch import nn
from written import write_run

import lightning_gradwatch as package
from lightning_gradwatch.cli.config import load_settings
from lightning_gradwatch.cli.options import build_parser
from lightning_gradwatch.judge.catalog import GROUP
from lightning_gradwatch.judge.selection import check_prefixes
from lightning_gradwatch.testing.plugin.options import _OPTIONS

LANGUAGES = {"python", "sh", "text", "toml", "yaml"}
ON_PYTEST = "pytest.mark"
COMMANDS = ("check", "compare", "report", "explain", "rules", "demo")


def reader():
    """What a reader has before the block: a Trainer, a module, data, a loop."""
    torch.manual_seed(0)
    model = Classifier()
    x, y = next(iter(batches()))
    return {
        "Trainer": partial(pl.Trainer, **QUIET | {"max_steps": 2}),
        "GradWatch": package.GradWatch,
        "model": model,
        "train_loader": batches(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.functional.cross_entropy,
        "x": x,
        "y": y,
    }


def run_page(page, tmp_path, monkeypatch):
    """Run a page's Python from top to bottom, as somebody who copies it does; return the names that it leaves."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("lightning_logs/version_0"))
    names = reader()
    for block in blocks(page, "python"):
        if ON_PYTEST in block.text:
            continue
        if "records" not in names and re.search(r"\brecords\b", block.text):
            names["records"] = [names["probe"].record]  # "collect `probe.record` of the steps that you measure"
        with warnings.catch_warnings():
            exec(compile(block.text, f"{title(page)}, block {block.place}", "exec"), names)  # noqa: S102 - it is what is tested
    return names


WITH_CODE = [page for page in PAGES if any(ON_PYTEST not in block.text for block in blocks(page, "python"))]


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_block_is_in_a_language_that_is_tried_here(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_pages_with_code_are_found():
    assert {README, DOCS / "findings.md", DOCS / "plain-loops.md", DOCS / "ci.md"} <= {*WITH_CODE}


@pytest.mark.judges
@pytest.mark.parametrize("page", WITH_CODE, ids=title)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    names = run_page(page, tmp_path, monkeypatch)
    if "trainer" in names:
        assert any(isinstance(each, package.GradWatch) for each in names["trainer"].callbacks)
        names["trainer"].fit(Classifier(), batches())
    if "run" in names and "steps" in names:
        assert len(names["steps"]) == len(names["values"]) > 0


def test_the_filter_on_the_page_of_findings_makes_the_warning_an_error(tmp_path, monkeypatch):
    """The block runs above with its filter taken back; here the filter itself is tried."""
    (block,) = [each for each in blocks(DOCS / "findings.md", "python") if "filterwarnings" in each.text]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(block.text, reader())  # noqa: S102 - it is what is tested
        with pytest.raises(package.VanishingGradientWarning):
            warnings.warn("the gradient vanishes", package.VanishingGradientWarning, stacklevel=1)


SUITE = """
import pytest
import pytorch_lightning
from integration.nets import QUIET, Classifier, batches
from lightning_gradwatch import VanishingGradient

def Trainer(**given):
    return pytorch_lightning.Trainer(**QUIET | {"max_steps": 20} | given)

student = Classifier()
"""


@pytest.mark.slow
@pytest.mark.judges
def test_the_tests_on_the_page_of_tests_pass_for_a_healthy_module(tmp_path):
    (block,) = [each for each in blocks(DOCS / "testing.md", "python") if ON_PYTEST in each.text]
    body = "Trainer().fit(Classifier(), batches())"  # where the page leaves it to the reader
    (tmp_path / "test_page.py").write_text(SUITE + block.text.replace("): ...", f"): {body}"), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "test_page.py"], capture_output=True, encoding="utf-8", check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_settings_file_is_read_as_the_page_says(tmp_path):
    found = [block for page in PAGES for block in blocks(page, "toml") if "[project." not in block.text]
    assert found
    for block in found:
        path = tmp_path / "pyproject.toml"
        path.write_text(block.text, encoding="utf-8")
        settings = load_settings({}, environment={}, folder=None, file=str(path))
        assert settings.fail_on is package.Severity.ERROR
        assert settings.require == ("GW101",)
        assert settings.baseline is not None
        assert settings.thresholds["GW101"]["ratio"].value == 1e-2
        assert [(each.rule, each.pattern) for each in settings.ignore_layers] == [("GW201", "head.*")]


def test_hydra_builds_what_the_page_of_trainers_shows():
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    (block,) = blocks(DOCS / "trainer.md", "yaml")
    (watch,) = hydra.instantiate(omegaconf.OmegaConf.create(block.text)).callbacks
    assert isinstance(watch, package.GradWatch)
    assert package.VanishingGradient(ratio=0.01) in watch._rules


def commands(page):
    """The commands of ours that a page shows, whole: in prose, in blocks of text and in workflows."""
    shown = [text for text in inline(page) if re.match(r"gradwatch \w", text)]
    for block in blocks(page):
        if block.text.rstrip().partition("\n")[0].endswith("--help"):
            continue  # test_cli_help compares it with the program's own
        joined = re.sub(r"\\\n\s*", "", block.text)
        shown += re.findall(
            rf"(?:^\$ |^ *(?:run: )?|More: )(gradwatch (?:{'|'.join(COMMANDS)})\b[^\n]*)", joined, re.MULTILINE
        )
        shown += re.findall(r"^ +more +(gradwatch .*)$", joined, re.MULTILINE)
    return shown


def parsed(command):
    """Parse a command as the program does."""
    parser = build_parser(dict.fromkeys(COMMANDS, lambda _: 0))
    words = shlex.split(command)[1:]
    if words in ([name] for name in COMMANDS) or words[-1] == "--help":  # the command's name alone; its help
        return SimpleNamespace()
    return parser.parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_command_is_one_that_the_program_takes(page):
    for command in commands(page):
        found = parsed(command)
        if "code" in vars(found):
            check_prefixes([found.code], command)


def test_commands_are_found():
    assert len({command for page in PAGES for command in commands(page)}) > 5
    with pytest.raises(SystemExit):
        parsed("gradwatch check run --not-an-option")


TENSORBOARDS = {"--load_fast", "--path_prefix", "--samples_per_plugin"}
"""Options of TensorBoard's, which a page may name."""
SOURCES = [
    *(ROOT / "lightning_gradwatch").rglob("*.py"),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(ROOT / "examples").glob("*.py"),
]


def test_every_option_and_every_script_that_pages_name_is_there():
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    named = [code for page in PAGES for code in inline(page)]
    scripts = [
        each
        for code in named
        for each in re.findall(r"(?:benchmarks|examples|tests|lightning_gradwatch)/[\w./]+", code)
    ]
    modules = [each for code in named for each in re.findall(r"python -m (benchmarks[\w.]*)", code)]
    assert len(scripts) > 3
    assert modules
    for path in [*scripts, *(f"{module.replace('.', '/')}/__main__.py" for module in modules)]:
        assert (ROOT / path).is_file(), path
    options = {option for code in named for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", code)}
    assert len(options) > 5
    ours = {option.flag for option in _OPTIONS}
    assert {option for option in options if f'"{option}"' not in text} <= ours | TENSORBOARDS


def public(thing):
    return {*dir(thing), *getattr(thing, "__dataclass_fields__", {}), *getattr(thing, "__annotations__", {})}


OWNERS = {
    "watch": package.GradWatch,
    "finding": package.Finding,
    "probe": package.Probe(nn.Linear(1, 1), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)),
    "run": package.Run,
    "report": package.TrainingReport,
    "record": package.StepRecord,
}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_attribute_and_argument_that_a_page_names_is_there(page):
    for code in inline(page):
        for owner, name in re.findall(r"^(watch|finding|probe|run|report|record)\.(\w+)\b(?!\.json)", code):
            assert name in public(OWNERS[owner]), code
        if (called := re.match(r"(GradWatch|check_training|Probe)\((\w+)=", code)) is not None:
            thing = getattr(package, called[1])
            makes = thing.__init__ if isinstance(thing, type) else thing
            assert called[2] in makes.__code__.co_varnames, code
        if re.fullmatch(r"\w+Warning", code):
            assert issubclass(getattr(package, code), package.GradWatchWarning), code


def test_the_entry_point_of_a_rule_is_the_one_that_is_looked_for():
    (block,) = [block for page in PAGES for block in blocks(page, "toml") if "[project." in block.text]
    assert block.text.split("\n")[0] == f'[project.entry-points."{GROUP}"]'
