"""One client's presence in its channels, and its joins and leaves."""

import contextlib

from redis.exceptions import RedisError

from wsfleet.broker.broker import Broker
from wsfleet.clients.centrifuge.subscription_table import Subscription, SubscriptionTable
from wsfleet.redis.store import UnavailableError


class Membership:
    """One client's subscriptions as Redis and the members of its channels know them.

    Changes are sent asynchronously: a removal may come after the entry of a newer subscription to
    the same channel. So each removal is followed by the newer one's entry.
    """

    __slots__ = ("_broker", "_client", "_table")

    def __init__(self, broker: Broker, client: str, table: SubscriptionTable) -> None:
        self._broker = broker
        self._client = client
        self._table = table

    async def enter(self, subscription: Subscription) -> None:
        """Add the client to the channel's presence.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        subscription.present = True
        await self._broker.presence_add(subscription.name, self._client, subscription.member)

    async def announce(self, subscription: Subscription) -> None:
        """Publish the join, unless the subscription has ended.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        if subscription.ended is None:
            subscription.announced = True
            await self._broker.publish_join(subscription.name, subscription.member)

    async def leave(self, subscription: Subscription) -> None:
        """Remove the client from the presence and publish the leave, if Redis is available."""
        name = subscription.name
        with contextlib.suppress(UnavailableError, RedisError):
            if subscription.present:
                await self._remove(subscription)
            if subscription.announced:
                await self._broker.publish_leave(name, subscription.member)
                newer = self._table.get(name)
                if newer is not None and newer.announced:
                    await self._broker.publish_join(name, newer.member)

    async def renew(self, subscription: Subscription) -> None:
        """Renew the client's entry in the presence before it expires.

        If the subscription ends meanwhile, the renewal may come after the removal and bring the
        entry back: so it is removed once more.
        """
        if subscription.ended is not None:
            return
        with contextlib.suppress(UnavailableError, RedisError):  # the next round, or its expiry
            try:
                await self._broker.presence_add(
                    subscription.name, self._client, subscription.member
                )
            finally:
                if subscription.ended is not None:
                    await self._remove(subscription)

    async def _remove(self, subscription: Subscription) -> None:
        name = subscription.name
        await self._broker.presence_remove(name, self._client)
        newer = self._table.get(name)
        if newer is not None and newer.present:
            await self._broker.presence_add(name, self._client, newer.member)
