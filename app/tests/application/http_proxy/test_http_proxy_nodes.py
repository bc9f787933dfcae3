"""A node with proxies: the SDK on one side, a backend over HTTP on the other."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from centrifuge import ClientDisconnectedError, ReplyError  # type: ignore[import-untyped]
from websockets.asyncio.client import connect

from lab.ports import free_port
from lab.waiting import settled
from tests.support.http_backend import (
    HTTPBackend,
    ReceivedRequest,
    answer,
    by_path,
    running_backend,
)
from tests.support.nodes import RunningNode, StartNode
from tests.support.sdk import Events, has, sdk, subscribed

pytestmark = pytest.mark.backends("memory")

CONNECT = {"result": {"user": "56", "info": {"name": "Ada"}, "meta": {"plan": "free"}}}
ALLOWED = {
    "/connect": CONNECT,
    "/subscribe": {"result": {"info": {"role": "guest"}}},
    "/publish": lambda request: {"result": {"data": {"said": request["data"]}}},
    "/rpc": lambda request: {"result": {"data": [request["method"], request.get("data")]}},
}


def config_of(url: str, path: Path, **connect: Any) -> Path:
    """Write a configuration whose every event has a proxy; `connect` is for that of connect."""
    options = {"timeout": "5s", "include_connection_meta": True}
    proxies = {
        name: {"endpoint": f"{url}/{name}", **options}
        for name in ("connect", "refresh", "subscribe", "publish", "sub_refresh", "rpc")
    }
    config = {
        "client": {
            "allowed_origins": ["*"],
            "proxy": {
                "connect": proxies["connect"] | {"enabled": True} | connect,
                "refresh": proxies["refresh"] | {"enabled": True},
            },
        },
        "channel": {
            "proxy": {name: proxies[name] for name in ("subscribe", "publish", "sub_refresh")},
            "namespaces": [
                {
                    "name": "room",
                    "subscribe_proxy_enabled": True,
                    "publish_proxy_enabled": True,
                    "sub_refresh_proxy_enabled": True,
                    "presence": True,
                    "allow_presence_for_subscriber": True,
                }
            ],
        },
        "rpc": {
            "proxy": proxies["rpc"],
            "without_namespace": {"proxy_enabled": True},
            "namespaces": [{"name": "off"}],
            "ping": {"enabled": True},
        },
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
async def app() -> AsyncIterator[HTTPBackend]:
    """A backend that allows everything; a test may change its `reply`."""
    async with running_backend(by_path(ALLOWED)) as running:
        yield running


@pytest.fixture
async def node(app: HTTPBackend, start_node: StartNode, tmp_path: Path) -> RunningNode:
    """A node whose every event has a proxy."""
    return await start_node(config=config_of(app.url, tmp_path / "config.yml"))


def bodies(app: HTTPBackend, path: str) -> list[Any]:
    """Return the bodies of the requests to a path."""
    return [request.json for request in app.requests if request.target == path]


async def test_every_event_of_a_client(app: HTTPBackend, node: RunningNode) -> None:
    """The backend gets Centrifugo's requests; its answers are what the client sees."""
    async with sdk(node, name="py", version="1", data={"hello": 1}) as client:
        room, events = await subscribed(client, "room:7", data={"invited": True})
        await room.publish({"text": "hi"})
        await settled(lambda: has(events.publications, 1), "the publication comes")
        (said,) = events.publications
        assert said.pub.data == {"said": {"text": "hi"}}
        assert said.pub.info.user == "56"
        assert said.pub.info.conn_info == {"name": "Ada"}
        assert said.pub.info.chan_info == {"role": "guest"}
        assert (await client.rpc("price", {"id": 3})).data == ["price", {"id": 3}]
        common = {
            "client": said.pub.info.client,
            "transport": "websocket",
            "protocol": "json",
            "encoding": "json",
        }
    user = common | {"user": "56", "meta": {"plan": "free"}}
    in_room = user | {"channel": "room:7"}
    connect = common | {"name": "py", "version": "1", "data": {"hello": 1}}
    assert bodies(app, "/connect") == [connect]
    assert bodies(app, "/subscribe") == [in_room | {"data": {"invited": True}}]
    assert bodies(app, "/publish") == [in_room | {"data": {"text": "hi"}}]
    assert bodies(app, "/rpc") == [user | {"method": "price", "data": {"id": 3}}]


async def test_protobuf_clients(app: HTTPBackend, node: RunningNode) -> None:
    """`protocol` says so; a payload that is JSON travels as JSON."""
    async with sdk(node, protobuf=True) as client:
        answered = await client.rpc("price", b'{"id": 3}')
        assert json.loads(answered.data) == ["price", {"id": 3}]
        with pytest.raises(ReplyError) as caught:
            await client.rpc("price", b"\xff")
        assert caught.value.code == 100
    assert {body["protocol"] for body in bodies(app, "/rpc")} == {"protobuf"}


async def test_methods_without_a_backend(node: RunningNode) -> None:
    """Unknown, disabled, and the node's own."""
    async with sdk(node) as client:
        for method, code in (("none:x", 104), ("off:x", 108)):
            with pytest.raises(ReplyError) as caught:
                await client.rpc(method, {})
            assert caught.value.code == code
        assert not (await client.rpc("ping", {})).data


async def test_header_fields_of_the_handshake(
    app: HTTPBackend, start_node: StartNode, tmp_path: Path
) -> None:
    """Those that are listed, for every event of the connection."""
    node = await start_node(
        config=config_of(app.url, tmp_path / "c.yml", http_headers=["Cookie", "X-Request-Id"])
    )
    async with sdk(node, headers={"Cookie": "session=1", "X-Other": "2"}) as client:
        await client.rpc("m", {})
    connect, rpc = app.requests
    assert connect.all("cookie") == ["session=1"]
    assert not connect.all("x-other") + connect.all("x-request-id") + rpc.all("cookie")


async def test_header_fields_of_the_connect_command(
    app: HTTPBackend, start_node: StartNode, tmp_path: Path
) -> None:
    """A page cannot set those of its handshake; here, for every event of the connection."""
    path = config_of(app.url, tmp_path / "c.yml", emulated_headers=["Authorization"])
    config = yaml.safe_load(path.read_text())
    config["rpc"]["proxy"]["emulated_headers"] = ["authorization"]
    path.write_text(yaml.safe_dump(config))
    node = await start_node(config=path)
    url = node.client_url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, proxy=None) as client:
        headers = {"authorization": "Bearer x", "cookie": "forged"}
        await client.send(json.dumps({"id": 1, "connect": {"headers": headers}}))
        assert json.loads(await client.recv())["id"] == 1
        await client.send(json.dumps({"id": 2, "rpc": {"method": "m"}}))
        assert json.loads(await client.recv())["id"] == 2
    for request in app.requests:
        assert request.all("authorization") == ["Bearer x"]
        assert not request.all("cookie")
    assert [request.target for request in app.requests] == ["/connect", "/rpc"]


async def test_a_refused_connect(app: HTTPBackend, node: RunningNode) -> None:
    """A final disconnect, and no credentials where nobody is anonymous."""
    for refusal in ({"disconnect": {"code": 4501, "reason": "sign in first"}}, {"result": None}):
        app.reply = by_path({"/connect": refusal})
        with pytest.raises(ClientDisconnectedError):
            async with sdk(node):
                pass


async def test_a_dead_backend_costs_only_its_own_calls(
    start_node: StartNode, tmp_path: Path, app: HTTPBackend
) -> None:
    """Its commands get the temporary error 100; the same client goes on with all others."""
    path = config_of(app.url, tmp_path / "c.yml")
    config = yaml.safe_load(path.read_text())
    config["rpc"]["proxy"]["endpoint"] = f"http://127.0.0.1:{free_port()}/rpc"
    path.write_text(yaml.safe_dump(config))
    node = await start_node(config=path)
    async with sdk(node) as client:
        _, events = await subscribed(client, "room:7")
        for _ in range(3):
            with pytest.raises(ReplyError) as caught:
                await client.rpc("m", {})
            assert (caught.value.code, caught.value.temporary) == (100, True)
        await client.publish("room:7", 1)
        await settled(lambda: has(events.publications, 1), "the publication comes")


async def test_a_stuck_backend_sticks_nobody(
    start_node: StartNode, tmp_path: Path, app: HTTPBackend
) -> None:
    """The call ends in time; other clients, and the node, do not notice."""
    stuck = asyncio.Event()
    usual = app.reply

    async def reply(request: ReceivedRequest) -> bytes:
        if request.target == "/rpc":
            await stuck.wait()
        return await usual(request)

    app.reply = reply
    path = config_of(app.url, tmp_path / "c.yml")
    config = yaml.safe_load(path.read_text())
    config["rpc"]["proxy"]["timeout"] = "500ms"
    path.write_text(yaml.safe_dump(config))
    node = await start_node(config=path)
    async with sdk(node) as one, sdk(node) as other:
        _, events = await subscribed(other, "room:7")
        calls = [asyncio.create_task(one.rpc("m", {})) for _ in range(2)]
        await other.publish("room:7", 1)
        await settled(lambda: has(events.publications, 1), "the other client publishes")
        failed = await asyncio.gather(*calls, return_exceptions=True)
        assert [each.code for each in failed if isinstance(each, ReplyError)] == [100, 100]
        stuck.set()
        assert (await one.rpc("m", {})).data == ["m", {}]


async def test_a_client_that_leaves_is_not_waited_for(
    start_node: StartNode, tmp_path: Path, app: HTTPBackend
) -> None:
    """Its connection ends at once, whatever the backend does."""
    asked, stuck = asyncio.Event(), asyncio.Event()
    usual = app.reply

    async def reply(request: ReceivedRequest) -> bytes:
        if request.target == "/rpc":
            asked.set()
            await stuck.wait()
        return await usual(request)

    app.reply = reply
    node = await start_node(config=config_of(app.url, tmp_path / "c.yml"))
    async with sdk(node) as client:
        call = asyncio.create_task(client.rpc("m", {}))
        await asked.wait()
    await asyncio.gather(call, return_exceptions=True)
    await settled(lambda: len(node.node.hub) == 0, "the connection has ended")
    stuck.set()


async def test_a_status_becomes_an_error(
    start_node: StartNode, tmp_path: Path, app: HTTPBackend
) -> None:
    """A backend that answers with statuses alone."""

    async def reply(request: ReceivedRequest) -> bytes:
        return answer(CONNECT) if request.target == "/connect" else answer("", 403)

    app.reply = reply
    path = config_of(app.url, tmp_path / "c.yml")
    config = yaml.safe_load(path.read_text())
    config["channel"]["proxy"]["subscribe"]["http"] = {
        "status_to_code_transforms": [
            {"status_code": 403, "to_error": {"code": 403, "message": "not your room"}}
        ]
    }
    path.write_text(yaml.safe_dump(config))
    node = await start_node(config=path)
    async with sdk(node) as client:
        events = Events()
        await client.new_subscription("room:7", events=events).subscribe()
        await settled(lambda: has(events.unsubscribed, 1), "the subscription is refused")
        assert (events.unsubscribed[0].code, events.unsubscribed[0].reason) == (
            403, "not your room",
        )  # fmt: skip


async def test_connections_end_with_the_node(app: HTTPBackend, node: RunningNode) -> None:
    """A node that stops leaves none open at the backend."""
    async with sdk(node):
        assert app.open == 1
    await node.stop()
    await settled(lambda: app.open == 0, "the connections are closed")
