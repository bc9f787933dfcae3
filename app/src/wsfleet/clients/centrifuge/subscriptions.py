"""One client's subscriptions: commands that make, refresh and end them, and the server's API."""

import contextlib
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

from wsfleet.application.port import Backend
from wsfleet.auth.tokens import Grant, TokenError, TokenExpiredError
from wsfleet.broker import control
from wsfleet.channels.permissions import (
    Channel,
    ChannelError,
    may_subscribe,
)
from wsfleet.clients.centrifuge.application_calls import ApplicationCalls
from wsfleet.clients.centrifuge.errors import DisconnectedError, EndedError, RefusedError
from wsfleet.clients.centrifuge.identity import ClientIdentity
from wsfleet.clients.centrifuge.membership import Membership
from wsfleet.clients.centrifuge.push import Format, Sender
from wsfleet.clients.centrifuge.subscribing import Subscribing
from wsfleet.clients.centrifuge.subscription_table import Subscription, SubscriptionTable
from wsfleet.clients.centrifuge.timers import call_at, ttl
from wsfleet.hub.connection import Connection
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode, UnsubscribeCode
from wsfleet.protocol.centrifuge.messages import (
    ConnectRequest,
    SubRefreshRequest,
    SubRefreshResult,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
)
from wsfleet.redis.background import Background


class Reserved(NamedTuple):
    """A server-side subscription that connecting has reserved and not made yet."""

    subscription: Subscription
    request: SubscribeRequest
    grant: Grant


class Subscriptions:
    """One client's subscriptions: `table` has them, `membership` publishes them."""

    __slots__ = (
        "_background",
        "_calls",
        "_identity",
        "_node",
        "_sender",
        "_subscribing",
        "membership",
        "table",
    )

    def __init__(
        self,
        node: Node,
        connection: Connection,
        format_: Format,
        identity: ClientIdentity,
        sender: Sender,
        background: Background,
        calls: ApplicationCalls | None,
    ) -> None:
        self._node = node
        self._calls = calls
        self._identity = identity
        self._sender = sender
        self._background = background
        self.table = SubscriptionTable(node.hub, connection, format_)
        self.membership = Membership(node.broker, identity.client, self.table)
        self._subscribing = Subscribing(
            node, identity, self.table, self.membership, sender, background, calls
        )

    # The client's commands.

    async def subscribe(self, request: SubscribeRequest) -> SubscribeResult:
        """Subscribe the client to a channel.

        Raises:
            RefusedError, DisconnectedError, ChannelError: it may not.
            EndedError: the subscription was ended before it was live.
            UnavailableError, redis.exceptions.RedisError: Redis is unavailable.
        """
        if request.channel in self.table:
            raise RefusedError(ErrorCode.ALREADY_SUBSCRIBED)
        if len(self.table) >= self._node.config.client.channel_limit:
            raise RefusedError(ErrorCode.LIMIT_EXCEEDED)
        channel = self._node.channels.resolve(request.channel)
        if request.type != 0:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        if request.delta not in ("", "fossil"):
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        if request.tf:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        token = self._subscribing.permission(channel, request)
        grant = token.grant if token else Grant()
        options, member = self._subscribing.terms(channel, request, grant)
        subscription = Subscription(channel, options, member, server_side=False)
        if token:
            subscription.token_id, subscription.expire_at = token.id, token.expire_at
        self.table.reserve(subscription)
        size = self._node.config.client.reply_max_size
        backend = self._subscribing.backend(channel, request)
        result = await self._subscribing.make_live(subscription, request, grant, size, backend)
        self._expire_at(subscription, subscription.expire_at)
        return result

    async def refresh(self, request: SubRefreshRequest) -> SubRefreshResult:
        """Extend a subscription with a new token.

        Raises:
            RefusedError, DisconnectedError: the token is invalid, or there is no subscription.
            UnavailableError: Redis is unavailable.
        """
        subscription = self.table.live.get(request.channel)
        if subscription is None:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        if not request.token:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        try:
            token = self._subscribing.verify(request.token, request.channel)
        except TokenExpiredError:
            # Temporary: SDKs fetch another token, where a final error would end the subscription.
            raise RefusedError(ErrorCode.TOKEN_EXPIRED, temporary=True) from None
        except TokenError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        # Set before the check: a revocation from now on finds the subscription.
        before, subscription.token_id = subscription.token_id, token.id
        try:
            await self._subscribing.check_token(token.id)
        except BaseException:
            subscription.token_id = before
            raise
        if subscription.ended is not None:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        self._expire_at(subscription, token.expire_at)
        told = self._subscribing.told_expiry(subscription)
        return SubRefreshResult(expires=told > 0, ttl=ttl(told))

    def unsubscribe(self, channel: str) -> None:
        """End the client's subscription to a channel, if there is one."""
        if subscription := self.table.get(channel):
            self._end(subscription, UnsubscribeCode.CLIENT)

    # Server-side subscriptions.

    def reserve(
        self, request: ConnectRequest, grants: dict[str, Grant], requested: Collection[str]
    ) -> list[Reserved]:
        """Reserve the subscriptions of a connect command: granted ones, and `requested` ones.

        All are reserved before the first is made, so that one that is ended meanwhile is not made.

        Raises:
            DisconnectedError: the name of a requested channel is invalid, or there are too many.
            ChannelError: a granted channel is unknown.
        """
        channels, user = self._node.channels, self._identity.user
        config = self._node.config.client
        personal = config.subscribe_to_user_personal_channel
        if personal.enabled and user:
            name = channels.personal(user, personal.personal_channel_namespace)
            grants.setdefault(name, Grant())
        for name in requested:
            if name in grants:
                continue
            try:
                channel = channels.resolve(name)
            except ChannelError:
                raise DisconnectedError(DisconnectCode.BAD_REQUEST) from None
            asks = self._calls is not None and self._calls.router.subscribe(channel.namespace)
            if not asks and may_subscribe(channel, user) is None:
                grants[name] = Grant()
        if len(grants) > config.channel_limit:
            raise DisconnectedError(DisconnectCode.CHANNEL_LIMIT)
        found = [(channels.find(name), grant) for name, grant in grants.items()]
        reserved = []
        for channel, grant in found:
            subscription = self._server_side(channel, grant)
            wanted = request.subs.get(channel.name, SubscribeRequest(channel.name))
            reserved.append(Reserved(subscription, wanted, grant))
        return reserved

    async def make_live(self, reserved: list[Reserved]) -> dict[str, SubscribeResult]:
        """Make reserved subscriptions live; return the results by channel, without ended ones.

        Raises:
            RefusedError, UnavailableError, redis.exceptions.RedisError: one cannot be made.
        """
        results: dict[str, SubscribeResult] = {}
        room = self._node.config.client.reply_max_size  # for all of them: they are one reply
        for subscription, request, grant in reserved:
            with contextlib.suppress(EndedError):
                result = await self._subscribing.make_live(subscription, request, grant, room)
                results[subscription.name] = result
                room -= sum(len(publication.data) for publication in result.publications)
        return results

    async def subscribe_server_side(self, wanted: control.UserCommand) -> None:
        """Subscribe the client as the server's API wants it, and push that to the client.

        Raises:
            ChannelError, DisconnectedError, EndedError: the subscription cannot be made.
        """
        if self._sender.ended or wanted.channel in self.table:
            return
        channel = self._node.channels.find(wanted.channel)
        request = SubscribeRequest(
            channel.name, recover=wanted.recover, epoch=wanted.epoch, offset=wanted.offset
        )
        grant = Grant(wanted.info or None, wanted.data or None, wanted.override)
        subscription = self._server_side(channel, grant, expire_at=wanted.expire_at)
        size = self._node.config.client.reply_max_size
        result = await self._subscribing.make_live(subscription, request, grant, size)
        self._expire_at(subscription, wanted.expire_at)
        event = Subscribe(
            result.recoverable, result.epoch, result.offset, result.positioned, result.data
        )
        self._sender.push(event, channel.name)
        for publication in result.publications:
            self._sender.push(publication, channel.name)

    # The end of subscriptions.

    def unsubscribe_server_side(self, channel: str) -> None:
        """End the subscription to a channel as the server's API wants it; "" is all channels."""
        for subscription in self.table:
            if channel in ("", subscription.name):
                self._end(subscription, UnsubscribeCode.SERVER)

    def revoke(self, token_id: str) -> None:
        """End the subscriptions that rest on a token."""
        for subscription in self.table:
            if subscription.token_id == token_id:
                self._end(subscription, UnsubscribeCode.SERVER)

    def lost(self, channel: str) -> None:
        """Let the client recover: publications in the channel were lost to it."""
        subscription = self.table.live.get(channel)
        if subscription is None or not subscription.positioned:
            return
        if subscription.server_side:
            self._sender.disconnect(DisconnectCode.INSUFFICIENT_STATE)
        else:
            self._end(subscription, UnsubscribeCode.INSUFFICIENT_STATE)

    async def end_all(self) -> None:
        """End all subscriptions, because the connection has ended; Redis is told if it answers."""
        code = UnsubscribeCode.DISCONNECT
        ended = [each for each in self.table if self.table.end(each, code)]
        leaves = [self.membership.leave(each) for each in ended if each.known_outside]
        await self._background.finish(*leaves)

    def _end(self, subscription: Subscription, code: UnsubscribeCode) -> None:
        """End a subscription, and tell its client, Redis and the other members.

        Nothing happens if the subscription has ended already. The client is told if the
        subscription is live and the client has not asked for the end. If the subscription is still
        being made, `Subscribing.make_live` raises EndedError.
        """
        name = subscription.name
        tells = name in self.table.live and code is not UnsubscribeCode.CLIENT
        if self.table.end(subscription, code):
            if tells:
                self._sender.push(code.push, name)
            if subscription.known_outside:
                self._background.start(self.membership.leave(subscription))

    def _expire_at(self, subscription: Subscription, expire_at: int) -> None:
        """Let a subscription expire at a moment in Unix seconds; 0 is never."""
        subscription.expire_at = expire_at
        if subscription.expiry is not None:
            subscription.expiry.cancel()
        backend, calls = self._subscribing.renewing_backend(subscription), self._calls
        if backend is not None and calls is not None:
            renewal = partial(self._renew, subscription, calls, backend)
            subscription.expiry = call_at(expire_at, 0, calls.start, renewal)
        else:
            delay = self._node.config.client.expired_sub_close_delay
            subscription.expiry = call_at(expire_at, delay, self._expired, subscription)

    async def _renew(
        self, subscription: Subscription, calls: ApplicationCalls, backend: Backend
    ) -> None:
        """Let the application renew a subscription, unless something else does meanwhile."""
        expired_at = subscription.expire_at
        renewed = await calls.sub_refresh(backend, subscription.channel)
        if subscription.ended is not None or subscription.expire_at != expired_at:
            return
        if renewed.expired:
            self._expired(subscription)
        else:
            if renewed.info is not None:
                subscription.member = self._identity.member(renewed.info)
            self._expire_at(subscription, renewed.expire_at)

    def _expired(self, subscription: Subscription) -> None:
        if subscription.server_side:
            self._sender.disconnect(DisconnectCode.SUB_EXPIRED)
        else:
            self._end(subscription, UnsubscribeCode.EXPIRED)

    def _server_side(self, channel: Channel, grant: Grant, *, expire_at: int = 0) -> Subscription:
        """Reserve a server-side subscription."""
        options = grant.applied_to(channel.options)
        member = self._identity.member(grant.info or b"")
        subscription = Subscription(channel, options, member, server_side=True, expire_at=expire_at)
        self.table.reserve(subscription)
        return subscription
