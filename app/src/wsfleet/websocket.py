"""HTTP and WebSocket on one socket: uvicorn's HTTP, and RFC 6455 without ASGI in between.

ASGI knows only "send this text": it would be encoded and framed once a client, and a task would
wait for each. Here a broadcast is framed once a process, the same bytes go to every transport, and
who is silent is a few small objects.
"""

import asyncio
import base64
import binascii
import enum
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol, cast

import structlog
from httptools import HttpParserError, HttpParserUpgrade
from starlette.datastructures import Headers
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from wsfleet.frames import (
    ABNORMAL,
    CLOSE,
    PING,
    PONG,
    Message,
    Reader,
    ViolationError,
    close_frame,
    frame,
    parse_close,
)

log = structlog.get_logger(__name__)

ROUTES = "websockets"
"""In the lifespan's state: the endpoint of each path."""
ON_REFUSED = "on_refused"
"""In the lifespan's state: what is told the status of an answer that no route gave."""
HEAD_LIMIT = 16_384
"""Bytes of a request's head; HAProxy takes no more either (tune.bufsize)."""
HEAD_TIMEOUT = 10.0
"""Seconds in which the head of a request must come."""
CLOSE_TIMEOUT = 10.0
"""Seconds for the closing handshake; then the socket is cut."""
BACKLOG_LIMIT = 65_536
"""Bytes of messages that wait for their turn, when no more is read."""
OVERHEAD = 64
"""Bytes that a message takes besides."""
PONG_LIMIT = 65_536
"""Bytes that wait for a client, when its pings are not answered any more."""
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Endpoint = Callable[["WebSocket", "Request"], Awaitable[None]]


class Handler(Protocol):
    """What becomes of a client's messages, one after the other, and of its end."""

    async def receive(self, message: str | bytes) -> None:
        """Take one message."""

    def pong_withheld(self) -> None:
        """Hear that a ping was not answered: too many pongs wait for the client."""

    async def closed(self, code: int, reason: str) -> None:
        """Clean up; said once, after the last message."""


class State(enum.Enum):
    """A WebSocket only ever moves down this list (RFC 6455, sections 4 and 7)."""

    CONNECTING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class HTTP(HttpToolsProtocol):
    """uvicorn's HTTP, with a bound on the head of a request, which hands WebSockets over."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._head_size = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._head_complete()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read requests; one whose head never ends is refused."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._should_upgrade() and not self.transport.is_closing():
                self._hand_over(data[upgrade.args[0] :])
        except HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._head_timer is not None:
            self._head_size += len(data)
            if self._head_size > HEAD_LIMIT:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Wait for the head of one more request."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Take the request, unless its head came at once and is too long all the same."""
        self._head_complete()
        if len(self.url) + sum(len(n) + len(v) for n, v in self.headers) > HEAD_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            super().on_headers_complete()

    def _hand_over(self, early: bytes) -> None:
        """Give the socket to a `WebSocket`; this object is not needed any more."""
        self.connections.discard(self)
        path, _, query = self.url.partition(b"?")
        request = Request(
            self.scope["method"], path.decode("latin-1"), query.decode("latin-1"), self.headers
        )
        websocket = WebSocket(self.transport, self.config, self.server_state)
        self.transport.set_protocol(websocket)
        self.parser = None  # type: ignore[assignment]  # it refers to this object
        websocket.begin(request, self.app_state)
        if early:
            websocket.data_received(early)

    def _await_head(self) -> None:
        self._head_size = 0
        self._head_timer = self.loop.call_later(
            HEAD_TIMEOUT, self._refuse, HTTPStatus.REQUEST_TIMEOUT
        )

    def _head_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        self._head_complete()
        if not self.transport.is_closing():
            self.app_state[ON_REFUSED](status)
            self.transport.write(response(status, status.phrase))
            self.transport.close()


class Request:
    """The request that asks for a WebSocket."""

    __slots__ = ("headers", "method", "path", "query")

    def __init__(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers: Headers = Headers(raw=headers)

    @property
    def subprotocols(self) -> list[str]:
        """Those that the client offers, in its order."""
        offers = ",".join(self.headers.getlist("sec-websocket-protocol"))
        return [offer.strip() for offer in offers.split(",") if offer.strip()]

    def mistake(self) -> tuple[HTTPStatus, str, dict[str, str]] | None:
        """What is wrong with the handshake (RFC 6455, section 4.2.1); None: nothing."""
        if self.method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, "a WebSocket begins with GET", {"Allow": "GET"}
        if self.headers.get("sec-websocket-version") != "13":
            version = {"Sec-WebSocket-Version": "13"}
            return HTTPStatus.UPGRADE_REQUIRED, "this server speaks version 13", version
        try:
            nonce = base64.b64decode(self.headers.get("sec-websocket-key", ""), validate=True)
        except (binascii.Error, ValueError):
            nonce = b""
        if len(nonce) != 16:
            return HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in base64", {}
        return None


class Waiting:
    """The frames for a peer that does not keep up, written in place of its transport.

    uvloop makes some objects of each write that waits: of a hundred peers who do not read they were
    half a million, and each pass of Python's collector over them took 50 ms from everybody. In here
    a frame is one reference to bytes that all peers share.
    """

    __slots__ = ("_size", "_transport", "frames")

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._size = 0
        self.frames: list[bytes] = []

    def write(self, frames: bytes) -> None:
        """Keep whole frames until the transport takes them."""
        self.frames.append(frames)
        self._size += len(frames)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait, with those that the transport has."""
        return self._transport.get_write_buffer_size() + self._size


class WebSocket(asyncio.Protocol):
    """One client's socket, from the handshake to the end.

    A task runs while there is a message to carry out, and none while the client is silent.
    """

    __slots__ = (
        "_backlog",
        "_close_timer",
        "_config",
        "_early",
        "_end",
        "_failed",
        "_handler",
        "_keepalive",
        "_key",
        "_loop",
        "_messages",
        "_paused",
        "_reader",
        "_server_state",
        "_worker",
        "state",
        "transport",
        "writer",
    )

    def __init__(
        self, transport: asyncio.Transport, config: Config, server_state: ServerState
    ) -> None:
        self.state = State.CONNECTING
        self.transport = transport
        # Where whole frames may be written; None as long as, and as soon as, none may be sent:
        # before the handshake is over, and after a close frame (RFC 6455, section 5.5.1).
        self.writer: asyncio.Transport | Waiting | None = None
        self._config = config
        self._server_state = server_state
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(config.ws_max_size)
        self._key = b""
        self._early = b""
        self._messages: deque[str | bytes] | None = None  # an empty one is 600 bytes
        self._backlog = 0
        self._paused = False
        self._handler: Handler | None = None
        self._worker: asyncio.Task[None] | None = None
        self._end: tuple[int, str] | None = None
        self._failed = False
        self._keepalive: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        # uvicorn asks all that are in here to shut down, and waits for them.
        server_state.connections.add(cast(Any, self))

    @property
    def buffered(self) -> int:
        """Bytes that the peer has not taken yet; with TLS, without what TCP has of them."""
        return (self.writer or self.transport).get_write_buffer_size()

    # The handshake.

    def begin(self, request: Request, state: Mapping[str, Any]) -> None:
        """Let the endpoint of the request's path decide."""
        routes: Mapping[str, Endpoint] = state[ROUTES]
        mistake, endpoint = request.mistake(), routes.get(request.path)
        if mistake is None and endpoint is not None:
            self._key = request.headers["sec-websocket-key"].encode()
            self._start(self._shake_hands(endpoint, request))
            return
        if mistake is None:
            mistake = HTTPStatus.NOT_FOUND, f"WebSockets are at {' and '.join(routes)}", {}
        state[ON_REFUSED](mistake[0])
        self.deny(*mistake)

    def accept(self, subprotocol: str | None = None) -> None:
        """Open it; what it is given to is told by `attend`. Does nothing if the client is gone."""
        if self.state is not State.CONNECTING:
            return
        # SHA-1 is what RFC 6455, section 4.2.2 says; it protects nothing.
        digest = hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest()
        chosen = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode() if subprotocol else b""
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (base64.b64encode(digest), chosen)
        )
        self.state, self.writer = State.OPEN, self.transport
        self._ping_later()
        early, self._key, self._early = self._early, b"", b""
        if early:
            self.data_received(early)

    def deny(
        self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the handshake with an error instead."""
        if self.state is State.CONNECTING:
            self.state = State.CLOSING
            self.transport.write(response(status, reason, headers))
            self._close_transport()

    def attend(self, handler: Handler) -> None:
        """Give the messages to `handler` from now on, those that came already first."""
        self._handler = handler
        self._work()

    # To the client.

    def start_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; what waited for its turn is not carried out any more.

        A peer that does not answer, or does not even read, is cut after `CLOSE_TIMEOUT` seconds.
        """
        if self.state is not State.OPEN:
            return
        self._messages, self._backlog = None, 0
        self._resume()
        self._say_close(code, reason)
        self._ended(code, reason)

    def stop_keepalive(self) -> None:
        """Send no pings any more."""
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def shutdown(self) -> None:
        """End a handshake that is under way: the server stops, and has drained before."""
        self.deny(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")
        self.start_close(1012, "stopping")

    def pause_writing(self) -> None:
        """Let what is written wait here: the transport has enough that the peer did not take."""
        if self.writer is self.transport:
            self.writer = Waiting(self.transport)

    def resume_writing(self) -> None:
        """Give what waited to the transport, which may have enough again."""
        if isinstance(self.writer, Waiting):
            waiting, self.writer = self.writer, self.transport
            self.transport.writelines(waiting.frames)

    # From the client.

    def data_received(self, data: bytes) -> None:
        """Read frames; what comes before the handshake's end waits for it."""
        if self.state is State.CONNECTING:
            self._early += data
            if len(self._early) > BACKLOG_LIMIT:
                self.transport.abort()
            return
        if self._failed or self.state is State.CLOSED:
            return
        try:
            for message in self._reader.feed(data):
                if message.opcode < CLOSE:
                    self._take(message.payload)
                else:
                    self._control(message)
        except ViolationError as violation:
            self._fail(violation)
        if self._backlog > BACKLOG_LIMIT and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self.state, self.writer = State.CLOSED, None
        self._server_state.connections.discard(cast(Any, self))
        self.stop_keepalive()
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._ended(ABNORMAL, "connection lost")

    def _take(self, payload: str | bytes) -> None:
        if self.state is State.OPEN:  # after our close, what still comes is too late
            if self._messages is None:
                self._messages = deque()
            self._messages.append(payload)
            self._backlog += len(payload) + OVERHEAD
            self._work()

    def _control(self, message: Message) -> None:
        payload = cast(bytes, message.payload)
        if message.opcode == PING:
            if self.writer is None:
                return
            if self.buffered < PONG_LIMIT:
                self.writer.write(frame(PONG, payload))
            elif self._handler is not None:
                self._handler.pong_withheld()
        elif message.opcode == PONG:
            if self._keepalive is not None:
                self._keepalive.cancel()
                self._ping_later()
        else:
            self._failed = True  # nothing comes after a close frame
            code, reason = parse_close(payload)
            if self.state is State.OPEN:
                self._say_close(code, "")
                self._ended(code, reason)
            self._close_transport()

    def _fail(self, violation: ViolationError) -> None:
        """Fail the connection (RFC 6455, section 7.1.7)."""
        self._failed = True
        self.start_close(violation.code, violation.reason)
        if self.transport.is_closing():
            return
        # Not cut at once: with bytes unread, the peer would be reset and not see why.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS has no half-closed connections, but a farewell that the peer answers
            self.transport.close()

    # Closing.

    def _say_close(self, code: int, reason: str) -> None:
        self.resume_writing()  # what waits goes before the close frame
        self.state, self.writer = State.CLOSING, None
        self.stop_keepalive()
        self.transport.write(close_frame(code, reason))
        self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _close_transport(self) -> None:
        self.transport.close()
        if self._close_timer is None:  # who does not read keeps what was written waiting
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _ended(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = (code, reason)
            self._work()

    def _ping_later(self) -> None:
        interval = cast(float, self._config.ws_ping_interval)
        self._keepalive = self._loop.call_later(interval, self._ping)

    def _ping(self) -> None:
        if self.writer is not None:
            self.writer.write(frame(PING, b""))
            timeout = cast(float, self._config.ws_ping_timeout)
            self._keepalive = self._loop.call_later(timeout, self._no_pong)

    def _no_pong(self) -> None:
        self._keepalive = None
        self.start_close(1011, "no pong")

    # Carrying out.

    def _work(self) -> None:
        if self._worker is None and self._handler is not None and (self._messages or self._end):
            self._worker = self._start(self._carry_out(self._handler))

    async def _carry_out(self, handler: Handler) -> None:
        try:
            while self._messages:
                payload = self._messages.popleft()
                self._backlog -= len(payload) + OVERHEAD
                await handler.receive(payload)
        except Exception:
            log.exception("message failed")
            self.start_close(1011, "internal error")
        self._messages, self._backlog, self._worker = None, 0, None
        self._resume()
        if self._end is not None:
            self._handler = None
            try:
                await handler.closed(*self._end)
            except Exception:
                log.exception("clean-up failed")

    def _resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    async def _shake_hands(self, endpoint: Endpoint, request: Request) -> None:
        try:
            await endpoint(self, request)
        except Exception:
            log.exception("endpoint failed")
            self.deny(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
            self.start_close(1011, "internal error")

    def _start(self, work: Any) -> asyncio.Task[None]:
        """Begin with something that the server waits for when it stops."""
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)
        return task


def response(status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP response with one line of text, after which the connection ends."""
    body = f"{reason}\n".encode()
    fields = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    return b"%b%b\r\n%b" % (STATUS_LINE[status], head, body)
