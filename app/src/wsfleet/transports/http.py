"""uvicorn's HTTP with bounds on each request; a WebSocket's handshake goes to `websocket`."""

import asyncio
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, NoReturn

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from wsfleet.transports.handshake import Request, response
from wsfleet.transports.sending import half_close
from wsfleet.transports.websocket import CLOSE_TIMEOUT, Endpoint, WebSocket

HEAD_LIMIT = 16_384
"""Bytes of a request's head; HAProxy takes no more either (tune.bufsize)."""
HEAD_TIMEOUT = 10.0
"""Seconds in which the head of a request must come."""
KEYLESS_BODY_LIMIT = 65_536
"""Bytes of a request's body from a client that shows no key."""
MIN_BODY_RATE = 240
"""Bytes a second at which the body of a request must come; a slower one stalls (as in Kestrel)."""
CHUNK_OVERHEAD = 16
"""Bytes around a chunk that do not count: its size in hexadecimal, and line ends."""
HEAD_TOO_LARGE = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the head of a request may have {HEAD_LIMIT} bytes",
)


class Routing(NamedTuple):
    """The rules of a listening port for requests, beside its ASGI application."""

    endpoint: Callable[[str], Endpoint | None]
    """Returns the endpoint of the WebSockets at a path."""
    no_endpoint: str
    """The answer to a handshake at a path without one."""
    on_refused: Callable[[int], None]
    """Receives the status of each answer that was given without a route."""
    body_limit: Callable[[Request], int]
    """Returns the bytes that the body of a request may have."""
    body_timeout: float
    """Seconds over which the rate of a request's body is measured."""


class RequestRefusedError(Exception):
    """A request is answered with this status and reason, and the connection ends."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HTTP(HttpToolsProtocol):
    """uvicorn's HTTP with bounds on head and body of a request; it hands WebSockets over.

    Answers keep the order of the requests (RFC 9112, section 9.3.2), as do refusals and handshakes.
    uvicorn's `create_protocol` gives all arguments but `routing`.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        routing: Routing,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._routing = routing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._unread = b""  # waits until requests before it are answered
        self._begun = 0  # requests that begin in the portion that is being read
        self._content = 0  # bytes of bodies in that portion
        self._beside = 0  # bytes of the request outside its body, at most a little more
        self._in_head = True
        self._handshake = self._ignored = False
        self._in_body = False
        self._body_size = self._body_limit = 0
        self._body_seen = 0  # its size when the timer was set
        self._due = 0  # requests that the application has not answered yet
        self._refusal: RequestRefusedError | None = None
        self._last: Callable[[], None] | None = None  # ends HTTP when all answers are given
        self._timer: asyncio.TimerHandle | None = None  # runs while a request is not complete
        self._await(HEAD_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
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
        """Take a field of the head; trailer fields are dropped (RFC 9110, section 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the head, and wait for the body."""
        self._stop_waiting()
        self._in_head = False
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > HEAD_LIMIT:
            self._stop(*HEAD_TOO_LARGE)
        if self.parser.get_method() == b"CONNECT":
            self._stop(HTTPStatus.NOT_IMPLEMENTED, "this server is not a proxy")
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
            parse_url(self.url)  # raises an error if it is invalid
        if not self._handshake and not self._ignored:
            self._body_size = self._body_seen = 0
            self._body_limit = KEYLESS_BODY_LIMIT
            self._bound_body(int(dict(self.headers).get(b"content-length", b"0")))
            super().on_headers_complete()
            self._due += 1
            self._in_body = True
            self._await(self._routing.body_timeout)

    def on_chunk_header(self) -> None:
        """Allow for the bytes around a chunk; more of them are an attack."""
        self._content += CHUNK_OVERHEAD

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body to the application."""
        self._content += len(body)
        self._body_size += len(body)
        self._bound_body(self._body_size)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request, if the connection is kept."""
        self._stop_waiting()
        if self._in_body:
            self._in_body = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the data that waited for this answer."""
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
        """Return the offered protocols, in lower case."""
        offers = b",".join(value for name, value in self.headers if name == b"upgrade")
        return [offer.strip() for offer in offers.lower().split(b",")]

    def _should_upgrade(self) -> bool:
        """Return whether the request is a handshake, as uvicorn asks."""
        return self._handshake

    def _read(self) -> None:
        """Feed the parser in portions, unless an earlier request waits."""
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
                invalid = RequestRefusedError(HTTPStatus.BAD_REQUEST, f"invalid HTTP: {error}")
                self._refuse(self._refusal or invalid)
            else:
                self._bound_head(len(portion))
        if self._unread:
            self.flow.pause_reading()

    def _bound_head(self, size: int) -> None:
        """Refuse a request with too many bytes outside its body, after a portion of this size.

        If the request began within the portion, behind another one, counting starts with the next
        portion.
        """
        if self._timer is not None and self._begun <= 1:
            self._beside += max(0, size - self._content)
            if self._beside > HEAD_LIMIT:
                self._refuse(RequestRefusedError(*HEAD_TOO_LARGE))

    def _bound_body(self, size: int) -> None:
        """Refuse a body of this size if it is too large for its sender."""
        if size > self._body_limit:
            self._body_limit = self._routing.body_limit(self._request())
            if size > self._body_limit:
                reason = f"the body is over {self._body_limit} bytes, the limit of this request"
                with_key = "WSFLEET_MAX_REQUEST_SIZE is the limit with a key of the API"
                self._stop(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{reason}; {with_key}")

    def _stop(self, status: HTTPStatus, reason: str) -> NoReturn:
        """Refuse the request from within the parser."""
        self._refusal = RequestRefusedError(status, reason)
        raise self._refusal

    def _refuse(self, refusal: RequestRefusedError) -> None:
        """Stop reading, and refuse the request, unless it was answered without its body."""
        self._refusal, self._unread = refusal, b""
        self._stop_waiting()
        self._routing.on_refused(refusal.status)
        answer = response(refusal.status, refusal.reason)
        if self._in_body:
            answer = b"" if self.cycle.response_started else answer
            self._take_back()
        self._finish(partial(self._end, answer))

    def _take_back(self) -> None:
        """Withdraw a request whose body is refused from the application."""
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
        elif not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            return
        self._due -= 1

    def _end(self, answer: bytes) -> None:
        """Send the last answer, and stop reading."""
        self.transport.write(answer)
        self.flow.resume_reading()
        half_close(self.transport)
        self._timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _hand_over(self) -> None:
        """Give the socket to a `WebSocket`, and drop this object."""
        self.connections.discard(self)
        request = self._request()
        early, self._unread = self._unread, b""
        self.flow.resume_reading()
        websocket = WebSocket(self.transport, self.config, self.server_state)
        if self.flow.write_paused:  # by earlier answers; asyncio calls it once
            websocket.pause_writing()
        self.transport.set_protocol(websocket)
        self.parser = self._last = None  # type: ignore[assignment]  # they refer to this object
        mistake, endpoint = request.mistake(), self._routing.endpoint(request.path)
        if mistake is None and endpoint is not None:
            websocket.begin(request, endpoint)
        else:
            mistake = mistake or (HTTPStatus.NOT_FOUND, self._routing.no_endpoint, {})
            self._routing.on_refused(mistake[0])
            websocket.deny(*mistake)
        if early:
            websocket.data_received(early)

    def _request(self) -> Request:
        target = parse_url(self.url)
        query = (target.query or b"").decode("latin-1")
        method = self.parser.get_method().decode("ascii")
        return Request(method, target.path, query, self.headers, self.scope)

    def _head_without_upgrade(self) -> bytes:
        """Return the head of a request without its ignored upgrade (RFC 9110, section 7.8).

        llhttp takes what follows a head with an upgrade for another protocol.
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
        """Refuse a request whose head does not come in time, or whose body stalls."""
        seconds = self._routing.body_timeout if self._in_body else HEAD_TIMEOUT
        least = MIN_BODY_RATE * seconds
        came, self._body_seen = self._body_size - self._body_seen, self._body_size
        # While reading is paused, for the application or an earlier request, more may have come.
        if self.flow.read_paused or (self._in_body and came >= least):
            self._await(seconds)
            return
        reason = f"the head of the request did not come in {seconds:g} seconds"
        if self._in_body:
            reason = f"under {least:g} bytes of the request's body came in {seconds:g} seconds"
        self._refuse(RequestRefusedError(HTTPStatus.REQUEST_TIMEOUT, reason))


def origin_form(target: bytes) -> bytes:
    """Return path and query of an absolute request target (RFC 9112, section 3.2.2).

    Raises:
        httptools.HttpParserInvalidURLError: it is invalid.
    """
    url = parse_url(target)
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")
