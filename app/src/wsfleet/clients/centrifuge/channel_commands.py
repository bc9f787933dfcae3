"""Commands that publish, that read presence and history, and that call the application."""

import time

from wsfleet.application.port import Published
from wsfleet.broker.broker import ReplyTooLargeError
from wsfleet.channels.permissions import (
    Channel,
    may_publish,
    may_read_history,
    may_see_presence,
)
from wsfleet.channels.publication import Member, Record, all_understood
from wsfleet.clients.centrifuge.application_calls import ApplicationCalls
from wsfleet.clients.centrifuge.errors import RefusedError
from wsfleet.clients.centrifuge.identity import ClientIdentity
from wsfleet.clients.centrifuge.push import Sender, client_info, to_publication
from wsfleet.clients.centrifuge.subscription_table import SubscriptionTable
from wsfleet.hub.connection import Connection
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import ErrorCode
from wsfleet.protocol.centrifuge.messages import (
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    PublishRequest,
    PublishResult,
    RPCRequest,
    RPCResult,
)
from wsfleet.protocol.json_depth import payload_too_deep


class ChannelCommands:
    """One client's commands for channels, beside those for its subscriptions.

    Each of them raises RefusedError or ChannelError if the client may not, and UnavailableError if
    Redis is unavailable.
    """

    __slots__ = ("_calls", "_connection", "_identity", "_node", "_sender", "_subscriptions")

    def __init__(
        self,
        node: Node,
        connection: Connection,
        identity: ClientIdentity,
        sender: Sender,
        subscriptions: SubscriptionTable,
        calls: ApplicationCalls | None,
    ) -> None:
        self._node = node
        self._calls = calls
        self._connection = connection
        self._identity = identity
        self._sender = sender
        self._subscriptions = subscriptions

    async def publish(self, request: PublishRequest) -> PublishResult:
        """Publish to a channel, as the application or the channel's keys allow."""
        channel = self._node.channels.resolve(request.channel)
        self._check(request.data)
        if self._calls is not None:
            backend = self._calls.router.publish(channel.namespace)
            if backend is not None:
                published = await self._calls.publish(backend, channel, request.data)
                self._check(published.data)
                return await self._publish(channel, published)
        subscribed = request.channel in self._subscriptions.live
        refusal = may_publish(channel, self._identity.user, subscribed=subscribed)
        if refusal is not None:
            raise RefusedError(refusal)
        return await self._publish(channel, Published(request.data))

    def _check(self, data: bytes) -> None:
        if not data or payload_too_deep(data, self._node.settings.max_json_depth):
            raise RefusedError(ErrorCode.BAD_REQUEST)

    async def _publish(self, channel: Channel, published: Published[bytes]) -> PublishResult:
        """Publish in the client's name."""
        node, subscription = self._node, self._subscriptions.live.get(channel.name)
        record = Record(
            data=published.data,
            time=time.time_ns() // 1_000_000,
            publisher=self._identity.member(subscription.member.chan_info if subscription else b""),
            tags=dict(published.tags),
            node=node.settings.name,
        )
        started = time.monotonic()
        await node.broker.publish(
            channel.name,
            channel.options,
            record,
            published.idempotency_key,
            skip_history=published.skip_history,
            version=published.version,
            version_epoch=published.version_epoch,
        )
        node.metrics.publish_seconds.observe(time.monotonic() - started)
        self._connection.message_count += 1
        return PublishResult()

    async def rpc(self, request: RPCRequest) -> RPCResult:
        """Call a method of the application."""
        if self._calls is None:
            raise RefusedError(ErrorCode.NOT_AVAILABLE)
        if payload_too_deep(request.data, self._node.settings.max_json_depth):
            raise RefusedError(ErrorCode.BAD_REQUEST)
        return RPCResult(await self._calls.rpc(request))

    async def presence(self, request: PresenceRequest) -> PresenceResult:
        """Return the clients that are present in a channel."""
        await self._sender.drained()
        members = await self._members(request.channel, self._node.config.client.reply_max_size)
        return PresenceResult({client: client_info(each) for client, each in members.items()})

    async def presence_stats(self, request: PresenceStatsRequest) -> PresenceStatsResult:
        """Return the numbers of clients and users that are present in a channel."""
        members = await self._members(request.channel, 0)
        users = {member.user for member in members.values()}
        return PresenceStatsResult(len(members), len(users))

    async def history(self, request: HistoryRequest) -> HistoryResult:
        """Return publications of a channel's stream."""
        channel = self._node.channels.resolve(request.channel)
        subscribed = request.channel in self._subscriptions.live
        refusal = may_read_history(channel, self._identity.user, subscribed=subscribed)
        if refusal is not None:
            raise RefusedError(refusal)
        since = request.since
        if since is not None and request.reverse and since.offset == 0:
            raise RefusedError(ErrorCode.BAD_REQUEST)
        most = self._node.config.client.history_max_publication_limit
        limit = request.limit if 0 <= request.limit <= most else most
        await self._sender.drained()
        reading = await self._node.broker.history(
            channel.name,
            channel.options,
            since.offset if since else 0,
            limit,
            max_size=self._node.config.client.reply_max_size,
            reverse=request.reverse,
        )
        if reading.cut:
            raise ReplyTooLargeError(self._node.config.client.reply_max_size)
        if since is not None and since.epoch not in ("", reading.epoch):
            raise RefusedError(ErrorCode.UNRECOVERABLE_POSITION)
        publications = [
            to_publication(entry, record)
            for entry, record in all_understood(channel.name, reading.entries)
        ]
        return HistoryResult(publications, reading.epoch, reading.offset)

    async def _members(self, name: str, max_size: int) -> dict[str, Member]:
        channel = self._node.channels.resolve(name)
        subscribed = name in self._subscriptions.live
        refusal = may_see_presence(channel, self._identity.user, subscribed=subscribed)
        if refusal is not None:
            raise RefusedError(refusal)
        return await self._node.broker.members(channel.name, max_size=max_size)
