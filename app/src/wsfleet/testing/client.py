"""A client of the Centrifuge protocol in a test: its commands, and their answers."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from pydantic_core import to_json

from wsfleet.protocol.centrifuge import messages
from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.messages import Command, Reply, Request
from wsfleet.testing.replies import ReplyDisconnect, ReplyError
from wsfleet.testing.subscription import (
    TIMEOUT,
    ChannelMember,
    ClientSubscription,
    ReceivedPublication,
    member_of,
    publication_of,
    value_of,
)
from wsfleet.testing.transport import MemoryTransport, Peer
from wsfleet.transports.transport import Framing

CLOSED_BY_CLIENT = 1000
LINES = Framing("lines", text=lambda payload: payload + b"\n", binary=lambda payload: payload)
"""Payloads of JSON are lines: they have no line breaks of their own."""

_CODEC = JSONCodec()

R = TypeVar("R", bound=messages.Result)
Open = Callable[[Peer], Awaitable[MemoryTransport]]
"""Opens a transport to a node that takes clients."""
Take = Callable[[Any], None]
"""Takes a result at once, before anything that the node sends after it."""


class TestbedClient:
    """A connected client.

    `id` is its name at the node, `data` what the node sent with the connection. `subscriptions` are
    those by channel, also those that the server made. Each command that the node refuses raises
    `Error`, or `Disconnect` if it ends the connection.
    """

    __test__ = False  # for pytest
    framing = LINES

    def __init__(self, open_: Open, request: messages.ConnectRequest) -> None:
        self.id = ""
        self.data: Any = None
        self.node = ""
        """The name of its node."""
        self.subscriptions: dict[str, ClientSubscription] = {}
        self._open = open_
        self._request = request
        self._of_server: set[str] = set()
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[asyncio.Future[Any], Take]] = {}
        self._transport: MemoryTransport
        self._over: asyncio.Future[ReplyDisconnect]

    async def connect(self) -> None:
        """Connect; after a disconnect, connect again and recover the subscriptions.

        The node may be another one.

        Raises:
            HandshakeRefused, Error, Disconnect: the node refuses it.
        """
        self._over = asyncio.get_running_loop().create_future()
        self._transport = await self._open(self)
        self._request.subs = {
            channel: self.subscriptions[channel].request() for channel in self._of_server
        }
        try:
            await self._ask(self._request, messages.ConnectResult, self._connected)
        except BaseException:  # as SDKs do
            await self.close()
            raise
        for channel, subscription in self.subscriptions.items():
            if channel not in self._of_server:
                await self._subscribe(subscription)

    async def close(self) -> None:
        """Close the connection, and wait until the node has cleaned up."""
        await self._transport.close(CLOSED_BY_CLIENT, "closed by the test")

    async def disconnected(self, within: float = TIMEOUT) -> ReplyDisconnect:
        """Wait until the connection has ended; return code and reason.

        Raises:
            TimeoutError: it has not ended `within` these seconds.
        """
        async with asyncio.timeout(within):
            return await asyncio.shield(self._over)

    async def subscribe(
        self, channel: str, *, token: str = "", data: Any = None
    ) -> ClientSubscription:
        """Subscribe to a channel; `token` is a subscription token."""
        new = ClientSubscription(self, channel, token, _payload(data))
        subscription = self.subscriptions.setdefault(channel, new)
        try:
            await self._subscribe(subscription)
        except BaseException:
            if subscription is new:  # else the node has refused a second one
                self.subscriptions.pop(channel, None)
            raise
        return subscription

    async def unsubscribe(self, channel: str) -> None:
        """End a subscription."""
        await self._ask(messages.UnsubscribeRequest(channel), messages.UnsubscribeResult)
        self.subscriptions.pop(channel, None)

    async def publish(self, channel: str, data: Any) -> None:
        """Publish to a channel: a JSON value, or a pydantic model."""
        await self._ask(messages.PublishRequest(channel, _payload(data)), messages.PublishResult)

    async def rpc(self, method: str, data: Any = None) -> Any:
        """Call a method; return its answer."""
        answer = await self._ask(messages.RPCRequest(_payload(data), method), messages.RPCResult)
        return value_of(answer.data)

    async def presence(self, channel: str) -> dict[str, ChannelMember]:
        """Return the clients in a channel by id."""
        answer = await self._ask(messages.PresenceRequest(channel), messages.PresenceResult)
        return {client: member_of(info) for client, info in answer.presence.items()}

    async def history(self, channel: str, limit: int = -1) -> list[ReceivedPublication]:
        """Return publications of a channel, oldest first; a negative limit is all of them."""
        answer = await self._ask(messages.HistoryRequest(channel, limit), messages.HistoryResult)
        return [publication_of(each) for each in answer.publications]

    async def refresh(self, token: str) -> None:
        """Extend the connection with a new token."""
        await self._ask(messages.RefreshRequest(token), messages.RefreshResult)

    # For the transport.

    def received(self, frames: bytes) -> None:
        """Take replies and pushes."""
        for reply in _CODEC.decode_replies(frames):
            if reply.id:
                self._answered(reply)
            elif reply.push is not None:
                self._pushed(reply.push)
            else:  # a ping
                self._transport.send(_CODEC.encode_commands([Command()]).decode())

    def closed(self, close: ReplyDisconnect) -> None:
        """Take note of the end of the connection."""
        self._over.set_result(close)
        for future, _ in self._asked.values():
            if not future.done():
                future.set_exception(close)
        self._asked.clear()
        for subscription in self.subscriptions.values():
            subscription.ended(close)

    def _answered(self, reply: Reply) -> None:
        future, take = self._asked.pop(reply.id)
        if (error := reply.error) is None:
            take(reply.result)
        if future.done():  # the test does not wait any more
            return
        if error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(ReplyError(error.code, error.message, temporary=error.temporary))

    def _connected(self, result: messages.ConnectResult) -> None:
        self.id, self.node, self.data = result.client, result.node, value_of(result.data)
        self._of_server = set(result.subs)
        for channel, each in result.subs.items():
            self._subscription(channel).began(each)

    def _pushed(self, push: messages.Push) -> None:
        match push.event:
            case messages.Subscribe():
                self._of_server.add(push.channel)
                self._subscription(push.channel).began(push.event)
            case event if push.channel in self.subscriptions:
                self.subscriptions[push.channel].received(event)
                if isinstance(event, messages.Unsubscribe):
                    del self.subscriptions[push.channel]
                    self._of_server.discard(push.channel)

    def _subscription(self, channel: str) -> ClientSubscription:
        return self.subscriptions.setdefault(channel, ClientSubscription(self, channel))

    async def _subscribe(self, subscription: ClientSubscription) -> None:
        await self._ask(subscription.request(), messages.SubscribeResult, subscription.began)

    async def _ask(self, request: Request, kind: type[R], take: Take = lambda result: None) -> R:
        """Send a command, and return its answer.

        Raises:
            Error, Disconnect: the node refuses it.
        """
        if self._over.done():
            raise self._over.result()
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = future, take
        self._transport.send(_CODEC.encode_commands([Command(number, request)]).decode())
        return cast(R, await future)


def _payload(data: Any) -> bytes:
    return b"" if data is None else to_json(data)
