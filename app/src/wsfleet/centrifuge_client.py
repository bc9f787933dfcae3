"""A client of the Centrifuge protocol: its commands, its subscriptions, its time-outs.

Semantics are those of github.com/centrifugal/centrifuge (client.go) with Centrifugo's rules for
channels; where this server differs, `docs/protocol.md` says so.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from wsfleet import __version__, commands, records
from wsfleet.auth import (
    Grant,
    TokenError,
    TokenExpiredError,
    TokenMismatchError,
)
from wsfleet.broker import Following, Position
from wsfleet.channels import (
    Channel,
    ChannelError,
    may_publish,
    may_read_history,
    may_see_presence,
    may_subscribe,
    subscription_options,
)
from wsfleet.config import ChannelOptions
from wsfleet.connection import Connection
from wsfleet.frames import frame
from wsfleet.limits import too_deep
from wsfleet.protocol.centrifuge.codec import Codec, ProtocolError
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode, UnsubscribeCode
from wsfleet.protocol.centrifuge.messages import (
    REJECT_UNRECOVERED,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    Disconnect,
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    PublishResult,
    Push,
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
from wsfleet.records import Member, Record
from wsfleet.store import UnavailableError
from wsfleet.stream import Entry, Reading

if TYPE_CHECKING:
    from wsfleet.centrifuge_endpoint import Centrifuge

log = structlog.get_logger(__name__)

SINGLE_CONNECTION_TIMEOUT = 5.0
"""Seconds in which a node must hear its own word that a connection is its user's only one."""
LONGEST_TTL = 365 * 86_400


class RefusedError(Exception):
    """The command is answered with an error; the connection goes on."""

    def __init__(self, code: ErrorCode, *, temporary: bool | None = None) -> None:
        super().__init__(code.message)
        self.error = code.error
        if temporary is not None:
            self.error = replace(self.error, temporary=temporary)


class DisconnectedError(Exception):
    """The connection ends with this code."""

    def __init__(self, code: DisconnectCode) -> None:
        super().__init__(code.reason)
        self.code = code


@dataclass(slots=True)
class Subscription:
    """A channel that a connection hears; `expire_at` in Unix seconds, 0 is never."""

    channel: Channel
    options: ChannelOptions
    member: Member
    following: Following
    server_side: bool
    expire_at: int = 0

    @property
    def positioned(self) -> bool:
        """Whether its client is told when something is lost."""
        return self.options.force_positioning or self.options.force_recovery


def channel_topic(codec: Codec, channel: str) -> str:
    """Where those are, at the hub, who hear a channel in an encoding."""
    return f"{codec.name} {channel}"


def members_topic(codec: Codec, channel: str) -> str:
    """Where those are who hear who joins a channel, and who leaves."""
    return f"{codec.name} members of {channel}"


def client_info(member: Member) -> ClientInfo:
    """What the protocol says of a member."""
    return ClientInfo(member.user, member.client, member.conn_info, member.chan_info)


def to_publication(entry: Entry, record: Record) -> Publication:
    """What the protocol says of an entry of a channel's stream."""
    return Publication(
        data=record.data,
        info=client_info(record.publisher) if record.publisher else None,
        offset=entry.offset,
        tags=record.tags,
        time=record.time,
    )


class CentrifugeClient:
    """One client: its commands are carried out one after the other."""

    def __init__(
        self, hub: "Centrifuge", connection: Connection, codec: Codec, app_pings: bool
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
        self._gone = False
        self._others_ended = asyncio.Event()
        self._joining: set[str] = set()
        self.codec = codec
        self.id = connection.client_id
        self.connected = False
        self.user = ""
        self.token_id = ""
        self.conn_info = b""
        self.subscriptions: dict[str, Subscription] = {}
        self._later("stale", self._config.stale_close_delay, self._stale)

    # From the client.

    async def receive(self, message: str | bytes) -> None:
        """Carry out the commands of one message."""
        try:
            received = self.codec.decode(message)
        except ProtocolError as error:
            self.disconnect(error.disconnect)
            return
        for command in received:
            if self._unusable:
                self.disconnect(DisconnectCode.BAD_REQUEST)
                return
            try:
                result = await self._carry_out(command)
            except RefusedError as error:
                self._reply(Reply(command.id, error=error.error))
            except ChannelError as error:
                self._reply(Reply(command.id, error=error.code.error))
            except (UnavailableError, RedisError) as error:
                log.info("command failed", client_id=self.id, error=str(error))
                self._reply(Reply(command.id, error=ErrorCode.INTERNAL.error))
            except DisconnectedError as error:
                self.disconnect(error.code)
                return
            except ProtocolError as error:  # a payload that this encoding cannot carry
                self.disconnect(error.disconnect)
                return
            else:
                if result is not None:
                    self._reply(Reply(command.id, result))

    async def left(self) -> None:
        """Leave all channels; the connection is gone."""
        self._gone = True
        for timer in self._timers.values():
            timer.cancel()
        self._hub.remove(self)
        for subscription in list(self.subscriptions.values()):
            with contextlib.suppress(UnavailableError, RedisError):
                await self._leave(subscription)

    async def _carry_out(self, command: Command) -> Result | None:
        request = command.request
        if request is None:
            self._pong()
            return None
        if isinstance(request, ConnectRequest):
            if self.connected:
                raise DisconnectedError(DisconnectCode.BAD_REQUEST)
            await self._connect(command.id, request)
            return None
        if not self.connected:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        if command.refusal is not None:
            self._reply(Reply(command.id, error=command.refusal))
            return None
        match request:
            case SubscribeRequest():
                await self._subscribe(command.id, request)
                return None
            case UnsubscribeRequest():
                if (subscription := self.subscriptions.get(request.channel)) is not None:
                    await self._leave(subscription)
                return UnsubscribeResult()
            case PublishRequest():
                return await self._publish(request)
            case PresenceRequest():
                return PresenceResult(
                    {c: client_info(m) for c, m in (await self._members(request)).items()}
                )
            case PresenceStatsRequest():
                members = await self._members(request)
                return PresenceStatsResult(len(members), len({m.user for m in members.values()}))
            case HistoryRequest():
                return await self._history(request)
            case RefreshRequest():
                return await self._refresh(request)
            case SubRefreshRequest():
                return self._sub_refresh(request)
            case SendRequest():
                raise DisconnectedError(DisconnectCode.NOT_AVAILABLE)
            case RPCRequest():
                raise RefusedError(ErrorCode.NOT_AVAILABLE)

    # Connecting.

    async def _connect(self, number: int, request: ConnectRequest) -> None:
        grants: dict[str, Grant] = {}
        expire_at = 0
        if not request.token and not self._config.allow_anonymous_connect_without_token:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        try:
            if request.token:
                token = self._node.connection_tokens.verify_connection(request.token)
                self.user, self.conn_info = token.user, token.info or b""
                self.token_id = token.id
                expire_at = token.expire_at
                grants = dict(token.subs)
        except TokenExpiredError:
            self._unusable = True
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenError as error:
            log.info("token refused", client_id=self.id, error=str(error))
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        if request.token and not self.user and self._config.disallow_anonymous_connection_tokens:
            raise DisconnectedError(DisconnectCode.PERMISSION_DENIED)
        if not self._hub.add(self):
            raise DisconnectedError(DisconnectCode.CONNECTION_LIMIT)
        self.connected = True
        self._connection.cork()
        try:
            # Only now that it is counted in: it hears of it if its user is blocked after this.
            await self._check_denylist(self.token_id)
            subs, joined = await self._join_server_side(request, grants)
            result = ConnectResult(
                client=self.id,
                version=f"wsfleet {__version__}",
                expires=expire_at > 0,
                ttl=_ttl(expire_at),
                subs=subs,
                ping=int(self._config.ping_interval) if self._app_pings else 0,
                pong=self._app_pings and self._config.pong_timeout > 0,
                node=self._node.settings.name,
            )
            answer = self._frame(Reply(number, result))
        except BaseException:
            self._unusable = True
            self._connection.uncork(b"")
            raise
        self._cancel("stale")
        self._connection.uncork(answer)
        for subscription in joined:
            await self._tell_joined(subscription)
        if expire_at:
            self._expire_connection_at(expire_at)
        if self._app_pings:
            first = random.uniform(0.5, 1.0) * self._config.ping_interval  # noqa: S311 - jitter
            self._later("ping", first, self._ping)

    async def _check_denylist(self, token_id: str) -> None:
        objection = await self._node.denylist.objection(self.user, token_id)
        if objection is not None:
            raise DisconnectedError(objection)

    async def _join_server_side(
        self, request: ConnectRequest, grants: dict[str, Grant]
    ) -> tuple[dict[str, SubscribeResult], list[Subscription]]:
        await self._node.sessions.open(self._connection)
        subs: dict[str, SubscribeResult] = {}
        joined: list[Subscription] = []
        for channel, options, grant in self._server_side(request, grants):
            wanted = request.subs.get(channel.name, SubscribeRequest(channel.name))
            async with self._join(channel, options, wanted, grant, server_side=True) as outcome:
                subs[channel.name], subscription = outcome
            joined.append(subscription)
        personal = self._config.subscribe_to_user_personal_channel
        if personal.enabled and personal.single_connection and self.user:
            await self._end_others()
        return subs, joined

    async def _end_others(self) -> None:
        """Let no other connection of the user stay, on any node.

        All nodes hear of all connections in the same order: of two that come at once the earlier
        one goes when it hears of the later one, which does not go for the earlier one, because it
        has not heard of itself yet.

        Raises:
            UnavailableError: the nodes cannot hear of it.
        """
        only_this = commands.SingleConnection(self.user, self.id)
        await self._node.broker.command(commands.encode(only_this))
        try:
            async with asyncio.timeout(SINGLE_CONNECTION_TIMEOUT):
                await self._others_ended.wait()
        except TimeoutError:
            raise UnavailableError("the nodes do not hear of the connection") from None

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
        await self._check_denylist(token.id)
        self.token_id = token.id
        self._expire_connection_at(token.expire_at)
        return RefreshResult(expires=token.expire_at > 0, ttl=_ttl(token.expire_at))

    # Channels.

    async def _subscribe(self, number: int, request: SubscribeRequest) -> None:
        if request.channel in self.subscriptions or request.channel in self._joining:
            raise RefusedError(ErrorCode.ALREADY_SUBSCRIBED)
        if len(self.subscriptions) + len(self._joining) >= self._config.channel_limit:
            raise RefusedError(ErrorCode.LIMIT_EXCEEDED)
        channel = self._node.channels.resolve(request.channel)
        if request.type != 0:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        if request.delta not in ("", "fossil"):
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        if request.tf:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        grant, expire_at = await self._permission(channel, request)
        options = subscription_options(
            channel,
            self.user,
            grant.applied_to(channel.options),
            positioned=request.positioned,
            recoverable=request.recoverable,
            join_leave=request.join_leave,
        )
        async with self._join(
            channel, options, request, grant, server_side=False, expire_at=expire_at
        ) as (result, subscription):
            self._reply(Reply(number, result))
        await self._tell_joined(subscription)

    async def _permission(self, channel: Channel, request: SubscribeRequest) -> tuple[Grant, int]:
        if not request.token:
            if (refusal := may_subscribe(channel, self.user)) is not None:
                raise RefusedError(refusal)
            return Grant(), 0
        try:
            token = self._node.subscription_tokens.verify_subscription(request.token)
            token.check(channel=channel.name, user=self.user, client=self.id)
        except TokenExpiredError:
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenMismatchError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        except TokenError:
            raise RefusedError(ErrorCode.PERMISSION_DENIED) from None
        if await self._node.denylist.objection("", token.id) is not None:
            raise RefusedError(ErrorCode.PERMISSION_DENIED)
        return token.grant, token.expire_at

    @contextlib.asynccontextmanager
    async def _join(
        self,
        channel: Channel,
        options: ChannelOptions,
        request: SubscribeRequest,
        grant: Grant,
        *,
        server_side: bool,
        expire_at: int = 0,
    ) -> AsyncIterator[tuple[SubscribeResult, Subscription]]:
        """Subscribe without a gap: what the block sends comes before the first live publication."""
        broker = self._node.broker
        self._joining.add(channel.name)
        following = None
        try:
            following = await broker.follow(channel.name, channel.options)
            member = Member(self.user, self.id, self.conn_info, grant.info or b"")
            subscription = Subscription(channel, options, member, following, server_side, expire_at)
            if options.presence:
                await broker.join(channel.name, self.id, member)
            recovering = request.recover and options.force_recovery
            since = Position(request.offset, request.epoch) if recovering else None
            limit = self._config.recovery_max_publication_limit or options.history_size
            async with broker.joining(following, since, limit) as (reading, position):
                result = self._subscribed(request, subscription, reading, position)
                result.data = grant.data or b""
                yield result, subscription
                self._go_live(subscription)
        except BaseException:
            if following is not None and channel.name not in self.subscriptions:
                broker.unfollow(following)
                if options.presence:
                    with contextlib.suppress(UnavailableError, RedisError):
                        await broker.leave(channel.name, self.id)
            raise
        finally:
            self._joining.discard(channel.name)

    def _subscribed(
        self,
        request: SubscribeRequest,
        subscription: Subscription,
        reading: Reading | None,
        position: Position,
    ) -> SubscribeResult:
        if self._gone:  # while the server's API subscribed it
            raise DisconnectedError(DisconnectCode.CONNECTION_CLOSED)
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
                    to_publication(entry, records.decode_record(entry.record))
                    for entry in reading.entries
                ]
            elif request.flag & REJECT_UNRECOVERED:
                raise RefusedError(ErrorCode.UNRECOVERABLE_POSITION)
        return result

    def _go_live(self, subscription: Subscription) -> None:
        hub, name = self._node.hub, subscription.channel.name
        self.subscriptions[name] = subscription
        hub.subscribe(self._connection, channel_topic(self.codec, name))
        if subscription.options.force_push_join_leave:
            hub.subscribe(self._connection, members_topic(self.codec, name))
        if subscription.expire_at:
            self._expire_subscription_at(subscription, subscription.expire_at)

    async def _tell_joined(self, subscription: Subscription) -> None:
        if subscription.options.join_leave:
            await self._node.broker.tell_members(
                subscription.channel.name, True, subscription.member
            )

    async def _leave(self, subscription: Subscription) -> None:
        hub, name = self._node.hub, subscription.channel.name
        self.subscriptions.pop(name, None)
        self._cancel(f"subscription {name}")
        hub.unsubscribe(self._connection, channel_topic(self.codec, name))
        hub.unsubscribe(self._connection, members_topic(self.codec, name))
        self._node.broker.unfollow(subscription.following)
        if subscription.options.presence:
            await self._node.broker.leave(name, self.id)
        if subscription.options.join_leave:
            await self._node.broker.tell_members(name, False, subscription.member)

    async def _publish(self, request: PublishRequest) -> PublishResult:
        channel = self._node.channels.resolve(request.channel)
        if not request.data or too_deep(request.data, self._node.settings.max_json_depth):
            raise RefusedError(ErrorCode.BAD_REQUEST)
        subscription = self.subscriptions.get(request.channel)
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

    async def _members(self, request: PresenceRequest | PresenceStatsRequest) -> dict[str, Member]:
        channel = self._node.channels.resolve(request.channel)
        subscribed = request.channel in self.subscriptions
        if (refusal := may_see_presence(channel, self.user, subscribed=subscribed)) is not None:
            raise RefusedError(refusal)
        return await self._node.broker.members(channel.name)

    async def _history(self, request: HistoryRequest) -> HistoryResult:
        channel = self._node.channels.resolve(request.channel)
        subscribed = request.channel in self.subscriptions
        if (refusal := may_read_history(channel, self.user, subscribed=subscribed)) is not None:
            raise RefusedError(refusal)
        since = request.since
        if since is not None and request.reverse and since.offset == 0:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        most = self._config.history_max_publication_limit
        limit = request.limit if 0 <= request.limit <= most else most
        reading = await self._node.broker.history(
            channel.name,
            channel.options,
            since.offset if since else 0,
            limit,
            reverse=request.reverse,
        )
        if since is not None and since.epoch not in ("", reading.epoch):
            raise RefusedError(ErrorCode.UNRECOVERABLE_POSITION)
        publications = [
            to_publication(entry, records.decode_record(entry.record)) for entry in reading.entries
        ]
        return HistoryResult(publications, reading.epoch, reading.offset)

    def _sub_refresh(self, request: SubRefreshRequest) -> SubRefreshResult:
        subscription = self.subscriptions.get(request.channel)
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
        self._expire_subscription_at(subscription, token.expire_at)
        return SubRefreshResult(expires=token.expire_at > 0, ttl=_ttl(token.expire_at))

    # To the client.

    def disconnect(self, code: DisconnectCode) -> None:
        """End the connection; SDKs decide by the code whether to come back."""
        self.close(code.push)

    def close(self, reason: Disconnect) -> None:
        """End the connection for a reason of the server's API."""
        self._unusable = True
        self._connection.send(self._frame(Reply(push=Push(reason))))
        self._connection.close(reason.code, reason.reason)

    def insufficient_state(self, subscription: Subscription) -> None:
        """Make the client subscribe again: something is lost to it."""
        if subscription.server_side:
            self.disconnect(DisconnectCode.INSUFFICIENT_STATE)
        else:
            self._hub.background.start(
                self._unsubscribed(subscription, UnsubscribeCode.INSUFFICIENT_STATE)
            )

    async def command(self, wanted: commands.Command) -> None:
        """Carry out a command of the server's API."""
        match wanted.do:
            case "disconnect":
                self.close(Disconnect(wanted.code, wanted.reason))
            case "unsubscribe":
                names = [wanted.channel] if wanted.channel else list(self.subscriptions)
                for name in names:
                    if (subscription := self.subscriptions.get(name)) is not None:
                        await self._unsubscribed(subscription, UnsubscribeCode.SERVER)
            case "subscribe":
                try:
                    await self._subscribe_server_side(wanted)
                except (ChannelError, DisconnectedError) as error:
                    log.info("not subscribed", client_id=self.id, error=str(error))

    async def _subscribe_server_side(self, wanted: commands.Command) -> None:
        if wanted.channel in self.subscriptions or wanted.channel in self._joining:
            return
        channel = self._node.channels.find(wanted.channel)
        request = SubscribeRequest(
            channel.name, recover=wanted.recover, epoch=wanted.epoch, offset=wanted.offset
        )
        async with self._join(channel, channel.options, request, Grant(), server_side=True) as (
            result,
            subscription,
        ):
            event = Subscribe(result.recoverable, result.epoch, result.offset, result.positioned)
            self._reply(Reply(push=Push(event, channel.name)))
        await self._tell_joined(subscription)

    async def _unsubscribed(self, subscription: Subscription, code: UnsubscribeCode) -> None:
        self._reply(Reply(push=Push(code.push, subscription.channel.name)))
        await self._leave(subscription)

    def _reply(self, reply: Reply) -> None:
        if reply.error is not None:
            self._node.metrics.reply_errors.labels(str(reply.error.code)).inc()
        self._connection.send(self._frame(reply))

    def _frame(self, reply: Reply) -> bytes:
        return frame(self.codec.opcode, self.codec.encode([reply]))

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
        self._connection.send(frame(self.codec.opcode, self.codec.ping))
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
        name = f"subscription {subscription.channel.name}"
        if not expire_at:
            self._cancel(name)
            return
        delay = max(0.0, expire_at - time.time()) + self._config.expired_sub_close_delay
        self._later(name, delay, lambda: self._subscription_expired(subscription))

    def _subscription_expired(self, subscription: Subscription) -> None:
        if subscription.server_side:
            self.disconnect(DisconnectCode.SUB_EXPIRED)
        else:
            self._hub.background.start(self._unsubscribed(subscription, UnsubscribeCode.EXPIRED))


def _ttl(expire_at: int) -> int:
    """Seconds until a moment in Unix seconds, at least one; 0 if it never comes."""
    return min(max(1, int(expire_at - time.time())), LONGEST_TTL) if expire_at else 0
