"""The example `examples/django-backend`: a real Django behind a real node, with the Python SDK."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from os import environ
from pathlib import Path

import httpx
import pytest
from centrifuge import ClientDisconnectedError, ReplyError  # type: ignore[import-untyped]

from lab.paths import ROOT
from lab.ports import free_port
from lab.processes import process
from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.sdk import Events, has, sdk, subscribed

EXAMPLE = ROOT / "examples" / "django-backend"
PEOPLE = """
from django.contrib.auth.models import User
from chat.models import Room
ada, ben, eve = (User.objects.create_user(name, password=name) for name in ("ada", "ben", "eve"))
Room.objects.create(slug="tea", title="Tea").members.set([ada, ben])
"""


@pytest.fixture
def site(processes: None, tmp_path: Path) -> Iterator[str]:
    """The URL of the example's own server, with three users and one room."""
    port = free_port()
    variables = {"CHAT_DATABASE": str(tmp_path / "db.sqlite3")}
    manage = [sys.executable, str(EXAMPLE / "manage.py")]
    for command in (["migrate", "--verbosity=0"], ["shell", "--verbosity=0", "-c", PEOPLE]):
        subprocess.run([*manage, *command], check=True, env={**environ, **variables}, timeout=60)
    server = [*manage, "runserver", "--noreload", f"127.0.0.1:{port}"]
    with process(server, tmp_path / "django.log", variables, port=port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def node(site: str, start_node: StartNode, tmp_path: Path) -> RunningNode:
    """A node with the example's configuration."""
    config = tmp_path / "wsfleet.yml"
    text = (EXAMPLE / "wsfleet.yml").read_text()
    assert text.count("http://127.0.0.1:8000") == 5
    text = text.replace("http://127.0.0.1:8000", site)
    config.write_text(text.replace("proxy: {", "proxy: {timeout: 5s, "))
    return await start_node(config=config)


def signed_in(site: str, name: str) -> dict[str, str]:
    """Sign in as a browser does; return the header field with its cookies."""
    with httpx.Client(base_url=site) as browser:
        browser.get("/accounts/login/").raise_for_status()
        form = {"username": name, "password": name}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        answer = browser.post("/accounts/login/", data=form, follow_redirects=True)
        assert answer.status_code == 200
        assert "Sign out" in answer.text
        return {"Cookie": f"sessionid={browser.cookies['sessionid']}"}


@pytest.mark.backends("memory")
async def test_the_chat_of_the_example(site: str, node: RunningNode) -> None:
    """Members talk; others are refused; each refusal is the one that Django gave."""
    ada_cookies, eve_cookies = signed_in(site, "ada"), signed_in(site, "eve")
    async with (
        sdk(node, headers=ada_cookies) as ada,
        sdk(node, headers=signed_in(site, "ben")) as ben,
        sdk(node, headers=eve_cookies) as eve,
    ):
        room, _ = await subscribed(ada, "room:tea")
        _, heard = await subscribed(ben, "room:tea")
        await room.publish({"text": "Milk?"})
        await settled(lambda: has(heard.publications, 1), "ben hears it")
        (said,) = heard.publications
        assert said.pub.data == {"id": 1, "author": "ada", "text": "Milk?"}
        assert said.pub.info.conn_info == {"name": "ada"}

        answer = await ben.rpc("members", {"room": "tea"})
        assert answer.data == {"members": ["ada", "ben"]}
        for failing, code in (
            (room.publish({"text": ""}), 422),
            (eve.publish("room:tea", {"text": "x"}), 403),
            (eve.rpc("members", {"room": "tea"}), 403),
            (eve.rpc("other", {}), 404),
        ):
            with pytest.raises(ReplyError) as caught:
                await failing
            assert caught.value.code == code
        events = Events()
        await eve.new_subscription("room:tea", events=events).subscribe()
        await settled(lambda: has(events.unsubscribed, 1), "eve is refused")
        assert events.unsubscribed[0].code == 403
        assert has(heard.publications, 1)
    async with httpx.AsyncClient(base_url=site) as browser:
        page = await browser.get("/rooms/tea/", headers=ada_cookies)
        assert "Milk?" in page.text
        assert (await browser.get("/rooms/tea/", headers=eve_cookies)).status_code == 404


@pytest.mark.backends("memory")
async def test_only_users_that_are_signed_in_connect(node: RunningNode) -> None:
    """Others get Django's disconnect, which is final."""
    with pytest.raises(ClientDisconnectedError):
        async with sdk(node, headers={"Cookie": "sessionid=forged"}):
            pass


def test_the_page_brings_the_sdk_along(site: str) -> None:
    """The page loads nothing from other sites; its SDK is the file that scripts/vendor.py wrote."""
    page = httpx.get(f"{site}/rooms/tea/", headers=signed_in(site, "ada")).text
    assert re.findall(r'src="([^"]+)"', page) == ["/static/vendor/centrifuge.js"]
    vendor = EXAMPLE / "chat" / "static" / "vendor"
    (package,) = json.loads((vendor / "vendor.json").read_text())
    assert {path.name for path in vendor.iterdir()} == {"vendor.json", *package["files"]}
    for name, file in package["files"].items():
        served = httpx.get(f"{site}/static/vendor/{name}").content
        assert hashlib.sha256(served).hexdigest() == file["sha256"]


def test_the_endpoints_need_the_key(site: str) -> None:
    """Anybody may reach Django, and nobody but a node may ask it."""
    for key in ({}, {"X-Proxy-Key": "wrong"}):
        for name in ("connect", "subscribe", "publish", "rpc"):
            url = f"{site}/centrifugo/{name}"
            assert httpx.post(url, json={"user": "1"}, headers=key).status_code == 403
