"""How a client connects, and stays connected: its token, its user's only connection, its expiry."""

import asyncio
import time
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import structlog

from wsfleet import __version__
from wsfleet.application.port import Backend
from wsfleet.auth.tokens import Grant, TokenError, TokenExpiredError
from wsfleet.broker import control
from wsfleet.clients.centrifuge.application_calls import ApplicationCalls
from wsfleet.clients.centrifuge.errors import DisconnectedError, RefusedError
from wsfleet.clients.centrifuge.identity import ClientIdentity
from wsfleet.clients.centrifuge.push import Sender
from wsfleet.clients.centrifuge.subscriptions import Subscriptions
from wsfleet.clients.centrifuge.timers import Timers, ttl
from wsfleet.hub.connection import Connection
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.protocol.centrifuge.messages import (
    ConnectRequest,
    ConnectResult,
    Refresh,
    RefreshRequest,
    RefreshResult,
)

log = structlog.get_logger(__name__)

SINGLE_CONNECTION_TIMEOUT = 5.0
"""Seconds for a node to receive its own message that a connection is its user's only one."""


class Welcome(NamedTuple):
    """The subscriptions and data that the server gives an identified client.

    `requested` are the channels that the client asks for and may have by the rules of the channels.
    """

    subs: dict[str, Grant]
    requested: Collection[str] = ()
    data: bytes = b""


class Connecting:
    """The connect command of one client, and later the extension or end of its connection."""

    __slots__ = (
        "_calls",
        "_connection",
        "_expire_at",
        "_identity",
        "_node",
        "_others_ended",
        "_sender",
        "_subscriptions",
        "_timers",
        "connected",
    )

    def __init__(
        self,
        node: Node,
        connection: Connection,
        identity: ClientIdentity,
        sender: Sender,
        timers: Timers,
        subscriptions: Subscriptions,
        calls: ApplicationCalls | None,
    ) -> None:
        self._node = node
        self._calls = calls
        self._connection = connection
        self._identity = identity
        self._sender = sender
        self._timers = timers
        self._subscriptions = subscriptions
        self._expire_at = 0
        self._others_ended: asyncio.Event | None = None  # an unused one is 700 bytes
        self.connected = False

    async def ask(
        self, calls: ApplicationCalls, backend: Backend, request: ConnectRequest
    ) -> Welcome:
        """Take the client's identity from the application.

        Raises:
            RefusedError, DisconnectedError: the application refuses the client, or fails.
        """
        self._timers.connecting()
        connected = await calls.connect(backend, request)
        if connected is None:
            return self._anonymous(request)
        self._known_as(connected.user, connected.info, connected.meta)
        self._expire_at = connected.expire_at
        return Welcome(dict(connected.subs), data=connected.data)

    def identify(self, request: ConnectRequest) -> Welcome:
        """Take the client's identity from its token; a client without a token has none.

        Raises:
            RefusedError, DisconnectedError: the token is missing, expired or invalid.
        """
        if not request.token:
            return self._anonymous(request)
        try:
            token = self._node.connection_tokens.verify_connection(request.token)
        except TokenExpiredError:
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenError as error:
            log.info("token_refused", client_id=self._identity.client, error=str(error))
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        if not token.user and self._node.config.client.disallow_anonymous_connection_tokens:
            raise DisconnectedError(DisconnectCode.PERMISSION_DENIED)
        self._known_as(token.user, token.info or b"", token.meta or b"")
        self._identity.token_id = token.id
        self._expire_at = token.expire_at
        return Welcome(dict(token.subs), request.subs)

    def _anonymous(self, request: ConnectRequest) -> Welcome:
        if not self._node.config.client.allow_anonymous_connect_without_token:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        return Welcome({}, request.subs)

    def _known_as(self, user: str, info: bytes, meta: bytes) -> None:
        self._identity.user, self._identity.info = user, info
        if self._calls is not None:
            client = self._calls.client
            client.user, client.info, client.meta = user, info, meta

    async def connect(self, request: ConnectRequest, welcome: Welcome) -> ConnectResult:
        """Connect the client, and make its server-side subscriptions.

        Nothing is awaited between `connected` and the answer.

        Raises:
            DisconnectedError, RefusedError, ChannelError: it may not connect.
            UnavailableError, redis.exceptions.RedisError: Redis is unavailable.
        """
        self._connection.cork()
        reserved = self._subscriptions.reserve(request, welcome.subs, welcome.requested)
        # Only after it was added: if its user is blocked from now on, the client is told.
        await self._check_denylist(self._identity.token_id)
        opening = self._node.client_names.open(self._connection)
        if self._calls is None:
            await opening
        else:
            await asyncio.gather(opening, self._calls.opened())  # one round trip
        subs = await self._subscriptions.make_live(reserved)
        personal = self._node.config.client.subscribe_to_user_personal_channel
        if personal.enabled and personal.single_connection and self._identity.user:
            await self._end_others()
        if self._sender.ended:  # by another: the client has been told already
            raise DisconnectedError(DisconnectCode.CONNECTION_CLOSED)
        self.connected = True
        self._timers.connected()
        told = self._set_expiry(self._expire_at)
        return ConnectResult(
            client=self._identity.client,
            version=f"wsfleet {__version__}",
            expires=told > 0,
            ttl=ttl(told),
            data=welcome.data,
            subs=subs,
            ping=self._timers.ping_interval,
            pong=self._timers.expects_pongs,
            node=self._node.settings.name,
        )

    async def _check_denylist(self, token_id: str) -> None:
        objection = await self._node.denylist.objection(self._identity.user, token_id)
        if objection is not None:
            raise DisconnectedError(objection)

    async def _end_others(self) -> None:
        """End the user's other connections, on all nodes.

        All nodes receive these messages in the same order. Of two connections that are made at
        once, the earlier one ends when it receives the message of the later one. The later one
        stays: it ignores messages before its own.

        Raises:
            UnavailableError: the nodes cannot be told.
        """
        self._others_ended = asyncio.Event()
        only_this = control.SingleConnection(self._identity.user, self._identity.client)
        await self._node.broker.publish_control(control.encode(only_this))
        async with self._node.broker.patience(
            SINGLE_CONNECTION_TIMEOUT, "the nodes do not hear of the connection"
        ):
            await self._others_ended.wait()

    def only_one_stays(self, client: str) -> None:
        """End the connection if `client` is a later one that is to be its user's only one."""
        if self._others_ended is None:
            return
        if client == self._identity.client:
            self._others_ended.set()
        elif self._others_ended.is_set():
            self._sender.disconnect(DisconnectCode.CONNECTION_LIMIT)

    async def refresh(self, request: RefreshRequest) -> RefreshResult:
        """Extend the connection with a new token.

        Raises:
            DisconnectedError: the token is invalid.
            UnavailableError: Redis is unavailable.
        """
        if not request.token:
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        try:
            token = self._node.connection_tokens.verify_connection(request.token)
            token.check(user=self._identity.user)
        except TokenExpiredError:
            raise DisconnectedError(DisconnectCode.EXPIRED) from None
        except TokenError:
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        # Set before the check: a revocation from now on finds the connection.
        before, self._identity.token_id = self._identity.token_id, token.id
        try:
            await self._check_denylist(token.id)
        except BaseException:
            self._identity.token_id = before
            raise
        if self._calls is not None and token.meta is not None:
            self._calls.client.meta = token.meta
            self._calls.changed()
        told = self._set_expiry(token.expire_at)
        return RefreshResult(expires=told > 0, ttl=ttl(told))

    def refresh_server_side(self, wanted: control.UserCommand) -> None:
        """Let the connection expire at another time: Client.Refresh of the reference server."""
        expire_at = wanted.expire_at
        if wanted.expired or 0 < expire_at <= time.time():
            self._sender.disconnect(DisconnectCode.EXPIRED)
            return
        self._new_info(wanted.info or None)
        if not self.connected:  # the reply to connect says when it expires
            self._expire_at = expire_at
            return
        told = self._set_expiry(expire_at)
        self._sender.push(Refresh(expires=told > 0, ttl=ttl(told)))

    def _set_expiry(self, expire_at: int) -> int:
        """Let the connection expire at a moment in Unix seconds; 0 is never.

        Returns:
            The moment that the client is told: 0 if the server renews the connection.
        """
        self._expire_at = expire_at
        if self._calls is None or (backend := self._calls.router.refresh) is None:
            self._timers.expire_at(expire_at)
            return expire_at
        renewal = partial(self._renew, self._calls, backend)
        self._timers.expire_at(expire_at, partial(self._calls.start, renewal))
        return 0

    async def _renew(self, calls: ApplicationCalls, backend: Backend) -> None:
        """Let the application renew the connection, unless something else does meanwhile."""
        expired_at = self._expire_at
        renewed = await calls.refresh(backend)
        if self._expire_at != expired_at:
            return
        if renewed.expired:
            self._sender.disconnect(DisconnectCode.EXPIRED)
        else:
            self._new_info(renewed.info)
            if renewed.meta is not None:
                calls.client.meta = renewed.meta
                calls.changed()
            self._set_expiry(renewed.expire_at)

    def _new_info(self, info: bytes | None) -> None:
        """Change the client's info, which others see; None: nothing changes."""
        if info is not None:
            self._identity.info = info
            if self._calls is not None:
                self._calls.client.info = info
                self._calls.changed()
