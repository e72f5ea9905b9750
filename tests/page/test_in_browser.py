"""The file in a real browser: each view of an ill and a healthy training, odd names, links, keys and exports.

No test looks at how it looks; what they hold is that nothing is said to the console, nothing is asked for elsewhere, nothing
is wider than the window, and that what a reader needs is there.
"""

from __future__ import annotations

import base64
import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from integration.nets import batches, trainer
from page.browser import browser, missing
from page.test_html import NAMES
from page.test_model import FINDING, shown
from torch import nn
from written import make_info, make_record

from lightning_gradwatch import GradWatch
from lightning_gradwatch.cli.command import main
from lightning_gradwatch.page.html import html_page
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.record.escape import Place, escape
from lightning_gradwatch.record.metrics import METRICS, Metric

pytestmark = [
    pytest.mark.slow,
    pytest.mark.judges,
    pytest.mark.skipif(bool(missing()), reason=missing() or "it is there"),
    # Selenium's sockets are closed when its driver ends, not when Python looks for them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS = 40
VIEWS = ("", "#view=depth", "#view=layer&row=net.0", "#view=compare")


class Deep(pl.LightningModule):
    """Twelve layers with an activation function between each two."""

    def __init__(self, function, initialize):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(6, 16), *(nn.Linear(16, 16) for _ in range(11)), nn.Linear(16, 3)]
        for layer in layers:
            initialize(layer.weight)
            nn.init.zeros_(layer.bias)
        self.net = nn.Sequential(*[part for layer in layers for part in (layer, function())][:-1])

    def training_step(self, batch, _):
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The report on an ill and a healthy training, made by the command."""
    folder = tmp_path_factory.mktemp("runs")
    for name, function, initialize in (
        ("ill", nn.Sigmoid, nn.init.xavier_normal_),
        ("healthy", nn.ReLU, nn.init.kaiming_normal_),
    ):
        logger = pl.loggers.TensorBoardLogger(folder, name="", version=name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is ill on purpose
            trainer(folder, GradWatch(every_n_steps=1), max_steps=STEPS, logger=logger).fit(
                Deep(function, initialize), batches(16, 64)
            )
    page = folder / "report.html"
    assert main(["report", str(folder / "ill"), str(folder / "healthy"), "-o", str(page), "--no-config"]) == 0
    return page


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(autouse=True)
def _quiet(chromium):
    """No page complains, and none asks for anything but itself."""
    chromium.complaints()
    chromium.requests()
    yield
    assert chromium.complaints() == []
    assert [
        address for address in chromium.requests() if not address.startswith(("file:", "data:", "blob:", "about:"))
    ] == []


def show(chromium, page, place="", *, width=1280, height=800, dark=False):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    chromium.get("about:blank")
    chromium.get(page.as_uri() + place)
    chromium.drawn()


def text_of(chromium, selector="body"):
    return chromium.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)


def overflowing(chromium):
    """Elements that are wider than the window, or whose text is cut off without a way to scroll to it."""
    return chromium.execute_script(
        """
        const wide = [...document.querySelectorAll('.gw *')].filter((each) =>
          each.getBoundingClientRect().right > innerWidth + 1 && !each.closest('.gw-table-holder, .gw-tip, .gw-live'));
        const cut = [...document.querySelectorAll('.gw button, .gw a, .gw h2, .gw h3, .gw dd, .gw li, .gw p')].filter((each) =>
          each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX !== 'visible');
        return [...wide, ...cut].map((each) => `${each.tagName}.${each.className}`);
        """
    )


@pytest.mark.parametrize(("place", "width", "dark"), [*product(VIEWS, (1280, 1920, 760), (False, True))])
@pytest.mark.parametrize("run", [0, 1])
def test_each_view_is_drawn_in_the_window(chromium, trained, place, width, dark, run):
    show(chromium, trained, f"{place or '#'}{'&' if place else ''}run={run}", width=width, dark=dark)
    assert overflowing(chromium) == []
    assert text_of(chromium, "main")
    painted = chromium.execute_script("return document.querySelectorAll('.gw canvas, .gw-paired tr').length")
    assert painted


def test_the_first_screen_says_which_layer_is_ill_and_why(chromium, trained):
    show(chromium, trained)
    (seen,) = [chromium.execute_script("return document.querySelector('.gw-finding').getBoundingClientRect().bottom")]
    assert seen < 400
    told = text_of(chromium, ".gw-finding")
    for part in ("GW101", "vanishing gradient", "net.0", "Sigmoid", "ReLU"):
        assert part in told
    assert text_of(chromium, "h2") == "Not healthy: vanishing gradient"


def test_the_healthy_run_says_so(chromium, trained):
    show(chromium, trained, "#run=1")
    assert text_of(chromium, "h2").startswith("Healthy")
    assert not text_of(chromium, ".gw-finding")


def test_the_depth_profile_follows_the_slider(chromium, trained):
    show(chromium, trained, "#view=depth&step=0")
    first = text_of(chromium, ".gw-lead")
    assert "of the signal is left" in first
    chromium.execute_script(
        "const slider = document.querySelector('.gw-steps input'); slider.value = slider.max;"
        "slider.dispatchEvent(new Event('input', { bubbles: true }));"
    )
    chromium.drawn()
    assert text_of(chromium, ".gw-lead") != first
    assert f"step={STEPS - 1}" in chromium.current_url


def test_the_comparison_puts_the_layer_that_parts_first_on_top(chromium, trained):
    show(chromium, trained, "#view=compare&metric=signal_norm")
    assert "the first layer that parts is net.0" in text_of(chromium, ".gw-lead")
    assert text_of(chromium, ".gw-paired tbody tr").startswith("net.0")


def test_a_link_leads_to_a_finding_and_back(chromium, trained):
    show(chromium, trained, "#finding=GW101-0")
    assert chromium.execute_script("return document.querySelector('.gw-chosen')?.id") == "gw-finding-GW101-0"
    chromium.execute_script(
        "[...document.querySelectorAll('.gw-views a')].find((a) => a.textContent === 'Layer').click()"
    )
    chromium.drawn()
    assert "view=layer" in chromium.current_url
    assert text_of(chromium, ".gw-layer-head h2").startswith("net.0")
    chromium.back()
    chromium.drawn()
    assert "view=layer" not in chromium.current_url
    assert chromium.execute_script("return document.querySelector('.gw-chosen')?.id") == "gw-finding-GW101-0"


def press(chromium, *keys):
    for key in keys:
        chromium.execute_script(
            "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0], bubbles: true, cancelable: true }))",
            key,
        )
    chromium.drawn()


def test_keys_choose_layers_and_steps(chromium, trained):
    show(chromium, trained)
    chromium.execute_script("document.querySelector('.gw-rows').focus()")
    press(chromium, "ArrowDown", "ArrowLeft")
    said = text_of(chromium, ".gw-live")
    assert said.startswith(f"net.2, step {STEPS - 2}:")
    assert "vanishing gradient" in said
    press(chromium, "Enter")
    assert text_of(chromium, ".gw-layer-head h2").startswith("net.2")


def test_groups_fold_and_unfold(chromium, trained):
    show(chromium, trained)
    height = "return document.querySelector('.gw-rows').scrollHeight"
    before = chromium.execute_script(height)
    chromium.execute_script(
        "[...document.querySelectorAll('.gw-buttons button')].find((b) => b.textContent === 'Unfold').click()"
    )
    chromium.drawn()
    assert chromium.execute_script(height) >= before
    chromium.execute_script(
        "[...document.querySelectorAll('.gw-buttons button')].find((b) => b.textContent === 'Fold').click()"
    )
    chromium.drawn()


def saved(chromium, button):
    """Press a button and return the file that it hands out."""
    told = chromium.execute_async_script(
        """
        const [name, done] = arguments;
        const real = URL.createObjectURL;
        URL.createObjectURL = (blob) => {
          URL.createObjectURL = real;
          const reader = new FileReader();
          reader.onload = () => done(reader.result);
          reader.readAsDataURL(blob);
          return 'data:,';
        };
        [...document.querySelectorAll('.gw-buttons button')].find((each) => each.textContent === name).click();
        """,
        button,
    )
    kind, _, data = told.partition(";base64,")
    return kind, base64.b64decode(data)


def test_what_is_shown_can_be_saved(chromium, trained):
    show(chromium, trained, "#metric=grad_norm")
    kind, table = saved(chromium, "CSV")
    assert kind == "data:text/csv"
    lines = table.decode().split("\r\n")
    assert lines[0].split(",") == ["layer", *map(str, range(STEPS))]
    assert [line.split(",")[0] for line in lines[1:-1]] == [f"net.{2 * place}" for place in range(13)]
    kind, picture = saved(chromium, "PNG")
    assert kind == "data:image/png"
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000


def test_there_is_a_table_for_who_sees_no_canvas(chromium, trained):
    show(chromium, trained)
    chromium.execute_script("document.querySelector('.gw-as-table summary').click()")
    chromium.drawn()
    rows = chromium.execute_script(
        "return [...document.querySelectorAll('.gw-as-table tbody tr')].map((row) => row.innerText.split('\\t'))"
    )
    assert [row[0] for row in rows] == [f"net.{2 * place}" for place in range(13)]
    assert rows[0][2] == "vanishing gradient"


def test_what_gets_into_the_page_from_outside_cant_run(chromium, trained):
    show(chromium, trained)
    chromium.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1'; document.body.append(script);"
        "const image = document.createElement('div'); image.innerHTML = '<img src=x onerror=\"window.ran = 2\">'; document.body.append(image);"
    )
    chromium.drawn()
    assert chromium.execute_script("return window.ran ?? null") is None
    said = chromium.complaints()
    assert said
    assert all("Content Security Policy" in each or "content security policy" in each.lower() for each in said)


def written(tmp_path, runs, **changes):
    page = tmp_path / "page.html"
    page.write_text(html_page(page_model(runs, **changes)), encoding="utf-8")
    return page


@pytest.mark.parametrize("place", VIEWS)
def test_names_are_text_whatever_they_are(chromium, tmp_path, place):
    names = list(dict.fromkeys([*NAMES, "שלום.עולם", "مرحبا.0", "a" * 300 + ".b"]))
    info = make_info(len(names))
    info = replace(
        info,
        layers=tuple(replace(layer, name=name) for layer, name in zip(info.layers, names, strict=True)),
        sites=tuple(replace(site, name=f"{name}:f") for site, name in zip(info.sites, names, strict=False)),
    )
    finding = replace(FINDING, layers=tuple(names), first_step=0, last_step=4, message=names[0], cause=names[1])
    runs = [
        shown([make_record(info, each) for each in range(5)], info, findings=(finding,), name=name)
        for name in NAMES[-4:]
    ]
    show(chromium, written(tmp_path, runs), place)
    assert chromium.execute_script("return document.querySelectorAll('.gw img, .gw script, .gw iframe').length") == 0
    assert overflowing(chromium) == []
    for each in range(0, len(names), 2):
        name = escape(names[each], Place.PAGE)
        chromium.execute_script("location.hash = new URLSearchParams({ view: 'layer', row: arguments[0] })", name)
        chromium.drawn()
        assert overflowing(chromium) == []
        assert chromium.execute_script("return document.querySelector('.gw-layer-head .gw-name').textContent") == name


def test_what_is_exactly_0_and_what_isnt_finite_are_painted_as_no_shade(chromium, tmp_path):
    info = make_info(3)
    norms = np.array([0.0, np.inf, 1.0])
    records = [make_record(info, each, grad_norm=norms) for each in range(4)]
    show(chromium, written(tmp_path, [shown(records, info)]), "#metric=grad_norm")
    found = chromium.execute_script(
        """
        const canvas = document.querySelector('.gw-rows canvas');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Map();
        for (let place = 0; place < data.length; place += 4) {
          const key = `${data[place]},${data[place + 1]},${data[place + 2]}`;
          seen.set(key, (seen.get(key) ?? 0) + 1);
        }
        return ['213,94,0', '255,214,165', '150,20,150', '254,232,56'].map((key) => seen.get(key) ?? 0);
        """
    )
    assert min(found) > 100, found


@pytest.mark.parametrize("count", [3, 40, 300, 2000])
def test_it_is_readable_from_a_few_layers_to_thousands(chromium, tmp_path, count):
    """The rows fit into a few screens, and each has its state's word."""
    info = make_info(count, prefix="model.blocks.")
    records = [make_record(info, each, attenuation=1e-9) for each in range(20)]
    finding = replace(FINDING, layers=info.layer_names[: count // 2], first_step=5, last_step=19)
    show(chromium, written(tmp_path, [shown(records, info, findings=(finding,))]))
    assert overflowing(chromium) == []
    assert chromium.execute_script("return document.querySelector('.gw-rows').scrollHeight") < 1400
    assert text_of(chromium, "h2") == "Not healthy: vanishing gradient"


def test_a_page_without_runs_or_steps_says_so(chromium, tmp_path):
    from lightning_gradwatch.page.runs import PageRun  # noqa: PLC0415 - for this test alone

    runs = [PageRun.failed("gone", "no such run: gone"), PageRun(name="empty", info=make_info())]
    page = written(tmp_path, runs)
    for place in (*VIEWS, "#run=1", "#view=layer&run=1&row=net.0"):
        show(chromium, page, place)
        assert text_of(chromium, "main")
    show(chromium, page)
    assert "no such run: gone" in text_of(chromium)


def test_a_metric_of_a_later_release_has_its_button(chromium, tmp_path, monkeypatch):
    added = Metric("attention_entropy", "attention entropy", "sites", lambda sums: sums.dead, "In nats.")
    monkeypatch.setitem(METRICS, added.name, added)
    info = make_info()
    records = [
        replace(record, metrics={**record.metrics, "attention_entropy": np.full(5, 2.0)})
        for record in (make_record(info, each) for each in range(4))
    ]
    show(chromium, written(tmp_path, [shown(records, info)]), "#metric=attention_entropy")
    assert text_of(chromium, '.gw-metrics [aria-checked="true"]') == "attention entropy"
