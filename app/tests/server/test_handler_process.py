"""The same handlers in the node's process and in one of their own: `wsfleet app`."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from centrifuge import ClientDisconnectedError, ReplyError  # type: ignore[import-untyped]
from websockets.asyncio.client import connect

from lab.paths import ROOT
from lab.processes import process
from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.sdk import Events, has, sdk, subscribed
from wsfleet.server.server import run

CHAT = "tests.support.chat:realtime"
CHANNEL = {
    "namespaces": [{"name": "room", "presence": True, "allow_presence_for_subscriber": True}],
}
EVENTS = ("connect", "disconnect", "subscribe", "publish", "rpc")


@contextmanager
def chat_process(socket: Path, config: Path, redis_url: str, log: Path) -> Iterator[None]:
    """Run the handlers in a process of their own."""
    command = [sys.executable, "-m", "wsfleet.cli", "app", CHAT, "--listen", str(socket)]
    variables = {
        "WSFLEET_CONFIG": str(config),
        "WSFLEET_REDIS_URL": redis_url,
        "WSFLEET_APP_DIR": str(ROOT / "app"),
    }
    with process(command, log, variables):
        yield


def proxied(socket: Path) -> dict[str, Any]:
    """Return a configuration that asks the process for each event."""

    def proxy(event: str, **options: Any) -> dict[str, Any]:
        endpoint = f"http+unix://{str(socket).replace('/', '%2F')}/{event}"
        always = {"include_connection_meta": True, "http_headers": ["Cookie"], "timeout": "5s"}
        return {"endpoint": endpoint, **always, **options}

    room = CHANNEL["namespaces"][0] | {
        "subscribe_proxy_enabled": True,
        "publish_proxy_enabled": True,
    }
    return {
        "client": {
            "proxy": {
                "connect": proxy("connect", enabled=True, emulated_headers=["X-Name"]),
                "disconnect": proxy("disconnect", enabled=True),
            }
        },
        "channel": {
            "proxy": {event: proxy(event) for event in ("subscribe", "publish")},
            "namespaces": [room],
        },
        "rpc": {"proxy": proxy("rpc"), "without_namespace": {"proxy_enabled": True}},
    }


@pytest.fixture(params=["in the node's process", "behind proxies", "behind the node's own socket"])
async def node(
    request: pytest.FixtureRequest,
    start_node: StartNode,
    backend: RedisServer,
    tmp_path: Path,
) -> AsyncIterator[RunningNode]:
    """A node with the chat's handlers."""
    socket, config = tmp_path / "app.sock", tmp_path / "config.yml"
    if request.param == "in the node's process":
        config.write_text(yaml.safe_dump({"channel": CHANNEL}))
        yield await start_node(config=config, app=CHAT, app_dir=str(ROOT / "app"))
        return
    if request.param == "behind proxies":
        options: dict[str, Any] = {}
        config.write_text(yaml.safe_dump(proxied(socket)))
    else:
        options = {"app": CHAT, "app_dir": str(ROOT / "app"), "app_socket": str(socket)}
        config.write_text(yaml.safe_dump({"channel": CHANNEL}))
    with chat_process(socket, config, backend.url_of("node"), tmp_path / "app.log"):
        await settled(socket.exists, "the process listens")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660
        node = await start_node(config=config, **options)
        yield node
        await node.stop()


def cookie(user: str) -> dict[str, str]:
    """Return the header field of a user."""
    return {"Cookie": f"session={user}"}


async def test_the_chat_behaves_alike(node: RunningNode) -> None:
    """Each event, refusal and failure of a handler is the same to a client."""
    async with (
        sdk(node, headers=cookie("ada"), data={"x": 1}) as ada,
        sdk(node, headers=cookie("ben")) as ben,
    ):
        room, heard = await subscribed(ada, "room:tea", data=7)
        await ben.publish("room:tea", {"text": "hi"})
        await settled(lambda: has(heard.publications, 1), "ada hears it")
        (said,) = heard.publications
        assert said.pub.data == {"text": "hi", "author": "ben", "room": "tea"}
        assert said.pub.info.conn_info == {"name": "Ben"}
        (member,) = (await room.presence()).clients.values()
        assert (member.user, member.chan_info) == ("ada", {"seat": 7})
        assert (await ada.rpc("add", [1, 2, 3])).data == 6
        for failing, code in (
            (ada.publish("room:tea", {"text": ""}), 422),
            (ada.publish("room:tea", {"text": 5}), 422),
            (ada.rpc("add", ["x"]), 422),
            (ada.rpc("fail", {}), 100),
        ):
            with pytest.raises(ReplyError) as caught:
                await failing
            assert caught.value.code == code
        events = Events()
        await ada.new_subscription("room:closed", events=events).subscribe()
        await settled(lambda: has(events.unsubscribed, 1), "the room is closed")
        assert (events.unsubscribed[0].code, events.unsubscribed[0].reason) == (
            403, "not your room",
        )  # fmt: skip


async def test_refused_and_unknown_clients_are_refused_alike(node: RunningNode) -> None:
    """A disconnect of the handler, and no credentials."""
    for headers in (cookie("banned"), {}):
        with pytest.raises(ClientDisconnectedError):
            async with sdk(node, headers=headers):
                pass


async def test_what_a_client_is_told_when_it_connects(node: RunningNode) -> None:
    """Data, channels, and what happens there: the application's own publications."""
    url = node.client_url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, proxy=None) as ada:
        request = {"headers": {"x-name": "ada"}, "data": [1], "subs": {"room:tea": {}}}
        await ada.send(json.dumps({"id": 1, "connect": request}))
        reply = json.loads(await ada.recv())["connect"]
        assert reply["data"] == {"hello": "ada", "asked": [1], "channels": ["room:tea"]}
        assert list(reply["subs"]) == ["news"]
        assert reply["subs"]["news"]["data"] == {"today": 1}
        await ada.send(json.dumps({"id": 2, "rpc": {"method": "announce", "data": "tea"}}))
        heard = [json.loads(line) for _ in range(2) for line in (await ada.recv()).splitlines()]
        pushes = [each["push"]["pub"]["data"] for each in heard if "push" in each]
        assert pushes == [{"announced": "tea"}]
        async with sdk(node, headers=cookie("ben")):
            pass
        assert json.loads(await ada.recv())["push"]["pub"]["data"] == {"left": "ben"}


async def test_errors_of_the_command(processes: None, tmp_path: Path) -> None:
    """Each is one line on standard error, and an exit code."""
    config = tmp_path / "config.yml"
    config.write_text("channel: {}")
    for target, address, line in (
        ("tests.support.guest:app", "app.sock", "it is not a Realtime"),
        ("tests.support.nothing:app", "app.sock", "cannot be imported"),
        (CHAT, "app.sock", "the configuration has no namespace 'room'"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wsfleet.cli", "app", target),
            *("--listen", str(tmp_path / address), "--app-dir", str(ROOT / "app")),
            env={**os.environ, "WSFLEET_CONFIG": str(config), "WSFLEET_REDIS_URL": "memory://"},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert process.returncode == 3
        assert line in errors.decode()
        assert "Traceback" not in errors.decode()


def test_an_event_with_a_handler_and_a_proxy_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`wsfleet serve --check` finds it: a line for each event."""
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump(proxied(tmp_path / "app.sock")))
    with pytest.raises(SystemExit) as caught:
        run(check=True, app=CHAT, app_dir=str(ROOT / "app"), config=str(config))
    assert caught.value.code == 3
    errors = capsys.readouterr().err
    for event in ("connect", "publish in the namespace 'room'", "rpc 'add'"):
        assert f"{event} has two backends: remove its handler, or its proxy" in errors


def test_a_proxys_missing_certificate_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its key in the file."""
    options = proxied(tmp_path / "app.sock")
    tls = {"enabled": True, "server_ca_pem": "/nowhere/ca.pem"}
    options["rpc"]["proxy"] |= {"endpoint": "https://app.example/rpc", "http": {"tls": tls}}
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump(options))
    with pytest.raises(SystemExit) as caught:
        run(check=True, config=str(config))
    assert caught.value.code == 2
    assert "rpc.proxy.http.tls.server_ca_pem: cannot be used: " in capsys.readouterr().err
