"""A client of the Centrifuge protocol: it connects, its commands are dispatched, it ends.

The semantics are those of client.go in github.com/centrifugal/centrifuge, with Centrifugo's rules
for channels; `docs/protocol.md` lists the differences.
"""

from typing import Protocol

import structlog
from redis.exceptions import RedisError

from wsfleet.application import port
from wsfleet.broker import control
from wsfleet.channels.permissions import ChannelError
from wsfleet.clients.centrifuge.application_calls import ApplicationAccess, ApplicationCalls
from wsfleet.clients.centrifuge.channel_commands import ChannelCommands
from wsfleet.clients.centrifuge.connecting import Connecting
from wsfleet.clients.centrifuge.errors import DisconnectedError, EndedError, RefusedError
from wsfleet.clients.centrifuge.identity import ClientIdentity
from wsfleet.clients.centrifuge.push import Format, Sender
from wsfleet.clients.centrifuge.subscriptions import Subscriptions
from wsfleet.clients.centrifuge.timers import Timers
from wsfleet.hub.connection import Connection
from wsfleet.protocol.centrifuge.codec import LONGEST_PONG, ProtocolError
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.protocol.centrifuge.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    Push,
    RefreshRequest,
    Reply,
    Result,
    RPCRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
    UnsubscribeResult,
)
from wsfleet.redis.store import UnavailableError
from wsfleet.transports.transport import Close

log = structlog.get_logger(__name__)


class Clients(ApplicationAccess, Protocol):
    """The clients of the protocol on this node, as each of them needs them."""

    def add(self, client: "CentrifugeClient") -> bool:
        """Add a client whose user is known; return False if the user has too many connections."""

    def remove(self, client: "CentrifugeClient") -> bool:
        """Remove a client; return False if it was not added, or is removed already."""


class CentrifugeClient:
    """One client: its commands are handled one after the other; `known` is it as backends see it.

    A command is answered in one place, with what its handling returned or raised. Work that goes on
    after the answer is in the background, so that it cannot answer a second time.
    """

    __slots__ = (
        "_calls",
        "_clients",
        "_codec",
        "_commands",
        "_connecting",
        "_connection",
        "_sender",
        "_timers",
        "identity",
        "subscriptions",
    )

    def __init__(
        self,
        clients: Clients,
        connection: Connection,
        format_: Format,
        *,
        app_pings: bool,
        known: port.Client | None = None,
    ) -> None:
        self._clients = clients
        node = clients.node
        self._connection = connection
        self._codec = format_.codec
        self.identity = ClientIdentity(connection.client_id)
        self._sender = Sender(connection, format_.codec)
        self._timers = Timers(node.config.client, self._sender, app_pings=app_pings)
        calls = None
        if known is not None and clients.router is not None:
            calls = ApplicationCalls(clients, clients.router, self._sender, known)
        self._calls = calls
        self.subscriptions = Subscriptions(
            node, connection, format_, self.identity, self._sender, clients.background, calls
        )
        self._connecting = Connecting(
            node, connection, self.identity, self._sender, self._timers, self.subscriptions, calls
        )
        self._commands = ChannelCommands(
            node, connection, self.identity, self._sender, self.subscriptions.table, calls
        )

    # From the client.

    async def receive(self, message: str | bytes) -> None:
        """Handle the commands of one message."""
        try:
            received = self._codec.decode(message)
        except ProtocolError as error:
            self.disconnect(error.disconnect)
            return
        for command in received:
            if self._sender.ended:
                self.disconnect(DisconnectCode.BAD_REQUEST)
                return
            try:
                if answer := await self._answer(command):
                    self._sender.reply(answer)
            except DisconnectedError as error:
                self.disconnect(error.code)
                return
            except ProtocolError as error:
                self._sender.unencodable(error)
                return

    async def enter(self) -> None:
        """Do nothing: a client of this protocol enters by its connect command."""

    def take_pong(self, message: str | bytes) -> bool:
        """Handle a message if it is a pong, which need not wait for commands before it."""
        if len(message) > LONGEST_PONG or message not in self._codec.pongs:
            return False
        try:
            self._timers.pong()
        except DisconnectedError as error:
            self.disconnect(error.code)
        return True

    def gone(self) -> None:
        """Remove the client, and handle no more commands: the connection has ended."""
        self._sender.ended = True
        if self._clients.remove(self) and self.connected and self._calls is not None:
            self._calls.ended(self._connection.close_code, self._connection.reason)
        self._timers.stop()

    async def left(self) -> None:
        """End all subscriptions."""
        self.gone()  # once more: the last command may have started a timer
        await self._give_up()

    async def _answer(self, command: Command) -> list[Reply]:
        """Handle a command, and return its one answer with a push that follows it, if any.

        A pong has no answer.

        Nothing is awaited between going live and the answer: no publication comes before it.

        Raises:
            DisconnectedError: the connection ends instead.
        """
        try:
            result = await self._handle(command)
        except EndedError as ended:
            # It is subscribed and unsubscribed at once, without a publication in between.
            push = Push(ended.code.push, ended.channel)
            return [Reply(command.id, SubscribeResult()), Reply(push=push)]
        except RefusedError as refused:
            error = refused.error
        except ChannelError as refused:
            error = refused.code.error
        except (UnavailableError, RedisError) as failed:
            log.info("command_failed", client_id=self.id, error=str(failed))
            error = ErrorCode.INTERNAL.error
        else:
            return [] if result is None else [Reply(command.id, result)]
        self._clients.node.metrics.reply_error(error.code)
        return [Reply(command.id, error=error)]

    async def _handle(self, command: Command) -> Result | None:
        request = command.request
        if request is None:
            self._timers.pong()
            return None
        if self._connecting.connected == isinstance(request, ConnectRequest):
            raise DisconnectedError(DisconnectCode.BAD_REQUEST)
        if command.refusal is not None:
            raise RefusedError(command.refusal)
        match request:
            case ConnectRequest():
                return await self._connect(request)
            case SubscribeRequest():
                return await self.subscriptions.subscribe(request)
            case UnsubscribeRequest():
                self.subscriptions.unsubscribe(request.channel)
                return UnsubscribeResult()
            case PublishRequest():
                return await self._commands.publish(request)
            case PresenceRequest():
                return await self._commands.presence(request)
            case PresenceStatsRequest():
                return await self._commands.presence_stats(request)
            case HistoryRequest():
                return await self._commands.history(request)
            case RefreshRequest():
                return await self._connecting.refresh(request)
            case SubRefreshRequest():
                return await self.subscriptions.refresh(request)
            case SendRequest():
                raise DisconnectedError(DisconnectCode.NOT_AVAILABLE)
            case RPCRequest():
                return await self._commands.rpc(request)

    # Connecting.

    async def _connect(self, request: ConnectRequest) -> ConnectResult:
        """Connect the client.

        If connecting fails, nothing is left of the attempt, and the client has to open another
        connection.
        """
        if self._calls is not None:
            self._calls.client.emulated_headers = request.headers
        try:
            calls = None if request.token else self._calls
            if calls is not None and (backend := calls.router.connect) is not None:
                welcome = await self._connecting.ask(calls, backend, request)
            else:
                welcome = self._connecting.identify(request)
            self._add()
            return await self._connecting.connect(request, welcome)
        except BaseException:
            self._timers.await_connect()
            if self._calls is not None:
                self._calls.not_connected()
            await self._give_up()
            self._connection.cork()  # the data held back belong to a connection that was not made
            raise

    def _add(self) -> None:
        if not self._clients.add(self):
            raise DisconnectedError(DisconnectCode.CONNECTION_LIMIT)

    async def _give_up(self) -> None:
        """Undo all that was done for the connection, on this node and, if it answers, in Redis."""
        self._sender.ended = True
        self._clients.remove(self)
        await self.subscriptions.end_all()

    def only_one_stays(self, client: str) -> None:
        """End the connection if `client` is a later one that is to be its user's only one."""
        self._connecting.only_one_stays(client)

    # As one of the node's users, see `node.users.UserClient`.

    @property
    def id(self) -> str:
        """Name of the connection."""
        return self.identity.client

    @property
    def connected(self) -> bool:
        """Whether the client has connected."""
        return self._connecting.connected

    @property
    def user(self) -> str:
        """The user; "" for a client without one."""
        return self.identity.user

    def disconnect(self, code: DisconnectCode | Close) -> None:
        """Close the connection."""
        self._sender.disconnect(code)

    def tokens(self) -> list[str]:
        """Return the `jti` of each token that the connection, or a subscription, rests on."""
        subscriptions = self.subscriptions.table
        ids = [self.identity.token_id, *(each.token_id for each in subscriptions)]
        return [token_id for token_id in ids if token_id]

    def revoked(self, token_id: str) -> None:
        """End the connection, or the subscriptions, that rest on the token, for good."""
        if token_id == self.identity.token_id:
            self.disconnect(DisconnectCode.INVALID_TOKEN)
        else:
            self.subscriptions.revoke(token_id)

    async def command(self, wanted: control.UserCommand) -> None:
        """Handle a command of the server's API."""
        match wanted.do:
            case "disconnect":
                self._sender.close(wanted.code, wanted.reason)
            case "unsubscribe":
                self.subscriptions.unsubscribe_server_side(wanted.channel)
            case "subscribe":
                try:
                    await self.subscriptions.subscribe_server_side(wanted)
                except (ChannelError, DisconnectedError, EndedError) as error:
                    log.info("server_subscription_failed", client_id=self.id, error=str(error))
            case "refresh":
                self._connecting.refresh_server_side(wanted)
