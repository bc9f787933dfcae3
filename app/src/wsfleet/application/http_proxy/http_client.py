"""An HTTP/1.1 client for one endpoint: POST, with a bounded pool of persistent connections.

Nothing is sent twice, and no redirect is followed. A call that is cancelled or times out closes its
connection, because the answer may still come.
"""

import asyncio
import ssl
from collections import deque
from typing import NamedTuple, cast

import httptools

from wsfleet.application.port import BackendError, Failure
from wsfleet.config.endpoint_url import EndpointURL

MAX_CONNECTIONS = 100
"""Connections to one endpoint; further calls wait for one, within their time-out."""
MAX_ANSWER = 4_194_304
"""Bytes of an answer, head and body."""
MAX_IDLE = 1.5
"""Seconds after which an idle connection is not used again; with 0, each call has its own.

Servers close theirs after 2 s (gunicorn) or 5 s (uvicorn, Node.js). A request that crosses such a
close is lost, and nobody can tell whether it was read.
"""


class HTTPAnswer(NamedTuple):
    """An answer of a backend."""

    status: int
    body: bytes


class HTTPClient:
    """A client of one endpoint; `max_idle` is in seconds, see `MAX_IDLE`."""

    def __init__(
        self,
        url: EndpointURL,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        max_idle: float = MAX_IDLE,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._max_idle = max_idle
        self._tls = tls
        self._server_name = server_name or url.host
        self._first_lines = f"POST {url.target} HTTP/1.1\r\nhost: {url.authority}\r\n".encode()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: deque[_Connection] = deque()  # the last used one is the last
        self._closed = False

    async def post(self, fields: bytes, body: bytes) -> HTTPAnswer:
        """Send a request with these header fields, and return the answer.

        Raises:
            BackendError: there is no answer in time, or it is not HTTP, or too large.
        """
        request = b"%b%bcontent-length: %d\r\n\r\n%b" % (
            self._first_lines, fields, len(body), body,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                connection = self._take() or await self._connect()
                try:
                    answer = await connection.call(request)
                except BaseException:
                    connection.abort()
                    raise
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} s"
            raise BackendError(reason, reason="timeout") from None
        if connection.reusable and self._max_idle and not self._closed:
            self._idle.append(connection)
        else:
            connection.abort()
        return answer

    def close(self) -> None:
        """Close the idle connections, and each other one after its call."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def _take(self) -> "_Connection | None":
        oldest = asyncio.get_running_loop().time() - self._max_idle
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.used_at > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        loop, url = asyncio.get_running_loop(), self._url
        try:
            if url.socket:
                _, connection = await loop.create_unix_connection(_Connection, url.socket)
            else:
                name = self._server_name if self._tls else None
                _, connection = await loop.create_connection(
                    _Connection, url.host, url.port, ssl=self._tls, server_hostname=name
                )
        except (OSError, ValueError) as error:  # ValueError: a name that DNS cannot have
            raise BackendError(f"no connection: {error}", reason="unavailable") from None
        return connection


class _Connection(asyncio.Protocol):
    """A connection that carries one call at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[HTTPAnswer] | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._has_head = self._has_length = False
        self.reusable = True
        self.used_at = 0.0

    async def call(self, request: bytes) -> HTTPAnswer:
        """Send a request and wait for its answer.

        Raises:
            BackendError: the connection ended, or the answer is not HTTP, or too large.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None:
            raise BackendError("the connection was closed at once", reason="unavailable")
        self._waiter = loop.create_future()
        self._body, self._size = [], 0
        self._has_head = self._has_length = False
        self._transport.write(request)
        answer = await self._waiter
        self.used_at = loop.time()
        return answer

    def abort(self) -> None:
        """Close the connection at once."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer."""
        self._size += len(data)
        if self._waiter is None or self._waiter.done():  # nobody asked for it
            self.abort()
        elif self._size > MAX_ANSWER:
            self._fail("invalid", f"the answer is larger than {MAX_ANSWER} bytes")
        else:
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self._fail("invalid", f"the answer is not HTTP/1.1: {error}")

    def eof_received(self) -> None:
        """Take no further call; the transport closes itself."""
        self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call; an answer without a length ends here (RFC 9112, section 6.3)."""
        self.reusable = False
        self._transport = None
        if exc is None and self._has_head and not self._has_length:
            self._finish()
        cause = f": {exc}" if exc else ""
        self._fail("unavailable", f"the connection was closed before the answer{cause}")

    # From the parser.

    def on_message_begin(self) -> None:
        """Give the connection up if nobody asked for this message."""
        if self._waiter is None or self._waiter.done():
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note whether the answer tells its length."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        """Note that what follows is the body."""
        self._has_head = True

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Return the answer; one with a status of 1xx is not the last (RFC 9110, section 15.2)."""
        if self._parser.get_status_code() < 200:
            self._has_head = self._has_length = False
            return
        self.reusable = self.reusable and self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(
                HTTPAnswer(self._parser.get_status_code(), b"".join(self._body))
            )

    def _fail(self, reason: Failure, message: str) -> None:
        self.reusable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(BackendError(message, reason=reason))
