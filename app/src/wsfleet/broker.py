"""Channels across the nodes: publish, follow, history, presence, on Redis.

A publication gets its offset, is kept in the channel's stream and sent by pub/sub in one Redis
Function. Each process follows the channels that its clients hear: pub/sub is the fast way, the
stream the sure one. A gap is filled from the stream, a new pub/sub connection begins with a look at
it, and so does every channel that was quiet for a while.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from msgspec import DecodeError
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from wsfleet import keys, records
from wsfleet.config import ChannelOptions
from wsfleet.listener import Listeners
from wsfleet.records import Member, Record
from wsfleet.store import Store, UnavailableError
from wsfleet.stream import Entry, Reading, Stream

log = structlog.get_logger(__name__)

PROBE = b"probe"
PROBES_MISSED = 3
ONCE_TTL = 300
"""Seconds in which a publication with the same idempotency key is taken for the same."""
PRESENCE_TTL = 60
CHECK_AFTER = 25.0
"""Seconds of silence in a channel after which its stream's top is looked at."""
FOLLOW_TIMEOUT = 5.0
LINGER = 1.0
"""Seconds that a channel without subscribers is still followed."""
RECONNECT_PAUSE = 0.2


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
    stream: Stream = field(default_factory=Stream)
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    buffers: list[list[Entry]] = field(default_factory=list)
    losses: int = 0
    users: int = 0
    heard_at: float = field(default_factory=time.monotonic)

    @property
    def position(self) -> Position:
        """Up to where subscribers have been served."""
        return Position(self.stream.offset, self.stream.epoch)


class Broker:
    """One pub/sub connection a process, shared by all channels."""

    def __init__(self, store: Store, node: str, listener: Listeners, probe_interval: float) -> None:
        self._store = store
        self._control = keys.control(node)
        self._listener = listener
        self._probe_interval = probe_interval
        self._following: dict[str, Following] = {}
        self._pubsub: PubSub | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.subscribed = False

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What must run in the background while the broker is used."""
        return [self._stay_subscribed(), self._probe(), self._check_tops()]

    # Publishing, history, presence: one function call each.

    async def publish(
        self, channel: str, options: ChannelOptions, record: Record, idempotency_key: str = ""
    ) -> Position:
        """Keep a record and send it; returns its place, offset 0 in a channel without history.

        When this returns the primary has the record, with `durability: replicated` a replica too.
        The same `idempotency_key` within five minutes publishes once.

        Raises:
            UnavailableError: it is not known to have been kept: Redis is away, or no replica
                confirmed. Publish again with the same idempotency key.
        """
        offset, epoch = await self._store.function(
            "publish",
            [keys.stream(channel), keys.meta(channel), keys.once(channel, idempotency_key)],
            keys.channel(channel),
            records.encode(record),
            options.history_size if options.has_history else 0,
            options.history_ttl,
            options.history_meta_ttl,
            _new_epoch(),
            ONCE_TTL if idempotency_key else 0,
            replicated=options.durability == "replicated",
        )
        return Position(offset, epoch.decode())

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        since: int,
        limit: int,
        *,
        reverse: bool = False,
    ) -> Reading:
        """Read at most `limit` publications after offset `since` (in reverse: before it).

        Raises:
            UnavailableError: Redis is away.
        """
        offset, epoch, flat = await self._store.function(
            "history",
            [keys.stream(channel), keys.meta(channel)],
            since,
            limit,
            int(reverse),
            options.history_meta_ttl,
            _new_epoch(),
        )
        entries = [Entry(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        return Reading(epoch.decode(), offset, entries)

    async def forget_history(self, channel: str) -> None:
        """Remove the channel's stream; the next publication goes on counting.

        Raises:
            UnavailableError: Redis is away.
        """
        await self._store.call("DEL", keys.stream(channel))

    async def join(self, channel: str, client: str, member: Member) -> None:
        """Say that a client is in the channel; again within PRESENCE_TTL seconds, or it is not.

        Raises:
            UnavailableError: Redis is away.
        """
        pair = [keys.presence(channel), keys.presence_expiry(channel)]
        await self._store.function("join", pair, client, records.encode(member), PRESENCE_TTL)

    async def leave(self, channel: str, client: str) -> None:
        """Say that a client has left the channel.

        Raises:
            UnavailableError: Redis is away; it will expire.
        """
        pair = [keys.presence(channel), keys.presence_expiry(channel)]
        await self._store.function("leave", pair, client)

    async def members(self, channel: str) -> dict[str, Member]:
        """Who is in the channel, by client.

        Raises:
            UnavailableError: Redis is away.
        """
        pair = [keys.presence(channel), keys.presence_expiry(channel)]
        flat = await self._store.function("members", pair)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {client.decode(): records.decode_member(member) for client, member in pairs}

    async def tell_members(self, channel: str, joined: bool, member: Member) -> None:
        """Tell the channel's subscribers that somebody joined, or left; this is not kept.

        Raises:
            UnavailableError: Redis is away.
        """
        message = (b"j\n" if joined else b"l\n") + records.encode(member)
        await self._store.call("PUBLISH", keys.channel(channel), message)

    async def command(self, command: bytes, node: str = "") -> None:
        """Give a command to one node, or to every node, this one among them.

        Raises:
            UnavailableError: Redis is away.
        """
        await self._store.call("PUBLISH", keys.control(node) if node else keys.CONTROL, command)

    # Following.

    def keep(self, channel: str, options: ChannelOptions) -> None:
        """Follow a channel for as long as the process lives; call it before the loops run."""
        self._following[channel] = Following(channel, options, users=1)

    async def follow(self, channel: str, options: ChannelOptions) -> Following:
        """Begin to hear a channel, or hear it for one more; `unfollow` is its counterpart.

        Raises:
            UnavailableError: Redis is away.
        """
        following = self._following.get(channel)
        if following is None:
            following = self._following[channel] = Following(channel, options)
            if self._pubsub is not None and self.subscribed:
                await self._send_subscribe(self._pubsub, channel)
        following.users += 1
        try:
            async with asyncio.timeout(FOLLOW_TIMEOUT):
                await following.confirmed.wait()
        except TimeoutError:
            self.unfollow(following)
            raise UnavailableError(
                "the channel cannot be followed: Redis does not answer"
            ) from None
        except BaseException:
            self.unfollow(following)
            raise
        return following

    def unfollow(self, following: Following) -> None:
        """Hear it for one less; the last one's channel is left after a moment."""
        following.users -= 1
        if following.users == 0:
            asyncio.get_running_loop().call_later(LINGER, self._leave_if_unused, following)

    @asynccontextmanager
    async def joining(
        self, following: Following, since: Position | None, limit: int
    ) -> AsyncIterator[tuple[Reading | None, Position]]:
        """Let a subscriber join without a gap: inside the block nothing more is delivered.

        Yields what it missed after `since` (None without `since`) and the position from which on it
        gets everything live. There must be no await inside the block: delivery goes on with the
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
                missed = await self.history(following.name, following.options, since.offset, limit)
                if (
                    missed.offset > following.stream.offset
                    or missed.epoch != following.stream.epoch
                ):
                    await self._read(following)
            finally:
                following.buffers.remove(buffer)
            if losses == following.losses and missed.epoch == following.stream.epoch:
                break
        later = [entry for entry in buffer if entry.offset > missed.offset]
        position = following.position
        yield Reading(missed.epoch, position.offset, [*missed.entries, *later]), position

    def _leave_if_unused(self, following: Following) -> None:
        if following.users or self._following.get(following.name) is not following:
            return
        del self._following[following.name]
        if self._pubsub is not None and self.subscribed:
            self._background(self._send_unsubscribe(self._pubsub, following.name))

    async def resync(self) -> None:
        """Read the streams of all channels: Redis is there again.

        Raises:
            UnavailableError: or not.
        """
        await asyncio.gather(*(self._read(following) for following in self._following.values()))

    async def _send_subscribe(self, pubsub: PubSub, channel: str) -> None:
        try:
            await pubsub.subscribe(keys.channel(channel))
        except (RedisError, OSError) as error:
            # The connection's own loop finds out as well, and subscribes to all that is followed.
            log.debug("subscribe failed", channel=channel, error=str(error))

    async def _send_unsubscribe(self, pubsub: PubSub, channel: str) -> None:
        if channel not in self._following:  # nobody came back in the meantime
            await pubsub.unsubscribe(keys.channel(channel))

    def _background(self, work: Awaitable[Any]) -> None:
        async def run() -> None:
            try:
                await work
            except (UnavailableError, RedisError, OSError) as error:
                log.debug("put off", error=str(error))

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The pub/sub connection.

    async def _stay_subscribed(self) -> None:
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                if self.subscribed:
                    log.warning("subscription lost", error=str(error) or type(error).__name__)
            self.subscribed = False
            self._pubsub = None
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _listen(self) -> None:
        silence = PROBES_MISSED * self._probe_interval
        async with self._store.redis.pubsub() as pubsub:
            await pubsub.subscribe(self._control, keys.CONTROL)
            sent: set[str] = set()
            while missing := self._following.keys() - sent:  # some may come while we wait
                await pubsub.subscribe(*(keys.channel(name) for name in missing))
                sent |= missing
            self._pubsub = pubsub
            self.subscribed = True
            heard_at = time.monotonic()
            while time.monotonic() - heard_at < silence:
                message = await pubsub.get_message(timeout=self._probe_interval)
                if message is not None:
                    heard_at = time.monotonic()
                    self._hear(message["type"], message["channel"].decode(), message["data"])
        raise TimeoutError(f"no answer to {PROBES_MISSED} probes")

    def _hear(self, kind: str, redis_channel: str, data: Any) -> None:
        if redis_channel in (keys.CONTROL, self._control):
            if kind == "message" and data != PROBE:
                self._listener.commanded(data)
            return
        following = self._following.get(redis_channel[len(keys.CHANNEL_PREFIX) + 1 : -1])
        if following is None:
            return
        if kind == "subscribe":
            # From now on every publication is heard: whatever came before is in the stream.
            self._background(self._read(following))
        elif kind == "message":
            self._receive(following, data)

    def _receive(self, following: Following, envelope: bytes) -> None:
        following.heard_at = time.monotonic()
        head, _, payload = envelope.partition(b"\n")
        try:
            if head in (b"j", b"l"):
                member = records.decode_member(payload)
                self._listener.member_changed(following.name, head == b"j", member)
                return
            _, offset, epoch = head.split(b" ", 2)
            entry = Entry(int(offset), payload)
        except (ValueError, DecodeError) as error:  # of a newer node, or not of a node
            log.warning("message not understood", channel=following.name, error=str(error))
            return
        if entry.offset == 0:  # a channel without history
            self._listener.published(following.name, entry)
            return
        was_behind = following.stream.behind
        self._deliver(following, following.stream.receive(epoch.decode(), entry))
        if following.stream.behind and not was_behind:
            log.info("gap", channel=following.name, offset=following.stream.offset, heard=offset)
            self._background(self._read(following))

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
                while True:
                    reading = await self.history(
                        following.name,
                        following.options,
                        stream.read_after(),
                        0 if first else following.options.history_size,
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

    async def _probe(self) -> None:
        """Every interval, send a message to the node itself: silence would look like no traffic.

        A connection can be dead without an error (its peer frozen, or cut off by a firewall).
        """
        while True:
            await asyncio.sleep(self._probe_interval)
            try:
                await self._store.call("PUBLISH", self._control, PROBE)
            except (UnavailableError, RedisError) as error:
                log.debug("probe failed", error=str(error))

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


def _new_epoch() -> str:
    return uuid.uuid4().hex[:8]
