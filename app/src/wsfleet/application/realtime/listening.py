"""Publications of channels for tasks of the application."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

import orjson

from wsfleet.application.realtime.calls import ClientInfo, Publication, call_errors
from wsfleet.broker.events import BrokerEventHandler
from wsfleet.broker.following import Follower
from wsfleet.channels.permissions import ChannelError
from wsfleet.channels.publication import Member, Record, all_understood
from wsfleet.channels.stream import Entry, Position
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import ErrorCode


class GapError(Exception):
    """Publications of a channel are lost for a listener: it has missed some, and cannot read them.

    Either `since` is older than the history, or Redis has lost its data, or the listener is too
    slow. Read the state from where it is stored, and listen again.
    """


class Listener:
    """The publications of one channel that wait for one task."""

    def __init__(self, follower: Follower, limit: int) -> None:
        self._followed = follower.followed
        self._limit = limit
        self._waiting: deque[tuple[Entry, Record, str]] = deque()
        self._size = 0
        self._gap = ""
        self._arrived = asyncio.Event()

    def put(self, entry: Entry, record: Record) -> None:
        """Add a publication."""
        if self._gap:
            return
        if self._size > self._limit:
            self.gap(f"over {self._limit} bytes wait for the listener")
            return
        self._size += len(entry.record)
        self._waiting.append((entry, record, self._followed.stream.epoch))
        self._arrived.set()

    def gap(self, reason: str) -> None:
        """End the publications: some are lost after those that wait."""
        self._gap = self._gap or reason
        self._arrived.set()

    async def next(self) -> tuple[Entry, Record, str]:
        """Wait for the next publication; return it with its epoch.

        Raises:
            GapError: publications are lost.
        """
        while not self._waiting:
            if self._gap:
                raise GapError(f"channel {self._followed.name}: {self._gap}")
            self._arrived.clear()
            await self._arrived.wait()
        entry, record, epoch = self._waiting.popleft()
        self._size -= len(entry.record)
        return entry, record, epoch


class Listeners(BrokerEventHandler):
    """The listeners of a node; `limit` is in bytes that may wait for one of them."""

    def __init__(self, node: Node, limit: int) -> None:
        self._node = node
        self._limit = limit
        self._listeners: dict[str, set[Listener]] = {}

    @contextlib.asynccontextmanager
    async def open(self, name: str, since: Position | None = None) -> AsyncIterator[Listener]:
        """Listen to a channel inside of the block, from `since` on, or from now on.

        Raises:
            CallError: the channel does not exist, or has no history for `since`, or Redis is
                unavailable.
            GapError: the history does not reach back to `since`.
        """
        follower: Follower | None = None
        try:
            with call_errors():
                channel = self._node.channels.find(name)
                follower = self._node.broker.followed.follow(channel.name, channel.options)
                listener = await self._catch_up(follower, since)
            try:
                yield listener
            finally:
                self._remove(name, listener)
        finally:
            if follower is not None:
                follower.release()

    async def _catch_up(self, follower: Follower, since: Position | None) -> Listener:
        broker, followed = self._node.broker, follower.followed
        if since is not None and not followed.options.has_history:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "the channel has no history")
        await follower.confirmed()
        if followed.options.has_history:
            await broker.followed.need_position(followed)
        limit = followed.options.history_size
        async with broker.followed.catch_up(followed, since, limit, self._limit) as (reading, _):
            listener = Listener(follower, self._limit)
            if since is not None and reading is not None:
                same_epoch = since.epoch in ("", reading.epoch)
                if not same_epoch or not reading.continues(since.offset):
                    raise GapError(
                        f"channel {followed.name}: its history does not reach {since}, or has over "
                        f"{self._limit} bytes after it"
                    )
                for entry, record in all_understood(followed.name, reading.entries):
                    listener.put(entry, record)
            self._listeners.setdefault(followed.name, set()).add(listener)
        return listener

    def _remove(self, name: str, listener: Listener) -> None:
        listeners = self._listeners[name]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[name]

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Add a publication to the channel's listeners."""
        for listener in self._listeners.get(channel, ()):
            listener.put(entry, record)

    def lost(self, channel: str) -> None:
        """Let the channel's listeners end: they cannot get what is lost."""
        for listener in self._listeners.get(channel, ()):
            listener.gap("Redis has lost publications")


def to_publication(entry: Entry, record: Record, epoch: str) -> Publication:
    """Return a publication as the application sees it."""
    return Publication(
        data=_value(record.data),
        offset=entry.offset,
        epoch=epoch if entry.offset else "",
        info=_client_info(record.publisher) if record.publisher else None,
        tags=record.tags,
    )


def _client_info(member: Member) -> ClientInfo:
    return ClientInfo(
        client=member.client,
        user=member.user,
        conn_info=_value(member.conn_info or b"null"),
        chan_info=_value(member.chan_info or b"null"),
    )


def _value(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return data.decode(errors="replace")
