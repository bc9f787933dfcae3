"""Applications in common frameworks, each with common clients."""

import asyncio
from typing import Any

import aiohttp
import httpx
import pytest
import socketio
from fastapi_websocket_pubsub import PubSubClient
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from lab.waiting import TIMEOUT, settled
from tests.support.clients import close_code
from tests.support.metrics import failures, value
from tests.support.nodes import RunningNode, StartNode
from wsfleet.redis import key_names

FRAMEWORKS = {"fastapi": 403, "starlette": 401, "litestar": 403, "channels": 403}
"""With the status by which each refuses who has no session."""


@pytest.fixture(params=FRAMEWORKS)
async def framework(request: pytest.FixtureRequest) -> str:
    """Return the name of a framework."""
    name: str = request.param
    return name


@pytest.fixture
async def node(start_node: StartNode, framework: str) -> RunningNode:
    """Return a node with an application in that framework."""
    return await start_node(app=f"tests.support.guests.{framework}_guest:app")


def opened(node: RunningNode, path: str, **options: Any) -> connect:
    """Open a WebSocket."""
    return connect(node.client_url.replace("http", "ws") + path, proxy=None, **options)


async def test_http_and_start_up(node: RunningNode) -> None:
    """A route can use what the start-up has prepared."""
    async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
        assert (await http.get("/hello")).json() == {"hello": "ready"}
        assert (await http.get("/nowhere")).status_code == 404


async def test_text_bytes_and_subprotocol(node: RunningNode) -> None:
    """Two client libraries exchange text and bytes, and agree on a subprotocol."""
    offered = [Subprotocol("other"), Subprotocol("chat.v1")]
    async with opened(node, "/echo", subprotocols=offered) as client:
        assert client.subprotocol == "chat.v1"
        for message in ("text", b"bytes", "ü" * 20_000):
            await client.send(message)
            assert await client.recv() == message
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{node.client_url}/echo") as client_of_aiohttp,
    ):
        await client_of_aiohttp.send_bytes(b"more")
        assert await client_of_aiohttp.receive_bytes(timeout=TIMEOUT) == b"more"


async def test_a_room(node: RunningNode) -> None:
    """Each client receives the messages of others in order, and one that left causes no error."""
    async with opened(node, "/room/a") as one, opened(node, "/room/a") as other:
        async with opened(node, "/room/a"), opened(node, "/room/b") as elsewhere:
            await settled(lambda: value(node, "connections", protocol="application") == 4, "in")
        assert elsewhere.close_code == 1000
        await settled(
            lambda: value(node, "connections", protocol="application") == 2, "the clients have left"
        )
        for number in range(50):
            await one.send(str(number))
        for client in (one, other):
            assert [await client.recv() for _ in range(50)] == [str(each) for each in range(50)]


async def test_an_exception(node: RunningNode) -> None:
    """An exception in a handler closes the WebSocket with 1011."""
    async with opened(node, "/boom") as client:
        assert await close_code(client) in (1011, 4500)  # the latter is Litestar's own


async def test_a_refusal(node: RunningNode, framework: str) -> None:
    """A dependency, a response, an exception or a close refuses the handshake."""
    with pytest.raises(InvalidStatus) as refused:
        await opened(node, "/members")
    assert refused.value.response.status_code == FRAMEWORKS[framework]
    async with opened(node, "/members", additional_headers={"Cookie": "session=anna"}) as client:
        assert await client.recv() == "anna"
        assert await close_code(client) == 1000


async def test_a_drain(node: RunningNode, store: Any) -> None:
    """A drain closes all clients with 1012, and every handler ends."""
    clients = [await opened(node, "/room/a") for _ in range(5)]
    await store.hset(key_names.DESIRED, "node1", "drain")
    assert await asyncio.gather(*map(close_code, clients)) == [1012] * 5
    await settled(lambda: not node.server.server_state.tasks, "all handlers have ended")
    assert failures(node, "websocket") == 0


@pytest.mark.parametrize("transports", [["websocket"], ["polling", "websocket"]])
async def test_socket_io(start_node: StartNode, transports: list[str]) -> None:
    """Socket.IO's client connects, also by an upgrade; events, acknowledgements and rooms work."""
    node = await start_node(app="tests.support.guests.socketio_guest:app")
    heard: list[str] = []
    clients = [socketio.AsyncClient(reconnection=False) for _ in range(2)]
    for client in clients:
        client.on("said", heard.append)
        await client.connect(node.client_url, transports=transports)
    await settled(
        lambda: value(node, "connections", protocol="application") == 2, "both have a WebSocket"
    )
    assert await clients[0].call("say", "hello", timeout=10) == "ack hello"
    await settled(lambda: heard == ["hello", "hello"], "both have heard it")
    for client in clients:
        await client.disconnect()


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # its own
async def test_fastapi_websocket_pubsub(start_node: StartNode) -> None:
    """The library's client subscribes by RPC, and receives messages of server and client."""
    node = await start_node(app="tests.support.guests.pubsub_guest:app")
    heard: list[Any] = []

    async def hear(data: Any, topic: str) -> None:
        heard.append((topic, data))

    url = node.client_url.replace("http", "ws") + "/pubsub"
    async with PubSubClient() as subscriber, PubSubClient() as publisher:
        subscriber.subscribe("news", hear)
        subscriber.start_client(url)
        publisher.start_client(url)
        await asyncio.wait_for(subscriber.wait_until_ready(), TIMEOUT)
        await asyncio.wait_for(publisher.wait_until_ready(), TIMEOUT)
        async with httpx.AsyncClient(base_url=node.client_url, trust_env=False) as http:
            assert (await http.get("/publish/news/1")).status_code == 200
        await publisher.publish(["news"], data="2")
        await settled(lambda: len(heard) == 2, f"both are heard, not {heard}")
    assert sorted(heard) == [("news", "1"), ("news", "2")]
