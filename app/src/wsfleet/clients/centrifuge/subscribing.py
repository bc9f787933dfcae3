"""Making a reserved subscription live: permission, position, presence, and what was missed."""

from wsfleet.application.port import Backend
from wsfleet.auth.tokens import (
    Grant,
    SubscriptionToken,
    TokenError,
    TokenExpiredError,
    TokenMismatchError,
)
from wsfleet.channels.permissions import Channel, may_subscribe, subscription_options
from wsfleet.channels.publication import Member, all_understood
from wsfleet.channels.stream import Position, Reading
from wsfleet.clients.centrifuge.application_calls import ApplicationCalls
from wsfleet.clients.centrifuge.errors import DisconnectedError, RefusedError
from wsfleet.clients.centrifuge.identity import ClientIdentity
from wsfleet.clients.centrifuge.membership import Membership
from wsfleet.clients.centrifuge.push import Sender, to_publication
from wsfleet.clients.centrifuge.subscription_table import Subscription, SubscriptionTable
from wsfleet.clients.centrifuge.timers import ttl
from wsfleet.config.schema import ChannelOptions
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
        "_calls",
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
        calls: ApplicationCalls | None,
    ) -> None:
        self._node = node
        self._calls = calls
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
        backend: Backend | None = None,
    ) -> SubscribeResult:
        """Make a reserved subscription live, or end it; it recovers at most `max_size` bytes.

        With a `backend`, that decides, and its grant replaces `grant`.

        There is no gap if the caller sends the result before it awaits anything: delivery goes on
        with the event loop's next step.

        Raises:
            EndedError: it was ended meanwhile.
            RefusedError, UnavailableError, redis.exceptions.RedisError: it cannot be made.
            DisconnectedError: the backend disconnects the client.
        """
        try:
            if backend is not None and self._calls is not None:
                grant = await self._ask(self._calls, backend, subscription, request)
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
            if self.backend(channel, request) is not None:
                return None
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

    def backend(self, channel: Channel, request: SubscribeRequest) -> Backend | None:
        """Return the backend that decides on a subscription.

        None if its token or its name do, or if the namespace has none.
        """
        if self._calls is None or request.token or channel.private or channel.users is not None:
            return None
        return self._calls.router.subscribe(channel.namespace)

    def renewing_backend(self, subscription: Subscription) -> Backend | None:
        """Return the backend that renews a subscription; None if the client does, by a token."""
        if self._calls is None:
            return None
        return self._calls.router.sub_refresh(subscription.channel.namespace)

    def told_expiry(self, subscription: Subscription) -> int:
        """Return when the client is told that a subscription expires: 0 if the server renews it."""
        return 0 if self.renewing_backend(subscription) else subscription.expire_at

    def terms(
        self, channel: Channel, request: SubscribeRequest, grant: Grant
    ) -> tuple[ChannelOptions, Member]:
        """Return the options of a client's subscription, and the client as its member."""
        options = subscription_options(
            channel,
            self._identity.user,
            grant.applied_to(channel.options),
            positioned=request.positioned,
            recoverable=request.recoverable,
            join_leave=request.join_leave,
        )
        return options, self._identity.member(grant.info or b"")

    async def _ask(
        self,
        calls: ApplicationCalls,
        backend: Backend,
        subscription: Subscription,
        request: SubscribeRequest,
    ) -> Grant:
        answer = await calls.subscribe(backend, subscription.channel, request)
        subscription.check()
        terms = self.terms(subscription.channel, request, answer.grant)
        subscription.options, subscription.member = terms
        subscription.expire_at = answer.expire_at
        return answer.grant

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
        limit = (
            self._node.config.client.recovery_max_publication_limit
            or subscription.options.history_size
        )
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
        told = self.told_expiry(subscription)
        result = SubscribeResult(
            expires=told > 0,
            ttl=ttl(told),
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
