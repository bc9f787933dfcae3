"""Channels that an application's ordinary WebSockets hear."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Protocol

import structlog
from starlette.websockets import WebSocket

from wsfleet.application.realtime.listening import Listener, Listeners
from wsfleet.broker.events import BrokerEventHandler, NodeCount
from wsfleet.channels.publication import Record
from wsfleet.channels.stream import Entry
from wsfleet.hub.connection import Connection
from wsfleet.node.node import Node
from wsfleet.tasks import end
from wsfleet.transports.transport import Framing

log = structlog.get_logger(__name__)

EXTENSION = "wsfleet"
"""Key of the extension in the scope of a node's WebSocket; its value has `websocket`."""


class NodeWebSocket(Protocol):
    """A WebSocket of the application that a node serves itself."""

    @property
    def node(self) -> Node:
        """The node."""

    @property
    def accepted(self) -> Connection | None:
        """The connection; None before the application has accepted it."""


def native(websocket: WebSocket) -> NodeWebSocket | None:
    """Return the node's side of a WebSocket; None if another server serves it."""
    extension = websocket.scope.get("extensions", {}).get(EXTENSION)
    found: NodeWebSocket | None = extension["websocket"] if extension else None
    return found


def connection_of(websocket: NodeWebSocket) -> Connection:
    """Return the connection of a WebSocket.

    Raises:
        RuntimeError: the application has not accepted it.
    """
    if (connection := websocket.accepted) is None:
        raise RuntimeError("the WebSocket is not accepted: await websocket.accept() first")
    return connection


class Feeds(BrokerEventHandler):
    """The feeds of a node's WebSockets: each publication is framed once for all of them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._topics: dict[str, dict[str, Framing]] = {}  # by channel
        self._feeds: Counter[tuple[int, str]] = Counter()  # by connection and topic

    def add(self, connection: Connection, channel: str) -> None:
        """Let a connection hear a channel."""
        framing = connection.shared_framing
        topic = _topic(framing, channel)
        self._topics.setdefault(channel, {})[topic] = framing
        self._feeds[connection.number, topic] += 1
        self._node.hub.subscribe(connection, topic)

    def remove(self, connection: Connection, channel: str) -> None:
        """Undo one `add`; after the last one, the connection does not hear the channel any more."""
        topic = _topic(connection.shared_framing, channel)
        feed = connection.number, topic
        self._feeds[feed] -= 1
        if self._feeds[feed]:
            return
        del self._feeds[feed]
        self._node.hub.unsubscribe(connection, topic)
        if not self._node.hub.has(topic):
            topics = self._topics.get(channel, {})
            topics.pop(topic, None)
            if not topics:
                self._topics.pop(channel, None)

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Deliver a publication."""
        for topic, framing in self._topics.get(channel, {}).items():
            frame = framing.text if _is_text(record.data) else framing.binary
            self._node.hub.publish(topic, frame(record.data))

    def count(self, census: NodeCount) -> None:
        """Count the WebSockets that hear each channel."""
        for channel, topics in self._topics.items():
            census.subscribers[channel] += sum(map(self._node.hub.count, topics))

    @contextlib.asynccontextmanager
    async def feed(self, connection: Connection, channels: tuple[str, ...]) -> AsyncIterator[None]:
        """Let a connection hear channels inside of the block.

        Raises:
            ChannelError, UnavailableError: see `Channels.find` and `Follower.confirmed`.
        """
        found = [self._node.channels.find(channel) for channel in dict.fromkeys(channels)]
        followed = self._node.broker.followed
        followers = [followed.follow(channel.name, channel.options) for channel in found]
        added: list[str] = []
        try:
            await asyncio.gather(*(follower.confirmed() for follower in followers))
            for channel in found:
                self.add(connection, channel.name)
                added.append(channel.name)
            yield
        finally:
            for name in added:
                self.remove(connection, name)
            for follower in followers:
                follower.release()


@contextlib.asynccontextmanager
async def relayed(
    listeners: Listeners, websocket: WebSocket, channels: tuple[str, ...]
) -> AsyncIterator[None]:
    """Let a WebSocket of another server hear channels inside of the block, by a task for each."""
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(listeners.open(channel))
            for channel in dict.fromkeys(channels)
        ]
        tasks = [asyncio.create_task(_relay(listener, websocket)) for listener in opened]
        try:
            yield
        finally:
            await end(tasks)


async def _relay(listener: Listener, websocket: WebSocket) -> None:
    try:
        while True:
            _, record, _ = await listener.next()
            if _is_text(record.data):
                await websocket.send_text(record.data.decode())
            else:
                await websocket.send_bytes(record.data)
    except Exception as error:  # the client is gone, as the handler will notice, or too slow
        log.info("feed_ended", error=str(error) or type(error).__name__)


def _is_text(data: bytes) -> bool:
    """Return whether data can be in a text frame, as JSON always can (RFC 6455, section 5.6)."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _topic(framing: Framing, channel: str) -> str:
    return f"feed {framing.name} {channel}"
