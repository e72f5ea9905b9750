"""What a notebook shows of a fit, a run, a report and a probe; and the short lines elsewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from integration.nets import Classifier, batches, trainer
from page.browser import browser, missing
from torch import nn
from written import make_info, write_run

from lightning_gradwatch import GradWatch, Probe, check_training, read_run
from lightning_gradwatch.page import notebook
from lightning_gradwatch.record.showing import shown

pytestmark = pytest.mark.judges
HOSTILE = "<img src=x onerror=alert(1)>'\"</iframe><script>alert(2)</script>"
TESTS = Path(__file__).parents[1]


class Elements(HTMLParser):
    """The elements of some HTML, and what its frame holds."""

    def __init__(self, text):
        super().__init__()
        self.found, self.frame = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        if tag == "iframe":
            self.frame = dict(attrs)


@pytest.fixture
def failing(tmp_path):
    folder, _ = write_run(tmp_path / "run", make_info(12), attenuation=1e-9)
    return read_run(folder)


def test_a_run_shows_its_verdict_and_the_page_in_a_frame_that_reaches_nothing(failing):
    elements = Elements(failing._repr_html_())
    assert elements.found.count("iframe") == 1
    assert elements.frame["sandbox"].split() == ["allow-scripts", "allow-downloads"]
    assert elements.frame["srcdoc"].startswith("<!doctype html>")
    assert "default-src 'none'" in elements.frame["srcdoc"].replace("&#x27;", "'")
    assert "GW101 vanishing-gradient" in failing._repr_html_().partition("<iframe")[0]


def test_elsewhere_it_is_a_line(failing):
    assert repr(failing) == f"Run('{failing.path}': 20 measured steps (0 to 57), 12 layers, 11 sites; no findings)"


def test_a_watch_shows_what_it_has_seen_and_nothing_before(tmp_path):
    watch = GradWatch(every_n_steps=1)
    assert repr(watch) == "<GradWatch: nothing measured yet>"
    assert watch._repr_html_() is None
    trainer(tmp_path, watch, max_steps=4).fit(Classifier(), batches(4))
    assert repr(watch).startswith("<GradWatch: 4 measured steps (0 to 3), ")
    assert Elements(watch._repr_html_()).found.count("iframe") == 1


def test_the_report_of_a_check_shows_itself():
    report = check_training(Classifier(), batches(4), max_steps=4)
    assert repr(report).startswith("TrainingReport(ok=True: 4 measured steps (0 to 3), ")
    assert "check_training: nothing found" in report._repr_html_()


def test_a_probe_shows_its_step_and_calls_it_unjudged():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        assert repr(probe) == "<Probe: no step measured yet>"
        assert probe._repr_html_() is None
        model(torch.ones(8, 4)).square().mean().backward()
        optimizer.step()
    assert repr(probe) == "<Probe: step 0 measured last>"
    assert "can&#x27;t judge: one measured step isn&#x27;t judged" in probe._repr_html_()


def test_hostile_names_are_text_inside_and_around_the_frame(tmp_path):
    name = HOSTILE.replace("/", "")
    folder, _ = write_run(tmp_path / name, make_info(12, prefix=HOSTILE + "."), attenuation=1e-9)
    text = read_run(folder)._repr_html_()
    around = Elements(text)
    assert set(around.found) <= {"div", "p", "details", "summary", "ul", "li", "iframe"}
    inside = Elements(around.frame["srcdoc"])
    assert "img" not in inside.found
    assert inside.found.count("script") == 2


def test_it_is_small(tmp_path):
    folder, _ = write_run(tmp_path / "run", make_info(160), steps=range(600))
    assert len(read_run(folder)._repr_html_()) < 1_500_000


def test_a_fault_is_said_in_the_cell(failing, monkeypatch):
    def broken(_):
        raise ZeroDivisionError("<b>oh</b>")

    monkeypatch.setattr(notebook, "of_run", broken)
    assert failing._repr_html_() == "<pre>GradWatch can't show this: ZeroDivisionError: &lt;b&gt;oh&lt;/b&gt;</pre>"
    assert shown("of_nothing", None).startswith("<pre>GradWatch can't show this: AttributeError")


def test_no_notebook_is_imported(failing):
    program = (
        f"import sys\nfrom lightning_gradwatch import read_run\nassert read_run({str(failing.path)!r})._repr_html_()\n"
        "print([name for name in ('IPython', 'jupyter_client', 'ipykernel', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_notebook_shows_them(failing):
    """Run by a kernel of its own, as Jupyter does."""
    nbclient = pytest.importorskip("nbclient", reason="pip install 'lightning-gradwatch[dev]'")
    pytest.importorskip("ipykernel", reason="pip install 'lightning-gradwatch[dev]'")
    from nbformat import v4  # noqa: PLC0415 - comes with nbclient

    start = "\n".join(
        (
            f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]",
            "import warnings; warnings.simplefilter('ignore')",
            "from integration.nets import Classifier, batches",
            "from lightning_gradwatch import check_training, read_run",
        )
    )
    cells = (start, f"read_run({str(failing.path)!r})", "check_training(Classifier(), batches(4), max_steps=4)")
    book = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    for cell, words in zip(book.cells[1:], ("vanishing-gradient", "check_training"), strict=True):
        (output,) = (each for each in cell.outputs if each.output_type == "execute_result")
        assert words in output.data["text/html"]
        assert "<iframe" in output.data["text/html"]
        assert len(output.data["text/plain"]) < 200


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_the_frame_works_in_a_browser(failing, tmp_path):
    (tmp_path / "cell.html").write_text(f"<!doctype html><title>cell</title>{failing._repr_html_()}", encoding="utf-8")
    with browser(width=1000) as driver:
        driver.get((tmp_path / "cell.html").as_uri())
        driver.switch_to.frame(driver.find_element("css selector", "iframe"))
        driver.drawn()
        for view in ("Depth profile", "Layer", "Overview"):
            click = (
                "[...document.querySelectorAll('.gw-views a')].find((link) => link.innerText === arguments[0]).click()"
            )
            driver.execute_script(click, view)
            driver.drawn()
            assert driver.execute_script("return document.querySelector('.gw-views .gw-on').innerText") == view
        assert driver.complaints() == []
        assert [each for each in driver.requests() if not each.startswith(("file:", "data:", "about:", "chrome"))] == []
