"""The page of the example `room-game`: people in browsers, a change of the code, a drain."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from lab.paths import ROOT
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.browser import PATIENCE, chromium
from tests.support.command import COMMAND, wsfleet
from tests.support.example import check_own_tests
from tests.support.fleet import running_fleet

EXAMPLE = ROOT / "examples" / "room-game"

pytestmark = pytest.mark.usefixtures("processes")
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser(processes: None) -> Iterator[Browser]:
    """Return a browser for this module; Playwright's event loop would block other modules."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the example."""
    folder = tmp_path / "room-game"
    shutil.copytree(EXAMPLE, folder)
    return folder


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """Run the game with `wsfleet dev`; return its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*COMMAND, "dev", "room_game.app:realtime", "--app-dir", str(folder)]
    with process([*command, "--port", str(port)], folder / "log", {}, port=port):
        until(lambda: httpx.get(url, trust_env=False).is_success, "the game is served")
        yield url


def player(browser: Browser, url: str, name: str, room: str = "tea") -> Page:
    """Return the page of a player in a browser of their own."""
    page = browser.new_context(viewport={"width": 1200, "height": 720}).new_page()
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Room").fill(room)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("status")).to_have_text("Playing")
    expect(page.locator("#scores li.you")).to_contain_text(name)
    return page


def place(page: Page, name: str) -> tuple[int, int]:
    """Return where a page shows a player."""
    disc = page.locator(".player", has_text=name)
    style = disc.get_attribute("style") or ""
    x, y = (re.search(rf"--{axis}: (\d+)", style) for axis in "xy")
    assert x is not None
    assert y is not None
    return int(x[1]), int(y[1])


def goes(page: Page, key: str, name: str, to: tuple[int, int]) -> None:
    """Press a key, and wait until the page shows the player there."""
    page.keyboard.press(key)
    until(lambda: place(page, name) == to, f"{name} is at {to}")


def collect(page: Page, name: str) -> None:
    """Walk to a dot, and wait for the point; other dots may be on the way."""
    score = page.locator("#scores li.you b")
    before = int(score.inner_text())
    target = page.locator(".dot").first.get_attribute("style") or ""
    x, y = (int(number) for number in re.findall(r"--[xy]: (\d+)", target))
    here = place(page, name)
    for distance, ahead, back in (
        (x - here[0], "ArrowRight", "ArrowLeft"),
        (y - here[1], "ArrowDown", "ArrowUp"),
    ):
        for _ in range(abs(distance)):
            page.keyboard.press(ahead if distance > 0 else back)
    until(lambda: place(page, name) == (x, y), f"{name} is at the dot")
    until(lambda: int(score.inner_text()) > before, "the dot is collected")


def test_two_people_play(browser: Browser, url: str) -> None:
    """They see each other's steps and points, and nobody of another room."""
    ann, bob = player(browser, url, "Ann"), player(browser, url, "Bob")
    eve = player(browser, url, "Eve", "coffee")
    x, y = place(ann, "Ann")
    goes(ann, "ArrowLeft", "Ann", (x - 1, y))
    goes(ann, "w", "Ann", (x - 1, y - 1))
    until(lambda: place(bob, "Ann") == (x - 1, y - 1), "Bob sees it")
    collect(ann, "Ann")
    points = ann.locator("#scores li.you b").inner_text()
    expect(bob.locator("#scores li", has_text="Ann").locator("b")).to_have_text(points)
    expect(eve.locator("#scores li")).to_have_count(1)
    bob.close()
    expect(ann.locator("#scores li.gone")).to_contain_text("Bob")


def test_a_pointer_that_is_held_is_followed(browser: Browser, url: str) -> None:
    """By mouse or finger, until the player is there."""
    ann = player(browser, url, "Ann")
    board = ann.locator("#board").bounding_box()
    assert board is not None
    cell = board["width"] / 24
    ann.mouse.move(board["x"] + 4.5 * cell, board["y"] + 3.5 * cell)
    ann.mouse.down()
    until(lambda: place(ann, "Ann") == (4, 3), "Ann is there")
    ann.mouse.up()


def test_a_change_of_the_code_keeps_the_board(browser: Browser, url: str, folder: Path) -> None:
    """The next process goes on, with a higher token."""
    ann = player(browser, url, "Ann")
    collect(ann, "Ann")
    points = int(ann.locator("#scores li.you b").inner_text())
    token, at = ann.locator("#token").inner_text(), place(ann, "Ann")
    file = folder / "room_game" / "app.py"
    file.write_text(file.read_text() + "\n# changed\n")
    expect(ann.locator("#token")).not_to_have_text(token)
    expect(ann.get_by_role("status")).to_have_text("Playing")
    assert int(ann.locator("#token").inner_text()) > int(token)
    assert int(ann.locator("#scores li.you b").inner_text()) >= points
    assert place(ann, "Ann") == at
    goes(ann, "ArrowUp" if at[1] else "ArrowDown", "Ann", (at[0], at[1] - 1 if at[1] else 1))


def test_the_page_follows_its_room_to_another_node(browser: Browser, tmp_path: Path) -> None:
    """Both pages are there after a drain, and say where the room has gone."""
    config = tmp_path / "wsfleet.yml"
    origins = "\nclient:\n  allowed_origins: ['*']\n"
    config.write_text((EXAMPLE / "wsfleet.yml").read_text() + origins)
    with running_fleet(
        tmp_path,
        haproxy={"haproxy_stickiness": "path"},
        WSFLEET_APP="room_game.app:realtime",
        WSFLEET_APP_DIR=str(EXAMPLE),
        WSFLEET_CONFIG=str(config),
    ) as rig:
        ann, bob = player(browser, rig.base_url, "Ann"), player(browser, rig.base_url, "Bob")
        home = ann.locator("#node").inner_text()
        expect(bob.locator("#node")).to_have_text(home)
        collect(ann, "Ann")
        points, at = ann.locator("#scores li.you b").inner_text(), place(ann, "Ann")
        (other,) = rig.nodes.keys() - {home}
        outcome = wsfleet("drain", home, "--fleet", rig.fleet_file)
        assert outcome.code == 0, outcome
        for page in (ann, bob):
            expect(page.locator("#node")).to_have_text(other)
            expect(page.get_by_role("status")).to_have_text("Playing")
        assert place(ann, "Ann") == at
        expect(bob.locator("#scores li", has_text="Ann").locator("b")).to_have_text(points)


def test_the_example_passes_its_own_tests() -> None:
    """As a user runs them."""
    check_own_tests(EXAMPLE)
