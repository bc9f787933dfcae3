"""What every WebSocket endpoint does: admit, accept, account for it until it ends."""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol

from wsfleet.admission import Refusal
from wsfleet.connection import Closes, Connection
from wsfleet.limits import TOO_MANY, Meter
from wsfleet.node import Node
from wsfleet.sessions import new_client_id
from wsfleet.websocket import WebSocket


class Client(Protocol):
    """One client's side of a protocol."""

    async def receive(self, message: str | bytes) -> None:
        """Take one message."""

    async def left(self) -> None:
        """Clean up: the connection is gone."""


class Attendance:
    """A client on the node, from the handshake to the close: counted in, and counted out."""

    __slots__ = ("_connection", "_meter", "_node", "_protocol", "client")

    def __init__(self, node: Node, connection: Connection, protocol: str) -> None:
        self.client: Client | None = None
        self._node = node
        self._connection = connection
        self._meter = Meter(node.rates)
        self._protocol = protocol
        node.metrics.connections.labels(protocol).inc()
        node.opened(connection)

    async def receive(self, message: str | bytes) -> None:
        """Take one message, or end the connection if there are too many."""
        self._connection.last_message_at = time.monotonic()
        self._node.metrics.messages_received.inc()
        if not self._meter.take(len(message)):
            self._connection.close(*TOO_MANY)
        elif self.client is not None:
            await self.client.receive(message)

    def pong_withheld(self) -> None:
        """Count it."""
        self._node.metrics.pongs_withheld.inc()

    async def closed(self, code: int, reason: str) -> None:
        """Clean up."""
        self._connection.closed(code, reason)
        self._node.closed(self._connection)
        self._node.metrics.connections.labels(self._protocol).dec()
        if self.client is not None:
            await self.client.left()
        await self._node.sessions.close(self._connection)


def refuse(node: Node, websocket: WebSocket, refusal: Refusal) -> None:
    """Deny the handshake, and count it."""
    node.metrics.connections_refused.labels(refusal.label).inc()
    websocket.deny(refusal.status, refusal.text, refusal.headers)


async def serve(
    node: Node,
    websocket: WebSocket,
    protocol: str,
    closes: Closes,
    create: Callable[[Connection], Awaitable[Client]],
    *,
    subprotocol: str | None = None,
    outbox_limit: int | None = None,
) -> None:
    """Begin to serve one connection of one of `metrics.PROTOCOLS`."""
    if (reason := node.refusal_reason()) is not None:
        refuse(node, websocket, Refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason, reason))
        return
    websocket.accept(subprotocol)
    connection = Connection(
        websocket,
        client_id=new_client_id(),
        outbox_limit=outbox_limit or node.settings.outbox_limit,
        closes=closes,
    )
    attendance = Attendance(node, connection, protocol)
    try:
        attendance.client = await create(connection)
    finally:
        websocket.attend(attendance)
