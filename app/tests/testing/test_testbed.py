"""The testbed: clients of real nodes, without sockets, Redis and sleeps."""

import asyncio
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket

from lab.waiting import settled
from tests.support.tokens import CONFIG
from wsfleet import (
    Accept,
    Allow,
    Connect,
    Disconnect,
    Disconnected,
    Error,
    Realtime,
    Rpc,
    Subscribe,
)
from wsfleet.clients.centrifuge.channel_commands import ChannelCommands
from wsfleet.testing import HandshakeRefused, Testbed

CHANNELS = """
client:
  allow_anonymous_connect_without_token: true
  allowed_origins: ["https://example.com"]
  subscribe_to_user_personal_channel: {enabled: true, personal_channel_namespace: own}
channel:
  namespaces:
    - name: room
      presence: true
      join_leave: true
      force_push_join_leave: true
      history_size: 100
      history_ttl: 300s
      force_recovery: true
      allow_subscribe_for_client: true
      allow_publish_for_subscriber: true
      allow_presence_for_subscriber: true
      allow_history_for_subscriber: true
    - {name: own, history_size: 10, history_ttl: 60s, force_recovery: true}
"""


@pytest.fixture
def channels(tmp_path: Path) -> Path:
    """A configuration with rooms for clients with a user."""
    path = tmp_path / "wsfleet.yml"
    path.write_text(CHANNELS)
    return path


async def test_clients_hear_each_other_on_two_nodes(channels: Path) -> None:
    """Publications with their publisher, presence, joins, leaves, history."""
    async with Testbed(config=channels, nodes=2) as bed:
        ann = await bed.connect(user="ann")
        bob = await bed.connect(user="bob", node="node2")
        assert (ann.node, bob.node) == ("node1", "node2")
        hers, his = await ann.subscribe("room:1"), await bob.subscribe("room:1")
        await hers.publish({"text": "hello"})
        heard = await his.next()
        assert (heard.data, heard.offset) == ({"text": "hello"}, 1)
        assert heard.publisher is not None
        assert (heard.publisher.user, heard.publisher.client) == ("ann", ann.id)
        assert {each.user for each in (await his.presence()).values()} == {"ann", "bob"}
        await bob.publish("room:1", [1, 2])
        await hers.next()
        assert [each.data for each in await hers.history()] == [{"text": "hello"}, [1, 2]]
        await his.unsubscribe()
        await hers.publish("the end")
        assert [await hers.next(), await hers.next()][-1].data == "the end"
        assert [(joined, member.user) for joined, member in hers.members] == [
            *((True, "ann"), (True, "bob"), (False, "bob"))
        ]


async def test_a_refused_client_leaves_no_connection(channels: Path) -> None:
    """Nor does one that the test does not wait for; the node would wait for another connect."""
    realtime = Realtime()

    @realtime.on_connect
    async def connect(event: Connect) -> Accept:
        if event.data == "wait":
            await asyncio.Event().wait()
        raise Error(403, "no")

    async with Testbed(realtime, config=channels) as bed:
        hub = bed._nodes["node1"].node.hub
        with pytest.raises(Error, match="403"):
            await bed.connect()
        assert len(hub) == 0
        connecting = asyncio.create_task(bed.connect(data="wait"))
        await settled(lambda: len(hub) == 1, "it is there")
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert len(hub) == 0


async def test_a_second_subscribe_is_refused_and_harms_nothing(channels: Path) -> None:
    """As on the cluster, the first one goes on."""
    async with Testbed(config=channels) as bed:
        ann = await bed.connect(user="ann")
        subscription = await ann.subscribe("room:1")
        with pytest.raises(Error, match="105"):
            await ann.subscribe("room:1")
        await ann.publish("room:1", "hello")
        assert (await subscription.next()).data == "hello"
        assert ann.subscriptions["room:1"] is subscription


async def test_an_error_of_the_node_ends_the_connection(
    channels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the cluster; the test does not wait for an answer, and gets the exception."""

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ChannelCommands, "publish", broken)
    bed = Testbed(config=channels)
    await bed.__aenter__()
    ann = await bed.connect(user="ann")
    with pytest.raises(Disconnect, match="1011: internal error"):
        await asyncio.wait_for(ann.publish("room:1", 1), 5)
    with pytest.raises(ZeroDivisionError):
        await bed.__aexit__(None, None, None)


async def test_a_reconnect_sends_the_data_of_each_subscription_again(channels: Path) -> None:
    """And its token, as SDKs do: the handler decides as it did before."""
    realtime = Realtime()
    seen: list[Any] = []

    @realtime.on_subscribe("room")
    async def subscribe(event: Subscribe) -> None:
        seen.append(event.data)
        if event.data != {"key": "s3cret"}:
            raise Error(403, "no key")

    async with Testbed(realtime, config=channels, nodes=2) as bed:
        ann = await bed.connect(user="ann")
        subscription = await ann.subscribe("room:1", data={"key": "s3cret"})
        await bed.drain(ann.node)
        await ann.disconnected()
        await ann.connect()
        assert subscription.recovered
        assert seen == [{"key": "s3cret"}] * 2


async def test_refusals_are_exceptions(channels: Path, tmp_path: Path) -> None:
    """`Error` for a command, `Disconnect` for the connection, and the status of a handshake."""
    async with Testbed(config=channels) as bed:
        nobody = await bed.connect()
        with pytest.raises(Error) as refused:
            await nobody.subscribe("room:1")
        assert (refused.value.code, refused.value.message) == (103, "permission denied")
        with pytest.raises(Error, match="102: unknown channel"):
            await nobody.publish("nothing:1", 1)
        with pytest.raises(HandshakeRefused, match="403"):
            await bed.connect(headers={"Origin": "https://example.org"})
        await bed.connect(headers={"Origin": "https://example.com"})
        with pytest.raises(Disconnect, match="3500: invalid token"):
            await bed.connect(token="not a token")  # noqa: S106
        with pytest.raises(Error, match="109: token expired"):
            await bed.connect(token=bed.token("ann", exp=1))
    closed = tmp_path / "closed.yml"
    closed.write_text(CONFIG)
    async with Testbed(config=closed) as bed:
        with pytest.raises(Disconnect, match="3501"):
            await bed.connect()
        await bed.connect(user="ann")


async def test_a_client_recovers_after_a_drain(channels: Path) -> None:
    """Missed publications come once, in order, also in a subscription of the server."""
    async with Testbed(config=channels, nodes=2) as bed:
        ann, bob = await bed.connect(user="ann"), await bed.connect(user="bob", node="node2")
        room, own = await ann.subscribe("room:1"), ann.subscriptions["own:#ann"]
        await bob.subscribe("room:1")
        await bob.publish("room:1", 1)
        assert (await room.next()).data == 1
        await bed.drain("node1")
        close = await ann.disconnected()
        assert close.code == 3001
        with pytest.raises(Disconnect, match="3001"):
            await room.publish("nothing")
        for number in (2, 3):
            await bob.publish("room:1", number)
        await ann.connect()
        assert (ann.node, room.recovered, own.recovered) == ("node2", True, True)
        await bob.publish("room:1", 4)
        assert [(await room.next()).data for _ in range(3)] == [2, 3, 4]
        with pytest.raises(HandshakeRefused, match="503"):
            await bed.connect(node="node1")


async def test_a_node_that_is_killed_tells_nobody(channels: Path) -> None:
    """Its clients recover on another node; its entries in the presence stay for a while."""
    async with Testbed(config=channels, nodes=2) as bed:
        ann = await bed.connect(user="ann")
        room = await ann.subscribe("room:1")
        former = ann.id
        await bed.kill_node()
        assert (await ann.disconnected()).code == 1006
        with pytest.raises(Disconnect):
            await room.next()
        await ann.connect()
        assert set(await room.presence()) == {former, ann.id}
        await bed.kill_node("node2")
        assert await bed.start_node() == "node3"
        await ann.connect()
        assert (ann.node, room.recovered) == ("node3", True)


async def test_subscriptions_and_connections_end(channels: Path) -> None:
    """`next` raises after what waits; a closed client is nowhere any more."""
    async with Testbed(config=channels) as bed:
        ann, bob = await bed.connect(user="ann"), await bed.connect(user="bob")
        room, his = await ann.subscribe("room:1"), await bob.subscribe("room:1")
        await ann.refresh(bed.token("ann"))
        await room.publish(1)
        await ann.close()
        assert (await room.next()).data == 1
        with pytest.raises(Disconnect):
            await room.next()
        assert set(await his.presence()) == {bob.id}
        with pytest.raises(TimeoutError, match="nothing came in room:2"):
            await (await bob.subscribe("room:2")).next(within=0)


async def test_routes_and_lifespan_of_an_application() -> None:
    """`http` calls the routes; start-up comes before, shutdown after the test."""
    events: list[str] = []

    async def lifespan(_: FastAPI) -> Any:
        events.append("startup")
        yield
        events.append("shutdown")

    app = FastAPI(lifespan=asynccontextmanager(lifespan))

    @app.get("/cookies")
    async def cookies(request: Request) -> dict[str, str]:
        return request.cookies

    async with Testbed(app) as bed:
        assert events == ["startup"]
        bed.http.cookies.set("session", "abc")
        assert (await bed.http.get("/cookies")).json() == {"session": "abc"}
    assert events == ["startup", "shutdown"]


def test_starlette_s_client_serves_routes_and_websockets() -> None:
    """A `Realtime` is an ASGI application as the one inside of it."""
    with warnings.catch_warnings():  # it wants httpx2, and works with httpx
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient
    app = FastAPI()

    @app.get("/")
    async def hello() -> str:
        return "hello"

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    with TestClient(Realtime(app)) as client, client.websocket_connect("/echo") as websocket:
        assert client.get("/").json() == "hello"
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


async def test_handlers_decide() -> None:
    """A `Realtime` is asked, with cookies, headers and data; its calls reach the clients."""
    realtime = Realtime()

    @realtime.on_connect
    async def enter(event: Connect[dict[str, str]]) -> Accept:
        if "session" not in event.cookies:
            raise Disconnect(4501, "sign in first")
        return Accept(event.cookies["session"], data=[event.data, event.headers["x-team"]])

    @realtime.on_subscribe("")
    def join(event: Subscribe) -> Allow:
        if event.name == "closed":
            raise Error(403, "closed")
        return Allow(data=event.client.user)

    @realtime.on_rpc("double")
    def double(event: Rpc[int]) -> int:
        return 2 * event.data

    async with Testbed(realtime, nodes=2) as bed:
        with pytest.raises(Disconnect, match="4501: sign in first"):
            await bed.connect(data={})
        for node in ("node1", "node2"):
            client = await bed.connect(
                node=node, cookies={"session": "ann"}, headers={"X-Team": "red"}, data={"a": "b"}
            )
            assert (client.node, client.data) == (node, [{"a": "b"}, "red"])
            with pytest.raises(Error, match="403: closed"):
                await client.subscribe("closed")
            assert await client.rpc("double", 21) == 42
            with pytest.raises(Error, match="422"):
                await client.rpc("double", "x")
            room = await client.subscribe("room")
            assert room.data == "ann"
            await realtime.publish("room", {"text": "hello"})
            assert (await room.next()).data == {"text": "hello"}
    with pytest.raises(RuntimeError, match="no node serves"):
        await realtime.publish("room", 1)


async def test_ends_and_drains_are_told() -> None:
    """`on_disconnect` also for a node that was killed, by another node; `on_drain` before."""
    realtime = Realtime()
    ends: list[int] = []

    @realtime.on_connect
    def enter(event: Connect) -> Accept:
        return Accept("ann")

    @realtime.on_disconnect
    async def left(event: Disconnected) -> None:
        ends.append(event.code)

    @realtime.on_drain
    async def drain() -> None:
        ends.append(0)

    async with Testbed(realtime, nodes=2, heartbeat_interval=0.1, node_dead_after=0.3) as bed:
        await (await bed.connect()).close()
        assert ends == [1000]
        await bed.connect()
        await bed.drain()
        await settled(lambda: ends == [1000, 0, 3001], "both are told", pause=0.01)
        await bed.connect(node="node2")
        await bed.start_node()
        await bed.kill_node("node2")
        await settled(lambda: ends == [1000, 0, 3001, 0], "another node tells", pause=0.01)
    assert ends == [1000, 0, 3001, 0, 0]  # the third node has drained at the end


async def test_a_session_comes_along() -> None:
    """After a drain and after a death of the node; another name is another session."""
    realtime = Realtime()

    @realtime.on_connect
    async def enter(event: Connect[str]) -> Accept:
        return Accept(session=event.data)

    @realtime.on_rpc("draft")
    async def draft(event: Rpc[str]) -> Any:
        before = event.client.session.get("draft")
        event.client.session["draft"] = event.data
        await event.client.session.save()
        return before

    @realtime.on_rpc("blocking")
    def blocking(event: Rpc) -> int:
        event.client.session["blocking"] = True
        realtime.from_thread(event.client.session.save())
        return len(event.client.session)

    async with Testbed(realtime, nodes=3) as bed:
        client = await bed.connect(data="tab1")
        assert await client.rpc("draft", "hel") is None
        await bed.drain(client.node)
        await client.disconnected()
        await client.connect()
        assert await client.rpc("draft", "hello") == "hel"
        assert await client.rpc("blocking") == 2
        await bed.kill_node(client.node)
        await client.disconnected()
        await client.connect()
        assert await client.rpc("draft", "") == "hello"
        other = await bed.connect(data="tab2")
        assert await other.rpc("draft", "") is None


def test_a_handler_without_a_namespace_is_an_error() -> None:
    """As at the start of a node."""
    realtime = Realtime()

    @realtime.on_subscribe("room")
    def join(event: Subscribe) -> None:
        """Let everybody in."""

    with pytest.raises(ValueError, match="room"):
        Testbed(realtime)


async def test_a_start_up_that_fails_fails_the_test() -> None:
    """With the application's own exception as the cause."""

    async def lifespan(_: FastAPI) -> Any:
        raise ValueError("no database")
        yield

    app = FastAPI(lifespan=asynccontextmanager(lifespan))
    with pytest.raises(RuntimeError, match="no database"):
        async with Testbed(app):
            pass
