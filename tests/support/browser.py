"""Headless Chromium for tests of pages."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, which ends with the context."""
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: webdriver.Chrome, address: str) -> float:
    """Open a page; seconds until it says that it is ready."""
    start = time.perf_counter()
    driver.get(address)
    while driver.execute_script("return document.documentElement.dataset.ready") != "yes":
        assert time.perf_counter() - start < 60
        time.sleep(0.02)
    return time.perf_counter() - start


def emulate(driver: webdriver.Chrome, *, width: int | None = None, scheme: str | None = None) -> None:
    """A screen of this width, and the reader's preferred colour scheme; by default the browser's own."""
    if width is None:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    else:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [] if scheme is None else [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def body_contrast(driver: webdriver.Chrome) -> float:
    """WCAG 2.1's contrast ratio of the page's text on its background."""
    ink, paper = (
        [
            int(part)
            for part in re.findall(r"\d+", driver.execute_script(f"return getComputedStyle(document.body).{name}"))
        ]
        for name in ("color", "backgroundColor")
    )
    light, dark = sorted((_luminance(ink[:3]), _luminance(paper[:3])), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: list[int]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
