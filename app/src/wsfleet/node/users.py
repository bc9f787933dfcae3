"""The connections of this node by user, for all protocols."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from wsfleet.auth.denylist import Denylist
from wsfleet.broker import control
from wsfleet.broker.events import BrokerEventHandler, NodeCount
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.redis.background import Background

RECHECK_INTERVAL = 60.0
"""Seconds after which a blocked user's or a revoked token's connection ends at the latest."""
RECHECK_CHUNK = 500


class UserClient(Protocol):
    """One client as a connection of its user; "" is no user."""

    @property
    def id(self) -> str:
        """Name of the connection."""

    @property
    def user(self) -> str:
        """The user; "" for a client without one."""

    def tokens(self) -> list[str]:
        """Return the `jti` of each token that the connection, or a subscription, rests on."""

    def revoked(self, token_id: str) -> None:
        """End the connection or subscriptions that rest on the token with this `jti`."""

    async def command(self, wanted: control.UserCommand) -> None:
        """Handle a command of the server's API."""

    def disconnect(self, code: DisconnectCode) -> None:
        """Close the connection."""


class Users(BrokerEventHandler):
    """The connections by user; "" has those without a user, for which there is no limit."""

    def __init__(self, limit: int, on_failed: Callable[[str], None] = lambda event: None) -> None:
        self._limit = limit
        self._clients: dict[str, set[UserClient]] = {}
        self._background = Background(on_failed)
        self._hurry = asyncio.Event()

    def __iter__(self) -> Iterator[UserClient]:
        """Iterate over a copy of all clients: they may leave meanwhile."""
        return iter([client for clients in self._clients.values() for client in clients])

    def of(self, user: str) -> list[UserClient]:
        """Return the connections of a user."""
        return list(self._clients.get(user, ()))

    def is_full(self, user: str) -> bool:
        """Return whether the user has as many connections as the limit allows."""
        return bool(user and self._limit) and len(self._clients.get(user, ())) >= self._limit

    def add(self, client: UserClient) -> bool:
        """Add a client; return False if its user has too many connections."""
        if self.is_full(client.user):
            return False
        self._clients.setdefault(client.user, set()).add(client)
        return True

    def remove(self, client: UserClient) -> None:
        """Remove a client, if it was added."""
        clients = self._clients.get(client.user, set())
        clients.discard(client)
        if not clients:
            self._clients.pop(client.user, None)

    def commanded(self, command: control.ControlMessage) -> None:
        """Handle a control message for a user's connections, or for a token's."""
        match command:
            case control.UserCommand():
                for client in self.of(command.user):
                    if command.concerns(client.user, client.id):
                        self._background.start(client.command(command))
            case control.Revocation():
                self._revoked(command.token)

    def hurry(self) -> None:
        """Check again now: control messages may have been missed."""
        self._hurry.set()

    async def recheck(self, denylist: Denylist) -> None:
        """Check all users and tokens periodically: a control message may have been lost."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_INTERVAL):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._check(denylist.blocked, list(self._clients), self._blocked)
            tokens = {token for client in self for token in client.tokens()}
            await self._check(denylist.revoked, list(tokens), self._revoked)

    async def _check(
        self,
        ask: Callable[[str], Awaitable[bool]],
        names: list[str],
        end: Callable[[str], None],
    ) -> None:
        """Call `end` for each name that Redis lists; errors are left to the next check."""
        for start in range(0, len(names), RECHECK_CHUNK):
            chunk = names[start : start + RECHECK_CHUNK]
            answers = await asyncio.gather(*map(ask, chunk), return_exceptions=True)
            for name, answer in zip(chunk, answers, strict=True):
                if answer is True:
                    end(name)

    def _blocked(self, user: str) -> None:
        for client in self.of(user):
            client.disconnect(DisconnectCode.PERMISSION_DENIED)

    def _revoked(self, token: str) -> None:
        for client in self:
            client.revoked(token)

    def count(self, census: NodeCount) -> None:
        """Count the clients and their users."""
        census.clients += sum(map(len, self._clients.values()))
        census.users |= self._clients.keys()
