"""The WebSockets of an ASGI application, over the node's own `WebSocket`.

They have the bounds, the counting and the paced drain of the node's own protocols.
Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
"""

import asyncio
import enum
from collections import deque
from http import HTTPStatus
from typing import Any, cast

import structlog
from starlette.types import ASGIApp, Message, Scope
from starlette.websockets import WebSocketDisconnect
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wsfleet.application.realtime.feeds import EXTENSION
from wsfleet.clients.serving import ServedConnection, handshake, refusal_of, refuse
from wsfleet.cluster.client_names import new_client_id
from wsfleet.config.settings import Settings
from wsfleet.hub.connection import Connection
from wsfleet.node.admission import Refusal
from wsfleet.node.node import Node
from wsfleet.transports.frames import ABNORMAL
from wsfleet.transports.handshake import Request, raw_response
from wsfleet.transports.outbox import HIGH_WATER, Limits
from wsfleet.transports.transport import WEBSOCKET_CLOSES
from wsfleet.transports.websocket import WebSocket

log = structlog.get_logger(__name__)

REJECTED = Refusal(HTTPStatus.FORBIDDEN, "application", "the application refused the connection")
FAILED = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "application_error", "internal error")


class ClientDisconnected(OSError):  # noqa: N818 - uvicorn's name
    """The client of a WebSocket is gone, or is sent away: nothing can be sent any more."""


class ASGI:
    """The endpoint of an application's WebSockets, at every path that is not the node's own.

    The address and scheme of a client come from the fields X-Forwarded-For and -Proto if one of
    `trusted_proxies` sends them.
    """

    def __init__(self, node: Node, app: ASGIApp, trusted_proxies: str) -> None:
        self._node = node
        self._turn = Turn()
        self._app: Any = ProxyHeadersMiddleware(cast(Any, app), trusted_proxies)

    async def endpoint(self, websocket: WebSocket, request: Request) -> None:
        """Call the application for one handshake, unless the node refuses it."""
        refusal = self._node.admission.origin(request.headers) or refusal_of(
            self._node, request.address
        )
        if refusal is not None:
            refuse(self._node, websocket, refusal)
            return
        client = ASGIClient(self._node, websocket, self._turn)
        scope = websocket_scope(request)
        scope["extensions"][EXTENSION] = {"websocket": client}
        try:
            with handshake(self._node, websocket):
                await self._app(scope, client.read, client.write)
        except (ClientDisconnected, WebSocketDisconnect):
            client.end()
        except Exception:
            self._node.metrics.handler_failed("websocket")
            log.exception("application_failed", path=request.path)
            client.fail()
        else:
            client.end()


def websocket_scope(request: Request) -> Scope:
    """Return the scope of a handshake."""
    return {
        **request.scope,
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "scheme": {"http": "ws", "https": "wss"}[request.scope["scheme"]],
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query.encode("latin-1"),
        "subprotocols": request.subprotocols,
        "extensions": {"websocket.http.response": {}},
    }


class Turn:
    """A list of connections to flush at the end of this turn of the event loop."""

    def __init__(self) -> None:
        self._due: list[JoiningConnection] = []

    def add(self, connection: "JoiningConnection") -> None:
        """Flush a connection at the end of this turn."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._end)
        self._due.append(connection)

    def _end(self) -> None:
        due, self._due = self._due, []
        for connection in due:
            connection.flush()


class JoiningConnection(Connection):
    """A connection that writes once in a turn of the event loop.

    If several handlers send to all connections in one turn, each connection has one write.
    """

    __slots__ = ("_pending", "_size", "_turn", "lags")

    def __init__(self, websocket: WebSocket, settings: Settings, turn: Turn) -> None:
        super().__init__(
            websocket,
            client_id=new_client_id(),
            limits=Limits(settings.outbox_limit, settings.write_timeout),
            closes=WEBSOCKET_CLOSES,
        )
        self._turn = turn
        self._pending: list[bytes] = []
        self._size = 0
        self.lags = False
        """True if over half of the outbox's limit waits for the client."""

    def send_soon(self, frames: bytes) -> bool:
        """Send at the end of this turn; return False if the client is gone."""
        if self._transport.writer is None:
            return False
        if not self._pending:
            self._turn.add(self)
        self._pending.append(frames)
        self._size += len(frames)
        if self._size > HIGH_WATER:
            self.flush()
        return True

    def send_now(self, frames: bytes) -> bool:
        """Send after the pending frames; return False if the client is gone or was too slow."""
        self.flush()
        sent = self.send(frames)
        self.lags = self.buffered > self._limits.size // 2
        return sent

    def flush(self) -> None:
        """Send the pending frames."""
        if pending := self._pending:
            frames = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            self._size = 0
            if self.send(frames):
                self.lags = self.buffered > self._limits.size // 2

    def close(self, code: int, reason: str) -> None:
        """Close the connection after the pending frames; later calls have no effect."""
        self.flush()
        super().close(code, reason)

    def slow(self) -> None:
        """Close the connection as too slow, and drop the client's backlog."""
        self._pending.clear()
        super().slow()


class Stage(enum.Enum):
    """The state of a handshake and its WebSocket; each change is to a later member."""

    CONNECTING = enum.auto()
    RESPONDING = enum.auto()
    ACCEPTED = enum.auto()
    CLOSED = enum.auto()


class ASGIClient:
    """A WebSocket of the application: `read` is ASGI's receive, and `write` its send.

    One message waits here until the application receives it. Later messages wait in the
    `WebSocket`, which stops reading at its limit.
    """

    def __init__(self, node: Node, websocket: WebSocket, turn: Turn) -> None:
        self.node = node
        self._turn = turn
        self._websocket = websocket
        self._task = asyncio.current_task()
        self._connection: JoiningConnection  # once the application has accepted
        self._stage = Stage.CONNECTING
        self._inbox: deque[Message] = deque([{"type": "websocket.connect"}])
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()  # the application waits for a message
        self._over: Message | None = None
        self._denial: tuple[int, list[tuple[bytes, bytes]]] = 403, []
        self._body = b""
        websocket.handle(Unaccepted(self))

    # For the application.

    async def read(self) -> Message:
        """Return the next event; after the last one, every call returns `websocket.disconnect`."""
        while not self._inbox:
            if self._over is not None:
                return self._over
            self._idle.set()
            self._arrived.clear()
            await self._arrived.wait()
        return self._inbox.popleft()

    async def write(self, message: Message) -> None:
        """Handle an event that the application sends.

        If over half of the outbox's limit waits for the client, its own handler waits until the
        client reads. Other handlers that send to this client do not wait.

        Raises:
            ClientDisconnected: the client is gone, or is sent away.
            RuntimeError: the event is invalid, or not allowed in this state.
        """
        kind = message["type"]
        if kind == "websocket.send" and self._stage is Stage.ACCEPTED:  # the path of each delivery
            await self._send(message)
            return
        match self._stage, kind:
            case Stage.ACCEPTED, "websocket.close":
                self._close(message.get("code", 1000), message.get("reason") or "")
            case Stage.CONNECTING, "websocket.accept":
                self._accept(message)
            case Stage.CONNECTING, "websocket.close":
                self._refuse(REJECTED)
            case Stage.CONNECTING, "websocket.http.response.start":
                self._stage = Stage.RESPONDING
                self._denial = message["status"], list(message.get("headers", ()))
            case Stage.RESPONDING, "websocket.http.response.body":
                self._respond(message)
            case _:
                raise RuntimeError(f"{kind} cannot be sent now: {self._stage.name.lower()}")

    def end(self) -> None:
        """Close the WebSocket, or answer 500, if the application returned without doing so."""
        if self._stage is Stage.ACCEPTED:
            self._close(1000, "")
        elif self._over is None and self._stage is not Stage.CLOSED:
            log.error("handshake_unanswered")
            self._refuse(FAILED)

    def fail(self) -> None:
        """Close with 1011, or answer 500, after an exception of the application."""
        if self._stage is Stage.ACCEPTED:
            self._close(1011, "internal error")
        elif self._stage is not Stage.CLOSED:
            self._refuse(FAILED)

    @property
    def accepted(self) -> JoiningConnection | None:
        """The connection; None before the application has accepted it."""
        return getattr(self, "_connection", None)

    def _accept(self, message: Message) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        if any(name.lower() == b"sec-websocket-protocol" for name, _ in headers):
            raise RuntimeError("websocket.accept: the subprotocol goes into `subprotocol`")
        self.node.handshakes.discard(self._websocket)  # the connection takes its place
        if (refusal := refusal_of(self.node)) is not None:
            self._refuse(refusal)
        self._websocket.handle(None)
        if not self._websocket.accept(message.get("subprotocol"), headers):
            raise ClientDisconnected
        self._stage = Stage.ACCEPTED
        self._connection = JoiningConnection(self._websocket, self.node.settings, self._turn)
        self._websocket.handle(ServedConnection(self.node, self._connection, "application", self))

    async def _send(self, message: Message) -> None:
        connection = self._connection
        text = message.get("text")
        framing = connection.framing
        framed = framing.binary(message["bytes"]) if text is None else framing.text(text.encode())
        own = asyncio.current_task() is self._task
        # A handler sends to its own client one message at a time, so a delay would join no writes.
        if not (connection.send_now(framed) if own else connection.send_soon(framed)):
            raise ClientDisconnected
        if connection.lags:
            await (connection.drained() if own else asyncio.sleep(0))

    def _close(self, code: int, reason: str) -> None:
        self._stage = Stage.CLOSED
        self._connection.close(code, reason)
        self._idle.set()

    def _refuse(self, refusal: Refusal) -> None:
        self._stage = Stage.CLOSED
        refuse(self.node, self._websocket, refusal)
        self.over(ABNORMAL, refusal.text)

    def _respond(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            answer = raw_response(*self._denial, self._body)
            self._stage = Stage.CLOSED
            self.node.metrics.connections_refused.labels(REJECTED.label).inc()
            self._websocket.refuse(answer)
            self.over(ABNORMAL, "")

    # For the connection.

    async def enter(self) -> None:
        """Return at once: the application prepared the connection before it accepted."""

    async def receive(self, message: str | bytes) -> None:
        """Pass a message to the application; return when it waits for the next one.

        So the application's messages for this one precede the answer to a close frame.
        """
        self._idle.clear()
        self._put(message)
        try:
            await self._idle.wait()
        except asyncio.CancelledError:  # the client is gone, and the application still handles it
            for waiting in self._websocket.take_waiting():
                self._put(waiting)
            raise

    def _put(self, message: str | bytes) -> None:
        kind = "text" if isinstance(message, str) else "bytes"
        self._inbox.append({"type": "websocket.receive", kind: message})
        self._arrived.set()

    def take_pong(self, message: str | bytes) -> bool:
        """Return False: every message is for the application."""
        return False

    def gone(self) -> None:
        """Return at once: `left` tells the application, after the last message."""

    async def left(self) -> None:
        """Queue `websocket.disconnect` with the connection's code, after the last message."""
        connection = self._connection
        self.over(connection.close_code, connection.reason)

    def over(self, code: int, reason: str) -> None:
        """Queue `websocket.disconnect`; only the first call has an effect."""
        if self._over is None:
            self._over = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._arrived.set()


class Unaccepted:
    """The handler of a handshake that the application has not answered yet.

    There are no frames and no outbox before the answer, so most of its methods are empty.
    """

    def __init__(self, client: ASGIClient) -> None:
        self._client = client

    async def begin(self) -> None:
        """Return at once: the connection begins when the application accepts."""

    async def receive(self, message: str | bytes) -> None:
        """Return at once: no message is read before the handshake is over."""

    def take_pong(self, message: str | bytes) -> bool:
        """Return False: no message is read before the handshake is over."""
        return False

    def pong_withheld(self) -> None:
        """Return at once: no ping is read before the handshake is over."""

    def slow(self) -> None:
        """Return at once: nothing waits for the client before the handshake is over."""

    def ended(self, code: int, reason: str) -> None:
        """Tell the application that the client is gone."""
        self._client.over(code, reason)

    async def closed(self) -> None:
        """Return at once: `ended` has told the application."""
