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
from functools import partial
from http import HTTPStatus
from typing import Any, NoReturn, Protocol, cast
from urllib.parse import unquote

import structlog
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.datastructures import Headers
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from wsfleet.transports import deflate
from wsfleet.transports.frames import (
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
from wsfleet.transports.outbox import HIGH_WATER, Limits, Outbox, Writer

log = structlog.get_logger(__name__)

ROUTES = "websockets"
"""In the lifespan's state: the endpoint of each path."""
ON_REFUSED = "on_refused"
"""In the lifespan's state: what is told the status of an answer that no route gave."""
BODY_LIMIT = "body_limit"
"""In the lifespan's state: gives the bytes that a request's body may have."""
HEAD_LIMIT = 16_384
"""Bytes of a request's head; HAProxy takes no more either (tune.bufsize)."""
HEAD_TIMEOUT = 10.0
"""Seconds in which the head of a request must come."""
KEYLESS_BODY_LIMIT = 65_536
"""Bytes of a request's body from a client that shows no key."""
BODY_TIMEOUT = 10.0
"""Seconds in which the body of a request must come, after its head."""
CHUNK_OVERHEAD = 16
"""Bytes around a chunk that do not count: its size in hexadecimal, and line ends."""
CLOSE_TIMEOUT = 10.0
"""Seconds for the closing handshake; then the socket is cut."""
END_TIMEOUT = 1.0
"""Seconds for each message of a client that is gone; one that takes longer is the last."""
BACKLOG_LIMIT = 65_536
"""Bytes of messages that wait for their turn, when no more is read."""
OVERHEAD = 64
"""Bytes that a message takes besides."""
PONG_LIMIT = 65_536
"""Bytes that wait for a client, when its pings are not answered any more."""
HEAD_TOO_LARGE = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the head of a request may have {HEAD_LIMIT} bytes",
)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Endpoint = Callable[["WebSocket", "Request"], Awaitable[None]]


class Handler(Protocol):
    """What becomes of a client's messages, one after the other, and of its end."""

    async def begin(self) -> None:
        """Prepare for the first message."""

    async def receive(self, message: str | bytes) -> None:
        """Take one message."""

    def pong_withheld(self) -> None:
        """Hear that a ping was not answered: too many pongs wait for the client."""

    def slow(self) -> None:
        """Hear that the client takes nothing of what waits for it."""

    def ended(self, code: int, reason: str) -> None:
        """Hear at once that the connection has ended, whatever is still under way; said once."""

    async def closed(self) -> None:
        """Clean up; said once, after the last message."""


class State(enum.Enum):
    """A WebSocket only ever moves down this list (RFC 6455, sections 4 and 7)."""

    CONNECTING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class RefusedError(Exception):
    """A request is answered with this status and reason, and the connection ends."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HTTP(HttpToolsProtocol):
    """uvicorn's HTTP with bounds on head and body of a request; it hands WebSockets over.

    Answers keep the order of the requests (RFC 9112, section 9.3.2), as do refusals and handshakes.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._unread = b""  # waits until requests before it are answered
        self._begun = 0  # requests that begin in the portion that is being read
        self._content = 0  # bytes of bodies in that portion
        self._beside = 0  # bytes of the request beside its body, which may be a little more
        self._in_head = True
        self._handshake = self._ignored = False
        self._in_body = False
        self._body_size = self._body_limit = 0
        self._due = 0  # requests that the application has not answered yet
        self._refusal: RefusedError | None = None
        self._last: Callable[[], None] | None = None  # ends HTTP when all answers are given
        self._timer: asyncio.TimerHandle | None = None  # runs while a request is not complete
        self._await(HEAD_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read requests, up to one that is refused or opens a WebSocket."""
        if self._refusal is None:
            self._unread += data
            self._read()

    def on_message_begin(self) -> None:
        """Wait for the head of one more request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._begun += 1
        self._beside, self._in_head = 0, True
        if self._timer is None:
            self._await(HEAD_TIMEOUT)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; those behind a body are no part of it (RFC 9110, 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Judge the head, and wait for the body."""
        self._stop_waiting()
        self._in_head = False
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > HEAD_LIMIT:
            self._stop(*HEAD_TOO_LARGE)
        if self.parser.get_method() == b"CONNECT":
            self._stop(HTTPStatus.NOT_IMPLEMENTED, "this server is no proxy")
        version = self.parser.get_http_version()
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and version == "1.1"):
            self._stop(HTTPStatus.BAD_REQUEST, "a request has one Host field (RFC 9112, 3.2)")
        if not self.url.startswith(b"/"):
            self.url = origin_form(self.url)
        self._handshake = self._ignored = False
        if self.parser.should_upgrade():
            self._handshake = version == "1.1" and b"websocket" in self._upgrades()
            self._ignored = not self._handshake
            parse_url(self.url)  # raises an error if it is none
        if not self._handshake and not self._ignored:
            self._body_size, self._body_limit = 0, KEYLESS_BODY_LIMIT
            self._bound_body(int(dict(self.headers).get(b"content-length", b"0")))
            super().on_headers_complete()
            self._due += 1
            self._in_body = True
            self._await(BODY_TIMEOUT)

    def on_chunk_header(self) -> None:
        """Allow for the bytes around a chunk; more of them are an attack."""
        self._content += CHUNK_OVERHEAD

    def on_body(self, body: bytes) -> None:
        """Give a part of the body to the application."""
        self._content += len(body)
        self._body_size += len(body)
        self._bound_body(self._body_size)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request, as long as connections are kept."""
        self._stop_waiting()
        if self._in_body:
            self._in_body = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with what waited for this answer."""
        self._due -= 1
        super().on_response_complete()
        if self._timer is not None or self._last is not None:
            self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self._last is None:
            self._read()
        elif not self._due:
            self._last()

    def shutdown(self) -> None:
        """Close now, or when the request is answered."""
        if self._refusal is not None and not self._due:
            self.transport.close()
        else:
            super().shutdown()

    def _upgrades(self) -> list[bytes]:
        """The protocols that the client offers, in small letters."""
        offers = b",".join(value for name, value in self.headers if name == b"upgrade")
        return [offer.strip() for offer in offers.lower().split(b",")]

    def _should_upgrade(self) -> bool:
        """Whether the request is a handshake, which uvicorn wants to know as well."""
        return self._handshake

    def _read(self) -> None:
        """Feed the parser in portions, unless a request waits that was read before."""
        while self._unread and self._last is None and not self.pipeline:
            portion, self._unread = self._unread[:HEAD_LIMIT], self._unread[HEAD_LIMIT:]
            self._content, self._begun = 0, int(self._timer is not None and self._begun > 0)
            try:
                self.parser.feed_data(portion)
            except HttpParserUpgrade as upgrade:
                self._unread = portion[upgrade.args[0] :] + self._unread
                if self._handshake:
                    self._finish(self._hand_over)
                else:
                    self._unread = self._head_without_upgrade() + self._unread
                    self.parser = HttpRequestParser(self)
            except HttpParserError as error:
                invalid = RefusedError(HTTPStatus.BAD_REQUEST, f"no valid HTTP: {error}")
                self._refuse(self._refusal or invalid)
            else:
                self._bound_head(len(portion))
        if self._unread:
            self.flow.pause_reading()

    def _bound_head(self, size: int) -> None:
        """Refuse a request with too much beside its body, after a portion of this size.

        Where it began within the portion, behind another one, that is counted from the next one on.
        """
        if self._timer is not None and self._begun <= 1:
            self._beside += max(0, size - self._content)
            if self._beside > HEAD_LIMIT:
                self._refuse(RefusedError(*HEAD_TOO_LARGE))

    def _bound_body(self, size: int) -> None:
        """Refuse a body of this size if it is too large for who sends it."""
        if size > self._body_limit:
            self._body_limit = self.app_state[BODY_LIMIT](self._request())
            if size > self._body_limit:
                reason = f"the body is over {self._body_limit} bytes, the limit of this request"
                with_key = "WSFLEET_MAX_REQUEST_SIZE is the limit with a key of the API"
                self._stop(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{reason}; {with_key}")

    def _stop(self, status: HTTPStatus, reason: str) -> NoReturn:
        """Refuse the request from within the parser."""
        self._refusal = RefusedError(status, reason)
        raise self._refusal

    def _refuse(self, refusal: RefusedError) -> None:
        """Read nothing any more, and say why, unless the request was answered without its body."""
        self._refusal, self._unread = refusal, b""
        self._stop_waiting()
        self.app_state[ON_REFUSED](refusal.status)
        answer = response(refusal.status, refusal.reason)
        if self._in_body:
            answer = b"" if self.cycle.response_started else answer
            self._take_back()
        self._finish(partial(self._end, answer))

    def _take_back(self) -> None:
        """Take a request whose body is refused from the application."""
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
        elif not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            return
        self._due -= 1

    def _end(self, answer: bytes) -> None:
        """Give the last answer, and read nothing any more."""
        self.transport.write(answer)
        self.flow.resume_reading()
        half_close(self.transport)
        self._timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _hand_over(self) -> None:
        """Give the socket to a `WebSocket`; this object is not needed any more."""
        self.connections.discard(self)
        request = self._request()
        early, self._unread = self._unread, b""
        self.flow.resume_reading()
        websocket = WebSocket(self.transport, self.config, self.server_state)
        if self.flow.write_paused:  # by answers before; it is told of that once
            websocket.pause_writing()
        self.transport.set_protocol(websocket)
        self.parser = self._last = None  # type: ignore[assignment]  # they refer to this object
        websocket.begin(request, self.app_state)
        if early:
            websocket.data_received(early)

    def _request(self) -> "Request":
        target = parse_url(self.url)
        path, query = unquote(target.path.decode("ascii")), (target.query or b"").decode("latin-1")
        return Request(self.parser.get_method().decode("ascii"), path, query, self.headers)

    def _head_without_upgrade(self) -> bytes:
        """The head of a request whose upgrade is ignored (RFC 9110, section 7.8).

        llhttp takes what follows such a head for another protocol: it is given one without.
        """
        line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (*line, b"".join(fields))

    def _finish(self, last: Callable[[], None]) -> None:
        """End HTTP on this connection with `last`, after all answers that are due."""
        self._last = last
        if not self._due:
            last()

    def _await(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        seconds, part = (BODY_TIMEOUT, "body") if self._in_body else (HEAD_TIMEOUT, "head")
        if self.flow.read_paused:  # it may have come, and is not read before others are answered
            self._await(seconds)
        else:
            reason = f"the {part} of the request did not come in {seconds:g} seconds"
            self._refuse(RefusedError(HTTPStatus.REQUEST_TIMEOUT, reason))


def origin_form(target: bytes) -> bytes:
    """Path and query of a request's target that is a whole URL (RFC 9112, section 3.2.2).

    Raises:
        httptools.HttpParserInvalidURLError: it is none.
    """
    url = parse_url(target)
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")


class Request:
    """The head of a request; `path` is decoded, as the application gets it."""

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
        if int(self.headers.get("content-length", "0")) or "transfer-encoding" in self.headers:
            return HTTPStatus.BAD_REQUEST, "a WebSocket's handshake has no body", {}
        return None


class WebSocket(asyncio.Protocol):
    """One client's socket, from the handshake to the end.

    A task runs while there is a message to carry out, and none while the client is silent.
    """

    __slots__ = (
        "_backlog",
        "_blocked",
        "_carried_out",
        "_close_timer",
        "_config",
        "_early",
        "_end",
        "_extension",
        "_failed",
        "_finishing",
        "_handler",
        "_keepalive",
        "_key",
        "_limits",
        "_loop",
        "_messages",
        "_paused",
        "_progress_timer",
        "_reader",
        "_server_state",
        "_worker",
        "deflates",
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
        self.writer: Writer | None = None
        self._blocked = False  # the transport has enough that the peer did not take
        self._limits = Limits()
        self._progress_timer: asyncio.TimerHandle | None = None
        self._config = config
        self._server_state = server_state
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(config.ws_max_size)
        self._extension = ""
        self.deflates = False  # the peer reads what `deflate.deflate` makes
        self._key = b""
        self._early = b""
        self._messages: deque[str | bytes] | None = None  # an empty one is 600 bytes
        self._backlog = 0
        self._paused = False
        self._handler: Handler | None = None
        self._worker: asyncio.Task[None] | None = None
        self._end: tuple[int, str] | None = None
        self._failed = False  # nothing is read any more
        self._finishing: Callable[[], None] | None = None
        self._carried_out = 0
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
            if self._config.ws_per_message_deflate:
                self._negotiate(request)
            self._start(self._shake_hands(endpoint, request))
            return
        if mistake is None:
            mistake = HTTPStatus.NOT_FOUND, f"WebSockets are at {' and '.join(routes)}", {}
        state[ON_REFUSED](mistake[0])
        self.deny(*mistake)

    def _negotiate(self, request: Request) -> None:
        agreement = deflate.negotiate(request.headers.getlist("sec-websocket-extensions"))
        if agreement is not None:
            self._extension, self.deflates = agreement
            self._reader = Reader(self._config.ws_max_size, deflate.inflate)

    def accept(self, subprotocol: str | None = None) -> bool:
        """Open it, and then `attend` to it; False if the client is gone."""
        if self.state is not State.CONNECTING:
            return False
        # SHA-1 is what RFC 6455, section 4.2.2 says; it protects nothing.
        digest = hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest()
        chosen = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode() if subprotocol else b""
        if self._extension:
            chosen += b"Sec-WebSocket-Extensions: %b\r\n" % self._extension.encode()
            self._extension = ""
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (base64.b64encode(digest), chosen)
        )
        self.state, self.writer = State.OPEN, self.transport
        if self._blocked:
            self.pause_writing()
        self._ping_later()
        early, self._key, self._early = self._early, b"", b""
        if early:
            self.data_received(early)
        return True

    def deny(
        self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the handshake with an error instead."""
        if self.state is State.CONNECTING:
            self.state = State.CLOSING
            self.transport.write(response(status, reason, headers))
            self._close_transport()

    async def attend(self, handler: Handler) -> None:
        """Give the messages to `handler` from now on, those that came already first."""
        self._handler, self._worker = handler, asyncio.current_task()
        if self._end is not None:
            handler.ended(*self._end)
            self._limit_work()
        await self._carry_out(handler, begin=True)

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

    def limit_outbox(self, limits: Limits) -> None:
        """Say when the peer is too slow: `Outbox.write` refuses, and the handler hears of it."""
        self._limits = limits
        self.transport.set_write_buffer_limits(high=min(HIGH_WATER, limits.size))

    async def drained(self) -> None:
        """Wait until the peer has taken what waited for it, or may be sent nothing any more."""
        if isinstance(self.writer, Outbox):
            await self.writer.emptied.wait()

    def discard_outbox(self) -> None:
        """Forget the frames that wait for the peer, but for those that the transport has."""
        if isinstance(self.writer, Outbox):
            self.writer.discard()

    def pause_writing(self) -> None:
        """Let what is written wait here: the transport has enough that the peer did not take."""
        self._blocked = True
        if self.writer is self.transport:
            self.writer = Outbox(self.transport, self._limits.size)
            self._watch_progress(self.writer)

    def resume_writing(self) -> None:
        """Give what waited to the transport, until it has enough again."""
        self._blocked = False
        outbox = self.writer
        if isinstance(outbox, Outbox):
            while not self._blocked and outbox.give():
                pass
            if not self._blocked:
                self._stop_waiting(outbox, self.transport)

    def _stop_waiting(self, outbox: Outbox, writer: Writer | None) -> None:
        """Write to `writer` from now on: nothing waits any more."""
        self.writer = writer
        outbox.emptied.set()
        if self._progress_timer is not None:
            self._progress_timer.cancel()
            self._progress_timer = None

    def _watch_progress(self, outbox: Outbox) -> None:
        self._progress_timer = self._loop.call_later(
            self._limits.timeout, self._check_progress, outbox, outbox.progress()
        )

    def _check_progress(self, outbox: Outbox, before: tuple[int, int]) -> None:
        self._watch_progress(outbox)
        if outbox.progress() == before and self._handler is not None:
            self._handler.slow()

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
                if self._failed:
                    break
        except ViolationError as violation:
            self._finish(violation.code, violation.reason, partial(self._fail, violation))
        if self._backlog > BACKLOG_LIMIT and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self.state, self._finishing = State.CLOSED, None
        if isinstance(self.writer, Outbox):
            self._stop_waiting(self.writer, None)
        self.writer = None
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
            code, reason = parse_close(payload)
            self._finish(code, reason, partial(self._answer_close, code))

    def _answer_close(self, code: int) -> None:
        if self.state is State.OPEN:
            self._say_close(code, "")
        self._close_transport()

    def _fail(self, violation: ViolationError) -> None:
        """Fail the connection (RFC 6455, section 7.1.7)."""
        self.start_close(violation.code, violation.reason)
        if not self.transport.is_closing():
            half_close(self.transport)

    # Closing.

    def _finish(self, code: int, reason: str, end: Callable[[], None]) -> None:
        """Read nothing any more, and end when all messages that came before are carried out.

        Messages that take longer than `CLOSE_TIMEOUT` seconds are not waited for.
        """
        self._failed = True
        self.stop_keepalive()
        self._finishing = end
        waits = self.state is State.OPEN and (self._messages or self._worker is not None)
        if waits:
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self._finish_now)
        self._ended(code, reason)
        if not waits:
            self._finish_now()

    def _finish_now(self) -> None:
        end, self._finishing = self._finishing, None
        if end is not None:
            end()

    def _say_close(self, code: int, reason: str) -> None:
        if isinstance(outbox := self.writer, Outbox):  # what waits goes before the close frame
            outbox.give_all()
            self._stop_waiting(outbox, None)
        self.state, self.writer = State.CLOSING, None
        self.stop_keepalive()
        self.transport.write(close_frame(code, reason))
        if self._close_timer is not None:  # of `_finish`
            self._close_timer.cancel()
        self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _close_transport(self) -> None:
        self.transport.close()
        if self._close_timer is None:  # who does not read keeps what was written waiting
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _ended(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = (code, reason)
            self._limit_work()
            self._work()
            if self._handler is not None:
                self._handler.ended(code, reason)

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

    async def _carry_out(self, handler: Handler, *, begin: bool = False) -> None:
        try:
            if begin:
                await handler.begin()
            while self._messages:
                payload = self._messages.popleft()
                self._backlog -= len(payload) + OVERHEAD
                self._carried_out += 1
                if self._end is not None:
                    self._limit_work()
                await handler.receive(payload)
        except asyncio.CancelledError:
            if self._end is None:  # not by `_give_up`
                raise
            cast("asyncio.Task[None]", self._worker).uncancel()
        except Exception:
            log.exception("message failed")
            self.start_close(1011, "internal error")
        self._messages, self._backlog, self._worker = None, 0, None
        self._finish_now()
        self._resume()
        if self._end is not None:
            self._handler = None
            try:
                await handler.closed()
            except Exception:
                log.exception("clean-up failed")

    def _limit_work(self) -> None:
        """Give up the message that is being carried out if it takes long: the client is gone."""
        if self._worker is not None:
            self._loop.call_later(END_TIMEOUT, self._give_up, self._carried_out)

    def _give_up(self, carried_out: int) -> None:
        if self._worker is not None and self._carried_out == carried_out:
            self._worker.cancel()

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


def half_close(transport: asyncio.Transport) -> None:
    """Write nothing any more, and wait for the peer to close.

    Closed at once, with bytes unread, TCP resets the peer, which may not see the last answer then.
    """
    if transport.can_write_eof():
        transport.write_eof()
    else:  # TLS has no half-closed connections, but a farewell that the peer answers
        transport.close()


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
