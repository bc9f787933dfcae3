"""Events of a client while a call of the application runs."""

import asyncio
from typing import Any

import httpx
import pytest

from lab.waiting import settled
from tests.support.backend import StartBackend
from tests.support.metrics import value
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import JSON, PROTOBUF, Peer
from tests.support.tokens import token
from wsfleet.application.port import Connected, Published, Subscribed
from wsfleet.protocol.centrifuge.codec import Codec
from wsfleet.protocol.centrifuge.messages import (
    ConnectRequest,
    PublishRequest,
    Request,
    RPCRequest,
    RPCResult,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)

pytestmark = pytest.mark.backends("redis", "memory")

PINGS = {"client:": "client:\n  ping_interval: 1s\n  pong_timeout: 0.5s"}
ANSWERS: dict[str, Any] = {
    "connect": Connected("ann"),
    "subscribe room": Subscribed(),
    "publish room": Published(b"1"),
    "rpc slow": b"2",
}
UNDER_WAY: dict[str, Request] = {
    "subscribe room": SubscribeRequest("room:1"),
    "publish room": PublishRequest("room:1", b"1"),
    "rpc slow": RPCRequest(method="slow"),
}


def pings(peer: Peer) -> int:
    """Return the number of pings that a peer got."""
    return sum(not each.id and each.push is None for each in peer.replies)


async def kept(node: RunningNode) -> int:
    """Return the number of publications in the room."""
    options = node.node.channels.find("room:1").options
    reading = await node.node.broker.history("room:1", options, 0, 100, max_size=10_000)
    return len(reading.entries)


def label(event: str) -> dict[str, str]:
    """Return the labels of an event in the metrics."""
    name, _, namespace = event.partition(" ")
    return {"event": name, "namespace": namespace}


@pytest.mark.parametrize("codec", [JSON, PROTOBUF], ids=lambda codec: codec.name)
async def test_pongs_are_taken_while_a_call_runs(start_backend: StartBackend, codec: Codec) -> None:
    """Other commands wait for it, and are answered in their order."""
    node, backend = await start_backend(ANSWERS, PINGS)
    backend.hold("rpc slow")
    async with Peer(node, codec, token("ann")) as peer:
        assert peer.socket is not None
        slow = await peer.send(RPCRequest(method="slow"))
        later = await peer.send(PublishRequest("room:1", b"1"), RPCRequest(method="unknown"))
        for count in (1, 2, 3):
            await peer.until(lambda: pings(peer) >= count)  # noqa: B023 - awaited at once
            await peer.socket.send(codec.ping)
        assert [each.id for each in peer.replies if each.id] == [1]
        assert "publish room" not in backend.calls
        backend.release("rpc slow")
        await peer.until(lambda: peer.answered(later))
        assert [each.id for each in peer.replies if each.id] == [1, slow, later - 1, later]
        assert peer.close_code is None
    assert value(node, "messages_received_total") >= 7


async def test_a_pong_that_was_not_asked_for_ends_the_connection_at_once(
    start_backend: StartBackend,
) -> None:
    """Also while a call runs."""
    node, backend = await start_backend(ANSWERS)
    backend.hold("rpc slow")
    async with Peer(node, token=token("ann")) as peer:
        assert peer.socket is not None
        await peer.send(RPCRequest(method="slow"))
        await backend.called("rpc slow")
        await peer.socket.send("{}")
        await peer.until(lambda: peer.close_code == 3501)


async def test_a_client_whose_commands_wait_may_be_late_with_its_pongs(
    start_backend: StartBackend,
) -> None:
    """Too many commands wait, so nothing is read: not even pongs."""
    node, backend = await start_backend(ANSWERS, PINGS)
    backend.hold("rpc slow")
    async with Peer(node, token=token("ann")) as peer:
        assert peer.socket is not None
        await peer.send(RPCRequest(method="slow"))
        last = 0
        for _ in range(5):
            last = await peer.send(RPCRequest(b'"' + b"x" * 20_000 + b'"', "unknown"))
        for count in (1, 2, 3):
            await peer.until(lambda: pings(peer) >= count)  # noqa: B023 - awaited at once
            await peer.socket.send("{}")
        (connection,) = node.node.hub
        assert connection.paused
        backend.release("rpc slow")
        await peer.until(lambda: peer.answered(last))
        assert not connection.paused
        assert peer.close_code is None
        assert await peer.result(RPCRequest(method="slow")) == RPCResult(b"2")


@pytest.mark.parametrize("event", UNDER_WAY)
async def test_nothing_is_left_or_counted_of_a_client_that_goes(
    start_backend: StartBackend, event: str
) -> None:
    """Its call is cancelled; it is not subscribed, and nothing is published."""
    node, backend = await start_backend(ANSWERS)
    backend.hold(event)
    async with Peer(node, token=token("ann")) as peer:
        await peer.send(UNDER_WAY[event])
        await backend.called(event)
        assert value(node, "handlers_running", **label(event)) == 1
    await settled(lambda: not backend.running, "cancelled")
    await settled(lambda: not node.node.hub and not list(node.node.users), "the client has left")
    assert await node.node.broker.members("room:1") == {}
    assert await kept(node) == 0
    assert value(node, "handlers_running", **label(event)) == 0
    assert value(node, "handler_seconds_count", **label(event)) == 0
    assert value(node, "handler_errors_total", **label(event), reason="exception") == 0


@pytest.mark.parametrize("event", UNDER_WAY)
@pytest.mark.parametrize(
    ("method", "code"), [("disconnect", 3503), ("block_user", 3507), ("revoke_token", 3500)]
)
async def test_what_ends_connections_holds_for_a_call_under_way(
    start_backend: StartBackend, server_api: httpx.AsyncClient, event: str, method: str, code: int
) -> None:
    """The answer of the application comes too late: no reply, no subscription, no publication."""
    node, backend = await start_backend(ANSWERS)
    backend.hold(event)
    async with Peer(node, token=token("ann", jti="id")) as peer:
        number = await peer.send(UNDER_WAY[event])
        await backend.called(event)
        request = {"uid": "id"} if method == "revoke_token" else {"user": "ann"}
        await server_api.post(f"{node.url}/api/{method}", json=request)
        await peer.until(lambda: peer.close_code == code)
        backend.release(event)
    assert not peer.answered(number)
    await settled(lambda: not node.node.hub and not list(node.node.users), "the client has left")
    assert await node.node.broker.members("room:1") == {}
    assert await kept(node) == 0
    assert value(node, "handler_seconds_count", **label(event)) == 0


async def test_unsubscribe_holds_for_a_subscribe_under_way(
    start_backend: StartBackend, server_api: httpx.AsyncClient
) -> None:
    """The client is answered and unsubscribed at once, whatever the application says."""
    node, backend = await start_backend(ANSWERS)
    backend.hold("subscribe room")
    async with Peer(node, token=token("ann")) as peer:
        number = await peer.send(SubscribeRequest("room:1"))
        await backend.called("subscribe room")
        await server_api.post(f"{node.url}/api/unsubscribe", json={"user": "ann"})
        (client,) = node.node.users.of("ann")
        table = client.subscriptions.table  # type: ignore[attr-defined]
        await settled(lambda: "room:1" not in table, "the subscription has ended")
        backend.release("subscribe room")
        await peer.until(lambda: bool(peer.pushes(Unsubscribe, "room:1")))
        (reply,) = (each for each in peer.replies if each.id == number)
        assert reply.result == SubscribeResult()
        assert [each.code for each in peer.pushes(Unsubscribe, "room:1")] == [2000]
        assert await node.node.broker.members("room:1") == {}


async def test_the_api_s_subscribe_waits_for_nobody(
    start_backend: StartBackend, server_api: httpx.AsyncClient
) -> None:
    """A channel that is reserved by the client's own command is not subscribed to twice."""
    node, backend = await start_backend(ANSWERS)
    backend.hold("subscribe room")
    async with Peer(node, token=token("ann")) as peer:
        number = await peer.send(SubscribeRequest("room:1"))
        await backend.called("subscribe room")
        for channel in ("room:1", "room:2"):
            request = {"user": "ann", "channel": channel}
            await server_api.post(f"{node.url}/api/subscribe", json=request)
        (client,) = node.node.users.of("ann")
        live = client.subscriptions.table.live  # type: ignore[attr-defined]
        await settled(lambda: "room:2" in live, "the API's own")
        assert "room:1" not in live
        backend.release("subscribe room")
        await peer.until(lambda: peer.answered(number))
        assert live.keys() == {"room:1", "room:2"}
        assert not live["room:1"].server_side


async def test_a_user_blocked_while_the_application_identifies_it_does_not_connect(
    start_backend: StartBackend, server_api: httpx.AsyncClient
) -> None:
    """The denylist is read after the application has named the user."""
    node, backend = await start_backend(ANSWERS)
    backend.hold("connect")
    peer = Peer(node)
    await peer.open()
    await peer.send(ConnectRequest())
    await backend.called("connect")
    await server_api.post(f"{node.url}/api/block_user", json={"user": "ann"})
    backend.release("connect")
    await peer.until(lambda: peer.close_code == 3507)
    assert not list(node.node.users)


async def test_a_client_that_is_sent_away_does_not_connect(start_backend: StartBackend) -> None:
    """Its connect is under way when the node drains; the application is told of no end."""
    node, backend = await start_backend(ANSWERS | {"disconnected": None})
    backend.hold("connect")
    peer = Peer(node)
    await peer.open()
    await peer.send(ConnectRequest())
    await backend.called("connect")
    for connection in node.node.hub:
        connection.restart()
    await peer.until(lambda: peer.close_code == 3001)
    backend.release("connect")
    await settled(lambda: not backend.running, "the handlers have answered")
    await asyncio.sleep(0)
    assert not list(node.node.users)
    assert "disconnected" not in backend.calls


async def test_a_node_without_backends_has_no_object_for_calls(start_node: StartNode) -> None:
    """Unused calls cost no memory; there is no method to call."""
    node = await start_node()
    async with Peer(node) as peer:
        reply = await peer.ask(RPCRequest(method="any"))
        assert reply.error is not None
        assert reply.error.code == 108
        (client,) = node.node.users.of("")
        assert client._calls is None  # type: ignore[attr-defined]
