"""The endpoint `/ws`: turns each message into state, broadcast and ack, one after the other."""

import asyncio
import time

import structlog
from redis.exceptions import RedisError

from wsfleet.connection import Connection
from wsfleet.endpoints import serve
from wsfleet.listener import Census, Listener
from wsfleet.node import Node
from wsfleet.protocol import plain
from wsfleet.records import Member, Record
from wsfleet.store import UnavailableError
from wsfleet.stream import Entry
from wsfleet.websocket import Request, WebSocket

log = structlog.get_logger(__name__)


TOPIC = f"plain {plain.CHANNEL}"
"""The hub's name for the protocol's clients: they all hear its one channel."""


class Plain(Listener):
    """All clients of the protocol on this node; publications alone concern them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        node.listeners.add(self)

    async def endpoint(self, websocket: WebSocket, request: Request) -> None:
        """Serve one client."""
        node = self._node

        async def create(connection: Connection) -> PlainClient:
            node.hub.subscribe(connection, TOPIC)
            await node.sessions.open(connection)
            return PlainClient(node, connection)

        await serve(node, websocket, "plain", plain.CLOSES, create)

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Deliver to all but the sender."""
        if channel == plain.CHANNEL and self._node.hub.has(TOPIC):
            own = record.node == self._node.settings.name
            self._node.hub.publish(
                TOPIC, plain.broadcast(record), exclude=record.number if own else None
            )

    def count(self, census: Census) -> None:
        """Count all: each is in the channel, and without a user."""
        if clients := self._node.hub.count(TOPIC):
            census.clients += clients
            census.users.add("")
            census.subscribers[plain.CHANNEL] += clients


class PlainClient:
    """One client of the plain protocol."""

    def __init__(self, node: Node, connection: Connection) -> None:
        self._node = node
        self._connection = connection
        self._options = node.channels.find(plain.CHANNEL).options

    async def receive(self, message: str | bytes) -> None:
        """Answer one message with an ack or an error."""
        node, connection = self._node, self._connection
        received_at = time.monotonic()
        now = time.time_ns() // 1_000_000
        timestamp = plain.timestamp(now)
        try:
            await self._keep(plain.parse(message if isinstance(message, str) else None), now)
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

    async def left(self) -> None:
        """There is nothing but the connection itself."""

    async def _keep(self, message: plain.Message, now: int) -> None:
        node, connection = self._node, self._connection
        if message.client_id is not None:
            await node.sessions.rename(connection, message.client_id)
        record = Record(
            data=message.json,
            time=now,
            publisher=Member(client=connection.client_id),
            node=node.settings.name,
            number=connection.number,
        )
        await asyncio.gather(  # one round trip, in this order
            node.sessions.keep(connection, message.text),
            node.broker.publish(plain.CHANNEL, self._options, record, message.idempotency_key),
        )

    def _refuse(self, code: str, message: str, timestamp: str) -> None:
        node = self._node
        node.metrics.messages_failed.labels(code).inc()
        self._connection.send(
            plain.error(code, message, hostname=node.settings.name, timestamp=timestamp)
        )
