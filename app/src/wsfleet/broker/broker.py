"""The channels of the cluster, on Redis: publications, presence, joins and leaves.

One Redis Function gives a publication its offset, stores it in the channel's stream and sends it by
pub/sub.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from msgspec import DecodeError

from wsfleet.broker.events import Dispatcher
from wsfleet.broker.following import FollowedChannels
from wsfleet.broker.history import new_epoch, read_history
from wsfleet.channels import publication
from wsfleet.channels.permissions import ChannelError
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Position, Reading
from wsfleet.config.schema import PRESENCE_TTL, ChannelOptions
from wsfleet.protocol.centrifuge.codes import ErrorCode
from wsfleet.redis import key_names
from wsfleet.redis.store import Store, UnavailableError
from wsfleet.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

ONCE_TTL = 300
"""Seconds in which publications with the same idempotency key are published once."""


class ReplyTooLargeError(ChannelError):
    """An answer would be larger than `client.reply_max_size`."""

    def __init__(self, max_size: int) -> None:
        super().__init__(
            ErrorCode.LIMIT_EXCEEDED,
            f"the answer has more than {max_size} bytes (client.reply_max_size): ask for less",
        )


class Broker:
    """The channels of the cluster: commands for Redis, and what this process follows.

    `followed` has the channels that this process follows.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        dispatcher: Dispatcher,
        metrics: Metrics,
        probe_interval: float,
        max_publication_size: int,
        on_subscribed: Callable[[], None],
    ) -> None:
        self._store = store
        self._max_publication_size = max_publication_size
        self.followed = FollowedChannels(
            store, node, dispatcher, metrics, probe_interval, on_subscribed
        )
        self.patience = self.followed.patience

    @property
    def subscribed(self) -> bool:
        """Whether pub/sub delivers everything that is followed."""
        return self.followed.subscribed

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that must run in the background."""
        return self.followed.loops()

    def check(self, record: Record) -> None:
        """Check that a record is not too large to publish.

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
        """Store a record and publish it; return its position, with offset 0 if it is not stored.

        When this returns, the primary has the record; with `durability: replicated`, a replica has
        it too. Calls with the same `idempotency_key` within `ONCE_TTL` seconds publish once. With a
        `version`, the record is published only if that is above the version of the last one in
        the same `version_epoch` ("": in any); otherwise the position of the stream's top is
        returned.

        Raises:
            ChannelError: the record is too large, see `check`; or NOT_AVAILABLE, if there is a
                version, and the channel has no history.
            UnavailableError: Redis is unavailable, or no replica confirmed: the record may or may
                not be stored. Publish again with the same idempotency key.
        """
        if version and not options.has_history:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "version needs a channel with history")
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
            new_epoch(),
            ONCE_TTL if idempotency_key else 0,
            int(replicated),
            version,
            version_epoch,
            replicated=replicated,
        )
        if replicated and not await self._store.function(
            "confirm", pair, key_names.channel(channel), offset, epoch, options.history_size
        ):
            raise UnavailableError("the channel's history was lost during the publication")
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
        """Read a channel's publications, see `read_history`."""
        return await read_history(
            self._store, channel, options, since, limit, max_size=max_size, reverse=reverse
        )

    async def forget_history(self, channel: str) -> None:
        """Remove the channel's stream; offsets continue with the next publication.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await self._store.call("DEL", key_names.stream(channel))

    async def presence_add(self, channel: str, client: str, member: Member) -> None:
        """Add a client to the channel's presence, for PRESENCE_TTL seconds from now.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        pair = [key_names.presence(channel), key_names.presence_expiry(channel)]
        await self._store.function("join", pair, client, publication.encode(member), PRESENCE_TTL)

    async def presence_remove(self, channel: str, client: str) -> None:
        """Remove a client from the channel's presence.

        Raises:
            UnavailableError: Redis is unavailable; the entry will expire.
        """
        pair = [key_names.presence(channel), key_names.presence_expiry(channel)]
        await self._store.function("leave", pair, client)

    async def members(self, channel: str, *, max_size: int = 0) -> dict[str, Member]:
        """Return the channel's presence by client; `max_size` is in bytes, 0 is no limit.

        Raises:
            ReplyTooLargeError: the members have more than `max_size` bytes.
            UnavailableError: Redis is unavailable.
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
                log.warning("member_invalid", channel=channel, error=str(error))
        return found

    async def publish_join(self, channel: str, member: Member) -> None:
        """Publish to the channel's subscribers that a member joined; this is not stored.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await self._store.call(
            "SPUBLISH", key_names.channel(channel), b"j\n" + publication.encode(member)
        )

    async def publish_leave(self, channel: str, member: Member) -> None:
        """Publish to the channel's subscribers that a member left; this is not stored.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await self._store.call(
            "SPUBLISH", key_names.channel(channel), b"l\n" + publication.encode(member)
        )

    async def publish_control(self, message: bytes, node: str = "") -> None:
        """Publish a control message to one node, or to every node, this one among them.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await self._store.call(
            "SPUBLISH", key_names.control(node) if node else key_names.CONTROL, message
        )
