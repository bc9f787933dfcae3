"""One socket from the handshake to the close, over real TCP, byte by byte."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from lab.waiting import TIMEOUT, settled
from tests.support.metrics import reaches, value
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.tcp import HANDSHAKE, TCPPeer, masked, tcp
from wsfleet.transports import http, websocket
from wsfleet.transports.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
)


@contextlib.asynccontextmanager
async def upgraded(node: RunningNode) -> AsyncIterator[TCPPeer]:
    """Connect, and open a WebSocket."""
    async with tcp(node, HANDSHAKE) as peer:
        await peer.head()
        yield peer


SERVED_BY = pytest.mark.parametrize(
    "app", ["", "tests.support.guest:app"], ids=["node", "application"]
)
"""`/ws` is an endpoint of the node, and a route of an application."""


@SERVED_BY
async def test_the_handshake_is_that_of_the_rfc(start_node: StartNode, app: str) -> None:
    """RFC 6455, section 1.3: its sample nonce gets its sample answer, and no extension."""
    node = await start_node(app=app)
    async with tcp(node, HANDSHAKE) as peer:
        head = (await peer.head()).lower()
    assert head.startswith(b"http/1.1 101 ")
    assert b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n" in head
    assert b"extensions" not in head


@SERVED_BY
@pytest.mark.parametrize(
    ("old", "new", "status", "told"),
    [
        (b"Version: 13", b"Version: 12", 426, b"Sec-WebSocket-Version: 13"),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426, b"Sec-WebSocket-Version: 13"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=", 400, b""),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"not base64", 400, b""),
        (b"GET", b"POST", 405, b"Allow: GET"),
        (b"/ws", b"/connection/elsewhere", 404, b"/connection/websocket"),
    ],
)
async def test_an_invalid_handshake_is_refused(
    start_node: StartNode, app: str, old: bytes, new: bytes, status: int, told: bytes
) -> None:
    """The status says what is wrong (RFC 6455, section 4.2.2), and the connection ends."""
    node = await start_node(app=app)
    async with tcp(node, HANDSHAKE.replace(old, new)) as peer:
        answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert told in answer
    assert value(node, "requests_refused_total", status=str(status)) == 1


async def test_fragments_with_a_ping_between_them(start_node: StartNode) -> None:
    """The ping is answered with its payload, and the message is whole."""
    node = await start_node()
    async with upgraded(node) as peer:
        peer.write(masked(TEXT, b'{"client_id": ', fin=False) + masked(PING, b"are you there?"))
        assert await peer.frame() == (PONG, b"are you there?")
        peer.write(masked(CONTINUATION, b"", fin=False) + masked(CONTINUATION, b'"alice"}'))
        assert (await peer.message())["client_id"] == "alice"


async def test_messages_sent_with_the_handshake_are_kept(start_node: StartNode) -> None:
    """A client that does not wait for the 101 is answered after it."""
    node = await start_node()
    async with tcp(node, HANDSHAKE + masked(TEXT, b"early")) as peer:
        await peer.head()
        assert (await peer.message())["type"] == "ack"


async def test_the_client_closes(start_node: StartNode) -> None:
    """Its code is sent back, then the node ends the connection (RFC 6455, section 7.1.1)."""
    node = await start_node()
    async with upgraded(node) as peer:
        peer.write(masked(TEXT, b"last words") + masked(CLOSE, b"\x0f\xa0bye"))
        frames = await peer.rest()
    assert frames.endswith(close_frame(4000, ""))
    assert frames.count(b'"type":"ack"') == 1
    await settled(lambda: not len(node.node.hub), "it was counted out")


async def test_messages_before_a_close_are_kept(start_node: StartNode) -> None:
    """A client that says something and leaves is heard by the others."""
    node = await start_node()
    async with upgraded(node) as listener, upgraded(node) as peer:
        peer.write(b"".join(masked(TEXT, b"%d" % n) for n in range(50)) + masked(CLOSE, b""))
        assert [(await listener.message())["data"] for _ in range(50)] == list(range(50))


async def test_a_violation_is_explained_before_the_end(start_node: StartNode) -> None:
    """The close code arrives though the peer goes on sending, and nobody else is concerned."""
    node = await start_node()
    async with upgraded(node) as peer, upgraded(node) as other:
        peer.write(masked(BINARY, b"", rsv=0x40) + masked(TEXT, b"x" * 60_000) * 20)
        assert await peer.rest() == close_frame(1002, "reserved bits are set")
        other.write(masked(TEXT, b"hello"))
        assert (await other.message())["type"] == "ack"
    assert node.node.metrics.disconnects.labels("1002")._value.get() == 1


ENDS = {
    "a close": (masked(CLOSE, b"\x03\xe8"), close_frame(1000, "")),
    "a close that is none": (masked(CLOSE, b"\x03"), close_frame(1002, "no valid close code")),
    "a reserved bit": (masked(TEXT, b"", rsv=0x20), close_frame(1002, "reserved bits are set")),
    "no UTF-8": (masked(TEXT, b"\xff"), close_frame(1007, "text is not UTF-8")),
    "half a frame": (masked(TEXT, b"\xff" * 100)[:50], close_frame(1007, "text is not UTF-8")),
    "too much": (masked(TEXT, b"", length=b"\x7f" + 8 * b"\xff"), b"\x88"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_messages_before_an_end_are_answered_before_it(
    start_node: StartNode, name: str
) -> None:
    """Whole messages are carried out whatever follows, and their answers go before the close."""
    node = await start_node()
    end, close = ENDS[name]
    async with upgraded(node) as listener, upgraded(node) as peer:
        peer.write(b"".join(masked(TEXT, b"%d" % n) for n in range(50)) + end + masked(TEXT, b"x"))
        answers = await peer.rest()
        assert answers.count(b'"type":"ack"') == 50
        assert close in answers[-60:]
        assert [(await listener.message())["data"] for _ in range(50)] == list(range(50))
    code = int.from_bytes(close[2:4], "big") if close[1:] else 1009
    assert value(node, "disconnects_total", code=str(code)) == 1


async def test_messages_before_an_end_are_not_waited_for_without_end(
    start_node: StartNode, redis_process: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Redis does not answer, the close comes all the same."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    node = await start_node(redis_timeout=5)
    async with upgraded(node) as peer:
        await settled(lambda: len(node.node.hub) == 1, "the client is connected")
        redis_process.freeze()
        peer.write(masked(TEXT, b"one") * 5 + masked(CLOSE, b"\x03\xe8"))
        assert await peer.rest() == close_frame(1000, "")
        redis_process.thaw()


async def test_a_close_without_an_answer_ends(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not answer the node's close is cut; the node stops counting it before."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    node = await start_node()
    async with upgraded(node) as peer:
        await settled(lambda: len(node.node.hub) == 1, "the client is connected")
        next(iter(node.node.hub)).close(4321, "go")
        assert await peer.rest() == close_frame(4321, "go")
    assert not len(node.node.hub)


async def test_half_a_head_is_not_waited_for(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that never ends is answered with 408, the first one and a later one."""
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.3)
    node = await start_node()
    async with tcp(node) as silent, tcp(node, HANDSHAKE[:-2]) as half:
        assert (await silent.rest()).startswith(b"HTTP/1.1 408 ")
        assert (await half.rest()).startswith(b"HTTP/1.1 408 ")
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with tcp(node, whole + whole[:-2]) as again:
        answers = await again.rest()
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answers
    assert value(node, "requests_refused_total", status="408") == 3


async def test_a_head_without_end_is_refused(start_node: StartNode) -> None:
    """Over 16 KiB it is 431, and no more is read."""
    node = await start_node()
    async with tcp(node, HANDSHAKE[:-2]) as peer:
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                peer.write(b"X-Header: %b\r\n" % (b"x" * 1000))
                await asyncio.sleep(0)
            assert (await peer.rest()).startswith(b"HTTP/1.1 431 ")
    assert value(node, "requests_refused_total", status="431") == 1
    async with upgraded(node) as peer:
        peer.write(masked(TEXT, b"hello"))
        assert (await peer.message())["type"] == "ack"


@pytest.mark.parametrize(
    "first", [HANDSHAKE, b"POST /api/info HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"]
)
async def test_a_long_head_that_comes_at_once_is_refused(
    start_node: StartNode, first: bytes
) -> None:
    """Its end does not make it good."""
    node = await start_node()
    head, _, body = first.partition(b"\r\n\r\n")
    async with tcp(node, head + b"\r\nX-Header: %b\r\n\r\n" % (b"x" * 17_000) + body) as peer:
        assert (await peer.rest()).startswith(b"HTTP/1.1 431 ")
    assert value(node, "requests_refused_total", status="431") == 1


async def test_a_flood_of_pings_fills_no_memory(start_node: StartNode) -> None:
    """A client that pings and does not read gets only a small buffer of pongs; a metric counts."""
    node = await start_node()
    async with upgraded(node) as peer:
        await settled(lambda: len(node.node.hub) == 1, "the client is connected")
        connection = next(iter(node.node.hub))
        for _ in range(200):
            peer.write(masked(PING, b"x" * 125) * 500)
            await asyncio.sleep(0)
        assert connection.buffered <= websocket.PONG_LIMIT + len(frame(PONG, b"x" * 125))
        await reaches(node, "pongs_withheld_total")


async def test_messages_wait_for_their_turn_in_the_socket(start_node: StartNode) -> None:
    """A client that sends faster than Redis keeps is read more slowly, and nothing is dropped."""
    node = await start_node()
    async with upgraded(node) as peer:
        text = b"x" * 10_000
        for _ in range(300):
            peer.write(masked(TEXT, text))
        for number in range(300):
            assert (await peer.message())["message_count"] == number + 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_frames_for_a_slow_peer_keep_their_order(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """Frames that wait come in order, with the close frame behind them.

    They make no objects that Python's collector would go through: it would hold up all others.
    """
    run(_wait_and_read())


async def _wait_and_read() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs):
        theirs.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        peer = websocket.WebSocket(transport, Config(""), ServerState())
        transport.set_protocol(peer)
        peer.accept()
        response = await loop.sock_recv(theirs, 1000)
        assert response.endswith(b"\r\n\r\n")
        frames = [frame(TEXT, f"{number:05} ".encode() + b"x" * 994) for number in range(5000)]
        got, objects = b"", len(gc.get_objects())
        for number, text in enumerate(frames):
            assert peer.writer is not None
            peer.writer.write(text)
            await asyncio.sleep(0)
            if number == 4000:
                assert peer.buffered > 3_000_000
                assert len(gc.get_objects()) - objects < 1000
                got = await _received(loop, theirs, 1_000_000)
        peer.start_close(1013, "slow")
        wanted = b"".join(frames) + close_frame(1013, "slow")
        got += await _received(loop, theirs, len(wanted) - len(got))
        assert got == wanted


async def _received(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    async with asyncio.timeout(TIMEOUT):
        while len(got) < size:
            got += await loop.sock_recv(sock, size - len(got))
    return bytes(got)
