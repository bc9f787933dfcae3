"""The console in a browser."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.support.browser import PATIENCE
from tests.support.fleet import Rig, running_fleet
from wsfleet.config.file import BUILT_IN

KEY = "a key"


CONFIG = f'http_api: {{key: "{KEY}"}}\n{BUILT_IN}'


DESKTOP: ViewportSize = {"width": 1440, "height": 960}


PHONE: ViewportSize = {"width": 390, "height": 844}


@contextmanager
def fleet_with_key(folder: Path, nodes: int) -> Iterator[Rig]:
    """A fleet whose nodes have a key."""
    config = folder / "config.yml"
    config.write_text(CONFIG)
    with running_fleet(folder, nodes, WSFLEET_CONFIG=str(config)) as rig:
        yield rig


@contextmanager
def opened(browser: Browser, fleet: Rig, script: str = "") -> Iterator[Page]:
    """The console in a browser without cookies, locked; a script of the test runs in it first."""
    with browser.new_context(viewport=DESKTOP) as context:
        context.set_default_timeout(PATIENCE)
        context.add_init_script(script)
        page = context.new_page()
        page.goto(f"{fleet.base_url}/console/")
        yield page


def unlock(page: Page, key: str = KEY) -> None:
    """Give a key, as a person does."""
    page.get_by_label("Key").fill(key)
    page.keyboard.press("Enter")
    if key == KEY:
        expect(page.locator("#live")).to_be_visible()


def connect_by(page: Page, protocol: str, channel: str = "") -> str:
    """Connect the panel's client; the node it says it is on, empty if it cannot know yet."""
    page.locator(".switch label", has_text=protocol).click()
    if channel:
        page.get_by_label("Channel").fill(channel)
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.locator("#try-state")).to_have_attribute("data-state", "on")
    found = re.search(r"Connected to (\S+) as", page.locator("#try-state").inner_text())
    return found[1] if found else ""
