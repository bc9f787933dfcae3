"""Making a reserved subscription live: token, position, presence, and what the client missed."""

from wsfleet.auth.tokens import (
    Grant,
    SubscriptionToken,
    TokenError,
    TokenExpiredError,
    TokenMismatchError,
)
from wsfleet.channels.permissions import Channel, may_subscribe
from wsfleet.channels.publication import all_understood
from wsfleet.channels.stream import Position, Reading
from wsfleet.clients.centrifuge.errors import DisconnectedError, RefusedError
from wsfleet.clients.centrifuge.identity import ClientIdentity
from wsfleet.clients.centrifuge.membership import Membership
from wsfleet.clients.centrifuge.push import Sender, to_publication
from wsfleet.clients.centrifuge.subscription_table import Subscription, SubscriptionTable
from wsfleet.clients.centrifuge.timers import ttl
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode, UnsubscribeCode
from wsfleet.protocol.centrifuge.messages import (
    REJECT_UNRECOVERED,
    SubscribeRequest,
    SubscribeResult,
)
from wsfleet.redis.background import Background


class Subscribing:
    """The way of one client's subscriptions from reserved to live."""

    __slots__ = (
        "_background",
        "_config",
        "_identity",
        "_membership",
        "_node",
        "_sender",
        "_table",
    )

    def __init__(
        self,
        node: Node,
        identity: ClientIdentity,
        table: SubscriptionTable,
        membership: Membership,
        sender: Sender,
        background: Background,
    ) -> None:
        self._node = node
        self._config = node.config.client
        self._identity = identity
        self._table = table
        self._membership = membership
        self._sender = sender
        self._background = background

    async def make_live(
        self,
        subscription: Subscription,
        request: SubscribeRequest,
        grant: Grant,
        max_size: int,
    ) -> SubscribeResult:
        """Make a reserved subscription live, or end it; it recovers at most `max_size` bytes.

        There is no gap if the caller sends the result before it awaits anything: delivery goes on
        with the event loop's next step.

        Raises:
            EndedError: it was ended meanwhile.
            RefusedError, UnavailableError, redis.exceptions.RedisError: it cannot be made.
        """
        try:
            result = await self._acquire(subscription, request, max_size)
        except BaseException as error:
            own = self._table.end(subscription, UnsubscribeCode.CLIENT)
            # Also if it was ended by another: Redis may have been told of it after that.
            await self._background.finish(self._membership.leave(subscription))
            if not own and isinstance(error, Exception):
                subscription.check()
            raise
        result.data = grant.data or b""
        if subscription.options.join_leave:
            self._background.start(self._membership.announce(subscription))
        return result

    def permission(self, channel: Channel, request: SubscribeRequest) -> SubscriptionToken | None:
        """Check that the client may subscribe; return its token, None if it needs none.

        Raises:
            RefusedError, DisconnectedError: it may not, or its token is invalid.
        """
        if not request.token:
            if (refusal := may_subscribe(channel, self._identity.user)) is not None:
                raise RefusedError(refusal)
            return None
        try:
            return self.verify(request.token, channel.name)
        except TokenExpiredError:
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenMismatchError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        except TokenError:
            raise RefusedError(ErrorCode.PERMISSION_DENIED) from None

    def verify(self, token: str, channel: str) -> SubscriptionToken:
        """Verify a subscription token of this client for a channel.

        Raises:
            TokenError: it is invalid, expired, or another's.
        """
        verified = self._node.subscription_tokens.verify_subscription(token)
        verified.check(channel=channel, user=self._identity.user, client=self._identity.client)
        return verified

    async def check_token(self, token_id: str) -> None:
        """Check that a subscription token is not revoked.

        Raises:
            RefusedError: it is.
            UnavailableError: Redis is unavailable.
        """
        if await self._node.denylist.revoked(token_id):
            raise RefusedError(ErrorCode.PERMISSION_DENIED)

    async def _acquire(
        self, subscription: Subscription, request: SubscribeRequest, max_size: int
    ) -> SubscribeResult:
        """Acquire what a subscription needs; after each await it may have been ended."""
        followed, check = self._node.broker.followed, subscription.check
        await self.check_token(subscription.token_id)
        check()
        follower = subscription.follower = followed.follow(
            subscription.name, subscription.channel.options
        )
        await follower.confirmed()
        check()
        if subscription.positioned:
            await followed.need_position(follower.followed)
            check()
        if subscription.options.presence:
            await self._membership.enter(subscription)
            check()
        recovering = request.recover and subscription.options.force_recovery
        if recovering:
            await self._sender.drained()
            check()
        since = Position(request.offset, request.epoch) if recovering else None
        limit = self._config.recovery_max_publication_limit or subscription.options.history_size
        async with followed.catch_up(follower.followed, since, limit, max_size) as (
            reading,
            position,
        ):
            check()
            result = self._result(request, subscription, reading, position)
            self._table.go_live(subscription)
        return result

    def _result(
        self,
        request: SubscribeRequest,
        subscription: Subscription,
        reading: Reading | None,
        position: Position,
    ) -> SubscribeResult:
        result = SubscribeResult(
            expires=subscription.expire_at > 0,
            ttl=ttl(subscription.expire_at),
            was_recovering=request.recover,
        )
        if subscription.positioned:
            result.positioned = True
            result.recoverable = subscription.options.force_recovery
            result.epoch, result.offset = position.epoch, position.offset
        if reading is not None:
            same_epoch = request.epoch in ("", reading.epoch)
            recovered = same_epoch and reading.continues(request.offset)
            self._node.metrics.recovered(recovered)
            if recovered:
                result.recovered = True
                result.offset = request.offset
                result.publications = [
                    to_publication(entry, record)
                    for entry, record in all_understood(subscription.name, reading.entries)
                ]
            elif request.flag & REJECT_UNRECOVERED:
                raise RefusedError(ErrorCode.UNRECOVERABLE_POSITION)
        return result
