"""A client's backlog is bounded in bytes and in time; the size of one write does not matter."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from lab.waiting import settled
from tests.support.certificates import make_certificate
from wsfleet.hub.connection import Connection
from wsfleet.transports.outbox import HIGH_WATER, Limits, Outbox
from wsfleet.transports.transport import Close, Closes
from wsfleet.transports.websocket import WebSocket

LIMIT, TIMEOUT = 1_000_000, 10.0
CLOSES = Closes(restart=Close(1012, "restart"), slow=Close(1013, "slow"))


class Clock:
    """A loop's clock and timers, moved on by hand."""

    def __init__(self) -> None:
        self.time = 0.0
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...], Any]] = []

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> Any:
        """Note a timer."""
        timer = (self.time + delay, call, args, FakeTimer())
        self.timers.append(timer)
        return timer[3]

    def create_task(self, work: Coroutine[Any, Any, None]) -> Any:
        """Run nothing: what the handler would hear last is not looked at here."""
        work.close()
        return FakeTimer()

    def pass_by(self, seconds: float) -> None:
        """Let time go by, and call what is due."""
        end = self.time + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.time = timer[0]
            if not timer[3].cancelled:
                timer[1](*timer[2])
        self.time = end


class FakeTimer:
    """A handle that may be cancelled."""

    cancelled = False

    def cancel(self) -> None:
        """Call nothing."""
        self.cancelled = True

    def add_done_callback(self, call: Any) -> None:
        """Be a task as well."""


class FakeTransport:
    """asyncio's flow control, with a peer that takes what it is told to take."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.buffer = b""
        self.taken = b""
        self.high, self.paused, self.closed = HIGH_WATER, False, False

    def write(self, data: bytes) -> None:
        """Buffer, and pause the protocol above the limit."""
        self.buffer += data
        if len(self.buffer) > self.high and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def writelines(self, frames: Iterable[bytes]) -> None:
        """As asyncio does it."""
        self.write(b"".join(frames))

    def take(self, size: int) -> None:
        """Let the peer take this much, and resume the protocol below a quarter of the limit."""
        self.taken, self.buffer = self.taken + self.buffer[:size], self.buffer[size:]
        if len(self.buffer) <= self.high // 4 and self.paused:
            self.paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the peer has not taken."""
        return len(self.buffer)

    def set_write_buffer_limits(self, high: int) -> None:
        """Take the limit."""
        self.high = high

    def get_extra_info(self, name: str) -> Any:
        """A socket that is not TCP."""
        return self

    def getsockopt(self, *option: int) -> bytes:
        """Have no such option."""
        raise OSError

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed

    def abort(self) -> None:
        """Close at once."""
        self.closed = True


class Peer:
    """A connection over such a transport."""

    def __init__(self, limits: Limits) -> None:
        self.clock, self.transport = Clock(), FakeTransport()

        async def make() -> WebSocket:
            return WebSocket(cast(Any, self.transport), Config(""), ServerState())

        self.websocket = asyncio.run(make())
        self.websocket._loop = cast(Any, self.clock)
        self.transport.protocol = self.websocket
        self.websocket.accept()
        self.connection = Connection(self.websocket, client_id="a", limits=limits, closes=CLOSES)
        self.websocket.stop_keepalive()
        self.websocket._handler = cast(Any, self)
        self.transport.take(10_000)
        self.transport.taken = b""

    def slow(self) -> None:
        """Close the connection as the endpoint does."""
        self.connection.slow()

    def ended(self, code: int, reason: str) -> None:
        """Record it, as the endpoint does."""
        self.connection.closed(code, reason)

    @property
    def closed(self) -> bool:
        """Whether it was closed as slow."""
        return self.connection.close_code == 1013


SMALL = 200_000
sizes = st.integers(1, 3 * SMALL) | st.integers(1, 50_000) | st.integers(1, 300)
steps = st.lists(
    st.tuples(st.just("write"), sizes)
    | st.tuples(st.just("write"), sizes)
    | st.tuples(st.just("take"), st.integers(0, SMALL // 2))
    | st.tuples(st.just("time"), st.integers(1, 6)),
    max_size=40,
)


@settings(deadline=None)
@given(steps)
def test_unsent_bytes_are_bounded(script: list[tuple[str, int]]) -> None:
    """For any writes, reads and pauses: the order, the limit, and when the client is closed.

    A client with less than half of the limit waiting is never closed for a write. The backlog is at
    most the limit, and half of it more for each of two writes that are larger than half.
    """
    peer = Peer(Limits(SMALL, TIMEOUT))
    accepted: list[bytes] = []
    largest = 0
    taken_at = 0.0  # when the peer took something last, or nothing was waiting
    for number, (step, size) in enumerate(script):
        waiting = peer.connection.buffered
        if step == "write":
            frames = bytes([number]) * size
            if peer.connection.send(frames):
                accepted.append(frames)
                largest = max(largest, size)
            else:
                assert peer.closed
                assert waiting > SMALL // 2
                assert waiting + size > SMALL
                break
            assert peer.connection.buffered <= max(SMALL + HIGH_WATER, SMALL // 2 + 2 * largest)
        elif step == "take":
            before = len(peer.transport.taken)
            peer.transport.take(size)
            if len(peer.transport.taken) > before:
                taken_at = peer.clock.time
        else:
            peer.clock.pass_by(size)
            silent = peer.clock.time - taken_at
            if peer.closed:
                assert silent >= TIMEOUT
                break
            if isinstance(peer.websocket.writer, Outbox):
                assert silent < 2 * TIMEOUT
        assert peer.connection.buffered == sum(map(len, accepted)) - len(peer.transport.taken)
        if not isinstance(peer.websocket.writer, Outbox):
            taken_at = peer.clock.time
            assert peer.connection.buffered <= HIGH_WATER
    got = peer.transport.taken + peer.transport.buffer
    if peer.closed:
        assert got[:-8] == b"".join(accepted)[: len(got) - 8]
        assert len(got) - 8 in accumulate(map(len, accepted)), "no frame is cut"
        assert got.endswith(b"\x88\x06\x03\xf5slow")
    else:
        while peer.transport.buffer:
            peer.transport.take(50_000)
        assert peer.transport.taken == b"".join(accepted)
        assert peer.connection.buffered == 0


def test_a_single_large_write_does_not_count_as_slow() -> None:
    """Nor do small ones behind it, or a second one: each counts for half of the limit."""
    for second in ([300] * 1000, [40_000_000]):
        peer = Peer(Limits(LIMIT, TIMEOUT))
        for size in (50_000_000, *second):
            assert peer.connection.send(b"x" * size)
        assert not peer.connection.send(b"x" * 1_000_000), "now too much waits"
        assert peer.closed
    peer = Peer(Limits(LIMIT, TIMEOUT))
    assert peer.connection.send(b"x" * 400_000)
    assert peer.connection.send(b"x" * 50_000_000)


def test_a_client_with_some_progress_is_kept() -> None:
    """However little it is, and however long it lasts; with nothing taken for longer it is slow."""
    peer = Peer(Limits(LIMIT, TIMEOUT))
    assert peer.connection.send(b"x" * 900_000)
    for _ in range(100):
        peer.clock.pass_by(TIMEOUT - 1)
        peer.transport.take(1)
    assert not peer.closed
    peer.clock.pass_by(2 * TIMEOUT)
    assert peer.closed


def test_corked_bytes_are_bounded() -> None:
    """While a connection is corked nothing is sent; too much of it is the same as elsewhere."""
    peer = Peer(Limits(LIMIT, TIMEOUT))
    peer.connection.cork()
    assert all(peer.connection.send(b"x" * 100_000) for _ in range(10))
    peer.connection.uncork(b"y" * 2_000_000)
    assert not peer.closed
    peer.connection.cork()
    assert not all(peer.connection.send(b"x" * 100_000) for _ in range(11))
    assert peer.closed


# The same with sockets, on the loop that nodes run on and on asyncio's own, and with TLS.

Run = Callable[[Coroutine[Any, Any, None]], None]
ways = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
plain_and_tls = pytest.mark.parametrize("tls", [False, True])


class Noted:
    """A handler that notes when its client is slow."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.calls = 0

    def slow(self) -> None:
        """Note it."""
        self.calls += 1
        self.connection.slow()

    async def begin(self) -> None:
        """Begin with nothing."""

    def ended(self, code: int, reason: str) -> None:
        """Record it, as the endpoint does."""
        self.connection.closed(code, reason)

    async def closed(self) -> None:
        """Do nothing more."""


@contextlib.asynccontextmanager
async def connected(
    limits: Limits, tls: Path | None
) -> AsyncIterator[tuple[Connection, Noted, socket.socket]]:
    """A connection, its handler, and the peer's socket, which blocks."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[tuple[Connection, Noted]] = loop.create_future()

    class First(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            websocket = WebSocket(cast(asyncio.Transport, transport), Config(""), ServerState())
            cast(asyncio.Transport, transport).set_protocol(websocket)
            websocket.accept()
            connection = Connection(websocket, client_id="a", limits=limits, closes=CLOSES)
            handler = Noted(connection)
            self.attending = loop.create_task(websocket.attend(cast(Any, handler)))
            made.set_result((connection, handler))

    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
    server = await loop.create_server(First, "127.0.0.1", 0, ssl=context)
    theirs = socket.socket()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
    await asyncio.to_thread(theirs.connect, server.sockets[0].getsockname())
    if tls is not None:
        trusting = ssl.create_default_context(cafile=str(tls))
        theirs = await asyncio.to_thread(
            lambda: trusting.wrap_socket(theirs, server_hostname="127.0.0.1")
        )
    try:
        connection, handler = await made
        yield connection, handler, theirs
    finally:
        theirs.close()
        server.close()
        cast(WebSocket, connection._transport).transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
def certificate(processes: None, tmp_path: Path) -> Path:
    """A certificate that signed itself, with its key."""
    path = tmp_path / "both.pem"
    make_certificate(tmp_path / "certificate.pem", path)
    return path


@pytest.mark.parametrize(
    ("run", "tls"), [(asyncio.run, False), (uvloop.run, False), (uvloop.run, True)]
)
def test_a_peer_that_reads_slowly_is_kept(run: Run, tls: bool, certificate: Path) -> None:
    """It takes megabytes for many times the timeout, and gets every byte."""

    async def check() -> None:
        async with connected(Limits(timeout=1.5), certificate if tls else None) as (
            connection,
            handler,
            theirs,
        ):
            sent = bytearray()
            while connection.buffered < 1_000_000:
                frames = bytes([len(sent) // 60_000 % 256]) * 60_000
                assert connection.send(frames)
                sent += frames
                await asyncio.sleep(0)
            got = bytearray()
            while len(got.partition(b"\r\n\r\n")[2]) < len(sent):
                await asyncio.sleep(0.02)
                data = await asyncio.to_thread(theirs.recv, 15_000)
                assert data, "it was closed"
                got += data
            assert got.partition(b"\r\n\r\n")[2] == sent
            assert handler.calls == 0

    run(check())


@ways
@plain_and_tls
def test_a_peer_that_reads_nothing_is_closed(run: Run, tls: bool, certificate: Path) -> None:
    """In bounded memory while more is written, and after a while also if nothing more is."""

    async def check() -> None:
        limits = Limits(size=LIMIT, timeout=60.0)
        async with connected(limits, certificate if tls else None) as (connection, handler, _):
            for _ in range(1000):
                waiting = connection.buffered
                if not connection.send(b"x" * 60_000):
                    break
                assert connection.buffered <= LIMIT
                await asyncio.sleep(0)
            assert connection.close_code == 1013
            assert waiting > LIMIT - 120_000
            assert connection.buffered < 4 * HIGH_WATER, "what waited is forgotten"
            assert handler.calls == 0
        limits = Limits(timeout=0.2)
        async with connected(limits, certificate if tls else None) as (connection, handler, _):
            while connection.buffered < 1_000_000:
                assert connection.send(b"x" * 60_000)
                await asyncio.sleep(0)
            await settled(lambda: handler.calls, "it was found to be slow")
            assert connection.close_code == 1013

    run(check())


@ways
def test_drained_waits_for_the_peer(run: Run) -> None:
    """It returns at once where nothing waits, later where something does, and when all is over."""

    async def check() -> None:
        async with connected(Limits(), None) as (connection, _, theirs):
            await connection.drained()
            connection.send(b"x" * 8_000_000)
            waiting = asyncio.create_task(connection.drained())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            got = 0
            while got < 7_900_000:
                got += len(await asyncio.to_thread(theirs.recv, 1_000_000))
            await asyncio.wait_for(waiting, 10)
        async with connected(Limits(), None) as (connection, _, theirs):
            connection.send(b"x" * 8_000_000)
            waiting = asyncio.create_task(connection.drained())
            await asyncio.sleep(0.05)
            theirs.close()
            await asyncio.wait_for(waiting, 10)

    run(check())
