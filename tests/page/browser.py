"""A headless Chromium for tests: of the system, started with an empty profile, and quiet."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = (("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium.chromedriver"))


def missing():
    """Return what a browser test lacks here, and how to get it; empty where it lacks nothing."""
    try:
        import selenium  # noqa: F401, PLC0415 - is it there?
    except ModuleNotFoundError:
        return "selenium isn't installed: pip install 'lightning-gradwatch[dev]'"
    for names in _NAMES:
        if not any(map(shutil.which, names)):
            return f"there is no {names[0]} here: apt-get install chromium chromium-driver"
    return ""


def _found(names):
    return next(path for name in names if (path := shutil.which(name)))


@contextlib.contextmanager
def _started(width, height, *, dark):
    from selenium import webdriver  # noqa: PLC0415 - a test extra
    from selenium.webdriver.chrome.options import Options  # noqa: PLC0415 - as above
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415 - as above

    options = Options()
    options.binary_location = _found(_NAMES[0])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(_found(_NAMES[1])))
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            driver.set_script_timeout(60)
            yield driver
        finally:
            driver.quit()


class Browser:
    """A started browser; what it doesn't know itself, its driver does."""

    def __init__(self, width, height, *, dark):
        self._stack = contextlib.ExitStack()
        self._driver = self._stack.enter_context(_started(width, height, dark=dark))

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def complaints(self):
        """Return what the console was told since it was asked last."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requests(self):
        """Return the addresses that were asked for since this was asked last."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def drawn(self):
        """Wait until the page has drawn what it shows."""
        self._driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));"
        )


def browser(*, width=1280, height=800, dark=False):
    """Start a browser.

    Raises:
        RuntimeError: there is none here.
    """
    lacking = missing()
    if lacking:
        raise RuntimeError(lacking)
    return Browser(width, height, dark=dark)
