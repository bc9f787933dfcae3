"""What every WebSocket endpoint does: admit, accept, read until the end, account for it."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket

from wsfleet.connection import Closes, Connection
from wsfleet.node import Node
from wsfleet.sessions import new_client_id
from wsfleet.websocket import EXTENSION

RETRY_AFTER = "1"


class Client(Protocol):
    """One client's side of a protocol."""

    async def receive(self, message: str | bytes) -> None:
        """Take one message."""

    async def left(self) -> None:
        """Clean up: the connection is gone."""


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
    """Serve one connection of one of `metrics.PROTOCOLS`, from the handshake to the close."""
    if (reason := node.refusal_reason()) is not None:
        node.metrics.connections_refused.labels(reason).inc()
        await websocket.send_denial_response(
            PlainTextResponse(f"{reason}\n", 503, {"Retry-After": RETRY_AFTER})
        )
        return
    await websocket.accept(subprotocol)
    connection = Connection(
        websocket.scope["extensions"][EXTENSION]["protocol"],
        client_id=new_client_id(),
        outbox_limit=outbox_limit or node.settings.outbox_limit,
        closes=closes,
    )
    open_connections = node.metrics.connections.labels(protocol)
    open_connections.inc()
    node.opened(connection)
    client: Client | None = None
    try:
        client = await create(connection)
        while True:
            event = await websocket.receive()
            if event["type"] == "websocket.disconnect":
                connection.closed(event.get("code") or 1005, event.get("reason") or "")
                return
            connection.last_message_at = time.monotonic()
            node.metrics.messages_received.inc()
            text = event.get("text")
            await client.receive(text if text is not None else event["bytes"])
    finally:
        node.closed(connection)
        open_connections.dec()
        if client is not None:
            await client.left()
        await node.sessions.close(connection)
