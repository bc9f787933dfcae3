"""The console's page in a real browser, through HAProxy on real node processes."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from websockets.sync.client import connect

from lab.waiting import until
from tests.support.browser import PATIENCE, chromium
from tests.support.console import (
    KEY,
    PHONE,
    connect_by,
    fleet_with_key,
    opened,
    unlock,
)
from tests.support.fleet import Rig, servers_up

NO_ICON = """addEventListener("DOMContentLoaded", () =>
    document.querySelector("link[rel=icon]").setAttribute("href", "data:,"))"""
"""A browser fetches a page's icon when it likes, and might get its cookie by that."""

HAS_COLOUR = """(selector) => {
    const canvas = document.querySelector(selector);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((green, at) => at % 4 === 1 && Math.abs(green - data[at - 1]) > 60);
}"""
"""Whether a line is seen on a chart: the first is green, the second red, the rest nearly grey."""

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def fleet(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Return a fleet that all tests share; each test restores it."""
    with fleet_with_key(tmp_path_factory.mktemp("fleet"), 2) as rig:
        yield rig


@pytest.fixture(scope="module")
def browser(processes: None) -> Iterator[Browser]:
    """Return a browser for this module; Playwright's event loop would block other modules."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, fleet: Rig) -> Iterator[Page]:
    """Return the console, locked."""
    with opened(browser, fleet) as page:
        yield page


@pytest.fixture
def console(page: Page) -> Page:
    """Return the console, unlocked."""
    unlock(page)
    return page


def card(page: Page, node: str) -> Locator:
    """Return the element of a node on the map."""
    return page.get_by_role("article", name=f"Node {node}")


def seen(page: Page, node: str, state: str) -> None:
    """Wait until the page shows a node in a state."""
    expect(card(page, node).locator(".state")).to_have_text(state)


def fits(page: Page) -> bool:
    """Return whether no element is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def own_node(page: Page) -> str:
    """Return the node that the page shows as the browser's."""
    expect(page.locator("#you-node")).to_contain_text("is on host")
    return page.locator("#you-node").inner_text().split()[2].rstrip(":")


def cookie(page: Page) -> Any:
    """Return the stickiness cookie."""
    return next((each for each in page.context.cookies() if each.get("name") == "WSNODE"), None)


@pytest.mark.parametrize("protocol", ["Centrifuge", "Plain"])
def test_the_cookie_is_set_on_the_101(browser: Browser, fleet: Rig, protocol: str) -> None:
    """The handshake's answer sets the cookie if the browser has none."""
    answers: list[Any] = []
    with opened(browser, fleet, NO_ICON) as page:
        page.context.clear_cookies()
        network = page.context.new_cdp_session(page)
        network.on(
            "Network.webSocketHandshakeResponseReceived", lambda event: answers.append(event)
        )
        network.send("Network.enable")
        connect_by(page, protocol)
        (answer,) = [each["response"] for each in answers]
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        assert answer["status"] == 101
        assert headers["set-cookie"].startswith("WSNODE=host")
        assert cookie(page)["httpOnly"]


def test_a_reload_comes_back_to_the_same_node(console: Page) -> None:
    """The cookie leads page and WebSocket to one node, also after a reload."""
    node = own_node(console)
    for _ in range(4):
        console.reload()
        expect(console.locator("#you-cookie")).to_have_text(f"cookie WSNODE={node}")
        assert own_node(console) == node
        assert connect_by(console, "Centrifuge") == node
    assert cookie(console)["value"].startswith(node)


def test_all_of_the_cluster_is_shown_and_moves(console: Page, fleet: Rig) -> None:
    """The page shows nodes, balancer, Redis and charts, and counts a new client."""
    wrong: list[str] = []
    console.on("pageerror", lambda error: wrong.append(str(error)))
    console.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    console.reload()
    for node in fleet.nodes:
        seen(console, node, "ready")
        expect(card(console, node)).to_contain_text("lb1 UP")
    expect(console.locator("#balancers .box")).to_contain_text("2 of 2 nodes up")
    expect(console.locator("#redis .box")).to_contain_text("primary")
    expect(console.locator(".charts canvas")).to_have_count(3)
    expect(console.get_by_role("status").first).to_have_text("Healthy")
    url = fleet.nodes["host2-8001"].replace("http", "ws") + "/ws"
    count = card(console, "host2-8001").locator(".count")
    with connect(url, proxy=None) as first, connect(url, proxy=None):
        expect(count).to_contain_text(re.compile("^2 "))
        first.send("hello")
        expect(console.locator("#legend-connections")).to_contain_text("host2-8001 2")
        filled = card(console, "host2-8001").locator(".meter > span")
        expect(filled).to_have_attribute("style", re.compile(r"\b0\.02%"))  # 2 of 10,000
    expect(count).to_contain_text(re.compile("^0 "))
    # A single message has one p99, which is a point, since a line needs two.
    until(lambda: console.evaluate(HAS_COLOUR, "#chart-latency canvas"), "its latency is drawn")
    assert wrong == []


def test_a_killed_node_is_seen_and_its_client_recovers(console: Page, fleet: Rig) -> None:
    """The client recovers at the other node without duplicates, and the page goes on."""
    killed = connect_by(console, "Centrifuge", "kill")
    (left,) = fleet.nodes.keys() - {killed}
    log = console.get_by_role("log")
    expect(log).to_contain_text("subscribed to kill")
    fleet.kill(killed)
    answer = httpx.post(
        f"{fleet.nodes[left]}/api/publish",
        json={"channel": "kill", "data": "meanwhile"},
        headers={"X-API-Key": KEY},
        trust_env=False,
    )
    assert "result" in answer.json()
    expect(log).to_contain_text(f"connected to {left}")
    expect(log).to_contain_text("recovered kill: no message is missing")
    expect(log.get_by_text("meanwhile")).to_have_count(1)
    seen(console, killed, "down")
    expect(console.get_by_label("Problems")).to_contain_text(f"{killed} is down")
    assert own_node(console) == left
    fleet.start(killed)
    seen(console, killed, "ready")
    until(lambda: servers_up(fleet) == len(fleet.nodes), "HAProxy has found it")


def test_drain_and_undrain_by_the_buttons(console: Page, fleet: Rig) -> None:
    """The node's clients move, this browser too; the last node is not drained."""
    node = connect_by(console, "Centrifuge", "drain")
    (other,) = fleet.nodes.keys() - {node}
    card(console, node).get_by_role("button", name=f"Drain {node}").click()
    dialog = console.get_by_role("dialog", name=f"Drain {node}?")
    dialog.get_by_role("button", name="Drain", exact=True).click()
    seen(console, node, "drained")
    expect(console.locator("#try-state")).to_contain_text(f"Connected to {other}")
    expect(console.locator("#you-node")).to_contain_text(f"is on {other}")
    card(console, other).get_by_role("button", name=f"Drain {other}").click()
    dialog = console.get_by_role("dialog", name=f"Drain {other}?")
    dialog.get_by_role("button", name="Drain", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("No other node is ready")
    dialog.get_by_role("button", name="Cancel").click()
    seen(console, other, "ready")
    card(console, node).get_by_role("button", name=f"Undrain {node}").click()
    seen(console, node, "ready")
    until(lambda: servers_up(fleet) == len(fleet.nodes), "HAProxy has found it")


def test_nothing_is_shown_or_done_without_the_key(page: Page, fleet: Rig) -> None:
    """A wrong key shows only an error; a request without the page is refused as well."""
    unlock(page, "another")
    expect(page.get_by_role("alert").first).to_contain_text("the API key is missing or wrong")
    expect(page.locator("#live")).to_be_hidden()
    expect(page.get_by_role("button", name="Drain")).to_have_count(0)
    for path in ("cluster", "drain"):
        call = page.request.get if path == "cluster" else page.request.post
        assert call(f"{fleet.base_url}/console/api/{path}").status == 401
    unlock(page)
    page.get_by_role("button", name="Lock").click()
    expect(page.locator("#live")).to_be_hidden()
    page.reload()
    expect(page.locator("#live")).to_be_hidden()


def test_a_client_that_is_cut_recovers(page: Page) -> None:
    """The client receives missed messages after a reconnect; history and presence agree."""
    connect_by(page, "Centrifuge", "cut")
    log = page.get_by_role("log")
    page.get_by_label("Message").fill("first")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(log).to_contain_text('#1 "first"')
    page.get_by_role("button", name="Cut").click()
    expect(page.locator("#try-state")).to_contain_text("Connection lost")
    page.get_by_label("Message").fill("missed")
    page.get_by_role("button", name="Send as another client").click()
    expect(log).to_contain_text("another client has sent missed")
    expect(log).to_contain_text("recovered cut")
    expect(log).to_contain_text('#2 "missed"')
    page.get_by_role("button", name="History").click()
    expect(log).to_contain_text("history up to offset 2")
    page.get_by_role("button", name="Presence").click()
    expect(log).to_contain_text("1 in cut:")
    page.get_by_role("button", name="Disconnect").click()
    expect(page.locator("#try-state")).to_have_text("Not connected")


def test_the_plain_protocol_can_be_tried(page: Page) -> None:
    """The page shows the answering node and other messages, and reconnects after a cut."""
    connect_by(page, "Plain")
    log = page.get_by_role("log")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(log).to_contain_text(re.compile(r"ack from host\d-8001, message 1"))
    page.get_by_role("button", name="Send as another client").click()
    expect(log.locator(".in")).to_contain_text('{"hello":"fleet"} by')
    page.get_by_role("button", name="Cut").click()
    expect(log).to_contain_text("reconnected")


def test_it_fits_a_phone_and_every_field_has_a_name(console: Page) -> None:
    """No element is wider than the screen; buttons and fields have names for screen readers."""
    connect_by(console, "Centrifuge")
    for width in (PHONE["width"], 320):  # what is left of a desktop at 400 %, by WCAG
        console.set_viewport_size(PHONE | {"width": width})
        # The charts follow a moment later.
        until(lambda: fits(console), f"it fits {width} pixels")
    nameless = console.evaluate(
        """[...document.querySelectorAll("input, button")].filter((field) =>
            !field.ariaLabel && !field.labels?.length && !field.textContent.trim()).length"""
    )
    assert nameless == 0
