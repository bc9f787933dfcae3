"""The WebSocket endpoints: a client's conversation from handshake to close."""

import asyncio
import time
from datetime import UTC, datetime

import structlog
from redis.exceptions import RedisError
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from wsfleet.connection import Connection
from wsfleet.node import Node
from wsfleet.protocol import plain
from wsfleet.sessions import new_client_id
from wsfleet.store import UnavailableError
from wsfleet.websocket import EXTENSION

log = structlog.get_logger(__name__)

RETRY_AFTER = "1"


async def plain_endpoint(node: Node, websocket: WebSocket) -> None:
    """Serve one client of the plain protocol."""
    if (reason := node.refusal_reason()) is not None:
        node.metrics.connections_refused.labels(reason).inc()
        await websocket.send_denial_response(
            PlainTextResponse(f"{reason}\n", 503, {"Retry-After": RETRY_AFTER})
        )
        return
    await websocket.accept()
    connection = Connection(
        websocket.scope["extensions"][EXTENSION]["protocol"],
        client_id=new_client_id(),
        outbox_limit=node.settings.outbox_limit,
    )
    client = PlainClient(node, connection)
    node.opened(connection)
    node.hub.subscribe(connection, plain.CHANNEL)
    try:
        await node.sessions.open(connection)
        while True:
            event = await websocket.receive()
            if event["type"] == "websocket.disconnect":
                connection.closed(event.get("code", 1005), event.get("reason") or "")
                return
            await client.receive(event.get("text"))
    except WebSocketDisconnect as error:
        connection.closed(error.code, error.reason)
    finally:
        node.closed(connection)
        await node.sessions.close(connection)


class PlainClient:
    """Turns the messages of one client into state, broadcast and ack, one after the other."""

    def __init__(self, node: Node, connection: Connection) -> None:
        self._node = node
        self._connection = connection

    async def receive(self, text: str | None) -> None:
        """Take one message; `text` is None for a binary one. The answer is an ack or an error."""
        node, connection = self._node, self._connection
        received_at = time.monotonic()
        connection.last_message_at = received_at
        node.metrics.messages_received.inc()
        timestamp = datetime.now(UTC).isoformat()
        try:
            await self._keep(plain.parse(text), timestamp)
        except plain.ProtocolError as error:
            self._refuse(error.code, str(error), timestamp)
        except UnavailableError as error:
            self._refuse("unavailable", f"{error}; send the message again later", timestamp)
        except RedisError as error:
            log.exception("redis refused a command")
            self._refuse("unavailable", f"Redis refused the message: {error}", timestamp)
        else:
            connection.message_count += 1
            connection.send(
                plain.ack(
                    client_id=connection.client_id,
                    hostname=node.settings.name,
                    timestamp=timestamp,
                    connections=len(node.hub),
                    message_count=connection.message_count,
                )
            )
            node.metrics.publish_seconds.observe(time.monotonic() - received_at)

    async def _keep(self, message: plain.Message, timestamp: str) -> None:
        node, connection = self._node, self._connection
        if message.client_id is not None:
            await node.sessions.rename(connection, message.client_id)
        payload = plain.broadcast(
            message,
            client_id=connection.client_id,
            hostname=node.settings.name,
            timestamp=timestamp,
        )
        await asyncio.gather(  # one round trip, in this order
            node.sessions.keep(connection, message.text),
            node.broker.publish(plain.CHANNEL, payload, connection.number),
        )

    def _refuse(self, code: str, message: str, timestamp: str) -> None:
        node = self._node
        node.metrics.messages_failed.labels(code).inc()
        self._connection.send(
            plain.error(code, message, hostname=node.settings.name, timestamp=timestamp)
        )
