"""Serving a client's connection, whatever its protocol: admission, rate limits, accounting."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Protocol, cast

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wsfleet.clients.rate_limit import TOO_MANY, Meter, Rates
from wsfleet.cluster.client_names import new_client_id
from wsfleet.hub.connection import Connection
from wsfleet.node.admission import Refusal
from wsfleet.node.node import Node
from wsfleet.transports.handshake import Request
from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Closes
from wsfleet.transports.websocket import WebSocket


class ProtocolClient(Protocol):
    """The protocol's side of one client."""

    async def enter(self) -> None:
        """Prepare for the first message."""

    async def receive(self, message: str | bytes) -> None:
        """Handle one message."""

    def take_pong(self, message: str | bytes) -> bool:
        """Handle a message at once if it is a pong; return whether it was."""

    def gone(self) -> None:
        """Remove the client: the connection has ended; a message may still be handled."""

    async def left(self) -> None:
        """Clean up after the last message."""


class ServedConnection:
    """A client of this node, from its handshake to its close.

    It counts as long as its connection is open; its clean-up may take longer if Redis is
    unavailable.
    """

    __slots__ = ("_client", "_connection", "_meter", "_node", "_protocol")

    def __init__(
        self, node: Node, connection: Connection, protocol: str, client: ProtocolClient
    ) -> None:
        self._client = client
        self._node = node
        self._connection = connection
        self._meter = Meter(Rates.of(node.settings.message_rate, node.settings.byte_rate))
        self._protocol = protocol
        node.metrics.connections.labels(protocol).inc()
        node.opened(connection)

    async def begin(self) -> None:
        """Prepare for the first message."""
        await self._client.enter()

    async def receive(self, message: str | bytes) -> None:
        """Handle one message; close the connection if the client sends too many."""
        if self._count(message):
            await self._client.receive(message)

    def take_pong(self, message: str | bytes) -> bool:
        """Handle a message at once if it is a pong; close the connection if there are too many."""
        if not self._client.take_pong(message):
            return False
        self._count(message)
        return True

    def _count(self, message: str | bytes) -> bool:
        self._connection.last_message_at = time.monotonic()
        self._node.metrics.messages_received.inc()
        if self._meter.take(len(message)):
            return True
        self._connection.close(*TOO_MANY)
        return False

    def pong_withheld(self) -> None:
        """Count it."""
        self._node.metrics.pongs_withheld.inc()

    def slow(self) -> None:
        """Close the connection."""
        self._connection.slow()

    def ended(self, code: int, reason: str) -> None:
        """Remove the client from all counts."""
        self._connection.closed(code, reason)
        self._node.closed(self._connection)
        self._node.metrics.connections.labels(self._protocol).dec()
        self._client.gone()

    async def closed(self) -> None:
        """Clean up."""
        await self._client.left()
        await self._node.client_names.close(self._connection)


class ClientAddress:
    """The addresses of clients; X-Forwarded-For counts if one of `trusted_proxies` sends it."""

    def __init__(self, trusted_proxies: str) -> None:
        self._middleware: Any = ProxyHeadersMiddleware(cast(Any, _nothing), trusted_proxies)

    async def of(self, request: Request) -> str:
        """Return the address of a request's client; "" if it has none."""
        scope: dict[str, Any] = {**request.scope, "type": "websocket"}
        await self._middleware(scope, None, None)
        return scope["client"][0] if scope.get("client") else ""


async def _nothing(*_: Any) -> None:
    pass


def refusal_of(node: Node, address: int | None = None) -> Refusal | None:
    """Return why a handshake is refused: the node takes no clients, or has shed this client.

    HAProxy sends the handshake on to another node. Without `address`, which is `Request.address`,
    it is that of any client.
    """
    reason = node.refusal_reason()
    if reason is None and address is not None and node.shedding.sends_on(address):
        reason = "shed"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason, reason) if reason else None


@contextmanager
def handshake(node: Node, websocket: WebSocket) -> Iterator[None]:
    """Count a handshake against the limit of connections until the block ends."""
    node.handshakes.add(websocket)
    try:
        yield
    finally:
        node.handshakes.discard(websocket)


def refuse(node: Node, websocket: WebSocket, refusal: Refusal) -> None:
    """Refuse the handshake, and count it."""
    node.metrics.connections_refused.labels(refusal.label).inc()
    websocket.deny(refusal.status, refusal.text, refusal.headers)


async def serve(
    node: Node,
    websocket: WebSocket,
    protocol: str,
    closes: Closes,
    create: Callable[[Connection], ProtocolClient],
    *,
    subprotocol: str | None = None,
    outbox_limit: int | None = None,
) -> None:
    """Serve one connection, unless the node refuses it or the client is gone."""
    if (refusal := refusal_of(node, websocket.address)) is not None:
        refuse(node, websocket, refusal)
        return
    if not websocket.accept(subprotocol):
        return
    connection = Connection(
        websocket,
        client_id=new_client_id(),
        limits=Limits(outbox_limit or node.settings.outbox_limit, node.settings.write_timeout),
        closes=closes,
    )
    await websocket.attend(ServedConnection(node, connection, protocol, create(connection)))
