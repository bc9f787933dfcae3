"""One client's calls of the application's backends."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from wsfleet.application import port
from wsfleet.application.disconnects import Disconnects
from wsfleet.application.measured import measured
from wsfleet.application.port import Backend, BackendError, Router
from wsfleet.application.routing import method_label
from wsfleet.application.sessions import Sessions
from wsfleet.channels.permissions import Channel
from wsfleet.clients.centrifuge.errors import DisconnectedError, RefusedError
from wsfleet.clients.centrifuge.push import Sender
from wsfleet.clients.centrifuge.timers import RETRY_RENEWAL
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge import messages
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.redis.background import Background
from wsfleet.transports.transport import Close

R = TypeVar("R")


class ApplicationAccess(Protocol):
    """The parts of a node that its clients need to call the application."""

    @property
    def node(self) -> Node:
        """The node."""

    @property
    def background(self) -> Background:
        """Work that no client waits for."""

    @property
    def router(self) -> Router | None:
        """The backends by event; None if there are none."""

    @property
    def disconnects(self) -> Disconnects | None:
        """The sender of disconnects to the application; None if it has no handler for them."""

    @property
    def sessions(self) -> Sessions:
        """The clients' sessions."""


class ApplicationCalls:
    """One client's calls of the application's backends; `client` is what these see of it.

    Each call raises RefusedError if the backend refuses or fails, and DisconnectedError if the
    backend disconnects the client, or if the connection has ended meanwhile. Other things may have
    happened during the call, so the caller checks its own state after it.
    """

    __slots__ = ("_application", "_sender", "client", "router")

    def __init__(
        self, application: ApplicationAccess, router: Router, sender: Sender, client: port.Client
    ) -> None:
        self._application = application
        self._sender = sender
        self.router = router
        self.client = client

    # Commands.

    async def connect(
        self, backend: Backend, request: messages.ConnectRequest
    ) -> port.Connected | None:
        """Identify the client; return None if it has no credentials."""
        call = port.ConnectCall(
            self.client,
            request.data,
            request.name,
            request.version,
            tuple(request.subs),
        )
        answer = await self._answer("connect", "", backend.connect(call))
        if answer is not None and answer.session:
            self.client.session = self._application.sessions.named(answer.session)
        return answer

    async def subscribe(
        self, backend: Backend, channel: Channel, request: messages.SubscribeRequest
    ) -> port.Subscribed:
        """Let the client subscribe."""
        call = port.SubscribeCall(self.client, channel.name, self._short(channel), request.data)
        return await self._answer("subscribe", channel.namespace, backend.subscribe(call))

    async def publish(self, backend: Backend, channel: Channel, data: bytes) -> port.Published:
        """Let the client publish."""
        call = port.PublishCall(self.client, channel.name, self._short(channel), data)
        return await self._answer("publish", channel.namespace, backend.publish(call))

    async def rpc(self, request: messages.RPCRequest) -> bytes:
        """Call a method."""
        method = request.method
        try:
            backend = self.router.rpc(method)
        except port.UnknownMethodError:
            raise RefusedError(ErrorCode.METHOD_NOT_FOUND) from None
        except port.MethodDisabledError:
            raise RefusedError(ErrorCode.NOT_AVAILABLE) from None
        label = method_label(self.router.methods, method)
        call = port.RpcCall(self.client, method, request.data)
        return await self._answer("rpc", label, backend.rpc(call))

    # Renewals by the server.

    async def refresh(self, backend: Backend) -> port.Renewed:
        """Renew the connection; if that fails, it is extended until the next attempt."""
        return await self._renewed("refresh", "", backend.refresh(port.RefreshCall(self.client)))

    async def sub_refresh(self, backend: Backend, channel: Channel) -> port.Renewed:
        """Renew a subscription; if that fails, it is extended until the next attempt."""
        call = port.SubRefreshCall(self.client, channel.name, self._short(channel))
        return await self._renewed("sub_refresh", channel.namespace, backend.sub_refresh(call))

    def start(self, renewal: Callable[[], Awaitable[None]]) -> None:
        """Run a renewal in the background."""
        self._application.background.start(self._run(renewal))

    # The connection.

    async def opened(self) -> None:
        """Load the client's session, and record the client before it is connected.

        So its end is reported in any case.

        Raises:
            UnavailableError, redis.exceptions.RedisError: Redis does not have the session now.
        """
        if self.client.session.name:
            loading = self._application.sessions.open(self.client)
            await asyncio.gather(loading, self._note())  # one round trip
        else:
            await self._note()

    def changed(self) -> None:
        """Note that the client has changed."""
        if (disconnects := self._application.disconnects) is not None:
            disconnects.changed(self.client)

    def not_connected(self) -> None:
        """Forget the client: it was not connected, so there is no end to tell."""
        self._application.sessions.close(self.client)
        if (disconnects := self._application.disconnects) is not None:
            disconnects.forget(self.client)

    def ended(self, code: int, reason: str) -> None:
        """Tell the application that the connection has ended."""
        self._application.sessions.close(self.client)
        if (disconnects := self._application.disconnects) is not None:
            disconnects.tell(port.DisconnectedCall(self.client, code, reason))

    async def _note(self) -> None:
        if (disconnects := self._application.disconnects) is not None:
            await disconnects.opened(self.client)

    async def _run(self, renewal: Callable[[], Awaitable[None]]) -> None:
        try:
            await renewal()
        except DisconnectedError as error:
            self._sender.disconnect(error.code)

    async def _renewed(
        self, event: str, namespace: str, call: Awaitable[port.Renewed]
    ) -> port.Renewed:
        try:
            renewed = await self._answer(event, namespace, call)
        except RefusedError:
            return port.Renewed(expire_at=int(time.time()) + RETRY_RENEWAL)
        if 0 < renewed.expire_at <= int(time.time()):
            return replace(renewed, expired=True)
        return renewed

    async def _answer(self, event: str, namespace: str, call: Awaitable[R]) -> R:
        metrics = self._application.node.metrics
        failure: Exception
        try:
            answer = await measured(metrics, event, namespace, call, lambda: self._sender.ended)
        except port.Error as error:
            refusal = messages.Error(error.code, error.message, error.temporary)
            failure = RefusedError(refusal)
        except port.Disconnect as disconnect:
            failure = DisconnectedError(Close(disconnect.code, disconnect.reason))
        except BackendError:
            failure = RefusedError(ErrorCode.INTERNAL)
        else:
            if not self._sender.ended:
                return answer
        if self._sender.ended:
            failure = DisconnectedError(DisconnectCode.CONNECTION_CLOSED)
        raise failure

    def _short(self, channel: Channel) -> str:
        return self._application.node.channels.short_name(channel)
