"""What the page costs: its size, the time to make it, and the time to a first view and to another metric in Chromium.

    python -m benchmarks.page [LAYERS …]

The runs are made of numbers, with findings; the browser is a headless Chromium, where there is one.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightning_gradwatch.judge.catalog import DEFAULT_RULES
from lightning_gradwatch.judge.run import Run
from lightning_gradwatch.judge.selection import settings_of
from lightning_gradwatch.page.html import html_page
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.runs import PageRun
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import METRICS, LayerInfo, SiteInfo, StepRecord

STEPS = 2_000
_SHARES = ("_fraction", "_share")
_PARTS = ("attention.query", "attention.key", "attention.value", "attention.out", "up", "gate", "down", "mix")


def make_run(layers: int, steps: int = STEPS) -> PageRun:
    """Return a run of a deep net whose signal fades, with zeros and infinities strewn in."""
    random = np.random.default_rng(0)
    names = [f"model.blocks.{place // 8}.{_PARTS[place % 8]}" for place in range(layers)]
    info = RunInfo(
        layers=tuple(LayerInfo(name, "Linear", ((64, 64),), 4096, weight=True, feeds=f"{name}:relu") for name in names),
        sites=tuple(
            SiteInfo(f"{name}:relu", "relu", "hidden", 64, (f"{before}:relu",) if before else ())
            for before, name in zip(("", *names), names, strict=False)
        ),
        rules=settings_of(DEFAULT_RULES),
    )
    base = np.geomspace(1e-9, 1, layers)
    records = []
    for step in range(steps):
        noise = random.lognormal(0, 0.3, layers)
        metrics = {
            metric: np.clip(0.1 * noise, 0, 1) if metric.endswith(_SHARES) else base * noise for metric in METRICS
        }
        metrics["grad_norm"][step % layers] = 0.0 if step % 7 else np.inf
        records.append(
            StepRecord(
                step=step,
                layout=info.layout,
                metrics=metrics,
                layer_state=np.ones(layers, np.uint8),
                window_fill=np.ones(layers),
                forward_rms=np.ones(layers),
                loss=2.3,
                global_grad_norm=1.0,
            )
        )
    run = Run.from_records(records, info)
    finding = Finding(
        code="GW101",
        name="vanishing-gradient",
        severity=Severity.ERROR,
        layers=tuple(names[: layers // 2]),
        first_step=steps // 3,
        last_step=steps - 1,
        value=1e-9,
        threshold=3e-3,
        cause="The weights are too small.",
        remedy=Remedy("Initialise with kaiming_normal_."),
        message="The signal vanishes.",
    )
    return replace(PageRun.of(run, name="fades", findings=(finding,)), path="")


def in_the_browser(page: Path) -> str:
    """Return how long the first view and another metric take; why not, where there is no browser."""
    try:
        from tests.page.browser import browser  # noqa: PLC0415 - needs selenium
    except ImportError as error:
        return f"no browser: {error}"
    try:
        driver = browser(width=1920, height=1080)
    except RuntimeError as error:
        return f"no browser: {error}"
    with driver:
        driver.get(page.as_uri())
        first = driver.execute_async_script(
            "const done = arguments[0]; const look = () => { const seen = performance.getEntriesByName('gradwatch-drawn');"
            " seen.length ? done(seen[0].startTime) : setTimeout(look, 5); }; look();"
        )
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        before = _busy(driver)
        others = driver.execute_async_script(
            "const done = arguments[0]; const taken = []; const buttons = () => [...document.querySelectorAll('.gw-metrics button')];"
            "const next = (place) => { if (place === buttons().length) { done(taken); return; } const from = performance.now();"
            " buttons()[place].click(); requestAnimationFrame(() => requestAnimationFrame(() => { taken.push(performance.now() - from);"
            " next(place + 1); })); }; next(0);"
        )
        busy = 1e3 * (_busy(driver) - before) / len(others)
        unfolded = driver.execute_async_script(
            "const done = arguments[0]; const from = performance.now(); [...document.querySelectorAll('.gw-buttons button')]"
            ".find((each) => each.textContent === 'Unfold').click();"
            " requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - from)));"
        )
    return (
        f"first view {first:.0f} ms; another metric {np.median(others):.0f} ms, {max(others):.0f} ms at most, of which the page's own "
        f"thread computed {busy:.0f} ms; all rows unfolded {unfolded:.0f} ms"
    )


def _busy(driver) -> float:
    """Return for how many seconds the page's thread has computed: what a busy machine doesn't lengthen."""
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "TaskDuration")


def main() -> None:
    load = f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores"
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; load: {load}")
    for layers in [int(argument) for argument in sys.argv[1:]] or [160, 2_000]:
        run = make_run(layers)
        started = time.perf_counter()
        text = html_page(page_model([run]))
        taken = time.perf_counter() - started
        page = Path(tempfile.mkdtemp()) / "report.html"
        page.write_text(text, encoding="utf-8")
        print(
            f"{layers} layers x {STEPS} steps x {len(METRICS)} metrics: {len(text) / 1e6:.2f} MB, made in {taken:.1f} s"
        )
        print(f"  {in_the_browser(page)}")


if __name__ == "__main__":
    main()
