"""The plain protocol's endpoint: each message becomes state, a broadcast and an ack."""

import asyncio
import contextlib
import time
from dataclasses import replace

import structlog
from redis.exceptions import RedisError

from wsfleet.broker import control
from wsfleet.broker.events import BrokerEventHandler, NodeCount
from wsfleet.channels.permissions import ChannelError
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry
from wsfleet.clients.serving import handshake, refusal_of, refuse, serve
from wsfleet.hub.connection import Connection
from wsfleet.node.admission import Identity, Refusal
from wsfleet.node.node import Node
from wsfleet.protocol import plain
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.redis.store import UnavailableError
from wsfleet.transports.handshake import Request
from wsfleet.transports.transport import WEBSOCKET_CLOSES, Framing
from wsfleet.transports.websocket import WebSocket

log = structlog.get_logger(__name__)


class Plain(BrokerEventHandler):
    """The endpoint `/ws`, and the fan-out to all its clients on this node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._framings: dict[str, Framing] = {}  # by topic
        node.dispatcher.add(self)

    async def endpoint(self, websocket: WebSocket, request: Request) -> None:
        """Serve one client."""
        node = self._node
        refusal = node.admission.origin(request.headers) or refusal_of(node)
        if refusal is not None:
            refuse(node, websocket, refusal)
            return
        with handshake(node, websocket):
            admitted = await node.admission.identify(request.headers, request.query)
        if isinstance(admitted, Refusal):
            refuse(node, websocket, admitted)
            return

        def create(connection: Connection) -> PlainClient:
            framing = connection.shared_framing
            topic = f"plain {framing.name} {plain.CHANNEL}"
            self._framings[topic] = framing
            return PlainClient(node, connection, admitted, topic)

        await serve(node, websocket, "plain", WEBSOCKET_CLOSES, create)

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Deliver to all but the sender."""
        if channel != plain.CHANNEL:
            return
        hub, payload = self._node.hub, b""
        exclude = record.number if record.node == self._node.settings.name else None
        for topic, framing in self._framings.items():
            if hub.has(topic):
                payload = payload or _broadcast(record)
                hub.publish(topic, framing.text(payload), exclude)

    def count(self, census: NodeCount) -> None:
        """Count the channel's subscribers: each client is one."""
        if clients := sum(map(self._node.hub.count, self._framings)):
            census.subscribers[plain.CHANNEL] += clients


def _broadcast(record: Record) -> bytes:
    return plain.broadcast(
        client_id=record.publisher.client if record.publisher else "",
        hostname=record.node,
        time=record.time,
        data=record.data,
        opaque=not record.number,
    )


class PlainClient:
    """One client of the plain protocol."""

    __slots__ = ("_connection", "_expiry", "_identity", "_node", "_options", "_topic")

    def __init__(self, node: Node, connection: Connection, identity: Identity, topic: str) -> None:
        self._node = node
        self._connection = connection
        self._identity = identity
        self._expiry: asyncio.TimerHandle | None = None
        self._topic = topic
        self._options = node.channels.find(plain.CHANNEL).options

    @property
    def id(self) -> str:
        """The current name of the connection."""
        return self._connection.client_id

    @property
    def user(self) -> str:
        """The user; "" for a client without one."""
        return self._identity.user

    def tokens(self) -> list[str]:
        """Return the `jti` of its token, if that has one."""
        return [self._identity.token_id] if self._identity.token_id else []

    def revoked(self, token_id: str) -> None:
        """Close the connection if it came with this token."""
        if token_id == self._identity.token_id:
            self.disconnect(DisconnectCode.INVALID_TOKEN)

    async def enter(self) -> None:
        """Register the client, then check it again: from now on control messages reach it."""
        if not self._node.users.add(self):
            self.disconnect(DisconnectCode.CONNECTION_LIMIT)
            return
        self._node.hub.subscribe(self._connection, self._topic)
        await self._node.client_names.open(self._connection)
        self._expire_at(self._identity.expire_at)
        with contextlib.suppress(UnavailableError, RedisError):  # it was asked a moment ago
            objection = await self._node.denylist.objection(self.user, self._identity.token_id)
            if objection is not None:
                self.disconnect(objection)

    def disconnect(self, code: DisconnectCode) -> None:
        """Close the connection; the codes are those of the Centrifuge protocol."""
        self._connection.close(code.code, code.reason)

    async def command(self, wanted: control.UserCommand) -> None:
        """Handle a disconnect or a refresh; there is nothing to subscribe to."""
        if wanted.do == "disconnect":
            self._connection.close(wanted.code, wanted.reason)
        elif wanted.do == "refresh" and wanted.expired:
            self.disconnect(DisconnectCode.EXPIRED)
        elif wanted.do == "refresh":
            info = wanted.info or self._identity.info
            self._identity = replace(self._identity, info=info, expire_at=wanted.expire_at)
            self._expire_at(wanted.expire_at)

    async def receive(self, message: str | bytes) -> None:
        """Answer one message with an ack or an error."""
        node, connection = self._node, self._connection
        received_at = time.monotonic()
        now = time.time_ns() // 1_000_000
        timestamp = plain.timestamp(now)
        try:
            text = message if isinstance(message, str) else None
            await self._keep(plain.parse(text, node.settings.max_json_depth), now)
        except plain.InvalidMessageError as error:
            self._refuse(error.code, str(error), timestamp)
        except ChannelError as error:
            self._refuse("too_large", str(error), timestamp)
        except UnavailableError as error:
            self._refuse("unavailable", f"{error}; send the message again later", timestamp)
        except RedisError as error:
            log.exception("redis_command_refused")
            self._refuse("unavailable", f"Redis refused the message: {error}", timestamp)
        else:
            connection.message_count += 1
            ack = plain.ack(
                client_id=connection.client_id,
                hostname=node.settings.name,
                timestamp=timestamp,
                connections=len(node.hub),
                message_count=connection.message_count,
            )
            connection.send(connection.framing.text(ack))
            node.metrics.publish_seconds.observe(time.monotonic() - received_at)

    def take_pong(self, message: str | bytes) -> bool:
        """Return False: the protocol has no pongs of its own."""
        return False

    def gone(self) -> None:
        """Remove the client from its user's connections."""
        self._node.users.remove(self)

    async def left(self) -> None:
        """Clean up."""
        if self._expiry is not None:
            self._expiry.cancel()

    def _expire_at(self, expire_at: int) -> None:
        """Close the connection at a moment in Unix seconds; 0 is never."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if expire_at:
            delay = max(0.0, expire_at - time.time())
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(delay, self.disconnect, DisconnectCode.EXPIRED)

    async def _keep(self, message: plain.PlainMessage, now: int) -> None:
        node, connection = self._node, self._connection
        if message.client_id is not None:
            await node.client_names.rename(connection, message.client_id)
        record = Record(
            data=message.json,
            time=now,
            publisher=Member(self.user, connection.client_id, self._identity.info),
            node=node.settings.name,
            number=connection.number,
        )
        node.broker.check(record)  # before its text is kept
        await asyncio.gather(  # one round trip, in this order
            node.client_names.keep(connection, message.text),
            node.broker.publish(plain.CHANNEL, self._options, record, message.idempotency_key),
        )

    def _refuse(self, code: str, message: str, timestamp: str) -> None:
        node = self._node
        node.metrics.messages_failed.labels(code).inc()
        error = plain.error(code, message, hostname=node.settings.name, timestamp=timestamp)
        self._connection.send(self._connection.framing.text(error))
