"""Who on this process hears which channel, and the fan-out to them."""

import asyncio
import time
from collections.abc import Callable, Iterator

from wsfleet.hub.connection import Connection
from wsfleet.transports.deflate import deflate

QUICK, LONGEST_WINDOW = 0.001, 0.005
"""Seconds of a flush that nothing waits for, and those that a publication waits at the most."""
WINDOW = 0.5
"""How long it waits, in durations of the flush before."""


class Hub:
    """The process's connections and their subscriptions.

    Publications of one event-loop tick are joined once, and the same bytes are written to every
    subscriber: a tick costs one write a connection, however many messages it carries. While many
    come, and writing them takes its time, a flush waits a little for those that are about to come;
    a publication that comes by itself never waits.

    Clients that agreed to permessage-deflate have their own place in each channel: a publication is
    deflated once for all of them, and costs the others nothing.
    """

    def __init__(self, on_delivered: Callable[[int], None] = lambda n: None) -> None:
        self._connections: dict[int, Connection] = {}
        self._channels: dict[str, dict[int, Connection]] = {}
        self._deflated: dict[str, dict[int, Connection]] = {}
        self._deflating: set[int] = set()
        self._channels_of: dict[int, set[str]] = {}
        self._pending: dict[str, list[tuple[bytes, int | None]]] = {}
        self._scheduled = False
        self._flushed_at = self._flush_took = 0.0
        self._on_delivered = on_delivered

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        """The connections at this moment; they may leave while the caller goes through them."""
        return iter(list(self._connections.values()))

    def add(self, connection: Connection) -> None:
        """Count a connection in."""
        self._connections[connection.number] = connection
        if connection.deflates:
            self._deflating.add(connection.number)

    def remove(self, connection: Connection) -> None:
        """Forget a connection and all its subscriptions."""
        self._connections.pop(connection.number, None)
        for channel in list(self._channels_of.get(connection.number, ())):
            self.unsubscribe(connection, channel)
        self._deflating.discard(connection.number)

    def has(self, channel: str) -> bool:
        """Whether anybody on this process hears `channel`."""
        return channel in self._channels or channel in self._deflated

    def subscribers(self, channel: str) -> list[Connection]:
        """The connections on this process that hear `channel`."""
        both = (self._channels.get(channel, {}), self._deflated.get(channel, {}))
        return [connection for group in both for connection in group.values()]

    def count(self, channel: str) -> int:
        """How many on this process hear `channel`."""
        return len(self._channels.get(channel, ())) + len(self._deflated.get(channel, ()))

    def subscribe(self, connection: Connection, channel: str) -> None:
        """Let `connection` hear `channel` from the next publication on, but nothing pending."""
        if channel in self._pending:
            self._flush()
        self._group(connection).setdefault(channel, {})[connection.number] = connection
        self._channels_of.setdefault(connection.number, set()).add(channel)

    def unsubscribe(self, connection: Connection, channel: str) -> None:
        """Stop hearing `channel`; a channel without subscribers is forgotten."""
        group = self._group(connection)
        subscribers = group.get(channel, {})
        subscribers.pop(connection.number, None)
        if not subscribers:
            group.pop(channel, None)
        channels = self._channels_of.get(connection.number, set())
        channels.discard(channel)
        if not channels:
            self._channels_of.pop(connection.number, None)

    def publish(self, channel: str, frame: bytes, exclude: int | None = None) -> None:
        """Send `frame` to the channel's subscribers at the end of this tick, except `exclude`."""
        if not self.has(channel):
            return
        if not self._scheduled:
            self._scheduled = True
            loop, window = asyncio.get_running_loop(), self._window()
            if window:
                loop.call_later(window, self._flush)
            else:
                loop.call_soon(self._flush)
        self._pending.setdefault(channel, []).append((frame, exclude))

    def _group(self, connection: Connection) -> dict[str, dict[int, Connection]]:
        return self._deflated if connection.number in self._deflating else self._channels

    def _window(self) -> float:
        """Seconds to wait for more, after a flush that was slow, just now, and of several."""
        since = time.perf_counter() - self._flushed_at
        return min(WINDOW * self._flush_took, LONGEST_WINDOW) if since < self._flush_took else 0.0

    def _flush(self) -> None:
        self._scheduled = False
        began = time.perf_counter()
        pending, self._pending = self._pending, {}
        delivered = 0
        for channel, publications in pending.items():
            if channel in self._channels:
                delivered += _deliver(self._channels[channel], publications)
            if channel in self._deflated:
                deflated = [(deflate(frame), exclude) for frame, exclude in publications]
                delivered += _deliver(self._deflated[channel], deflated)
        self._on_delivered(delivered)
        self._flushed_at = time.perf_counter()
        took = self._flushed_at - began
        several = any(len(publications) > 1 for publications in pending.values())
        self._flush_took = took if several and took > QUICK else 0.0


def _deliver(
    subscribers: dict[int, Connection], publications: list[tuple[bytes, int | None]]
) -> int:
    """Write publications to each of the subscribers; how many were written, over all of them."""
    joined = b"".join(frame for frame, _ in publications)
    origins = {exclude for _, exclude in publications}
    delivered = 0
    for number, connection in list(subscribers.items()):
        if number not in origins:
            count, frames = len(publications), joined
        else:
            others = [frame for frame, exclude in publications if exclude != number]
            count, frames = len(others), b"".join(others)
        if frames and connection.send(frames):
            delivered += count
    return delivered
