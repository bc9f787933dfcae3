"""Channels across the nodes: publish, follow, history, presence, on Redis.

A publication gets its offset, is kept in the channel's stream and sent by pub/sub in one Redis
Function. Each process follows the channels that its clients hear: pub/sub is the fast way, the
stream the sure one. A gap is filled from the stream, a new pub/sub connection begins with a look at
it, and so does every channel that was quiet for a while.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from msgspec import DecodeError
from redis.exceptions import RedisError

from wsfleet.broker.events import Listeners
from wsfleet.broker.pubsub import Subscriber
from wsfleet.channels import publication
from wsfleet.channels.permissions import ChannelError
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry, Reading, Stream
from wsfleet.config.file import PRESENCE_TTL, ChannelOptions
from wsfleet.protocol.centrifuge.codes import ErrorCode
from wsfleet.redis import key_names
from wsfleet.redis.background import Background
from wsfleet.redis.store import FullError, Store, UnavailableError
from wsfleet.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

ONCE_TTL = 300
"""Seconds in which a publication with the same idempotency key is taken for the same."""
CHECK_AFTER = 25.0
"""Seconds of silence in a channel after which its stream's top is looked at."""
REMEMBERED = 60
"""Seconds beyond the `history_ttl` that the epoch of a channel is remembered where nobody has
published: longer than from one look at its top to the next."""
FOLLOW_TIMEOUT = 5.0
LINGER = 1.0
"""Seconds that a channel without subscribers is still followed."""
MAX_OFFSET = 2**53
"""Lua counts no further without gaps."""
FIELDS = 3
"""Of an entry in the history's answer: offset, previous, record."""
READ_SIZE = 1_048_576
"""Bytes of publications that are read at a time to fill a gap."""


class ReplyTooLargeError(ChannelError):
    """An answer would be larger than `client.reply_max_size`."""

    def __init__(self, max_size: int) -> None:
        super().__init__(
            ErrorCode.LIMIT_EXCEEDED,
            f"the answer has more than {max_size} bytes (client.reply_max_size): ask for less",
        )


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream."""

    offset: int = 0
    epoch: str = ""


@dataclass
class Following:
    """A channel that this process follows, and those who are about to join it."""

    name: str
    options: ChannelOptions
    on_unused: Callable[["Following"], None]
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
        """Up to where subscribers have been served.

        Where nobody has published, and Redis has no room for an epoch, it is of an epoch of its
        own: nobody recovers from there, rather than from where something may be missing.
        """
        return Position(self.stream.offset, self.stream.epoch or _new_epoch())


class Follower:
    """One subscriber's share in a `Following`, which counts its followers; given back once."""

    __slots__ = ("_released", "following")

    def __init__(self, following: Following) -> None:
        self.following = following
        self._released = False
        following.followers += 1

    async def confirmed(self) -> None:
        """Wait until every publication from now on is heard, or it was released.

        Raises:
            UnavailableError: Redis is away.
        """
        following = self.following
        if not following.confirmed.is_set():
            excuse = "the channel cannot be followed: Redis does not answer"
            async with following.patience(FOLLOW_TIMEOUT, excuse):
                await following.confirmed.wait()

    def release(self) -> None:
        """Give the share back; to do so again does nothing."""
        if self._released:
            return
        self._released = True
        self.following.followers -= 1
        if self.following.followers == 0:
            self.following.on_unused(self.following)


class Broker:
    """The pub/sub connections are shared by all channels."""

    def __init__(
        self,
        store: Store,
        node: str,
        listener: Listeners,
        metrics: Metrics,
        probe_interval: float,
        max_publication_size: int,
        on_subscribed: Callable[[], None],
    ) -> None:
        self._store = store
        self._max_publication_size = max_publication_size
        self._listener = listener
        self._following: dict[str, Following] = {}
        self._metrics = metrics
        self._background = Background(metrics.handler_failed)
        self._subscriber = Subscriber(
            store, node, metrics, probe_interval, self._confirmed, self._hear, on_subscribed
        )
        self._control = {key_names.CONTROL, key_names.control(node)}
        self._subscriber.want(*self._control)
        self.patience = self._subscriber.patience

    @property
    def subscribed(self) -> bool:
        """Whether everything that is followed is heard."""
        return self._subscriber.subscribed

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What must run in the background while the broker is used."""
        return [self._subscriber.run(), self._check_tops()]

    # Publishing, history, presence: one function call each.

    def check(self, record: Record) -> None:
        """Refuse a record that is too large to publish.

        Raises:
            ChannelError: BAD_REQUEST, with the size and the limit.
        """
        size, limit = record.size, self._max_publication_size
        if size > limit:
            raise ChannelError(
                ErrorCode.BAD_REQUEST,
                f"data and tags have {size} bytes; a publication may have {limit}"
                " (WSFLEET_MAX_PUBLICATION_SIZE)",
            )

    async def publish(
        self,
        channel: str,
        options: ChannelOptions,
        record: Record,
        idempotency_key: str = "",
        *,
        skip_history: bool = False,
        version: int = 0,
        version_epoch: str = "",
    ) -> Position:
        """Keep a record and send it; returns its place, offset 0 where it is not kept.

        When this returns the primary has the record, with `durability: replicated` a replica too.
        The same `idempotency_key` within five minutes publishes once. With a `version`, the record
        is published if that is above the version of the last one in the same `version_epoch` ("":
        in any); otherwise the stream's top is returned.

        Raises:
            ChannelError: the record is too large, see `check`.
            UnavailableError: it is not known to have been kept: Redis is away, or no replica
                confirmed. Publish again with the same idempotency key.
        """
        self.check(record)
        kept = options.has_history and not skip_history
        replicated = options.durability == "replicated" and kept
        pair = [key_names.stream(channel), key_names.meta(channel)]
        offset, epoch = await self._store.function(
            "publish",
            [*pair, key_names.once(channel, idempotency_key)],
            key_names.channel(channel),
            publication.encode(record),
            options.history_size if kept else 0,
            options.history_ttl,
            options.history_meta_ttl,
            _new_epoch(),
            ONCE_TTL if idempotency_key else 0,
            int(replicated),
            version,
            version_epoch,
            replicated=replicated,
        )
        if replicated and not await self._store.function(
            "confirm", pair, key_names.channel(channel), offset, epoch, options.history_size
        ):
            raise UnavailableError("the channel's history was lost in this moment")
        return Position(offset, epoch.decode())

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        since: int,
        limit: int,
        *,
        max_size: int,
        reverse: bool = False,
    ) -> Reading:
        """Read at most `limit` publications after offset `since` (in reverse: before it).

        The reading is cut before the records have more than `max_size` bytes together, but has at
        least one. Redis stops there as well. Where nobody has published, the epoch is empty.

        Raises:
            UnavailableError: Redis is away.
        """
        if not options.has_history:
            return Reading("", 0)
        offset, epoch, flat, cut = await self._store.function(
            "history",
            [key_names.stream(channel), key_names.meta(channel)],
            since,
            limit,
            int(reverse),
            max_size,
        )
        entries = [Entry(*flat[i : i + FIELDS]) for i in range(0, len(flat), FIELDS)]
        return Reading(epoch.decode(), offset, entries, bool(cut))

    async def forget_history(self, channel: str) -> None:
        """Remove the channel's stream; the next publication goes on counting.

        Raises:
            UnavailableError: Redis is away.
        """
        await self._store.call("DEL", key_names.stream(channel))

    async def join(self, channel: str, client: str, member: Member) -> None:
        """Say that a client is in the channel; again within PRESENCE_TTL seconds, or it is not.

        Raises:
            UnavailableError: Redis is away.
        """
        pair = [key_names.presence(channel), key_names.presence_expiry(channel)]
        await self._store.function("join", pair, client, publication.encode(member), PRESENCE_TTL)

    async def leave(self, channel: str, client: str) -> None:
        """Say that a client has left the channel.

        Raises:
            UnavailableError: Redis is away; it will expire.
        """
        pair = [key_names.presence(channel), key_names.presence_expiry(channel)]
        await self._store.function("leave", pair, client)

    async def members(self, channel: str, *, max_size: int = 0) -> dict[str, Member]:
        """Who is in the channel, by client; `max_size` in bytes, 0 is no limit.

        Raises:
            ReplyTooLargeError: they have more than `max_size` bytes.
            UnavailableError: Redis is away.
        """
        pair = [key_names.presence(channel), key_names.presence_expiry(channel)]
        flat = await self._store.function("members", pair, max_size)
        if flat is None:
            raise ReplyTooLargeError(max_size)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        found = {}
        for client, member in pairs:
            try:
                found[client.decode()] = publication.decode_member(member)
            except (UnicodeDecodeError, DecodeError) as error:  # of a newer node, or not of a node
                log.warning("member not understood", channel=channel, error=str(error))
        return found

    async def tell_members(self, channel: str, joined: bool, member: Member) -> None:
        """Tell the channel's subscribers that somebody joined, or left; this is not kept.

        Raises:
            UnavailableError: Redis is away.
        """
        message = (b"j\n" if joined else b"l\n") + publication.encode(member)
        await self._store.call("SPUBLISH", key_names.channel(channel), message)

    async def command(self, command: bytes, node: str = "") -> None:
        """Give a command to one node, or to every node, this one among them.

        Raises:
            UnavailableError: Redis is away.
        """
        await self._store.call(
            "SPUBLISH", key_names.control(node) if node else key_names.CONTROL, command
        )

    # Following.

    def keep(self, channel: str, options: ChannelOptions) -> None:
        """Follow a channel for as long as the process lives; call it before the loops run."""
        self._following[channel] = self._new_following(channel, options)
        self._following[channel].followers += 1
        self._subscriber.want(key_names.channel(channel))

    def follow(self, channel: str, options: ChannelOptions) -> Follower:
        """Follow a channel for one more subscriber, until it releases what this returns.

        Wait for `Follower.confirmed` before `joining`. A channel without followers is followed for
        a moment longer, since the next one often comes at once.
        """
        following = self._following.get(channel)
        if following is None:
            following = self._following[channel] = self._new_following(channel, options)
            self._subscriber.subscribe(key_names.channel(channel))
        return Follower(following)

    def _new_following(self, channel: str, options: ChannelOptions) -> Following:
        return Following(channel, options, self._unfollow_later, self.patience)

    @asynccontextmanager
    async def joining(
        self, following: Following, since: Position | None, limit: int, max_size: int
    ) -> AsyncIterator[tuple[Reading | None, Position]]:
        """Let a subscriber join without a gap: inside the block nothing more is delivered.

        Yields what it missed after `since` (None without `since`) and the position from which on it
        gets everything live. Where that is more than `limit` publications or `max_size` bytes, the
        reading has no entries. There must be no await inside the block: delivery goes on with the
        event loop's next step.

        Raises:
            UnavailableError: Redis is away.
        """
        if since is None:
            yield None, following.position
            return
        while True:
            buffer: list[Entry] = []
            losses = following.losses
            following.buffers.append(buffer)
            try:
                missed = await self.history(
                    following.name, following.options, since.offset, limit, max_size=max_size
                )
                if (
                    missed.offset > following.stream.offset
                    or missed.epoch != following.stream.epoch
                ):
                    await self._read(following)
            finally:
                following.buffers.remove(buffer)
            if losses == following.losses and missed.epoch == following.stream.epoch:
                break
        entries = [*missed.entries, *(entry for entry in buffer if entry.offset > missed.offset)]
        # What came later counts as well, and must not hide a hole before it.
        size = sum(len(entry.record) for entry in entries)
        if size > max_size or not missed.continues(since.offset):
            entries = []
        position = following.position
        yield Reading(missed.epoch, position.offset, entries), position

    async def need_position(self, following: Following) -> None:
        """Make sure that the channel has an epoch, since a subscriber is to have a position in it.

        One that nobody has published to gets it now, and keeps it as long as a subscriber may come
        back to it.

        Raises:
            UnavailableError: Redis is away.
        """
        following.positioned = True
        if not following.stream.epoch:
            await self._read(following)

    def _unfollow_later(self, following: Following) -> None:
        asyncio.get_running_loop().call_later(LINGER, self._unfollow, following)

    def _unfollow(self, following: Following) -> None:
        if following.followers or self._following.get(following.name) is not following:
            return
        del self._following[following.name]
        self._subscriber.unsubscribe(key_names.channel(following.name))
        following.confirmed.set()  # wakes followers that were released while they waited

    # What is heard.

    def _confirmed(self, redis_channel: str) -> None:
        following = self._following.get(key_names.channel_name(redis_channel))
        if following is not None:
            # From now on every publication is heard: whatever came before is in the stream.
            self._background.start(self._read(following))

    def _hear(self, redis_channel: str, data: bytes) -> None:
        if redis_channel in self._control:
            self._listener.commanded(data)
            return
        following = self._following.get(key_names.channel_name(redis_channel))
        if following is not None:
            self._receive(following, data)

    def _receive(self, following: Following, envelope: bytes) -> None:
        following.heard_at = time.monotonic()
        head, _, payload = envelope.partition(b"\n")
        try:
            if head in (b"j", b"l"):
                member = publication.decode_member(payload)
                self._listener.member_changed(following.name, head == b"j", member)
                return
            entry, epoch = _publication(head, payload)
        except (ValueError, DecodeError) as error:  # of a newer node, or not of a node
            log.warning("message not understood", channel=following.name, error=str(error)[:200])
            return
        if entry.offset == 0:  # a channel without history
            self._listener.published(following.name, entry)
            return
        was_behind = following.stream.behind
        self._deliver(following, following.stream.receive(epoch, entry))
        if following.stream.behind and not was_behind:
            at = following.stream.offset
            log.info("gap", channel=following.name, offset=at, heard=entry.offset)
            self._background.start(self._read(following))

    def _deliver(self, following: Following, entries: list[Entry]) -> None:
        for entry in entries:
            for buffer in following.buffers:
                buffer.append(entry)
            self._listener.published(following.name, entry)

    async def _read(self, following: Following) -> None:
        """Read the stream until nothing is missing."""
        async with following.lock:
            stream = following.stream
            first = not following.confirmed.is_set()
            if following.options.has_history:
                if following.positioned and not stream.offset:
                    await self._begin(following)
                while True:
                    reading = await self.history(
                        following.name,
                        following.options,
                        stream.read_after(),
                        0 if first else following.options.history_size,
                        max_size=READ_SIZE,
                    )
                    entries, lost = stream.fill(reading)
                    if lost and not first:
                        following.losses += 1
                        log.warning("publications lost", channel=following.name)
                        self._listener.lost(following.name)
                    self._deliver(following, entries)
                    if not stream.behind:
                        break
            following.heard_at = time.monotonic()
            following.confirmed.set()

    async def _begin(self, following: Following) -> None:
        """Give the channel an epoch if nobody has published, or remember the one it has longer."""
        pair = [key_names.stream(following.name), key_names.meta(following.name)]
        ttl = following.options.history_ttl + REMEMBERED
        with contextlib.suppress(FullError):
            await self._store.function("begin", pair, _new_epoch(), ttl)

    async def _check_tops(self) -> None:
        """Look at the streams of channels that were quiet, in case pub/sub lost their last word."""
        while True:
            await asyncio.sleep(CHECK_AFTER / 10)
            quiet = time.monotonic() - CHECK_AFTER
            for following in list(self._following.values()):
                behind = following.options.has_history and following.stream.behind
                if behind or following.heard_at < quiet:
                    try:
                        await self._read(following)
                    except (UnavailableError, RedisError) as error:
                        log.debug("check failed", channel=following.name, error=str(error))
                    except Exception:  # what one channel's keys hold ends nobody else's checks
                        log.exception("check failed", channel=following.name)
                        self._metrics.handler_failed("check")


def _publication(head: bytes, record: bytes) -> tuple[Entry, str]:
    """Read the head of a publication; returns its place in the stream, and the stream's epoch.

    Raises:
        ValueError: it is invalid.
    """
    _, offset, previous, epoch = head.split(b" ", 3)
    entry = Entry(int(offset), int(previous), record)
    if not (0 <= entry.previous < entry.offset < MAX_OFFSET or entry.offset == 0):
        raise ValueError("its offsets are out of range, or do not ascend")
    return entry, epoch.decode()


def _new_epoch() -> str:
    """What a stream that is new is called; each publication offers one, so it must cost little."""
    return f"{random.getrandbits(32):08x}"
