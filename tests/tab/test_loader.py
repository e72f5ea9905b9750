"""Whatever is wrong with this package, the user's TensorBoard starts, and is not slowed down."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.plugins import base_plugin
from werkzeug.test import Client

from lightning_gradwatch.record.events.encoding import PLUGIN
from lightning_gradwatch.tab import frontend
from lightning_gradwatch.tab.loader import SAMPLES, GradWatchLoader

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIGHT = """
import sys
import tensorboard.plugins.base_plugin
before = set(sys.modules)
import lightning_gradwatch.tab.loader
print(sorted(name for name in set(sys.modules) - before if name.startswith(("lightning_gradwatch.", "numpy", "werkzeug", "PIL"))))
"""
LOADED = """
import sys, warnings
warnings.simplefilter("ignore")
from tensorboard.plugins import base_plugin
from lightning_gradwatch.tab.loader import GradWatchLoader
apps = GradWatchLoader().load(base_plugin.TBContext()).get_plugin_apps()
rooms = ("lightning_gradwatch.judge", "lightning_gradwatch.page.model", "lightning_gradwatch.tab.stored", "PIL", "torch")
print([name for name in sys.modules if name.startswith(rooms)])
from werkzeug.test import Client
print(Client(apps["/runs"]).get("/").status_code, "lightning_gradwatch.tab.stored" in sys.modules)
"""


def test_the_package_registers_it():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["tensorboard_plugins"].items()
    assert EntryPoint(name, value, "tensorboard_plugins").load() is GradWatchLoader
    assert name == frontend.PLUGIN == PLUGIN


def test_what_tensorboard_imports_at_its_start_is_next_to_nothing():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [
        "['lightning_gradwatch.tab',",
        "'lightning_gradwatch.tab.frontend',",
        "'lightning_gradwatch.tab.loader',",
        "'lightning_gradwatch.version']",
    ]


def test_loading_the_tab_reads_no_run_and_imports_nothing_that_does():
    """It would keep TensorBoard's start waiting by most of a second; the first question brings it."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[]", "200", "True"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, {PLUGIN: SAMPLES}), ({PLUGIN: 7}, {PLUGIN: 7}), ({"images": 3}, {"images": 3, PLUGIN: SAMPLES})],
)
def test_it_asks_for_steps_enough_and_the_user_s_flag_wins(given, kept):
    flags = SimpleNamespace(samples_per_plugin=given)
    GradWatchLoader().fix_flags(flags)
    assert flags.samples_per_plugin == kept


@pytest.mark.parametrize("flags", [None, SimpleNamespace(), SimpleNamespace(samples_per_plugin=None)])
def test_flags_of_another_tensorboard_are_left_alone(flags):
    GradWatchLoader().fix_flags(flags)


@pytest.mark.parametrize("fault", [ImportError("no numpy here"), RuntimeError("</script><img onerror=alert(1)>")])
def test_a_fault_while_loading_becomes_a_tab_that_says_so(monkeypatch, fault):
    class Broken:
        def __getattr__(self, name):
            raise fault

    monkeypatch.setitem(sys.modules, "lightning_gradwatch.tab.plugin", Broken())
    plugin = GradWatchLoader().load(base_plugin.TBContext())
    assert plugin.plugin_name == PLUGIN
    assert plugin.frontend_metadata().es_module_path == frontend.ENTRY
    assert not plugin.is_active()
    answer = Client(plugin.get_plugin_apps()[frontend.ENTRY]).get("/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/javascript")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "export function render()" in answer.text
    assert str(fault) in answer.text
    assert "textContent" in answer.text


def test_a_tensorboard_that_gives_nothing_gets_a_tab_without_runs():
    plugin = GradWatchLoader().load(base_plugin.TBContext())
    answer = Client(plugin.get_plugin_apps()["/runs"]).get("/")
    assert answer.json == {"runs": [], "most": 8}
