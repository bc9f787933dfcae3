"""The WebSockets of an application over the node's own class: ASGI's events, and limits."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from lab.waiting import settled
from tests.support import guest
from tests.support.clients import close_code, closed
from tests.support.metrics import failures, reaches, value
from tests.support.nodes import RunningNode, StartNode
from tests.support.tcp import HANDSHAKE, masked, tcp
from wsfleet.cluster.node_state import NodeState
from wsfleet.redis import key_names
from wsfleet.transports.frames import TEXT

GUEST = "tests.support.guest:app"
LATE = HANDSHAKE.replace(b"/ws", b"/late")


@pytest.fixture
async def node(start_node: StartNode) -> RunningNode:
    """Return a node with the application."""
    for record in (guest.ends, guest.handlers, guest.room, guest.lifespan_events):
        record.clear()
    guest.go_on = asyncio.Event()
    return await start_node(app=GUEST, trusted_proxies="127.0.0.1")


def opened(node: RunningNode, path: str, **options: Any) -> connect:
    """Open a WebSocket of the application."""
    return connect(node.client_url.replace("http", "ws") + path, proxy=None, **options)


async def refused(node: RunningNode, path: str, **options: Any) -> InvalidStatus:
    """Open a WebSocket that is refused."""
    with pytest.raises(InvalidStatus) as error:
        await opened(node, path, **options)
    return error.value


# The messages of ASGI.


async def test_text_and_bytes_come_and_go(node: RunningNode) -> None:
    """Messages of any size up to the limit arrive whole and in order."""
    async with opened(node, "/echo") as client:
        for message in ("a", "", b"b", b"", "ü" * 30_000, bytes(65_536)):
            await client.send(message)
        assert [await client.recv() for _ in range(6)] == [
            *("a", "", b"b", b""),
            *("ü" * 30_000, bytes(65_536)),
        ]


async def test_the_scope_has_the_fields_of_asgi(node: RunningNode) -> None:
    """The scope has paths, query, headers, subprotocols, state, extensions and addresses."""
    async with opened(
        node,
        "/where/a%20b/%C3%BC?x=1&y=%20",
        subprotocols=[Subprotocol("one"), Subprotocol("two")],
        additional_headers={"X-Own": "yes"},
    ) as client:
        scope = json.loads(await client.recv())
        port = client.local_address[1]
    headers = dict(scope.pop("headers"))
    assert (headers["x-own"], headers["host"]) == ("yes", f"127.0.0.1:{node.settings.port}")
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/where/a b/ü",
        "raw_path": "b'/where/a%20b/%C3%BC'",
        "query_string": "b'x=1&y=%20'",
        "root_path": "",
        "client": ["127.0.0.1", port],
        "server": ["127.0.0.1", node.settings.port],
        "subprotocols": ["one", "two"],
        "state": "guest",
        "extensions": ["websocket.http.response", "wsfleet"],
    }


async def test_the_client_behind_a_trusted_proxy_is_in_the_scope(
    node: RunningNode, start_node: StartNode
) -> None:
    """X-Forwarded-For and -Proto set address and scheme only if a trusted proxy sends them."""
    stranger = await start_node(app=GUEST, trusted_proxies="10.0.0.1")
    fields = {"X-Forwarded-For": "203.0.113.9, 127.0.0.1", "X-Forwarded-Proto": "https"}
    for server, expected in ((node, ("203.0.113.9", "wss")), (stranger, ("127.0.0.1", "ws"))):
        async with opened(server, "/where/x", additional_headers=fields) as client:
            scope = json.loads(await client.recv())
        assert (scope["client"][0], scope["scheme"]) == expected


async def test_the_application_chooses_subprotocol_and_fields(node: RunningNode) -> None:
    """The answer to the handshake has the subprotocol and the fields."""
    offered = [Subprotocol("one"), Subprotocol("two")]
    async with opened(node, "/choose", subprotocols=offered) as client:
        assert client.subprotocol == "two"
        assert client.response is not None
        assert client.response.headers["X-App"] == "yes"


async def test_the_application_refuses(node: RunningNode) -> None:
    """A close before accept is 403; with the extension the application sends its own response."""
    assert (await refused(node, "/reject")).response.status_code == 403
    response = (await refused(node, "/teapot")).response
    assert response.status_code == 418
    assert response.headers["X-Spout"] == "here"
    assert response.body == b"short and stout"
    assert value(node, "connections_refused_total", reason="application") == 2


async def test_a_path_without_a_route_is_refused(node: RunningNode) -> None:
    """An unknown path is 403 as in Starlette; the node's own paths are 404 with a hint."""
    assert (await refused(node, "/nowhere")).response.status_code == 403
    for path in ("/connection/nowhere", "/emulation", "/connection"):
        response = (await refused(node, path)).response
        assert response.status_code == 404
        assert b"/connection/websocket" in response.body


async def test_codes_and_reasons_go_both_ways(node: RunningNode) -> None:
    """A close by either side delivers its code and reason; without a code it is 1005."""
    async with opened(node, "/bye") as client:
        assert await closed(client) == (4001, "bye")
    assert guest.ends.pop() == (4001, "bye")
    async with opened(node, "/echo") as client:
        await client.close(4002, "so long")
    await settled(lambda: guest.ends == [(4002, "so long")], "the application hears it")
    guest.ends.clear()
    async with opened(node, "/echo") as client:
        client.transport.abort()
    await settled(lambda: [code for code, _ in guest.ends] == [1006], "it hears of the abort")


async def test_a_handler_that_returns_closes_its_websocket(node: RunningNode) -> None:
    """A handler that returns closes with 1000; a handshake without an answer is 500."""
    async with opened(node, "/no_close") as client:
        assert await close_code(client) == 1000
    assert (await refused(node, "/no_answer")).response.status_code == 500


async def test_an_exception_closes_with_1011_or_500(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has the traceback, a metric counts it, and other clients are served."""
    async with opened(node, "/echo") as other:
        async with opened(node, "/raise_after") as client:
            assert await close_code(client) == 1011
        assert (await refused(node, "/raise_before")).response.status_code == 500
        assert failures(node, "websocket") == 2
        await other.send("still here")
        assert await other.recv() == "still here"
    logged = capsys.readouterr().out
    for what in ("boom after accept", "boom before accept", "guest.py"):
        assert what in logged


async def test_an_uncaught_disconnect_is_no_error(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler may end by an uncaught WebSocketDisconnect."""
    async with opened(node, "/uncaught") as client:
        await client.send("x")
    await settled(lambda: not node.server.server_state.tasks, "the handler has ended")
    assert failures(node, "websocket") == 0
    assert "Traceback" not in capsys.readouterr().out


async def test_sending_to_a_gone_client_raises_oserror(node: RunningNode) -> None:
    """Starlette raises WebSocketDisconnect; after the handler's own close it is RuntimeError."""
    async with opened(node, "/hold") as client:
        await settled(lambda: guest.handlers, "the handler has it")
        (handler,) = guest.handlers
        client.transport.abort()
        await settled(lambda: not node.node.hub, "the node has noticed")
        with pytest.raises(OSError, match=r"^$"):
            await handler._send({"type": "websocket.send", "text": "x"})
        guest.go_on.set()
    await settled(lambda: [code for code, _ in guest.ends] == [1006], "it hears of the end")
    async with opened(node, "/hold"):
        await settled(lambda: guest.handlers, "the handler has it")
        (handler,) = guest.handlers
        await handler._send({"type": "websocket.close"})
        for late in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.accept"}):
            with pytest.raises(RuntimeError, match=late["type"]):
                await handler._send(late)


@pytest.mark.parametrize(
    "headers", [[(b"bad name", b"x")], [(b"x", b"a\r\nb: c")], [(b"Sec-WebSocket-Protocol", b"x")]]
)
async def test_fields_that_break_the_answer_are_refused(
    node: RunningNode, headers: list[tuple[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invalid fields are an error of the application: 500, and none of them is sent."""

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": headers})

    monkeypatch.setattr(guest.app, "middleware_stack", app)
    assert (await refused(node, "/echo")).response.status_code == 500


# Messages wait for the handler, and the handler for its own client.


async def test_messages_before_a_disconnect_are_received(node: RunningNode) -> None:
    """A late handler still receives all messages and the disconnect in order."""
    async with opened(node, "/hold") as client:
        await settled(lambda: guest.handlers, "the handler has it")
        (handler,) = guest.handlers
        for number in range(100):
            await client.send(str(number))
    await settled(lambda: not node.node.hub, "the node has given up to wait for the handler")
    received = []
    with suppress(WebSocketDisconnect):
        while True:
            received.append(await handler.receive_text())
    assert received == [str(number) for number in range(100)]
    guest.go_on.set()


async def test_a_handler_that_does_not_receive_holds_its_client_up(start_node: StartNode) -> None:
    """The node stops reading for a busy handler, and does not miss a pong behind the messages."""
    guest.go_on = asyncio.Event()
    node = await start_node(app=GUEST, ping_interval=0.5, ping_timeout=1.0)
    text = "x" * 60_000
    async with opened(node, "/hold", write_limit=1) as client:
        sent = 1
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(client.send(text), 3.0)
                sent += 1
        assert client.close_code is None
        guest.go_on.set()
        for _ in range(sent):
            assert len(await client.recv()) == 60_000


async def test_one_that_does_not_read_holds_no_loop_up(start_node: StartNode) -> None:
    """A broadcast reaches the other clients at once; the slow one is closed with 1013."""
    guest.room.clear()
    node = await start_node(app=GUEST, outbox_limit=1_000_000, write_timeout=1.0)
    async with tcp(node) as slow:
        slow.write(
            b"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await slow.head()
        async with opened(node, "/chat") as speaker, opened(node, "/chat") as hearer:
            await settled(lambda: len(guest.room) == 3, "all are in")
            for number in range(200):
                text = f"{number}".ljust(60_000)
                await speaker.send(text)
                assert await hearer.recv() == text
                assert await speaker.recv() == text
            await settled(lambda: len(guest.room) == 2, "the slow one is out")
            await reaches(node, "disconnects_total", code="1013")


async def test_a_handler_waits_for_its_own_client(start_node: StartNode) -> None:
    """A handler may send more than the outbox's limit to a client that reads."""
    node = await start_node(app=GUEST, outbox_limit=1_000_000)
    async with opened(node, "/stream") as client:
        await client.send("32")
        received = 0
        with suppress(ConnectionClosed):
            while True:
                received += len(await client.recv())
        assert (received, client.close_code) == (32 * 2**20, 1000)


# What the node does with all its connections.


async def test_they_are_counted(node: RunningNode) -> None:
    """/health and the metrics count the WebSockets, which register no names in Redis."""
    async with opened(node, "/echo"), opened(node, "/echo") as client:
        await client.send("x")
        await client.recv()
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{node.url}/health")).json()["connections"] == 2
        assert value(node, "connections", protocol="application") == 2
        assert value(node, "messages_received_total") == 1
    await settled(lambda: value(node, "connections", protocol="application") == 0, "they are out")
    assert value(node, "connections_opened_total") == 2


async def test_origins_that_are_not_allowed_are_refused(
    start_node: StartNode, tmp_path: Path
) -> None:
    """A foreign origin is refused before the application runs; a missing origin is accepted."""
    (tmp_path / "config.yml").write_text("client: {allowed_origins: ['https://example.com']}\n")
    node = await start_node(app=GUEST, config=tmp_path / "config.yml")
    for allowed in (None, Origin("https://example.com")):
        async with opened(node, "/echo", origin=allowed):
            pass
    response = (
        await refused(node, "/raise_before", origin=Origin("https://evil.example"))
    ).response
    assert (response.status_code, b"allowed_origins" in response.body) == (403, True)


async def test_a_full_node_refuses_before_the_application_is_asked(start_node: StartNode) -> None:
    """A full node answers 503 with Retry-After."""
    node = await start_node(app=GUEST, max_connections=1)
    async with opened(node, "/echo"):
        response = (await refused(node, "/raise_before")).response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


async def test_handshakes_in_progress_are_bounded(start_node: StartNode) -> None:
    """Of 1,000 handshakes of a slow application so many are in progress as it may have clients."""
    guest.go_on = asyncio.Event()
    guest.ends.clear()
    node = await start_node(app=GUEST, max_connections=100)
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(tcp(node, LATE)) for _ in range(1000)]
        answers = [asyncio.ensure_future(peer.head()) for peer in peers]
        await settled(lambda: sum(each.done() for each in answers) == 900, "the rest is refused")
        assert value(node, "handshakes") == 100
        assert value(node, "connections_refused_total", reason="full") == 900
        heads = [answer.result() for answer in answers if answer.done()]
        assert all(b" 503 " in head and b"Retry-After: 1" in head for head in heads)
        assert node.node.not_ready_reason() == "full: 100 connections"
        guest.go_on.set()
        heads = [await answer for answer in answers]
        assert sum(b" 101 " in head for head in heads) == 100
        assert value(node, "handshakes") == 0
    async with opened(node, "/echo"):
        pass


async def test_a_handshake_ends_with_its_handler(start_node: StartNode) -> None:
    """A refusal, an exception, a missing answer, and a client that leaves free the place."""
    guest.go_on = asyncio.Event()
    node = await start_node(app=GUEST, max_connections=1)
    for path in ("/reject", "/teapot", "/raise_before", "/no_answer", "/nowhere"):
        assert (await refused(node, path)).response.status_code != 503
        await settled(lambda: not node.node.handshakes, "the place is free")
    async with tcp(node, LATE):
        await settled(lambda: node.node.handshakes, "the application is asked")
        assert (await refused(node, "/echo")).response.status_code == 503
    await settled(lambda: not node.node.handshakes, "the client has left")
    async with opened(node, "/echo"):
        assert (await refused(node, "/echo")).response.status_code == 503


async def test_a_flood_is_closed_with_3013(start_node: StartNode) -> None:
    """The rate limits are those of the other protocols."""
    node = await start_node(app=GUEST, message_rate=1)
    async with opened(node, "/echo") as client:
        with suppress(ConnectionClosed):
            for _ in range(100):
                await client.send("x")
        assert await close_code(client) == 3013


async def test_a_message_that_is_too_large_is_closed_with_1009(node: RunningNode) -> None:
    """The application receives no part of the message, but the disconnect."""
    async with opened(node, "/echo") as client:
        await client.send("x" * 65_537)
        assert await close_code(client) == 1009
    await settled(lambda: [code for code, _ in guest.ends] == [1009], "it hears of it")


async def test_a_drain_sends_clients_away_at_a_pace(start_node: StartNode, store: Any) -> None:
    """A drain closes clients with 1012 and refuses new ones until the node serves again."""
    guest.ends.clear()
    node = await start_node(app=GUEST, drain_rate=20)
    clients = [await opened(node, "/echo") for _ in range(20)]
    await store.hset(key_names.DESIRED, "node1", "drain")
    left_behind = []

    async def end(client: ClientConnection) -> int | None:
        code = await close_code(client)
        left_behind.append(len(node.node.hub))
        return code

    assert await asyncio.gather(*map(end, clients)) == [1012] * 20
    assert len(set(left_behind)) > 3
    await settled(lambda: node.node.drain.state is NodeState.DRAINED, "it is drained")
    assert {code for code, _ in guest.ends} == {1012}
    response = (await refused(node, "/echo")).response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    await store.hset(key_names.DESIRED, "node1", "serve")
    await settled(lambda: node.node.not_ready_reason() is None, "it serves")
    async with opened(node, "/echo"):
        pass


async def test_a_drain_during_the_handshake_refuses_it(node: RunningNode, store: Any) -> None:
    """An application that accepts too late gets OSError."""
    opening = asyncio.ensure_future(opened(node, "/late").__aenter__())
    await settled(lambda: node.server.server_state.tasks, "the application is asked")
    await store.hset(key_names.DESIRED, "node1", "drain")
    await settled(lambda: node.node.drain.refuses, "it drains")
    guest.go_on.set()
    with pytest.raises(InvalidStatus) as error:
        await opening
    assert error.value.response.status_code == 503
    await settled(lambda: guest.ends == [(0, "cannot accept")], "it is told")


async def test_a_client_that_leaves_during_the_handshake_is_noticed(node: RunningNode) -> None:
    """The application receives a disconnect before it has accepted."""
    opening = asyncio.ensure_future(opened(node, "/late").__aenter__())
    await settled(lambda: node.server.server_state.tasks, "the application is asked")
    opening.cancel()
    await settled(lambda: [code for code, _ in guest.ends] == [1006], "it hears of it")


async def test_messages_sent_with_the_handshake_are_kept(node: RunningNode) -> None:
    """Messages that a client sends before the accept are received after it."""
    head = (
        b"GET /late HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).replace(b"/late", b"/echo")
    async with tcp(node, head + masked(TEXT, b"early")) as peer:
        assert b" 101 " in await peer.head()
        assert await peer.frame() == (TEXT, b"early")
