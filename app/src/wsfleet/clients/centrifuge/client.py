"""A client of the Centrifuge protocol: its commands, its subscriptions, its time-outs.

Semantics are those of github.com/centrifugal/centrifuge (client.go) with Centrifugo's rules for
channels; where this server differs, `docs/protocol.md` says so.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from wsfleet import __version__
from wsfleet.auth.tokens import (
    ConnectionToken,
    Grant,
    SubscriptionToken,
    TokenError,
    TokenExpiredError,
    TokenMismatchError,
)
from wsfleet.broker import control
from wsfleet.broker.broker import ReplyTooLargeError
from wsfleet.channels.permissions import (
    Channel,
    ChannelError,
    may_publish,
    may_read_history,
    may_see_presence,
    may_subscribe,
    subscription_options,
)
from wsfleet.channels.publication import Member, Record, all_understood
from wsfleet.channels.stream import Position, Reading
from wsfleet.clients.centrifuge.push import Format, client_info, framer, to_publication
from wsfleet.clients.centrifuge.subscriptions import EndedError, Subscription, Subscriptions
from wsfleet.config.file import ChannelOptions
from wsfleet.hub.connection import Connection
from wsfleet.protocol.centrifuge.codec import ProtocolError
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode, UnsubscribeCode
from wsfleet.protocol.centrifuge.messages import (
    REJECT_UNRECOVERED,
    Command,
    ConnectRequest,
    ConnectResult,
    Error,
    Event,
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    PublishRequest,
    PublishResult,
    Push,
    Refresh,
    RefreshRequest,
    RefreshResult,
    Reply,
    Result,
    RPCRequest,
    SendRequest,
    SubRefreshRequest,
    SubRefreshResult,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
    UnsubscribeResult,
)
from wsfleet.protocol.json_depth import payload_too_deep
from wsfleet.redis.store import UnavailableError

if TYPE_CHECKING:
    from wsfleet.clients.centrifuge.endpoint import Centrifuge

log = structlog.get_logger(__name__)

SINGLE_CONNECTION_TIMEOUT = 5.0
"""Seconds in which a node must hear its own word that a connection is its user's only one."""
LONGEST_TTL = 365 * 86_400


class RefusedError(Exception):
    """The command is answered with an error; the connection goes on."""

    def __init__(self, reason: ErrorCode | Error, *, temporary: bool | None = None) -> None:
        super().__init__(reason.message)
        self.error = reason.error if isinstance(reason, ErrorCode) else reason
        if temporary is not None:
            self.error = replace(self.error, temporary=temporary)


class DisconnectedError(Exception):
    """The connection ends with this code."""

    def __init__(self, code: DisconnectCode) -> None:
        super().__init__(code.reason)
        self.code = code


class CentrifugeClient:
    """One client: its commands are carried out one after the other.

    A command is answered in one place, with what carrying it out returned or raised. Work that
    goes on after the answer is in the background, so that it cannot answer a second time.
    """

    def __init__(
        self, hub: "Centrifuge", connection: Connection, format_: Format, app_pings: bool
    ) -> None:
        self._hub = hub
        self._node = hub.node
        self._config = hub.node.config.client
        self._connection = connection
        self._app_pings = app_pings
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ping_outstanding = False
        self._unusable = False
        self._others_ended = asyncio.Event()
        self._codec = format_.codec
        self._frame = framer(format_.codec, connection.framing)
        self.id = connection.client_id
        self.connected = False
        self._expire_at = 0
        self.user = ""
        self.token_id = ""
        self.conn_info = b""
        self.subscriptions = Subscriptions(self._node.hub, connection, format_)
        self._later("stale", self._config.stale_close_delay, self._stale)

    # From the client.

    async def receive(self, message: str | bytes) -> None:
        """Carry out the commands of one message."""
        try:
            received = self._codec.decode(message)
        except ProtocolError as error:
            self.disconnect(error.disconnect)
            return
        for command in received:
            if self._unusable:
                self.disconnect(DisconnectCode.BAD_REQUEST)
                return
            try:
                if answer := await self._answer(command):
                    self._connection.uncork(self._frame(self._codec.encode(answer)))
            except DisconnectedError as error:
                self.disconnect(error.code)
                return
            except ProtocolError as error:
                self._cannot_be_encoded(error)
                return

    async def enter(self) -> None:
        """Do nothing: a client of this protocol enters by its connect command."""

    def gone(self) -> None:
        """Be counted out, and carry out nothing more: the connection has ended."""
        self._unusable = True
        self._hub.remove(self)
        for timer in self._timers.values():
            timer.cancel()

    async def left(self) -> None:
        """Leave all channels."""
        self.gone()  # once more: what was under way may have started a timer
        await self._give_up()

    async def _answer(self, command: Command) -> list[Reply]:
        """Carry out a command, and return its one answer with a push that follows it, if any.

        A pong has no answer.

        Nothing is awaited between going live and the answer: no publication comes before it.

        Raises:
            DisconnectedError: the connection ends instead.
        """
        try:
            result = await self._carry_out(command)
        except EndedError as ended:
            # It is subscribed and unsubscribed at once, without a publication in between.
            push = Push(ended.code.push, ended.channel)
            return [Reply(command.id, SubscribeResult()), Reply(push=push)]
        except RefusedError as refused:
            error = refused.error
        except ChannelError as refused:
            error = refused.code.error
        except (UnavailableError, RedisError) as failed:
            log.info("command failed", client_id=self.id, error=str(failed))
            error = ErrorCode.INTERNAL.error
        else:
            return [] if result is None else [Reply(command.id, result)]
        self._node.metrics.reply_errors.labels(str(error.code)).inc()
        return [Reply(command.id, error=error)]

    async def _carry_out(self, command: Command) -> Result | None:
        request = command.request
        if request is None:
            self._pong()
            return None
        if self.connected == isinstance(request, ConnectRequest):
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        if command.refusal is not None:
            raise RefusedError(command.refusal)
        if isinstance(request, ConnectRequest):
            return await self._connect(request)
        match request:
            case SubscribeRequest():
                return await self._subscribe(request)
            case UnsubscribeRequest():
                if subscription := self.subscriptions.get(request.channel):
                    self._end(subscription, UnsubscribeCode.CLIENT)
                return UnsubscribeResult()
            case PublishRequest():
                return await self._publish(request)
            case PresenceRequest():
                await self._replies_taken()
                members = await self._members(request, self._config.reply_max_size)
                return PresenceResult({c: client_info(m) for c, m in members.items()})
            case PresenceStatsRequest():
                members = await self._members(request, 0)
                return PresenceStatsResult(len(members), len({m.user for m in members.values()}))
            case HistoryRequest():
                return await self._history(request)
            case RefreshRequest():
                return await self._refresh(request)
            case SubRefreshRequest():
                return await self._sub_refresh(request)
            case SendRequest():
                raise DisconnectedError(DisconnectCode.NOT_AVAILABLE)
            case RPCRequest():
                raise RefusedError(ErrorCode.NOT_AVAILABLE)

    # Connecting.

    async def _connect(self, request: ConnectRequest) -> ConnectResult:
        """Let the client in: state, timers and the result belong together.

        Nothing is awaited once the client is in, until it is answered. Where it does not get that
        far, nothing is left of the attempt, and the client has to open another connection.
        """
        try:
            token = self._identify(request)
            subs = await self._enter(request, dict(token.subs) if token else {})
        except BaseException:
            await self._give_up()
            self._connection.cork()  # what was held back is for a connection that was not made
            raise
        self.connected = True
        self._cancel("stale")
        self._expire_connection_at(self._expire_at)
        if self._app_pings:
            first = random.uniform(0.5, 1.0) * self._config.ping_interval  # noqa: S311 - jitter
            self._later("ping", first, self._ping)
        return ConnectResult(
            client=self.id,
            version=f"wsfleet {__version__}",
            expires=self._expire_at > 0,
            ttl=_ttl(self._expire_at),
            subs=subs,
            ping=int(self._config.ping_interval) if self._app_pings else 0,
            pong=self._app_pings and self._config.pong_timeout > 0,
            node=self._node.settings.name,
        )

    def _identify(self, request: ConnectRequest) -> ConnectionToken | None:
        """Take the client's identity from its token; returns None if it has no token."""
        if not request.token:
            if not self._config.allow_anonymous_connect_without_token:
                raise DisconnectedError(DisconnectCode.BAD_REQUEST)
            return None
        try:
            token = self._node.connection_tokens.verify_connection(request.token)
        except TokenExpiredError:
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenError as error:
            log.info("token refused", client_id=self.id, error=str(error))
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        if not token.user and self._config.disallow_anonymous_connection_tokens:
            raise DisconnectedError(DisconnectCode.PERMISSION_DENIED)
        self.user, self.conn_info, self.token_id = token.user, token.info or b"", token.id
        self._expire_at = token.expire_at
        return token

    async def _enter(
        self, request: ConnectRequest, grants: dict[str, Grant]
    ) -> dict[str, SubscribeResult]:
        """Register the client, and make its server-side subscriptions, by channel.

        All of them are reserved first, so that one that is ended before its turn is not made.
        """
        if not self._hub.add(self):
            raise DisconnectedError(DisconnectCode.CONNECTION_LIMIT)
        self._connection.cork()
        planned: list[tuple[Subscription, SubscribeRequest, Grant]] = []
        for channel, options, grant in self._server_side(request, grants):
            subscription = Subscription(channel, options, self._member(grant), server_side=True)
            self.subscriptions.reserve(subscription)
            wanted = request.subs.get(channel.name, SubscribeRequest(channel.name))
            planned.append((subscription, wanted, grant))
        # Only now that it is counted in: it hears of it if its user is blocked after this.
        await self._check_denylist(self.token_id)
        await self._node.client_names.open(self._connection)
        subs: dict[str, SubscribeResult] = {}
        room = self._config.reply_max_size  # for all of them: they are one reply
        for subscription, wanted, grant in planned:
            with contextlib.suppress(EndedError):
                result = await self._join(subscription, wanted, grant, room)
                subs[subscription.name] = result
                room -= sum(len(publication.data) for publication in result.publications)
        personal = self._config.subscribe_to_user_personal_channel
        if personal.enabled and personal.single_connection and self.user:
            await self._end_others()
        if self._unusable:  # somebody has ended the connection: it is told already
            raise DisconnectedError(DisconnectCode.CONNECTION_CLOSED)
        return subs

    async def _give_up(self) -> None:
        """Undo all that is done for the connection, on this node and in Redis, if Redis answers."""
        self._unusable = True
        self._hub.remove(self)
        code = UnsubscribeCode.DISCONNECT
        ended = [each for each in self.subscriptions if self.subscriptions.end(each, code)]
        farewells = [self._farewell(each) for each in ended if each.told]
        await self._hub.background.finish(*farewells)

    async def _check_denylist(self, token_id: str) -> None:
        objection = await self._node.denylist.objection(self.user, token_id)
        if objection is not None:
            raise DisconnectedError(objection)

    async def _end_others(self) -> None:
        """Let no other connection of the user stay, on any node.

        All nodes hear of all connections in the same order: of two that come at once the earlier
        one goes when it hears of the later one, which does not go for the earlier one, because it
        has not heard of itself yet.

        Raises:
            UnavailableError: the nodes cannot hear of it.
        """
        only_this = control.SingleConnection(self.user, self.id)
        await self._node.broker.publish_control(control.encode(only_this))
        async with self._node.broker.patience(
            SINGLE_CONNECTION_TIMEOUT, "the nodes do not hear of the connection"
        ):
            await self._others_ended.wait()

    def only_one_stays(self, client: str) -> None:
        """Hear that of the user's connections only one stays."""
        if client == self.id:
            self._others_ended.set()
        elif self._others_ended.is_set():
            self.disconnect(DisconnectCode.CONNECTION_LIMIT)

    def _server_side(
        self, request: ConnectRequest, grants: dict[str, Grant]
    ) -> list[tuple[Channel, ChannelOptions, Grant]]:
        channels = self._node.channels
        personal = self._config.subscribe_to_user_personal_channel
        if personal.enabled and self.user:
            name = channels.personal(self.user, personal.personal_channel_namespace)
            grants.setdefault(name, Grant())
        for name in request.subs:
            if name in grants:
                continue
            try:
                channel = channels.resolve(name)
            except ChannelError:
                raise DisconnectedError(DisconnectCode.BAD_REQUEST) from None
            if may_subscribe(channel, self.user) is None:
                grants[name] = Grant()
        if len(grants) > self._config.channel_limit:
            raise DisconnectedError(DisconnectCode.CHANNEL_LIMIT)
        found = [(channels.find(name), grant) for name, grant in grants.items()]
        return [(channel, grant.applied_to(channel.options), grant) for channel, grant in found]

    async def _refresh(self, request: RefreshRequest) -> RefreshResult:
        if not request.token:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        try:
            token = self._node.connection_tokens.verify_connection(request.token)
            token.check(user=self.user)
        except TokenExpiredError:
            raise DisconnectedError(DisconnectCode.EXPIRED) from None
        except TokenError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        before, self.token_id = self.token_id, token.id  # a revocation from now on finds it
        try:
            await self._check_denylist(token.id)
        except BaseException:
            self.token_id = before
            raise
        self._expire_connection_at(token.expire_at)
        return RefreshResult(expires=token.expire_at > 0, ttl=_ttl(token.expire_at))

    # Channels.

    async def _subscribe(self, request: SubscribeRequest) -> SubscribeResult:
        if request.channel in self.subscriptions:
            raise RefusedError(ErrorCode.ALREADY_SUBSCRIBED)
        if len(self.subscriptions) >= self._config.channel_limit:
            raise RefusedError(ErrorCode.LIMIT_EXCEEDED)
        channel = self._node.channels.resolve(request.channel)
        if request.type != 0:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        if request.delta not in ("", "fossil"):
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        if request.tf:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        token = self._permission(channel, request)
        grant = token.grant if token else Grant()
        options = subscription_options(
            channel,
            self.user,
            grant.applied_to(channel.options),
            positioned=request.positioned,
            recoverable=request.recoverable,
            join_leave=request.join_leave,
        )
        subscription = Subscription(channel, options, self._member(grant), server_side=False)
        if token:
            subscription.token_id, subscription.expire_at = token.id, token.expire_at
        self.subscriptions.reserve(subscription)
        return await self._join(subscription, request, grant, self._config.reply_max_size)

    def _permission(self, channel: Channel, request: SubscribeRequest) -> SubscriptionToken | None:
        """Check that the client may subscribe; its token, None if it needs none."""
        if not request.token:
            if (refusal := may_subscribe(channel, self.user)) is not None:
                raise RefusedError(refusal)
            return None
        try:
            token = self._node.subscription_tokens.verify_subscription(request.token)
            token.check(channel=channel.name, user=self.user, client=self.id)
        except TokenExpiredError:
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenMismatchError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        except TokenError:
            raise RefusedError(ErrorCode.PERMISSION_DENIED) from None
        return token

    async def _check_subscription_token(self, token_id: str) -> None:
        if await self._node.denylist.revoked(token_id):
            raise RefusedError(ErrorCode.PERMISSION_DENIED)

    def _member(self, grant: Grant) -> Member:
        return Member(self.user, self.id, self.conn_info, grant.info or b"")

    async def _join(
        self, subscription: Subscription, request: SubscribeRequest, grant: Grant, max_size: int
    ) -> SubscribeResult:
        """Make a reserved subscription live, or end it; it recovers at most `max_size` bytes.

        There is no gap if the caller sends the result before it awaits anything: delivery goes on
        with the event loop's next step.

        Raises:
            EndedError: somebody else has ended it meanwhile.
            RefusedError, UnavailableError, redis.exceptions.RedisError: it cannot be made.
        """
        try:
            result = await self._make(subscription, request, max_size)
        except BaseException as error:
            own = self.subscriptions.end(subscription, UnsubscribeCode.CLIENT)
            # What was told to Redis after it was ended, too.
            await self._hub.background.finish(self._farewell(subscription))
            if not own and isinstance(error, Exception):
                self.subscriptions.check(subscription)
            raise
        result.data = grant.data or b""
        self._expire_subscription_at(subscription, subscription.expire_at)
        if subscription.options.join_leave:
            self._hub.background.start(self._announce(subscription))
        return result

    async def _make(
        self, subscription: Subscription, request: SubscribeRequest, max_size: int
    ) -> SubscribeResult:
        """Acquire what a subscription needs; after each await it may have been ended."""
        broker, check = self._node.broker, self.subscriptions.check
        await self._check_subscription_token(subscription.token_id)
        check(subscription)
        follower = subscription.follower = broker.followed.follow(
            subscription.name, subscription.channel.options
        )
        await follower.confirmed()
        check(subscription)
        if subscription.positioned:
            await broker.followed.need_position(follower.followed)
            check(subscription)
        if subscription.options.presence:
            subscription.present = True
            await broker.presence_add(subscription.name, self.id, subscription.member)
            check(subscription)
        recovering = request.recover and subscription.options.force_recovery
        if recovering:
            await self._replies_taken()
            check(subscription)
        since = Position(request.offset, request.epoch) if recovering else None
        limit = self._config.recovery_max_publication_limit or subscription.options.history_size
        async with broker.followed.catch_up(follower.followed, since, limit, max_size) as (
            reading,
            position,
        ):
            check(subscription)
            result = self._subscribed(request, subscription, reading, position)
            self.subscriptions.go_live(subscription)
        return result

    def _subscribed(
        self,
        request: SubscribeRequest,
        subscription: Subscription,
        reading: Reading | None,
        position: Position,
    ) -> SubscribeResult:
        result = SubscribeResult(
            expires=subscription.expire_at > 0,
            ttl=_ttl(subscription.expire_at),
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

    async def _announce(self, subscription: Subscription) -> None:
        """Tell the other members that one has joined."""
        if subscription.ended is None:
            subscription.announced = True
            await self._node.broker.publish_join(subscription.name, subscription.member)

    async def _farewell(self, subscription: Subscription) -> None:
        """Tell Redis and the other members that a subscription has ended, if Redis answers.

        If the client has subscribed again, this may arrive after the newer subscription's entry:
        so the newer one is told again.
        """
        broker, name = self._node.broker, subscription.name
        with contextlib.suppress(UnavailableError, RedisError):
            if subscription.present:
                await self._be_absent(subscription)
            if subscription.announced:
                await broker.publish_leave(name, subscription.member)
                newer = self.subscriptions.get(name)
                if newer is not None and newer.announced:
                    await broker.publish_join(name, newer.member)

    async def _be_absent(self, subscription: Subscription) -> None:
        """Take the client out of the channel's presence, unless it has subscribed again."""
        broker, name = self._node.broker, subscription.name
        await broker.presence_remove(name, self.id)
        newer = self.subscriptions.get(name)
        if newer is not None and newer.present:
            await broker.presence_add(name, self.id, newer.member)

    async def renew_presence(self, subscription: Subscription) -> None:
        """Say again that the client is in the channel, unless it has left meanwhile.

        When it leaves while Redis is asked, the renewal may come after the farewell, and would
        bring the client back: so it is taken out once more.
        """
        if subscription.ended is not None:
            return
        with contextlib.suppress(UnavailableError, RedisError):  # the next round, or its expiry
            try:
                await self._node.broker.presence_add(
                    subscription.name, self.id, subscription.member
                )
            finally:
                if subscription.ended is not None:
                    await self._be_absent(subscription)

    async def _publish(self, request: PublishRequest) -> PublishResult:
        channel = self._node.channels.resolve(request.channel)
        if not request.data or payload_too_deep(request.data, self._node.settings.max_json_depth):
            raise RefusedError(ErrorCode.BAD_REQUEST)
        subscription = self.subscriptions.live.get(request.channel)
        refusal = may_publish(channel, self.user, subscribed=subscription is not None)
        if refusal is not None:
            raise RefusedError(refusal)
        chan_info = subscription.member.chan_info if subscription else b""
        record = Record(
            data=request.data,
            time=time.time_ns() // 1_000_000,
            publisher=Member(self.user, self.id, self.conn_info, chan_info),
            node=self._node.settings.name,
        )
        started = time.monotonic()
        await self._node.broker.publish(channel.name, channel.options, record)
        self._node.metrics.publish_seconds.observe(time.monotonic() - started)
        self._connection.message_count += 1
        return PublishResult()

    async def _members(
        self, request: PresenceRequest | PresenceStatsRequest, max_size: int
    ) -> dict[str, Member]:
        channel = self._node.channels.resolve(request.channel)
        subscribed = request.channel in self.subscriptions.live
        if (refusal := may_see_presence(channel, self.user, subscribed=subscribed)) is not None:
            raise RefusedError(refusal)
        return await self._node.broker.members(channel.name, max_size=max_size)

    async def _replies_taken(self) -> None:
        """Wait before a reply that may be large, until the client has taken those before it.

        So a client that asks for much and reads nothing costs the node one such reply.
        """
        await self._connection.drained()
        if self._unusable:
            raise DisconnectedError(DisconnectCode.CONNECTION_CLOSED)

    async def _history(self, request: HistoryRequest) -> HistoryResult:
        channel = self._node.channels.resolve(request.channel)
        subscribed = request.channel in self.subscriptions.live
        if (refusal := may_read_history(channel, self.user, subscribed=subscribed)) is not None:
            raise RefusedError(refusal)
        since = request.since
        if since is not None and request.reverse and since.offset == 0:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        most = self._config.history_max_publication_limit
        limit = request.limit if 0 <= request.limit <= most else most
        await self._replies_taken()
        reading = await self._node.broker.history(
            channel.name,
            channel.options,
            since.offset if since else 0,
            limit,
            max_size=self._config.reply_max_size,
            reverse=request.reverse,
        )
        if reading.cut:
            raise ReplyTooLargeError(self._config.reply_max_size)
        if since is not None and since.epoch not in ("", reading.epoch):
            raise RefusedError(ErrorCode.UNRECOVERABLE_POSITION)
        publications = [
            to_publication(entry, record)
            for entry, record in all_understood(channel.name, reading.entries)
        ]
        return HistoryResult(publications, reading.epoch, reading.offset)

    async def _sub_refresh(self, request: SubRefreshRequest) -> SubRefreshResult:
        subscription = self.subscriptions.live.get(request.channel)
        if subscription is None:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        if not request.token:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        try:
            token = self._node.subscription_tokens.verify_subscription(request.token)
            token.check(channel=request.channel, user=self.user, client=self.id)
        except TokenExpiredError:
            # Temporary: SDKs fetch another token, where a final error would end the subscription.
            raise RefusedError(ErrorCode.TOKEN_EXPIRED, temporary=True) from None
        except TokenError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        before, subscription.token_id = subscription.token_id, token.id  # as in `_refresh`
        try:
            await self._check_subscription_token(token.id)
        except BaseException:
            subscription.token_id = before
            raise
        if subscription.ended is not None:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        self._expire_subscription_at(subscription, token.expire_at)
        return SubRefreshResult(expires=token.expire_at > 0, ttl=_ttl(token.expire_at))

    # To the client.

    def disconnect(self, code: DisconnectCode) -> None:
        """End the connection; SDKs decide by the code whether to come back."""
        self.close(code.code, code.reason)

    def close(self, code: int, reason: str) -> None:
        """End the connection with a code of the protocol, or of the server's API.

        The close frame alone says so: over WebSocket there is no push before it.
        """
        self._unusable = True
        self._connection.close(code, reason)

    def insufficient_state(self, subscription: Subscription) -> None:
        """Make the client subscribe again: something is lost to it."""
        if subscription.server_side:
            self.disconnect(DisconnectCode.INSUFFICIENT_STATE)
        else:
            self._end(subscription, UnsubscribeCode.INSUFFICIENT_STATE)

    def tokens(self) -> list[str]:
        """The `jti` of each token that the connection, or one of its subscriptions, rests on."""
        ids = [self.token_id, *(subscription.token_id for subscription in self.subscriptions)]
        return [token_id for token_id in ids if token_id]

    def revoked(self, token_id: str) -> None:
        """End what rests on the token: the connection, or subscriptions, for good."""
        if token_id == self.token_id:
            self.disconnect(DisconnectCode.INVALID_TOKEN)
            return
        for subscription in self.subscriptions:
            if subscription.token_id == token_id:
                self._end(subscription, UnsubscribeCode.SERVER)

    async def command(self, wanted: control.Command) -> None:
        """Carry out a command of the server's API."""
        match wanted.do:
            case "disconnect":
                self.close(wanted.code, wanted.reason)
            case "unsubscribe":
                for subscription in self.subscriptions:
                    if wanted.channel in ("", subscription.name):
                        self._end(subscription, UnsubscribeCode.SERVER)
            case "subscribe":
                try:
                    await self._subscribe_server_side(wanted)
                except (ChannelError, DisconnectedError, EndedError) as error:
                    log.info("not subscribed", client_id=self.id, error=str(error))
            case "refresh":
                self._refresh_server_side(wanted)

    def _cannot_be_encoded(self, error: ProtocolError) -> None:
        log.info("reply cannot be encoded", client_id=self.id, error=str(error))
        self.disconnect(error.disconnect)

    async def _subscribe_server_side(self, wanted: control.Command) -> None:
        if self._unusable or wanted.channel in self.subscriptions:
            return
        channel = self._node.channels.find(wanted.channel)
        request = SubscribeRequest(
            channel.name, recover=wanted.recover, epoch=wanted.epoch, offset=wanted.offset
        )
        grant = Grant(wanted.info or None, wanted.data or None, wanted.override)
        subscription = Subscription(
            channel,
            grant.applied_to(channel.options),
            self._member(grant),
            server_side=True,
            expire_at=wanted.expire_at,
        )
        self.subscriptions.reserve(subscription)
        result = await self._join(subscription, request, grant, self._config.reply_max_size)
        event = Subscribe(
            result.recoverable, result.epoch, result.offset, result.positioned, result.data
        )
        self._push(event, channel.name)
        for publication in result.publications:
            self._push(publication, channel.name)

    def _refresh_server_side(self, wanted: control.Command) -> None:
        """Let the connection expire at another time: Client.Refresh of the reference server."""
        expire_at = wanted.expire_at
        if wanted.expired or 0 < expire_at <= time.time():
            self.disconnect(DisconnectCode.EXPIRED)
            return
        self.conn_info = wanted.info or self.conn_info
        if not self.connected:  # the reply to connect says when it expires
            self._expire_at = expire_at
            return
        self._expire_connection_at(expire_at)
        self._push(Refresh(expires=expire_at > 0, ttl=_ttl(expire_at)))

    def _end(self, subscription: Subscription, code: UnsubscribeCode) -> None:
        """End a subscription, and tell its client, Redis and the other members.

        It does nothing if the subscription has ended already. The client is told if the
        subscription is live and the client has not asked for the end. If the subscription is still
        being made, `_join` raises EndedError.
        """
        tells = subscription.name in self.subscriptions.live and code is not UnsubscribeCode.CLIENT
        if self.subscriptions.end(subscription, code):
            if tells:
                self._push(code.push, subscription.name)
            if subscription.told:
                self._hub.background.start(self._farewell(subscription))

    def _push(self, event: Event, channel: str = "") -> None:
        try:
            payload = self._codec.encode([Reply(push=Push(event, channel))])
        except ProtocolError as error:
            self._cannot_be_encoded(error)
        else:
            self._connection.send(self._frame(payload))

    # Time.

    def _later(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._loop.call_later(seconds, action)

    def _cancel(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _stale(self) -> None:
        self.disconnect(DisconnectCode.STALE)

    def _ping(self) -> None:
        self._connection.send(self._frame(self._codec.ping))
        self._ping_outstanding = True
        self._later("ping", self._config.ping_interval, self._ping)
        if self._config.pong_timeout:
            self._later("pong", self._config.pong_timeout, self._no_pong)

    def _pong(self) -> None:
        if not self._ping_outstanding:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        self._ping_outstanding = False
        self._cancel("pong")

    def _no_pong(self) -> None:
        self.disconnect(DisconnectCode.NO_PONG)

    def _expire_connection_at(self, expire_at: int) -> None:
        if not expire_at:
            self._cancel("expiry")
            return
        delay = max(0.0, expire_at - time.time()) + self._config.expired_close_delay
        self._later("expiry", delay, lambda: self.disconnect(DisconnectCode.EXPIRED))

    def _expire_subscription_at(self, subscription: Subscription, expire_at: int) -> None:
        subscription.expire_at = expire_at
        if subscription.expiry is not None:
            subscription.expiry.cancel()
            subscription.expiry = None
        if expire_at:
            delay = max(0.0, expire_at - time.time()) + self._config.expired_sub_close_delay
            subscription.expiry = self._loop.call_later(
                delay, self._subscription_expired, subscription
            )

    def _subscription_expired(self, subscription: Subscription) -> None:
        if subscription.server_side:
            self.disconnect(DisconnectCode.SUB_EXPIRED)
        else:
            self._end(subscription, UnsubscribeCode.EXPIRED)


def _ttl(expire_at: int) -> int:
    """Seconds until a moment in Unix seconds, at least one; 0 if it never comes."""
    return min(max(1, int(expire_at - time.time())), LONGEST_TTL) if expire_at else 0
