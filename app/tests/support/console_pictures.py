"""The README's pictures; no other run collects this file.

Run `pytest tests/support/console_pictures.py`.
"""

import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import expect

from lab.paths import ROOT
from lab.processes import process
from tests.support.browser import chromium
from tests.support.command import COMMAND
from tests.support.console import PHONE, connect_by, fleet_with_key, opened, unlock
from tests.support.redis import RedisServer

IMAGES = ROOT / "docs" / "images"


def test_pictures(tmp_path: Path) -> None:
    """Of a cluster that has been doing something for some minutes."""
    with ExitStack() as stack:
        browser = stack.enter_context(chromium())
        rig = stack.enter_context(fleet_with_key(tmp_path, 3))
        for number in (2, 3):
            replica = RedisServer(
                tmp_path / f"redis{number}", replicaof=f"127.0.0.1 {rig.redis.port}"
            )
            replica.start()
            stack.callback(replica.stop)
        load = [*COMMAND, "load", rig.base_url, "--clients", "90", "--duration", "600"]
        stack.enter_context(process([*load, "--rate", "5"], tmp_path / "load.log"))
        page = stack.enter_context(opened(browser, rig))
        unlock(page)
        connect_by(page, "Centrifuge", "demo")
        page.get_by_role("button", name="Send", exact=True).click()
        time.sleep(60)
        page.get_by_role("button", name="Cut").click()
        expect(page.locator("#try-state")).to_contain_text("Connection lost")
        page.get_by_role("button", name="Send as another client").click()
        expect(page.get_by_role("log")).to_contain_text("recovered demo", timeout=30_000)
        time.sleep(60)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate("scrollTo(0, 0)")
            time.sleep(5)
            page.screenshot(path=IMAGES / f"console-{scheme}.png")
        page.set_viewport_size(PHONE)
        page.emulate_media(color_scheme="light")
        page.evaluate("scrollTo(0, 0)")
        time.sleep(5)
        page.screenshot(path=IMAGES / "console-phone.png")
