"""Cross-site WebSocket hijacking in a real browser: another page with the user's cookies."""

import asyncio
import socket

from playwright.sync_api import Page

from tests.support.browser import PATIENCE, chromium
from tests.support.victim import PATHS, Victim

CONNECT = """url => new Promise(resolve => {
    const socket = new WebSocket(url)
    socket.onopen = () => { resolve("open"); socket.close() }
    socket.onerror = () => resolve("refused")
})"""


def attempts(page: Page, origin: str, entry: int) -> list[str]:
    """Return the result of a handshake by a page of this origin, for each path."""
    page.goto(f"{origin}/health", timeout=PATIENCE)
    return [page.evaluate(CONNECT, f"ws://127.0.0.1:{entry}{path}") for path in PATHS]


def cookies_sent(page: Page) -> bytes:
    """Return the cookies that the browser sends in a handshake to this host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        page.evaluate("url => { new WebSocket(url) }", f"ws://127.0.0.1:{server.getsockname()[1]}")
        connection, _ = server.accept()
        with connection:
            head = connection.recv(65_536).split(b"\r\n")
    return b"".join(line for line in head if line.lower().startswith(b"cookie:"))


def test_a_page_of_another_origin(running: Victim, drained: Victim, balancer: int) -> None:
    """A foreign page sends the user's cookie and is refused; the own page is accepted."""
    running.entry = balancer
    asyncio.run(running.ready())
    before = asyncio.run(running.refused("origin"))
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{balancer}/health", timeout=PATIENCE)  # brings the cookie
        assert attempts(page, running.url, balancer) == ["open", "open"]
        assert attempts(page, drained.url, balancer) == ["refused", "refused"]
        assert b"WSNODE=node" in cookies_sent(page)
    assert asyncio.run(running.refused("origin")) == before + 2
