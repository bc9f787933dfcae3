"""A WebSocket client made for checks and load: URL, cookies, refusals, and picows underneath."""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from http.cookies import CookieError, Morsel, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

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

from wsfleet.cli import CannotRun

#: Name of the load balancers' stickiness cookie.
COOKIE = "WSNODE"
DEFAULT_PATH = "/ws"
#: Seconds for a handshake (a large ramp queues at the nodes), for an answer, and for a close.
CONNECT_TIMEOUT, ANSWER_TIMEOUT, CLOSE_TIMEOUT = 20.0, 10.0, 5.0
#: Seconds of silence until the peer is pinged, and until it is given up. Who only listens would
#: never notice otherwise that a balancer has died without a word.
PING_AFTER, PONG_TIMEOUT = 30.0, 20.0

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One fleet as a client sees it: where its WebSocket is, and where its HTTP is."""

    websocket: str
    http: str

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self.websocket.startswith("wss:")

    def at(self, path: str) -> "Endpoint":
        """The same fleet's WebSocket at another path."""
        return replace(
            self, websocket=urlsplit(self.websocket)._replace(path=path, query="").geturl()
        )


def parse_url(text: str) -> Endpoint:
    """Return the endpoint for an http, https, ws or wss URL; without a path, /ws is meant.

    Raises:
        CannotRun: it is no such URL.

    """
    wrong = CannotRun(f"{text!r} is not a URL of a fleet: write http://HOST[:PORT] or ws://…")
    try:
        url = urlsplit(text.strip())
        port = url.port
    except ValueError as error:
        raise wrong from error
    if url.scheme not in _SCHEMES or not url.hostname or url.username or port == 0:
        raise wrong
    scheme = _SCHEMES[url.scheme]
    path = url.path if url.path not in ("", "/") else DEFAULT_PATH
    query = f"?{url.query}" if url.query else ""
    http = "https" if scheme == "wss" else "http"
    return Endpoint(f"{scheme}://{url.netloc}{path}{query}", f"{http}://{url.netloc}")


class ConnectError(Exception):
    """No WebSocket connection came about; the text says why, `status` is HTTP's if there is one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class DisconnectedError(Exception):
    """The connection ended while an answer was awaited."""


class Client(WSListener):
    """One WebSocket connection; subclasses say what to do with text (`on_text`) and the end."""

    transport: WSTransport
    cookie: "Morsel[str] | None" = None
    close_code: int | None = None
    _parts: list[bytes] | None = None

    async def connect(self, endpoint: Endpoint, cookie: str | None = None) -> None:
        """Connect, sending `cookie` (a raw value of the stickiness cookie) if there is one.

        The cookie that the answer sets is in `self.cookie` afterwards.

        Raises:
            ConnectError: refused, unreachable, or no answer within `CONNECT_TIMEOUT`.

        """
        headers = {"Cookie": f"{COOKIE}={cookie}"} if cookie else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                # A small read buffer: it grows where needed, and 5,000 clients live in here.
                self.transport, _ = await ws_connect(
                    lambda: self,
                    endpoint.websocket,
                    extra_headers=headers,
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
        self.cookie = received_cookie(self.transport.response.headers.getall("Set-Cookie", []))

    def send(self, text: bytes) -> None:
        """Send one text message (UTF-8)."""
        self.transport.send(WSMsgType.TEXT, text)

    async def close(self) -> None:
        """Close with 1000 and wait for the peer's answer, at most `CLOSE_TIMEOUT`."""
        if not self.transport.is_disconnected:
            self.transport.send_close(WSCloseCode.OK)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self.transport.wait_disconnected()
            except TimeoutError:
                self.transport.disconnect(graceful=False)
            except WSError:
                return  # the peer broke the protocol while closing: closed it is

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass whole text messages on; answer a close."""
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
            # The fleet sends unfragmented text only; whatever else arrives is put together and
            # passed on, so that it is seen as the wrong thing it is.
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
        """Tell the subclass."""
        self.on_closed()

    def on_text(self, text: bytes) -> None:
        """Take one message; the default drops it."""

    def on_closed(self) -> None:
        """Take note that the connection ended; `close_code` is the peer's, if it sent one."""


class Asker(Client):
    """A client that awaits the answer to each of its messages; broadcasts are only counted."""

    def __init__(self) -> None:
        super().__init__()
        self.broadcasts = 0
        self._waiting: deque[asyncio.Future[dict[str, Any]]] = deque()

    async def ask(self, text: bytes) -> dict[str, Any]:
        """Send a message and return its answer (`ack` or `error`).

        Raises:
            DisconnectedError: the connection ended first.
            TimeoutError: no answer within `ANSWER_TIMEOUT`.

        """
        if self.transport.is_disconnected:
            raise DisconnectedError(self._ended())
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.send(text)
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await answer

    def on_text(self, text: bytes) -> None:
        """Hand an answer to the oldest question: answers come in the order of the questions."""
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
        """Fail every question that is still open."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(DisconnectedError(self._ended()))

    def _ended(self) -> str:
        return f"disconnected (close code {self.close_code or 1006})"


def received_cookie(headers: list[str]) -> "Morsel[str] | None":
    """Return the stickiness cookie that Set-Cookie headers carry, with its attributes."""
    for header in headers:
        try:
            cookie: SimpleCookie = SimpleCookie(header)
        except CookieError:
            continue
        if COOKIE in cookie:
            return cookie[COOKIE]
    return None


def cookie_node(value: str) -> str:
    """Return the node a cookie value names: HAProxy's maxlife adds dates behind a bar."""
    return value.partition("|")[0]


def unreachable(endpoint: Endpoint, reason: object) -> CannotRun:
    """Return the error of a command that got not one connection."""
    return CannotRun(
        f"no connection to {endpoint.websocket}: {reason}. "
        "Check the URL, and the fleet with `wsfleet status`."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    return str(error) or type(error).__name__
