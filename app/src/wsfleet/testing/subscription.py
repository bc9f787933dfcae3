"""A subscription of a client in a test, and its publications."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from wsfleet.channels.stream import Position
from wsfleet.protocol.centrifuge import messages
from wsfleet.testing.replies import ReplyError

TIMEOUT = 5.0
"""Seconds until a test has waited in vain."""


@dataclass(frozen=True, slots=True)
class ChannelMember:
    """A client in a channel; `info` is of its connection, `channel_info` of its subscription."""

    client: str
    user: str
    info: Any = None
    channel_info: Any = None


@dataclass(frozen=True, slots=True)
class ReceivedPublication:
    """A publication; `publisher` is None if the server published it."""

    data: Any
    offset: int = 0
    publisher: ChannelMember | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class ChannelCalls(Protocol):
    """The calls of a subscription to its client."""

    async def publish(self, channel: str, data: Any) -> None:
        """Publish to a channel."""

    async def presence(self, channel: str) -> dict[str, ChannelMember]:
        """Return the clients in a channel by id."""

    async def history(self, channel: str, limit: int = -1) -> list[ReceivedPublication]:
        """Return publications of a channel."""

    async def unsubscribe(self, channel: str) -> None:
        """End a subscription."""


class ClientSubscription:
    """A client's subscription to one channel.

    `data` is what the node sent with the subscription. `recovered` tells whether the last reconnect
    recovered everything. `members` has joins (True) and leaves (False) in the order they came.
    """

    def __init__(
        self, client: ChannelCalls, channel: str, token: str = "", payload: bytes = b""
    ) -> None:
        self.channel = channel
        self.data: Any = None
        self.recovered = False
        self.members: list[tuple[bool, ChannelMember]] = []
        self.waiting: deque[ReceivedPublication] = deque()
        """The publications that `next` has not returned yet."""
        self._client = client
        self._token = token
        self._payload = payload
        self._position = Position(0, "")
        self._recoverable = False
        self._over: Exception | None = None
        self._arrived = asyncio.Event()

    async def next(self, within: float = TIMEOUT) -> ReceivedPublication:
        """Return the next publication; wait for it.

        Raises:
            TimeoutError: none came `within` these seconds.
            Error: the node ended the subscription; its code is that of the unsubscribe.
            Disconnect: the connection ended.
        """
        try:
            async with asyncio.timeout(within):
                while not self.waiting:
                    if self._over is not None:
                        raise self._over
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise TimeoutError(f"nothing came in {self.channel} within {within:g} s") from None
        return self.waiting.popleft()

    async def publish(self, data: Any) -> None:
        """Publish to the channel: see `TestbedClient.publish`."""
        await self._client.publish(self.channel, data)

    async def presence(self) -> dict[str, ChannelMember]:
        """Return the clients in the channel: see `TestbedClient.presence`."""
        return await self._client.presence(self.channel)

    async def history(self, limit: int = -1) -> list[ReceivedPublication]:
        """Return publications of the channel: see `TestbedClient.history`."""
        return await self._client.history(self.channel, limit)

    async def unsubscribe(self) -> None:
        """End the subscription."""
        await self._client.unsubscribe(self.channel)

    def request(self) -> messages.SubscribeRequest:
        """Return the subscribe command; a later one recovers the publications missed since."""
        at = self._position if self._recoverable else Position(0, "")
        return messages.SubscribeRequest(
            self.channel,
            token=self._token,
            data=self._payload,
            recover=self._recoverable,
            offset=at.offset,
            epoch=at.epoch,
        )

    def began(self, result: messages.SubscribeResult | messages.Subscribe) -> None:
        """Take the answer to a subscribe, with the publications that were missed."""
        self._over = None
        self.data = value_of(result.data)
        self._recoverable = result.recoverable
        self._position = Position(result.offset, result.epoch)
        if isinstance(result, messages.SubscribeResult):
            self.recovered = result.recovered
            for publication in result.publications:
                self.received(publication)

    def received(self, event: messages.Event) -> None:
        """Receive a push of the channel."""
        match event:
            case messages.Publication():
                if event.offset:
                    self._position = Position(event.offset, self._position.epoch)
                self.waiting.append(publication_of(event))
                self._arrived.set()
            case messages.Join(info=messages.ClientInfo() as info):
                self.members.append((True, member_of(info)))
            case messages.Leave(info=messages.ClientInfo() as info):
                self.members.append((False, member_of(info)))
            case messages.Unsubscribe():
                self.ended(ReplyError(event.code, event.reason))

    def ended(self, reason: Exception) -> None:
        """Let `next` raise, after the publications that wait."""
        self._over = reason
        self._arrived.set()


def value_of(payload: bytes) -> Any:
    """Return the JSON value of a payload; None for an empty one."""
    return orjson.loads(payload) if payload else None


def member_of(info: messages.ClientInfo) -> ChannelMember:
    """Return a member of a channel."""
    return ChannelMember(info.client, info.user, value_of(info.conn_info), value_of(info.chan_info))


def publication_of(publication: messages.Publication) -> ReceivedPublication:
    """Return a publication with its data as a value."""
    publisher = member_of(publication.info) if publication.info is not None else None
    return ReceivedPublication(
        value_of(publication.data), publication.offset, publisher, publication.tags
    )
