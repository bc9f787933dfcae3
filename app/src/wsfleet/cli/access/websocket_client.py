"""A WebSocket client for checks and load: cookies, refusals, pings; picows does the framing."""

import asyncio
import ssl
from collections import deque
from http.cookies import CookieError, Morsel, SimpleCookie
from typing import Any

import orjson
from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from wsfleet.cli.access.endpoint import FleetEndpoint

#: Seconds for a handshake (a large ramp queues at the nodes), for an answer, and for a close.
CONNECT_TIMEOUT, ANSWER_TIMEOUT, CLOSE_TIMEOUT = 20.0, 10.0, 5.0
#: The field by which an answer names its node, where WSFLEET_NODE_HEADER is this.
NODE_HEADER = "X-Wsfleet-Node"
#: Seconds of silence until a ping, and until the missing pong ends the connection. Without pings a
#: client that only listens would not notice that a load balancer has died.
PING_AFTER, PONG_TIMEOUT = 30.0, 20.0


class ConnectError(Exception):
    """A failed WebSocket handshake: the text is the reason, `status` the HTTP status or None."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class ConnectionEndedError(Exception):
    """The connection ended before the answer arrived."""


class Client(WSListener):
    """One WebSocket connection; subclasses handle its messages (`on_text`) and its end."""

    transport: WSTransport
    cookie: "Morsel[str] | None" = None
    node: str | None = None
    close_code: int | None = None
    _parts: list[bytes] | None = None

    async def connect(
        self, endpoint: FleetEndpoint, cookie: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect; send `cookie`, a raw value of the stickiness cookie, unless it is None.

        `tls` is used if the URL is wss; by default, the system's CAs are trusted.
        Afterwards `self.cookie` is the cookie that the answer sets, and `self.node` the node that
        it names; either may be None.

        Raises:
            ConnectError: the fleet refuses, is unreachable, or does not answer within
                `CONNECT_TIMEOUT`.

        """
        sent = {"Cookie": f"{endpoint.cookie}={cookie}"} if cookie else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                # A small read buffer, which grows on demand: one process has up to 5,000 clients.
                self.transport, _ = await ws_connect(
                    lambda: self,
                    endpoint.websocket,
                    ssl_context=tls if endpoint.secure else None,
                    extra_headers=sent,
                    websocket_handshake_timeout=CONNECT_TIMEOUT,
                    max_redirects=0,
                    read_buffer_init_size=4096,
                    enable_auto_ping=True,
                    auto_ping_idle_timeout=PING_AFTER,
                    auto_ping_reply_timeout=PONG_TIMEOUT,
                )
        except WSHandshakeError as error:
            if error.response is None:
                raise ConnectError(f"no WebSocket answer: {error}") from error
            status = int(error.response.status)
            wait = error.response.headers.get("Retry-After")
            hint = f", Retry-After {wait} s" if wait else ""
            raise ConnectError(f"refused with HTTP {status}{hint}", status) from error
        except TimeoutError as error:
            raise ConnectError(f"no answer within {CONNECT_TIMEOUT:g} s") from error
        except (OSError, WSError) as error:
            raise ConnectError(_reason(error)) from error
        headers = self.transport.response.headers.getall("Set-Cookie", [])
        self.cookie = received_cookie(headers, endpoint.cookie)
        self.node = self.transport.response.headers.get(NODE_HEADER)

    def send(self, text: bytes) -> None:
        """Send one text message (UTF-8)."""
        self.transport.send(WSMsgType.TEXT, text)

    async def close(self) -> None:
        """Close with 1000 and wait for the peer's close frame, at most `CLOSE_TIMEOUT`."""
        if not self.transport.is_disconnected:
            self.transport.send_close(WSCloseCode.OK)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self.transport.wait_disconnected()
            except TimeoutError:
                self.transport.disconnect(graceful=False)
            except WSError:
                return  # the peer broke the protocol while closing: the connection is closed anyway

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass on complete messages; answer a close frame."""
        kind = frame.msg_type
        if kind is WSMsgType.TEXT and frame.fin:
            self.on_text(frame.get_payload_as_bytes())
        elif kind is WSMsgType.CLOSE:
            # Not get_close_code(): applications may use codes (4000-4999) that its enum lacks.
            code = frame.get_payload_as_bytes()[:2]
            self.close_code = int.from_bytes(code, "big") if len(code) == 2 else 1005
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind in (WSMsgType.TEXT, WSMsgType.BINARY):
            # The fleet sends unfragmented text only. Anything else is joined and passed on as
            # well, so that the check that uses this client sees it and fails.
            self._parts = [frame.get_payload_as_bytes()]
            self._join(frame.fin)
        elif kind is WSMsgType.CONTINUATION and self._parts is not None:
            self._parts.append(frame.get_payload_as_bytes())
            self._join(frame.fin)

    def _join(self, fin: bool) -> None:
        if fin and self._parts is not None:
            text, self._parts = b"".join(self._parts), None
            self.on_text(text)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Notify the subclass."""
        self.on_closed()

    def on_text(self, text: bytes) -> None:
        """Handle one message; the default drops it."""

    def on_closed(self) -> None:
        """Handle the end of the connection; `close_code` is the peer's, or None."""


class Asker(Client):
    """A client that awaits the answer to each of its messages, and counts broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.broadcasts = 0
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()

    async def ask(self, text: bytes) -> dict[str, Any]:
        """Send a message and return its answer (`ack` or `error`).

        Raises:
            ConnectionEndedError: the connection ended first.
            TimeoutError: no answer within `ANSWER_TIMEOUT`.

        """
        if self.transport.is_disconnected:
            raise ConnectionEndedError(self._ended())
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.send(text)
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await answer

    def on_text(self, text: bytes) -> None:
        """Match an answer with the oldest question: answers come in the order of the questions."""
        try:
            message = orjson.loads(text)
            kind = message["type"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message, kind = {"type": "error", "code": "not_json", "message": repr(text[:80])}, ""
        if kind == "message":
            self.broadcasts += 1
        elif self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(message)

    def on_closed(self) -> None:
        """Fail every unanswered question."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(ConnectionEndedError(self._ended()))

    def _ended(self) -> str:
        return f"disconnected (close code {self.close_code or 1006})"


def received_cookie(headers: list[str], name: str) -> "Morsel[str] | None":
    """Return the cookie `name` of Set-Cookie headers, with its attributes, or None."""
    for header in headers:
        try:
            cookie: SimpleCookie = SimpleCookie(header)
        except CookieError:
            continue
        if name in cookie:
            return cookie[name]
    return None


def cookie_node(value: str) -> str:
    """Return the node that a cookie's value names: HAProxy's maxlife appends dates after a bar."""
    return value.partition("|")[0]


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: no process listens there"
    return str(error) or type(error).__name__
