"""The subscriptions of this process's connections to topics, and the fan-out to them."""

import asyncio
import time
from collections.abc import Callable, Iterator

from wsfleet.hub.connection import Connection

QUICK, LONGEST_WINDOW = 0.001, 0.005
"""Seconds of a flush after which none is delayed, and the longest delay of a publication."""
WINDOW = 0.5
"""The delay of a flush, in durations of the flush before."""


class Hub:
    """The process's connections and their subscriptions to topics.

    A topic has one encoding and one framing: all its subscribers are sent the same bytes. The name
    of a topic is its protocol's choice.

    Publications of one event-loop tick are joined once, and the same bytes are written to every
    subscriber: a tick costs one write a connection, however many messages it carries. Under load,
    when flushes take long, a flush is delayed a little to carry more of them; a publication that
    comes alone is never delayed.
    """

    def __init__(self, on_delivered: Callable[[int], None] = lambda n: None) -> None:
        self._connections: dict[int, Connection] = {}
        self._topics: dict[str, dict[int, Connection]] = {}
        self._topics_of: dict[int, set[str]] = {}
        self._pending: dict[str, list[tuple[bytes, int | None]]] = {}
        self._scheduled = False
        self._flushed_at = self._flush_took = 0.0
        self._on_delivered = on_delivered

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over a copy of the connections: they may be removed meanwhile."""
        return iter(list(self._connections.values()))

    def add(self, connection: Connection) -> None:
        """Add a connection."""
        self._connections[connection.number] = connection

    def remove(self, connection: Connection) -> None:
        """Remove a connection and all its subscriptions."""
        self._connections.pop(connection.number, None)
        for topic in list(self._topics_of.get(connection.number, ())):
            self.unsubscribe(connection, topic)

    def has(self, topic: str) -> bool:
        """Return whether a connection is subscribed to `topic`."""
        return topic in self._topics

    def subscribers(self, topic: str) -> list[Connection]:
        """Return the connections that are subscribed to `topic`."""
        return list(self._topics.get(topic, {}).values())

    def count(self, topic: str) -> int:
        """Return the number of connections that are subscribed to `topic`."""
        return len(self._topics.get(topic, ()))

    def subscribe(self, connection: Connection, topic: str) -> None:
        """Subscribe `connection` to `topic`, without the publications that are pending."""
        if topic in self._pending:
            self._flush()
        self._topics.setdefault(topic, {})[connection.number] = connection
        self._topics_of.setdefault(connection.number, set()).add(topic)

    def unsubscribe(self, connection: Connection, topic: str) -> None:
        """Unsubscribe `connection` from `topic`."""
        subscribers = self._topics.get(topic, {})
        subscribers.pop(connection.number, None)
        if not subscribers:
            self._topics.pop(topic, None)
        topics = self._topics_of.get(connection.number, set())
        topics.discard(topic)
        if not topics:
            self._topics_of.pop(connection.number, None)

    def publish(self, topic: str, frames: bytes, exclude: int | None = None) -> None:
        """Send a framed payload to the topic's subscribers at the end of this tick.

        The connection with the number `exclude` is not sent it.
        """
        if topic not in self._topics:
            return
        if not self._scheduled:
            self._scheduled = True
            loop, window = asyncio.get_running_loop(), self._window()
            if window:
                loop.call_later(window, self._flush)
            else:
                loop.call_soon(self._flush)
        self._pending.setdefault(topic, []).append((frames, exclude))

    def _window(self) -> float:
        """Seconds to wait for more, after a flush that was slow, just now, and of several."""
        since = time.perf_counter() - self._flushed_at
        return min(WINDOW * self._flush_took, LONGEST_WINDOW) if since < self._flush_took else 0.0

    def _flush(self) -> None:
        self._scheduled = False
        began = time.perf_counter()
        pending, self._pending = self._pending, {}
        delivered = 0
        for topic, publications in pending.items():
            if topic in self._topics:
                delivered += _deliver(self._topics[topic], publications)
        self._on_delivered(delivered)
        self._flushed_at = time.perf_counter()
        took = self._flushed_at - began
        several = any(len(publications) > 1 for publications in pending.values())
        self._flush_took = took if several and took > QUICK else 0.0


def _deliver(
    subscribers: dict[int, Connection], publications: list[tuple[bytes, int | None]]
) -> int:
    """Write publications to each of the subscribers; return the number of deliveries."""
    joined = b"".join(frames for frames, _ in publications)
    origins = {exclude for _, exclude in publications}
    delivered = 0
    for number, connection in list(subscribers.items()):
        if number not in origins:
            count, frames = len(publications), joined
        else:
            others = [frames for frames, exclude in publications if exclude != number]
            count, frames = len(others), b"".join(others)
        if frames and connection.send(frames):
            delivered += count
    return delivered
