"""The subscriptions of one connection: each is reserved, goes live, and ends once."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from wsfleet.broker.following import Follower
from wsfleet.channels.permissions import Channel
from wsfleet.channels.publication import Member
from wsfleet.clients.centrifuge.errors import EndedError
from wsfleet.clients.centrifuge.push import Format
from wsfleet.config.schema import ChannelOptions
from wsfleet.hub.connection import Connection
from wsfleet.hub.hub import Hub
from wsfleet.protocol.centrifuge.codes import UnsubscribeCode


@dataclass(slots=True, eq=False)
class Subscription:
    """A connection's subscription to a channel, and all that is held for it until it ends.

    `expire_at` is in Unix seconds, 0 is never. `token_id` is the `jti` of the subscription token
    that it was made with, or refreshed with last. `present` is whether the client was added to the
    channel's presence, `announced` whether its join was published.
    """

    channel: Channel
    options: ChannelOptions
    member: Member
    server_side: bool
    token_id: str = ""
    expire_at: int = 0
    follower: Follower | None = None
    expiry: asyncio.TimerHandle | None = None
    present: bool = False
    announced: bool = False
    ended: UnsubscribeCode | None = None

    @property
    def name(self) -> str:
        """Name of the channel."""
        return self.channel.name

    @property
    def known_outside(self) -> bool:
        """Whether Redis or other members know of it, and have to be told of its end."""
        return self.present or self.announced

    @property
    def positioned(self) -> bool:
        """Whether its client is told when publications are lost."""
        return self.options.force_positioning or self.options.force_recovery

    def check(self) -> None:
        """Check that the subscription was not ended while something was awaited for it.

        Raises:
            EndedError: it was.
        """
        if self.ended is not None:
            raise EndedError(self.name, self.ended)


class SubscriptionTable:
    """A connection's subscriptions by channel: `live`, or `reserved` while they are made.

    A subscription is reserved before anything is awaited for it, and what it acquires is noted in
    it at once. So `end` finds everything at any moment, and is the only way out.
    """

    __slots__ = ("_connection", "_format", "_hub", "live", "reserved")

    def __init__(self, hub: Hub, connection: Connection, format_: Format) -> None:
        self._hub = hub
        self._connection = connection
        self._format = format_
        self.live: dict[str, Subscription] = {}
        self.reserved: dict[str, Subscription] = {}

    def __len__(self) -> int:
        """Return the number of channels, live and reserved."""
        return len(self.live) + len(self.reserved)

    def __contains__(self, channel: str) -> bool:
        """Return whether there is a subscription to a channel, live or reserved."""
        return channel in self.live or channel in self.reserved

    def __iter__(self) -> Iterator[Subscription]:
        """Iterate over a copy of all subscriptions: they may end meanwhile."""
        return iter([*self.live.values(), *self.reserved.values()])

    def get(self, channel: str) -> Subscription | None:
        """Return the subscription to a channel, live or reserved."""
        return self.live.get(channel) or self.reserved.get(channel)

    def reserve(self, subscription: Subscription) -> None:
        """Reserve the channel, to which there must be no subscription."""
        self.reserved[subscription.name] = subscription

    def go_live(self, subscription: Subscription) -> None:
        """Subscribe the connection to the channel's topics.

        Raises:
            EndedError: the subscription was ended.
        """
        subscription.check()
        name = subscription.name
        self.live[name] = self.reserved.pop(name)
        self._hub.subscribe(self._connection, self._format.publications + name)
        if subscription.options.force_push_join_leave:
            self._hub.subscribe(self._connection, self._format.members + name)

    def end(self, subscription: Subscription, code: UnsubscribeCode) -> bool:
        """End this very subscription, and release its resources on this node.

        Returns:
            True for the first caller, which tells the client and Redis; False for all others.
        """
        if subscription.ended is not None:
            return False
        subscription.ended = code
        name = subscription.name
        if self.live.get(name) is subscription:
            del self.live[name]
            self._hub.unsubscribe(self._connection, self._format.publications + name)
            self._hub.unsubscribe(self._connection, self._format.members + name)
        else:
            del self.reserved[name]
        if subscription.expiry is not None:
            subscription.expiry.cancel()
        if subscription.follower is not None:
            subscription.follower.release()
        return True
