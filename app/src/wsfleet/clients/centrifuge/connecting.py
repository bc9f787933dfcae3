"""How a client connects, and stays connected: its token, its user's only connection, its expiry."""

import asyncio
import time

import structlog

from wsfleet import __version__
from wsfleet.auth.tokens import ConnectionToken, TokenError, TokenExpiredError
from wsfleet.broker import control
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


class Connecting:
    """The connect command of one client, and what extends or ends the connection later."""

    __slots__ = (
        "_config",
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
    ) -> None:
        self._node = node
        self._config = node.config.client
        self._connection = connection
        self._identity = identity
        self._sender = sender
        self._timers = timers
        self._subscriptions = subscriptions
        self._expire_at = 0  # as the token said, until the client has connected
        self._others_ended: asyncio.Event | None = None  # an unused one is 700 bytes
        self.connected = False

    def identify(self, request: ConnectRequest) -> ConnectionToken | None:
        """Take the client's identity from its token; return None if it has no token.

        Raises:
            RefusedError, DisconnectedError: the token is missing, expired or invalid.
        """
        if not request.token:
            if not self._config.allow_anonymous_connect_without_token:
                raise DisconnectedError(DisconnectCode.BAD_REQUEST)
            return None
        try:
            token = self._node.connection_tokens.verify_connection(request.token)
        except TokenExpiredError:
            raise RefusedError(ErrorCode.TOKEN_EXPIRED) from None
        except TokenError as error:
            log.info("token_refused", client_id=self._identity.client, error=str(error))
            raise DisconnectedError(DisconnectCode.INVALID_TOKEN) from None
        if not token.user and self._config.disallow_anonymous_connection_tokens:
            raise DisconnectedError(DisconnectCode.PERMISSION_DENIED)
        identity = self._identity
        identity.user, identity.info, identity.token_id = token.user, token.info or b"", token.id
        self._expire_at = token.expire_at
        return token

    async def connect(
        self, request: ConnectRequest, token: ConnectionToken | None
    ) -> ConnectResult:
        """Connect the client, and make its server-side subscriptions.

        Nothing is awaited between `connected` and the answer.

        Raises:
            DisconnectedError, RefusedError, ChannelError: it may not connect.
            UnavailableError, redis.exceptions.RedisError: Redis is unavailable.
        """
        self._connection.cork()
        reserved = self._subscriptions.reserve(request, dict(token.subs) if token else {})
        # Only after it was added: if its user is blocked from now on, the client is told.
        await self._check_denylist(self._identity.token_id)
        await self._node.client_names.open(self._connection)
        subs = await self._subscriptions.make_live(reserved)
        personal = self._config.subscribe_to_user_personal_channel
        if personal.enabled and personal.single_connection and self._identity.user:
            await self._end_others()
        if self._sender.ended:  # by another: the client has been told already
            raise DisconnectedError(DisconnectCode.CONNECTION_CLOSED)
        self.connected = True
        self._timers.connected(self._expire_at)
        return ConnectResult(
            client=self._identity.client,
            version=f"wsfleet {__version__}",
            expires=self._expire_at > 0,
            ttl=ttl(self._expire_at),
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
        self._timers.expire_at(token.expire_at)
        return RefreshResult(expires=token.expire_at > 0, ttl=ttl(token.expire_at))

    def refresh_server_side(self, wanted: control.UserCommand) -> None:
        """Let the connection expire at another time: Client.Refresh of the reference server."""
        expire_at = wanted.expire_at
        if wanted.expired or 0 < expire_at <= time.time():
            self._sender.disconnect(DisconnectCode.EXPIRED)
            return
        self._identity.info = wanted.info or self._identity.info
        if not self.connected:  # the reply to connect says when it expires
            self._expire_at = expire_at
            return
        self._timers.expire_at(expire_at)
        self._sender.push(Refresh(expires=expire_at > 0, ttl=ttl(expire_at)))
