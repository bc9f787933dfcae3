"""The channels that this process follows: live by pub/sub, and complete by their streams.

Pub/sub is the fast path, the stream in Redis the reliable one. A gap is filled from the stream. The
stream is read when pub/sub has reconnected, and for every channel that has been silent for a while.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from msgspec import DecodeError
from redis.exceptions import RedisError

from wsfleet.broker.events import Dispatcher
from wsfleet.broker.history import new_epoch, read_history
from wsfleet.broker.pubsub import Subscriber
from wsfleet.channels import publication
from wsfleet.channels.stream import Entry, Position, Reading, Stream
from wsfleet.config.schema import ChannelOptions
from wsfleet.redis import key_names
from wsfleet.redis.background import Background
from wsfleet.redis.store import FullError, Store, UnavailableError
from wsfleet.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

CHECK_AFTER = 25.0
"""Seconds of silence in a channel after which the top of its stream is read."""
REMEMBERED = 60
"""Seconds beyond `history_ttl` for which Redis keeps the epoch of a channel without publications:
longer than the interval between two reads of its top."""
FOLLOW_TIMEOUT = 5.0
"""Seconds for Redis to confirm that a channel is followed."""
LINGER = 1.0
"""Seconds for which a channel without followers is still followed: often the next one follows."""
MAX_OFFSET = 2**53
"""The largest integer that Lua's numbers hold without gaps."""
READ_SIZE = 1_048_576
"""Bytes of publications that are read at a time to fill a gap."""


@dataclass
class FollowedChannel:
    """A channel that this process follows.

    `buffers` get the publications that arrive while a subscriber catches up. `losses` counts how
    often publications were lost for good. `heard_at` is when pub/sub, or a read, last said
    something of it.
    """

    name: str
    options: ChannelOptions
    on_unused: Callable[["FollowedChannel"], None]
    patience: Callable[[float, str], AbstractAsyncContextManager[None]]
    stream: Stream = field(default_factory=Stream)
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    buffers: list[list[Entry]] = field(default_factory=list)
    positioned: bool = False
    losses: int = 0
    followers: int = 0
    heard_at: float = field(default_factory=time.monotonic)

    @property
    def position(self) -> Position:
        """The position up to which subscribers have got everything.

        If nobody has published, and Redis has no memory left for an epoch, the position has an
        epoch of its own: no recovery from there succeeds, so none can miss anything.
        """
        return Position(self.stream.offset, self.stream.epoch or new_epoch())


class Follower:
    """One subscriber's reference to a `FollowedChannel`."""

    __slots__ = ("_released", "followed")

    def __init__(self, followed: FollowedChannel) -> None:
        self.followed = followed
        self._released = False
        followed.followers += 1

    async def confirmed(self) -> None:
        """Wait until every publication from now on arrives, or until `release`.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        followed = self.followed
        if not followed.confirmed.is_set():
            reason = "the channel cannot be followed: Redis does not answer"
            async with followed.patience(FOLLOW_TIMEOUT, reason):
                await followed.confirmed.wait()

    def release(self) -> None:
        """Release the reference; only the first call counts.

        After the last one, the channel is unsubscribed `LINGER` seconds later.
        """
        if self._released:
            return
        self._released = True
        self.followed.followers -= 1
        if self.followed.followers == 0:
            self.followed.on_unused(self.followed)


class FollowedChannels:
    """All channels that this process follows, and the pub/sub connections that they share."""

    def __init__(
        self,
        store: Store,
        node: str,
        dispatcher: Dispatcher,
        metrics: Metrics,
        probe_interval: float,
        on_subscribed: Callable[[], None],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._channels: dict[str, FollowedChannel] = {}
        self._background = Background(metrics.handler_failed)
        self._subscriber = Subscriber(
            store, node, metrics, probe_interval, self._confirmed, self._hear, on_subscribed
        )
        self._control = {key_names.CONTROL, key_names.control(node)}
        self._subscriber.want(*self._control)
        self.patience = self._subscriber.patience

    @property
    def subscribed(self) -> bool:
        """Whether pub/sub delivers everything that is followed."""
        return self._subscriber.subscribed

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that must run in the background."""
        return [self._subscriber.run(), self._check_tops()]

    def follow_always(self, channel: str, options: ChannelOptions) -> None:
        """Follow a channel for the life of the process; call it before `loops` run."""
        self._channels[channel] = self._new_channel(channel, options)
        self._channels[channel].followers += 1
        self._subscriber.want(key_names.channel(channel))

    def follow(self, channel: str, options: ChannelOptions) -> Follower:
        """Follow a channel for one subscriber, until it releases the follower.

        Wait for `Follower.confirmed` before `catch_up`.
        """
        followed = self._channels.get(channel)
        if followed is None:
            followed = self._channels[channel] = self._new_channel(channel, options)
            self._subscriber.subscribe(key_names.channel(channel))
        return Follower(followed)

    def _new_channel(self, channel: str, options: ChannelOptions) -> FollowedChannel:
        return FollowedChannel(channel, options, self._unfollow_later, self.patience)

    @asynccontextmanager
    async def catch_up(
        self, followed: FollowedChannel, since: Position | None, limit: int, max_size: int
    ) -> AsyncIterator[tuple[Reading | None, Position]]:
        """Read the publications that a subscriber missed; it subscribes inside the block.

        Yields the publications after `since` (None without `since`) and the position from which on
        the subscriber gets everything live. The reading has no entries if there are more than
        `limit` publications or `max_size` bytes. The block must not await: delivery goes on with
        the event loop's next step.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        if since is None:
            yield None, followed.position
            return
        while True:
            buffer: list[Entry] = []
            losses = followed.losses
            followed.buffers.append(buffer)
            try:
                missed = await read_history(
                    self._store,
                    followed.name,
                    followed.options,
                    since.offset,
                    limit,
                    max_size=max_size,
                )
                if missed.offset > followed.stream.offset or missed.epoch != followed.stream.epoch:
                    await self._read(followed)
            finally:
                followed.buffers.remove(buffer)
            if losses == followed.losses and missed.epoch == followed.stream.epoch:
                break
        entries = [*missed.entries, *(entry for entry in buffer if entry.offset > missed.offset)]
        # Live publications count as well, and must not hide a hole before them.
        size = sum(len(entry.record) for entry in entries)
        if size > max_size or not missed.continues(since.offset):
            entries = []
        position = followed.position
        yield Reading(missed.epoch, position.offset, entries), position

    async def need_position(self, followed: FollowedChannel) -> None:
        """Make sure that the channel has an epoch: a subscriber needs a position in it.

        A channel without publications gets its epoch now, and keeps it for as long as a subscriber
        may recover.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        followed.positioned = True
        if not followed.stream.epoch:
            await self._read(followed)

    def _unfollow_later(self, followed: FollowedChannel) -> None:
        asyncio.get_running_loop().call_later(LINGER, self._unfollow, followed)

    def _unfollow(self, followed: FollowedChannel) -> None:
        if followed.followers or self._channels.get(followed.name) is not followed:
            return
        del self._channels[followed.name]
        self._subscriber.unsubscribe(key_names.channel(followed.name))
        followed.confirmed.set()  # wakes followers that were released while they waited

    def _confirmed(self, redis_channel: str) -> None:
        followed = self._channels.get(key_names.channel_name(redis_channel))
        if followed is not None:
            # From now on every publication arrives; those before are in the stream.
            self._background.start(self._read(followed))

    def _hear(self, redis_channel: str, data: bytes) -> None:
        if redis_channel in self._control:
            self._dispatcher.commanded(data)
            return
        followed = self._channels.get(key_names.channel_name(redis_channel))
        if followed is not None:
            self._receive(followed, data)

    def _receive(self, followed: FollowedChannel, envelope: bytes) -> None:
        followed.heard_at = time.monotonic()
        head, _, payload = envelope.partition(b"\n")
        try:
            if head in (b"j", b"l"):
                member = publication.decode_member(payload)
                self._dispatcher.member_changed(followed.name, head == b"j", member)
                return
            entry, epoch = _publication(head, payload)
        except (ValueError, DecodeError) as error:  # of a newer node, or not of a node
            log.warning("pubsub_message_invalid", channel=followed.name, error=str(error)[:200])
            return
        if entry.offset == 0:  # a channel without history
            self._dispatcher.published(followed.name, entry)
            return
        was_behind = followed.stream.behind
        self._deliver(followed, followed.stream.receive(epoch, entry))
        if followed.stream.behind and not was_behind:
            at = followed.stream.offset
            log.info("subscription_gap", channel=followed.name, offset=at, heard=entry.offset)
            self._background.start(self._read(followed))

    def _deliver(self, followed: FollowedChannel, entries: list[Entry]) -> None:
        for entry in entries:
            for buffer in followed.buffers:
                buffer.append(entry)
            self._dispatcher.published(followed.name, entry)

    async def _read(self, followed: FollowedChannel) -> None:
        """Read the stream until nothing is missing."""
        async with followed.lock:
            stream = followed.stream
            first = not followed.confirmed.is_set()
            if followed.options.has_history:
                if followed.positioned and not stream.offset:
                    await self._begin(followed)
                while True:
                    reading = await read_history(
                        self._store,
                        followed.name,
                        followed.options,
                        stream.read_after(),
                        0 if first else followed.options.history_size,
                        max_size=READ_SIZE,
                    )
                    entries, lost = stream.fill(reading)
                    if lost and not first:
                        followed.losses += 1
                        log.warning("publications_lost", channel=followed.name)
                        self._dispatcher.lost(followed.name)
                    self._deliver(followed, entries)
                    if not stream.behind:
                        break
            followed.heard_at = time.monotonic()
            followed.confirmed.set()

    async def _begin(self, followed: FollowedChannel) -> None:
        """Create the channel's epoch if nobody has published, or extend its lifetime."""
        pair = [key_names.stream(followed.name), key_names.meta(followed.name)]
        ttl = followed.options.history_ttl + REMEMBERED
        with contextlib.suppress(FullError):
            await self._store.function("begin", pair, new_epoch(), ttl)

    async def _check_tops(self) -> None:
        """Read the streams of silent channels, in case pub/sub lost their last publication."""
        while True:
            await asyncio.sleep(CHECK_AFTER / 10)
            silent_since = time.monotonic() - CHECK_AFTER
            for followed in list(self._channels.values()):
                behind = followed.options.has_history and followed.stream.behind
                if behind or followed.heard_at < silent_since:
                    try:
                        await self._read(followed)
                    except (UnavailableError, RedisError) as error:
                        log.debug("top_check_failed", channel=followed.name, error=str(error))
                    except (
                        Exception
                    ):  # a defect in one channel's keys must not end the other checks
                        log.exception("top_check_failed", channel=followed.name)
                        self._metrics.handler_failed("check")


def _publication(head: bytes, record: bytes) -> tuple[Entry, str]:
    """Return a publication's entry and the stream's epoch, from the head of its message.

    Raises:
        ValueError: the head is invalid.
    """
    _, offset, previous, epoch = head.split(b" ", 3)
    entry = Entry(int(offset), int(previous), record)
    if not (0 <= entry.previous < entry.offset < MAX_OFFSET or entry.offset == 0):
        raise ValueError("the offsets are out of range, or do not ascend")
    return entry, epoch.decode()
