"""The browser of the console's tests: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

PATIENCE = 120_000
"""Milliseconds for anything that must come: a cold browser on a busy machine is slow."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that has shown a page, so that no test waits for its start."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed; scripts/test installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            timeout=PATIENCE,
            chromium_sandbox=False,  # which wants privileges that a build machine may not give
            args=["--disable-gpu", "--disable-dev-shm-usage"],
        )
        page = browser.new_page()
        page.goto("about:blank", timeout=PATIENCE)
        page.close()
        yield browser
        browser.close()
