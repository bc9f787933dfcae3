"""The example `chat`: its own tests, and two people in two browsers while it is changed."""

import hashlib
import json
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
from tests.support.command import COMMAND
from tests.support.example import check_own_tests

EXAMPLE = ROOT / "examples" / "chat"

pytestmark = pytest.mark.usefixtures("processes")
expect.set_options(timeout=PATIENCE)


class Chat:
    """A running `wsfleet dev` on a copy of the example."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.url = f"http://127.0.0.1:{port}"

    def change(self) -> None:
        """Change a file of the application, and wait until the next node serves."""
        before = self.log.read_text().count("Serving")
        file = self.folder / "chat" / "app.py"
        file.write_text(file.read_text() + "\n# changed\n")
        until(lambda: self.log.read_text().count("Serving") > before, "the next node serves")


@pytest.fixture(scope="module")
def browser(processes: None) -> Iterator[Browser]:
    """Return a browser for this module; Playwright's event loop would block other modules."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """Run the chat with an empty database."""
    folder, port = tmp_path / "chat", free_port()
    shutil.copytree(EXAMPLE, folder)
    chat = Chat(folder, port)
    command = [*COMMAND, "dev", "chat.app:realtime", "--app-dir", str(folder), "--port", str(port)]
    environment = {"CHAT_DATABASE": str(folder / "chat.db")}
    with process(command, chat.log, environment, port=port):
        until(lambda: httpx.get(chat.url, trust_env=False).is_success, "the chat is served")
        yield chat


def sign_in(browser: Browser, chat: Chat, name: str) -> Page:
    """Return the page of a user in a browser of their own."""
    page = browser.new_context(viewport={"width": 1100, "height": 720}).new_page()
    page.goto(chat.url)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status")).to_have_text("Connected")
    expect(page.locator("#people")).to_contain_text(f"{name} (you)")
    return page


def say(page: Page, text: str) -> None:
    """Send a message."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def said(page: Page) -> list[str]:
    """Return the texts of all messages on a page, in order."""
    return page.locator(".message .bubble").all_inner_texts()


def test_two_people_chat(browser: Browser, chat: Chat) -> None:
    """They see each other, what is said in their room alone, and a new title."""
    ann, bob = sign_in(browser, chat, "Ann"), sign_in(browser, chat, "Bob")
    expect(ann.locator("#count")).to_have_text("2")
    say(ann, "Hello Bob!")
    expect(bob.locator(".message .bubble")).to_have_text("Hello Bob!")
    expect(bob.locator(".message b")).to_have_text("Ann")
    bob.get_by_role("link", name="Music").click()
    expect(ann.locator("#count")).to_have_text("1")
    say(bob, "Nobody hears this")
    expect(bob.locator(".message:not(.waiting) .bubble")).to_have_text("Nobody hears this")
    assert said(ann) == ["Hello Bob!"]
    ann.on("dialog", lambda dialog: dialog.accept("Salon"))
    ann.get_by_role("button", name="Rename").click()
    expect(ann.get_by_role("heading", name="Salon")).to_be_visible()
    bob.go_back()
    expect(bob.locator(".message .bubble")).to_have_text("Hello Bob!")


def test_a_change_of_the_code_loses_no_message(browser: Browser, chat: Chat) -> None:
    """Messages before, while and after the node restarts are there once, on both pages."""
    ann, bob = sign_in(browser, chat, "Ann"), sign_in(browser, chat, "Bob")
    texts = [f"message {number}" for number in range(12)]
    for number, text in enumerate(texts):
        say(ann if number % 2 else bob, text)
        if number in (3, 8):
            file = chat.folder / "chat" / "app.py"
            file.write_text(file.read_text() + "\n# changed\n")
    for page in (ann, bob):
        expect(page.locator(".message:not(.waiting)")).to_have_count(len(texts))
        assert sorted(said(page)) == sorted(texts)
    assert said(ann) == said(bob)
    until(lambda: chat.log.read_text().count("changed.") >= 1, "the node has restarted")


def test_a_page_that_is_reloaded_shows_what_was_said(browser: Browser, chat: Chat) -> None:
    """From the database; a message that was not acknowledged is sent again."""
    ann = sign_in(browser, chat, "Ann")
    say(ann, "before")
    expect(ann.locator(".message:not(.waiting)")).to_have_count(1)
    ann.context.set_offline(True)
    chat.change()  # ends the connection
    expect(ann.get_by_role("status")).not_to_have_text("Connected")
    say(ann, "offline")
    expect(ann.locator(".waiting .bubble")).to_have_text("offline")
    ann.context.set_offline(False)
    ann.reload()
    expect(ann.locator(".message:not(.waiting)")).to_have_count(2)
    assert said(ann) == ["before", "offline"]


def test_the_printed_link_opens_the_console(browser: Browser, chat: Chat) -> None:
    """It has the key of this run, which the address does not keep."""
    link = re.search(r"http://\S+/console/#key=\S+", chat.log.read_text())
    assert link
    page = browser.new_page()
    page.goto(link[0])
    expect(page.locator("#live")).to_be_visible()
    assert "key" not in page.url


def test_the_vendored_sdk_is_the_released_one() -> None:
    """Each file is as scripts/vendor.py wrote it."""
    vendor = EXAMPLE / "chat" / "pages" / "vendor"
    (package,) = json.loads((vendor / "vendor.json").read_text())
    assert {path.name for path in vendor.iterdir()} == {"vendor.json", *package["files"]}
    for name, file in package["files"].items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == file["sha256"]


def test_the_example_passes_its_own_tests() -> None:
    """As a user runs them."""
    check_own_tests(EXAMPLE)
