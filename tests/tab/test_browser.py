"""The tab in TensorBoard, in a browser: every view, on runs of real trainings, on names that attack it, and while a training writes."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from page.browser import browser, missing
from tab.providers import LOADERS, until
from written import frames_of, make_info, make_record, write_run

import lightning_gradwatch
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event

pytestmark = [pytest.mark.slow, pytest.mark.judges, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

TENSORBOARDS = re.compile(r"Three\.js|WebGL|font-roboto|favicon")
"""What TensorBoard's own page has the console say, whatever plugins there are."""
HOSTILE = "<img src=x onerror=alert(1)>\"'<script>alert(2)<\\script>\u202e&amp;${x}" + "x" * 100
VIEWS = ("Overview", "Depth profile", "Layer", "Compare")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs of the demo: fifty sigmoid layers that can't learn, and the net that can."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    command = [sys.executable, "-m", "lightning_gradwatch", "demo", "--steps", "60", "--logdir", str(folder)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return folder


@contextmanager
def tensorboard(folder, *flags):
    command = [sys.executable, str(Path(__file__).parent / "serve.py"), "--logdir", str(folder), *flags]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_gradwatch.__file__).parents[1])}
    with subprocess.Popen(command, **pipes, env=environment) as process:
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=60)


class Looked:
    """A browser that looks at the tab."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self, fragment="gradwatch", query=""):
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}{query}#{fragment}")
        self.enter()

    def enter(self):
        """Go into the tab's frame, and wait for it."""
        self.driver.switch_to.default_content()
        until(lambda: self.driver.find_elements("css selector", "iframe"))
        self.driver.switch_to.frame(self.driver.find_element("css selector", "iframe"))
        until(lambda: self.text("body") and "Reading the runs" not in self.text("body"))
        self.driver.drawn()

    def text(self, selector):
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def click(self, selector, text=""):
        find = (
            "[...document.querySelectorAll(arguments[0])].find((each) => each.innerText.includes(arguments[1])).click()"
        )
        self.driver.execute_script(find, selector, text)
        self.driver.drawn()

    def reload(self):
        """Press TensorBoard's button."""
        self.driver.switch_to.default_content()
        self.click("app-header-reload button, .reload-button")
        self.driver.switch_to.frame(self.driver.find_element("css selector", "iframe"))

    def check(self):
        """Nobody complained, nothing was asked of anybody else, and nothing ran that shouldn't."""
        assert [each for each in self.driver.complaints() if not TENSORBOARDS.search(each)] == []
        elsewhere = [
            each
            for each in self.driver.requests()
            if not each.startswith((self.url, "data:", "blob:", "about:", "chrome"))
        ]
        assert [each for each in elsewhere if not TENSORBOARDS.search(each)] == []

    def chosen(self):
        boxes = "return [...document.querySelectorAll('.gw-tab-bar input:checked')].map((box) => box.dataset.run)"
        return self.driver.execute_script(boxes)


@contextmanager
def looked_at(folder, *flags, **size):
    with tensorboard(folder, *flags) as url, browser(**size) as driver:
        yield Looked(driver, url)


def wait_for_runs(look, count):
    """Wait until TensorBoard has so many runs of ours."""
    asked = """
        const done = arguments[arguments.length - 1];
        fetch(arguments[0]).then((answer) => answer.json()).then((found) => done(found.runs.length), () => done(-1));
    """
    look.driver.get(f"{look.url}data/plugins_listing")
    until(lambda: look.driver.execute_async_script(asked, f"{look.url}data/plugin/gradwatch/runs") == count)


@pytest.mark.parametrize("load_fast", LOADERS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_of_a_failing_and_a_healthy_run(trained, load_fast, dark):
    flags = ["--load_fast", load_fast, *(["--path_prefix", "/some/where"] if dark else [])]
    with looked_at(trained, *flags, width=1920 if dark else 1280) as look:
        wait_for_runs(look, 2)
        look.driver.complaints()
        look.open(query="?darkMode=true" if dark else "")
        assert look.chosen() == ["fixed", "sigmoid"]
        for run in ("fixed", "sigmoid"):
            look.click(".gw-run", run)
            for view in VIEWS:
                look.click(".gw-views a", view)
                assert look.driver.execute_script("return document.querySelector('.gw-views .gw-on').innerText") == view
                assert look.driver.execute_script("return document.querySelector('.gw').dataset.theme") == (
                    "dark" if dark else "light"
                )
                ground = look.driver.execute_script(
                    "return getComputedStyle(document.querySelector('.gw')).backgroundColor"
                )
                assert (int(re.findall(r"\d+", ground)[0]) < 80) == dark
        look.click(".gw-views a", "Overview")
        assert "GW101" in look.text("main")
        look.check()


def test_turning_dark_turns_the_tab_dark_where_it_is(trained):
    with looked_at(trained) as look:
        wait_for_runs(look, 2)
        look.open()
        look.click(".gw-views a", "Depth profile")
        look.driver.switch_to.default_content()
        look.driver.execute_script("document.body.classList.add('dark-mode')")
        look.enter()
        assert look.driver.execute_script("return document.querySelector('.gw').dataset.theme") == "dark"
        assert (
            look.driver.execute_script("return document.querySelector('.gw-views .gw-on').innerText") == "Depth profile"
        )
        look.check()


def test_a_reload_while_a_training_writes_keeps_the_place(tmp_path):
    info = make_info()
    with EventFile(tmp_path / "run") as file:
        for step in range(5):
            file.write(step_event(make_record(info, step), info, describe=step == 0))
        with looked_at(tmp_path) as look:
            wait_for_runs(look, 1)
            look.open(fragment="gradwatch&p.gradwatch.place=" + "%23view%3Dlayer%26row%3Dnet.4")
            before = look.text("main")
            assert "net.4" in before
            look.driver.execute_script("window.sameDocument = true")
            for step in range(5, 40):
                file.write(step_event(make_record(info, step), info, describe=False))
            last = "return document.querySelector('.gw-steps output')?.innerText ?? ''"
            assert look.driver.execute_script(last) == "4"

            def has_come():
                look.reload()
                return look.driver.execute_script(last) == "39"

            until(has_come)
            assert look.driver.execute_script("return window.sameDocument")
            assert look.driver.execute_script("return document.querySelector('.gw-views .gw-on').innerText") == "Layer"
            assert "net.4" in look.text("main")
            look.check()


def test_runs_that_are_ticked_and_their_colours_are_tensorboards(trained):
    swatch = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
    with looked_at(trained) as look:
        wait_for_runs(look, 2)
        look.driver.get(f"{look.url}#timeseries")
        row = "tb-data-table-content-row[data-id$='/{}']"
        until(lambda: look.driver.find_elements("css selector", row.format("sigmoid")))
        colours = {
            name: look.driver.execute_script(swatch, f"{row.format(name)} .run-color-swatch")
            for name in ("fixed", "sigmoid")
        }
        assert len(set(colours.values())) == 2
        look.driver.find_element("css selector", f"{row.format('fixed')} input").click()
        look.driver.execute_script("location.hash = 'gradwatch'")
        look.enter()
        assert look.chosen() == ["sigmoid"]
        for name, colour in colours.items():
            assert look.driver.execute_script(swatch, f".gw-tab-bar label[title='{name}'] .swatch") == colour
        look.click(".gw-tab-bar label", "fixed")
        until(lambda: look.driver.find_elements("css selector", ".gw-views a[href*='compare']"))
        assert look.driver.execute_script(swatch, ".gw-run .gw-dot") == colours["fixed"]
        assert look.driver.execute_script("return document.querySelector('.gw-run.gw-on').innerText").startswith(
            "sigmoid"
        )
        look.check()


def test_colours_are_tensorboards_where_its_table_was_never_seen(trained):
    with looked_at(trained) as look:
        wait_for_runs(look, 2)
        look.open()
        colours = "return [...document.querySelectorAll('.gw-tab-bar .swatch')].map((each) => each.style.background)"
        found = look.driver.execute_script(colours)
        assert sorted(found) == ["rgb(18, 181, 203)", "rgb(66, 80, 102)"]


def test_hostile_names_are_text(tmp_path):
    name = HOSTILE.replace("/", "")[:200]
    write_run(tmp_path / name, make_info(4, prefix=HOSTILE + ".", function="<b>sigmoid</b>"), attenuation=1e-9)
    with looked_at(tmp_path) as look:
        wait_for_runs(look, 1)
        look.driver.complaints()
        look.open()
        for view in VIEWS[:3]:
            look.click(".gw-views a", view)
            assert (
                look.driver.execute_script(
                    "return document.querySelectorAll('img, script:not([type=module]), b').length"
                )
                == 0
            )
        assert "<img src=x onerror=alert(1)>" in look.text(".gw-tab-bar")
        width = look.driver.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert width <= 0, "it scrolls sideways"
        look.check()


def test_an_empty_folder_says_what_to_do_and_a_run_that_comes_is_shown(tmp_path):
    (tmp_path / "logs").mkdir()
    with looked_at(tmp_path / "logs") as look:
        look.driver.get(f"{look.url}data/plugin_entry.html?name=gradwatch")
        until(lambda: "Add GradWatch()" in look.text("body"))
        write_run(tmp_path / "logs" / "run")
        wait_for_runs(look, 1)
        look.open()
        assert look.chosen() == ["run"]
        look.check()


def test_a_damaged_file_is_shown_as_far_as_it_goes(tmp_path):
    _, path = write_run(tmp_path / "run")
    frames = frames_of(path)
    path.write_bytes(b"".join(frames[:9]) + frames[9][:30] + b"\x00" * 100)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / path.name).write_bytes(frames[0] + frames[1][:40])
    with looked_at(tmp_path) as look:
        wait_for_runs(look, 1)
        look.open()
        assert "8 measured steps" in look.text("main")
        look.check()


def test_a_run_that_is_unticked_later_leaves_the_tab(trained):
    with looked_at(trained) as look:
        wait_for_runs(look, 2)
        look.open()
        look.click(".gw-run", "sigmoid")
        look.driver.switch_to.default_content()
        look.driver.execute_script("location.hash = 'timeseries'")
        box = "tb-data-table-content-row[data-id$='/fixed'] input"
        until(lambda: look.driver.find_elements("css selector", box))
        look.driver.find_element("css selector", box).click()
        look.driver.execute_script("location.hash = 'gradwatch'")
        look.enter()
        until(lambda: look.chosen() == ["sigmoid"])
        until(lambda: look.text(".gw-run.gw-on").startswith("sigmoid"))
        look.check()


def test_a_link_leads_to_what_was_looked_at(trained):
    with looked_at(trained) as look:
        wait_for_runs(look, 2)
        look.open()
        look.click(".gw-run", "sigmoid")
        look.click(".gw-views a", "Depth profile")
        link = look.driver.execute_script("return document.querySelector('.gw-tab-bar > a').href")
    with looked_at(trained) as look:
        wait_for_runs(look, 2)
        look.open(fragment=link.partition("#")[2])
        assert look.text(".gw-views .gw-on") == "Depth profile"
        assert look.text(".gw-run.gw-on").startswith("sigmoid")
        look.check()


def test_a_server_that_is_gone_is_said_and_the_page_stays(tmp_path):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two")
    with browser() as driver:
        with tensorboard(tmp_path) as url:
            look = Looked(driver, url)
            wait_for_runs(look, 2)
            look.open()
            look.click(".gw-tab-bar label", "two")
            until(lambda: look.chosen() == ["one"])
        look.click(".gw-tab-bar label", "two")
        until(lambda: "can't be brought up to date" in look.text("[role=alert]"))
        assert "measured steps" in look.text("main")
